"""stg-run bench and stg-run engine: measure a model on a device; take an engine built elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from stg_cli.common import (
    AsJson,
    Debug,
    NoBuild,
    Threads,
    check_no_build,
    parse_size,
    print_json,
    print_rows,
    require,
)
from stg_runtime.interrupts import signals_wait

if TYPE_CHECKING:
    from stg_runtime.artifact import Metadata
    from stg_runtime.backends.base import Shape

Model = Annotated[Path, typer.Argument(metavar="MODEL", help="The .onnx file of stg-export.")]
Device = Annotated[str, typer.Option(metavar="auto|cpu|cuda[:i]|tensorrt", help="Where to run.")]
Chains = Annotated[
    int, typer.Option("-n", "--count", min=1, max=1 << 20, help="Chains walked together.")
]
Frames = Annotated[int | None, typer.Option(min=1, help="Length [default: the model's].")]
Size = Annotated[
    str | None, typer.Option(metavar="HxW", help="Size in pixels [default: the model's].")
]


def bench(
    model: Model,
    device: Device = "auto",
    count: Chains = 1,
    frames: Frames = None,
    size: Size = None,
    repeats: Annotated[
        int | None, typer.Option(min=1, help="Steps in a timing [default: 3; on GPUs 50].")
    ] = None,
    vs: Annotated[
        Literal["torch"] | None, typer.Option(help="Time the same step in PyTorch too; with --run.")
    ] = None,
    run: Annotated[
        Path | None,
        typer.Option(metavar="RUN", help="Folder of stg-train that MODEL was exported from."),
    ] = None,
    no_build: NoBuild = False,
    threads: Threads = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Measure a Langevin step: time, what of it is the gradient, and how far from the limits.

    Example: stg-run bench fire.onnx --device cuda -n 3 --vs torch --run runs/fire

    The limits, a large matrix product and a large copy, are measured in the same run.
    """
    from stg_runtime.backends import open_backend
    from stg_runtime.backends.base import HostGradient
    from stg_runtime.bench import measure
    from stg_runtime.errors import InputError
    from stg_runtime.memory import budget, refuse_larger
    from stg_runtime.synthesize import plan

    if (vs is None) != (run is None):
        raise InputError("--vs torch times the network of a run: give --vs torch and --run RUN")
    if vs is not None:
        require("train", "torch", "safetensors")
    check_no_build(no_build, device)
    backend = open_backend(model, device, threads, may_build=not no_build)
    job = plan(backend.metadata, frames=frames, size=parse_size(size))
    shape = (count, *job.graph[1:])
    if "N" not in backend.metadata.free_axes and count != 1:
        raise InputError(
            f"-n {count}: {model} walks 1 chain at a time; leave it out, or export without --static"
        )
    if isinstance(backend, HostGradient):
        refuse_larger(
            backend,
            (count * job.graph[2], *job.graph[3:]),  # of all chains
            held=0,
            start=0,
            finished=(0, 0, 0),  # no video is made
            limit=budget(None),
            hint="pass a smaller -n, --frames or --size",
        )
    on_gpu = hasattr(backend, "device")
    timed = repeats or (50 if on_gpu else 3)
    figures = measure(
        backend, model, shape, frames=job.size.frames, steps=job.n_steps, repeats=timed
    )
    result = {"model": str(model), **figures.to_dict()}
    if run is not None:
        gpu = f"cuda:{backend.device.index}" if on_gpu else "cpu"  # type: ignore[attr-defined]
        result |= time_torch(run, shape, backend.metadata, where=gpu, repeats=timed)
        result["times_torch"] = result["torch_step_ms"] / figures.step_ms
    if as_json:
        print_json(result)
        return
    _show(result)


def _show(r: dict[str, Any]) -> None:
    limit = r["matmul_tflop_per_s"]
    rows = {
        "model": r["model"],
        "device": r["device"],
        "chains": "x".join(str(extent) for extent in r["shape"]) + ", margins included",
        "step": f"{r['step_ms']:.3f} ms, {r['chain_ms']:.3f} ms a chain",
        "gradient": f"{r['gradient_ms']:.3f} ms, {r['gradient_share']:.1%} of a step",
        "update": f"{r['update_ms']:.3f} ms, {1 - r['gradient_share']:.1%}",
        "arithmetic": f"{r['tflop_per_s']:.3g} TFLOP/s in the gradient ({r['gflop']:.4g} GFLOP of "
        f"the network; the graph computes {r['graph_gflop']:.4g})"
        + ("" if limit is None else f"; a matrix product: {limit:.3g}"),
        "update moves": f"{r['update_gb_per_s']:.4g} GB/s; a copy: {r['copy_gb_per_s']:.4g}",
        "floor": "not known"
        if r["floor_ms"] is None
        else f"{r['floor_ms']:.3f} ms; a step is {r['step_ms'] / r['floor_ms']:.2f} times that",
        "video": f"{r['frames_per_s']:.4g} frames/s in {r['steps']} steps, "
        f"{r['times_real_time']:.3g} times as fast as it plays (sampling alone)",
        "memory": f"{r['memory_mib']:.0f} MiB",
    }
    if "torch_step_ms" in r:
        rows["PyTorch"] = (
            f"{r['torch_step_ms']:.3f} ms a step ({r['torch_how']}): {r['times_torch']:.2f} times "
            "ours"
        )
    if r["note"]:
        rows["note"] = r["note"]
    print_rows(rows)


def time_torch(
    run: Path, shape: Shape, metadata: Metadata, *, where: str, repeats: int
) -> dict[str, Any]:
    """The same step in PyTorch; see `time_energy`.

    Raises:
        InputError: not a run, or PyTorch finds no GPU.
    """
    with signals_wait():
        import torch

        from stg_train.run import load_energy
        from stg_train.timing import time_energy
    from stg_runtime.errors import InputError

    if where != "cpu" and not torch.cuda.is_available():
        raise InputError(
            f"--vs torch: PyTorch {torch.__version__} finds no usable GPU; install a CUDA build"
        )
    energy, _ = load_energy(run)
    return time_energy(
        energy, shape, metadata.step_size, metadata.noise_scale, where=where, repeats=repeats
    )


def engine(
    model: Model,
    engine_file: Annotated[
        Path, typer.Argument(metavar="ENGINE", help="Of stg-export --tensorrt, with its .json.")
    ],
    debug: Debug = False,
) -> None:
    """Take a TensorRT engine that was built elsewhere into this user's cache.

    Example: stg-run engine fire.onnx fire.engine

    An engine is machine code: take only what you or someone you trust built. From then on
    --device tensorrt runs it, as long as it fits this machine's GPU and TensorRT.
    """
    from stg_runtime.backends.engine import Record, sidecar
    from stg_runtime.backends.tensorrt import TensorRt
    from stg_runtime.errors import InputError

    backend = TensorRt(model)
    try:
        record = Record.from_json(sidecar(engine_file).read_text(encoding="utf-8"))
        shape = record.shapes[1]
    except (OSError, ValueError, TypeError, IndexError):
        raise InputError(
            f"{sidecar(engine_file)}: missing or not a record of stg-export --tensorrt"
        ) from None
    backend.adopt(engine_file, shape)  # type: ignore[arg-type]
    print(f"{engine_file} will run {model} at {'x'.join(str(extent) for extent in shape)}")
