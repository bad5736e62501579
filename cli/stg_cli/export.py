"""stg-export: a run's energy gradient as one ONNX file."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

import typer

from stg_cli.common import AsJson, Debug, Overwrite, parse_size, print_json, require, run_app
from stg_runtime.interrupts import signals_wait

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command()
def export(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder that stg-train wrote.")],
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="MODEL.onnx", help="The model file.")
    ],
    precision: Annotated[
        Literal["fp32", "fp16"], typer.Option(help="Of the convolutions; the rest is float32.")
    ] = "fp32",
    static: Annotated[
        bool,
        typer.Option("--static", help="Fix every size; faster on GPUs, makes one size only."),
    ] = False,
    frames: Annotated[
        int | None, typer.Option(min=1, help="Length it makes [default: as trained].")
    ] = None,
    size: Annotated[
        str | None, typer.Option(metavar="HxW", help="Size it makes [default: as trained].")
    ] = None,
    opset: Annotated[int, typer.Option(min=17, max=20, help="ONNX operator set.")] = 18,
    lowering: Annotated[
        Literal["auto", "none", "matmul", "space-to-depth"],
        typer.Option(help="How the graph computes the network; none is as written."),
    ] = "auto",
    tensorrt: Annotated[
        Path | None,
        typer.Option(
            metavar="OUT.engine", help="Also build a TensorRT engine, with OUT.engine.json beside."
        ),
    ] = None,
    target: Annotated[
        str | None,
        typer.Option(
            metavar="smXX,...",
            help="GPUs to build it for without having one, e.g. sm86,sm89 [default: this one].",
        ),
    ] = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Write a run's energy and its gradient as one ONNX file, checked against float64 autograd.

    Example: stg-export runs/fire -o fire.onnx
    """
    require("train", "torch", "safetensors", "onnx", "onnxscript")
    with signals_wait():
        from stg_export import export_run
    from stg_runtime.errors import InputError

    targets = [name.strip() for name in target.split(",")] if target else []
    if targets and tensorrt is None:
        raise InputError("--target says what --tensorrt OUT.engine is built for; give that too")
    if tensorrt is not None:
        _check_engine(tensorrt, targets, overwrite)
    metadata = export_run(
        run,
        output,
        precision=precision,
        static=static,
        frames=frames,
        size=parse_size(size),
        opset=opset,
        lowering=lowering,
        overwrite=overwrite,
    )
    record = None
    if tensorrt is not None:
        from stg_export.tensorrt import export_engine

        def say(line: str) -> None:
            print(line, file=sys.stderr, flush=True)

        record = export_engine(
            output, metadata, tensorrt, targets=targets, overwrite=overwrite, say=say
        )
    if as_json:
        result = metadata.model_dump(mode="json", exclude={"mean_image", "spot"})
        engine = {"engine": {"file": str(tensorrt), **asdict(record)}} if record else {}
        print_json({"file": str(output), **result, **engine})
        return
    print(f"{'N x C x T x H x W':<22} {'energy error':>13} {'gradient error':>15}")
    for figure in metadata.parity:
        shape = "x".join(str(extent) for extent in figure.shape)
        print(f"{shape:<22} {figure.energy_error:>13.1e} {figure.energy_grad_error:>15.1e}")
    print(
        f"{output}  ({output.stat().st_size / 1e6:.1f} MB, {metadata.precision}, opset "
        f"{metadata.opset}, lowering {metadata.lowering}; next: stg-run synthesize {output} "
        "-o OUT.mp4)"
    )
    if record is not None and tensorrt is not None:
        print(
            f"{tensorrt}  ({tensorrt.stat().st_size / 1e6:.1f} MB, {record.tensorrt}, for "
            f"{', '.join(record.capabilities)}; next, there: stg-run engine {output} {tensorrt})"
        )


def _check_engine(engine: Path, targets: list[str], overwrite: bool) -> None:
    """Refuse before the export what would be refused after it."""
    from stg_runtime.backends.engine import MODULES, RTX, check_targets, load_tensorrt, sidecar
    from stg_runtime.errors import InputError
    from stg_runtime.files import check_output

    check_output(engine, overwrite, suffixes=[".engine"])
    check_output(sidecar(engine), overwrite)
    trt = load_tensorrt(RTX if targets else MODULES)
    if targets:
        check_targets(trt, targets)
        return
    from stg_runtime.backends.cuda.device import open_device

    try:
        open_device(0)
    except InputError as error:
        raise InputError(f"{error}; or build for other machines with --target") from None


def main() -> None:
    """Entry point of stg-export."""
    run_app(app)
