"""stg-export: a run's energy gradient as one ONNX file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from stg_cli.common import AsJson, Debug, Overwrite, parse_size, print_json, require, run_app

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
        str, typer.Option(help="How the graph computes the network: auto, or none for as written.")
    ] = "auto",
    overwrite: Overwrite = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Write a run's energy and its gradient as one ONNX file, checked against float64 autograd.

    Example: stg-export runs/fire -o fire.onnx
    """
    require("train", "torch", "safetensors", "onnx", "onnxscript")
    from stg_export import export_run

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
    if as_json:
        result = metadata.model_dump(mode="json", exclude={"mean_image"})
        print_json({"file": str(output), **result})
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


def main() -> None:
    """Entry point of stg-export."""
    run_app(app)
