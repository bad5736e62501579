"""Does TensorRT take the file? Parsed by its own ONNX parser and built into an engine.

With TensorRT for RTX, whose builder needs no GPU: the engine is compiled there for named compute
capabilities.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from stg_runtime.artifact import VIDEO
from stg_runtime.errors import InputError, StgError

_MODULE = "tensorrt_rtx_bindings"


def build_engine(
    path: Path,
    *,
    targets: Sequence[str] = ("sm89",),
    shapes: tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]] | None = None,
) -> bytes:
    """Parse an exported file and build a TensorRT for RTX engine of it.

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
    trt = _tensorrt()
    if not path.is_file():
        raise InputError(f"{path}: no such file; write one with stg-export")
    known = [n for n in dir(trt.ComputeCapability) if n.startswith("SM")]
    unknown = [target for target in targets if target.upper() not in known]
    if unknown or not targets:
        valid = ", ".join(sorted((n.lower() for n in known), key=lambda n: int(n[2:])))
        raise InputError(f"target {', '.join(unknown) or '(none)'}: unknown; choose among {valid}")

    log = _log(trt)
    builder = trt.Builder(log)
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, log)
    if not parser.parse(path.read_bytes()):
        first = parser.get_error(0)
        raise StgError(
            f"{path}: TensorRT's ONNX parser refuses it: {first.node_operator()} "
            f"{first.node_name()}: {' '.join(first.desc().split())}"
        )
    config = builder.create_builder_config()
    config.num_compute_capabilities = len(targets)
    for index, target in enumerate(targets):
        config.set_compute_capability(getattr(trt.ComputeCapability, target.upper()), index)
    _add_profile(path, builder, network, config, shapes)
    engine = builder.build_serialized_network(network, config)
    if engine is None:
        raise StgError(
            f"{path}: TensorRT cannot build it: {log.errors[-1:] or ['no reason given']}"
        )
    return bytes(engine)


def _add_profile(path: Path, builder: Any, network: Any, config: Any, shapes: Any) -> None:
    taken = tuple(network.get_input(0).shape)
    if -1 not in taken:
        if shapes is not None and any(tuple(shape) != taken for shape in shapes):
            raise InputError(f"{path}: takes shape {taken} alone; leave the shapes out")
        return
    if shapes is None:
        raise InputError(
            f"{path}: its size is free (-1) on some axes, {taken}; give the smallest, the usual "
            "and the largest shape"
        )
    for shape in shapes:
        if len(shape) != len(taken) or any(
            t not in (-1, s) for t, s in zip(taken, shape, strict=True)
        ):
            raise InputError(f"{path}: takes shape {taken} (-1: free); got {tuple(shape)}")
    profile = builder.create_optimization_profile()
    profile.set_shape(VIDEO, *(tuple(shape) for shape in shapes))
    config.add_optimization_profile(profile)


def _tensorrt() -> Any:
    if importlib.util.find_spec(_MODULE) is None:
        raise InputError(
            "TensorRT for RTX is not installed; pip install tensorrt-rtx-cu13-libs "
            "tensorrt-rtx-cu13-bindings"
        )
    return importlib.import_module(_MODULE)


def _log(trt: Any) -> Any:
    """A logger that keeps the errors and prints nothing."""

    class Log(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
                self.errors.append(" ".join(message.split()))

    return Log()
