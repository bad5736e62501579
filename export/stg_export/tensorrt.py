"""TensorRT engines of exported files.

For this machine's GPU or, with TensorRT for RTX, for named compute capabilities without one.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from stg_runtime.artifact import Metadata
from stg_runtime.backends.engine import (
    RTX,
    EngineCache,
    Record,
    Say,
    Shapes,
    build,
    load_tensorrt,
    product,
    sha256,
    sidecar,
    stamped,
)
from stg_runtime.errors import InputError
from stg_runtime.files import atomic_write_bytes, atomic_write_text, check_output


def build_engine(
    path: Path,
    *,
    targets: Sequence[str] = ("sm89",),
    shapes: Shapes | None = None,
) -> bytes:
    """Parse an exported file and build a TensorRT for RTX engine of it; needs no GPU.

    Args:
        path: the .onnx file.
        targets: compute capabilities that the engine will run on, e.g. "sm86", "sm89", "sm120".
        shapes: smallest, usual and largest shape of the input, for a file with free axes.

    Returns:
        The serialized engine. Loading it needs an NVIDIA driver.

    Raises:
        InputError: TensorRT for RTX is not installed, the file is missing, a target is unknown, or
            the shapes do not fit the file.
        StgError: TensorRT does not take the graph.
    """
    trt = load_tensorrt(RTX)
    if not targets:
        raise InputError("target (none): name at least one compute capability, e.g. sm89")
    return build(trt, path, shapes=shapes, targets=targets)


def export_engine(
    model: Path,
    metadata: Metadata,
    output: Path,
    *,
    targets: Sequence[str] = (),
    overwrite: bool = False,
    say: Say | None = None,
) -> Record:
    """Write an engine of an exported model, and the record of what it is made of beside it.

    `stg-run engine MODEL ENGINE` on the machine it is for puts it into that user's cache.

    Args:
        model: the .onnx file.
        metadata: of the model; its default size, one video, is the engine's.
        output: the engine; OUTPUT.json gets the record.
        targets: see `build_engine`; none: the GPU of this machine.
        overwrite: existing files may be replaced.
        say: told of the builder's progress.

    Raises:
        InputError: see `build_engine`; without targets, no usable GPU here.
        StgError: TensorRT does not take the graph.
    """
    check_output(output, overwrite, suffixes=[".engine"])
    check_output(sidecar(output), overwrite)
    size = metadata.graph_size
    shape = (1, metadata.channels, size.frames, size.height, size.width)
    if targets:
        trt = load_tensorrt(RTX)
        gpu = driver = ""
        capabilities = tuple(target.lower() for target in targets)
    else:
        from stg_runtime.backends.cuda.device import open_device

        trt = load_tensorrt()
        device = open_device(0)
        gpu, driver = device.name, ".".join(str(part) for part in device.driver_version)
        capabilities = (f"sm{device.capability[0]}{device.capability[1]}",)
    static = not metadata.free_axes
    shapes = (shape, shape, shape)
    engine = build(
        trt,
        model,
        shapes=None if static else shapes,
        targets=targets,
        # Without a GPU nothing is timed.
        timing_cache=None if targets else EngineCache().timing(trt, gpu),
        say=say,
    )
    record = Record(
        model=sha256(model),
        shapes=shapes,
        precision=metadata.precision,
        tf32=True,
        tensorrt=product(trt),
        gpu=gpu,
        capabilities=capabilities,
        driver=driver,
    )
    record = stamped(record, engine)
    atomic_write_bytes(output, engine)
    atomic_write_text(sidecar(output), record.to_json())
    return record
