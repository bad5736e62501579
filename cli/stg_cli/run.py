"""stg-run: synthesize video from an exported model; needs no PyTorch."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from stg_cli import bench
from stg_cli.common import (
    AsJson,
    Debug,
    NoBuild,
    Overwrite,
    Threads,
    parse_size,
    print_json,
    print_rows,
    run_app,
)
from stg_cli.compare import compare
from stg_cli.inpaint import inpaint
from stg_cli.report import report

app = typer.Typer(
    add_completion=False,
    rich_markup_mode=None,
    help="Synthesize and repair video with an exported model; needs no PyTorch.\n\n"
    "Example: stg-run synthesize fire.onnx -o fire.mp4",
)

app.command()(compare)
app.command()(report)
app.command()(inpaint)

Model = Annotated[Path, typer.Argument(metavar="MODEL", help="The .onnx file of stg-export.")]


@app.command()
def synthesize(
    model: Model,
    output: Annotated[
        Path,
        typer.Option(
            "-o",
            "--output",
            metavar="OUT",
            help=".mp4, .webm, .mkv, .gif, .npy, .png (one frame), a folder of PNGs; - is stdout "
            "(--endless).",
        ),
    ],
    count: Annotated[
        int, typer.Option("-n", "--count", min=1, max=100_000, help="How many videos.")
    ] = 1,
    frames: Annotated[
        int | None, typer.Option(min=1, help="Length [default: the model's].")
    ] = None,
    size: Annotated[
        str | None, typer.Option(metavar="HxW", help="Size in pixels [default: the model's].")
    ] = None,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Langevin steps [default: as it was trained].")
    ] = None,
    seed: Annotated[
        int | None, typer.Option(min=0, max=2**64 - 1, help="Of the noise [default: a new one].")
    ] = None,
    loop: Annotated[
        bool, typer.Option("--loop", help="The last frame runs into the first.")
    ] = False,
    tile: Annotated[
        bool, typer.Option("--tile", help="Opposite edges run into each other: a texture.")
    ] = False,
    endless: Annotated[
        bool, typer.Option("--endless", help="Go on until Ctrl-C, or --frames.")
    ] = False,
    stream_format: Annotated[
        str | None, typer.Option("--format", metavar="raw|matroska", help="Of -o - [default: raw].")
    ] = None,
    init: Annotated[
        Path | None, typer.Option(metavar="VIDEO", help="Begin from this video and noise.")
    ] = None,
    strength: Annotated[
        float | None,
        typer.Option(
            help="With --init: share of noise, above 0 (the video), up to 1 [default: 0.5]."
        ),
    ] = None,
    between: Annotated[
        tuple[Path, Path] | None,
        typer.Option(metavar="A B", help="The frames that lead from clip A to clip B."),
    ] = None,
    fps: Annotated[
        float | None, typer.Option(help="Frames per second [default: the model's].")
    ] = None,
    speed: Annotated[
        float | None, typer.Option(help="Times the model's frames per second.")
    ] = None,
    first: Annotated[
        int,
        typer.Option(
            min=0, max=1 << 31, help="With -n: number of the first video; numbers fix the noise."
        ),
    ] = 0,
    only: Annotated[
        int | None, typer.Option(min=0, help="Of the -n videos, make this one alone.")
    ] = None,
    skip_existing: Annotated[
        bool,
        typer.Option(
            "--skip-existing",
            help="Keep what is there, whatever it shows; make the rest. Needs --seed.",
        ),
    ] = False,
    batch: Annotated[
        int, typer.Option(min=1, help="Videos walked together; little gain on a processor.")
    ] = 1,
    ray: Annotated[
        str | None,
        typer.Option(metavar="ADDRESS", help="Make the -n videos on a Ray cluster, or local."),
    ] = None,
    max_memory: Annotated[
        str | None,
        typer.Option(metavar="2G", help="Of this process [default: most of what is free]."),
    ] = None,
    device: Annotated[
        str, typer.Option(metavar="auto|cpu|cuda[:i]|tensorrt", help="Where to run.")
    ] = "auto",
    grid: Annotated[
        bool, typer.Option("--grid", help="All videos side by side in one file.")
    ] = False,
    threads: Threads = None,
    no_build: NoBuild = False,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Make new video from noise.

    Example: stg-run synthesize fire.onnx -o fire.mp4 --seed 7

    With -n, OUT becomes OUT-000, OUT-001, ... (one .npy holds them all), or one file with --grid.
    """
    import secrets

    from stg_cli.synthesize import Request, make_many, stream
    from stg_runtime.errors import InputError

    if as_json and str(output) == "-":
        raise InputError(
            "--json prints to stdout, where -o - puts the video; leave one of them out"
        )
    request = Request(
        model=model,
        output=output,
        count=count,
        frames=frames,
        size=parse_size(size),
        steps=steps,
        seed=secrets.randbelow(2**32) if seed is None else seed,
        seed_drawn=seed is None,
        loop=loop,
        tile=tile,
        stream_format=stream_format,
        init=init,
        strength=strength,
        between=between,
        fps=fps,
        speed=speed,
        first=first,
        only=only,
        skip_existing=skip_existing,
        batch=batch,
        ray=ray,
        max_memory=max_memory,
        device=device,
        grid=grid,
        threads=threads,
        overwrite=overwrite,
        no_build=no_build,
    )
    result = stream(request) if endless else make_many(request)
    if as_json:
        print_json(result)
        return
    names = result["files"]
    shown = names[0] if len(names) == 1 else f"{names[0]} ... {names[-1]}" if names else "nothing"
    line = (
        f"{shown}  ({result['videos']} x {result['size']}, {result['steps']} steps, seed "
        f"{result['seed']}, {result['device']}, {result['seconds']:.1f} s)"
    )
    print(line, file=sys.stderr if str(output) == "-" else sys.stdout)


@app.command()
def sheet(
    videos: Annotated[
        list[Path], typer.Argument(metavar="VIDEO...", help="Videos of one size, a row each.")
    ],
    output: Annotated[Path, typer.Option("-o", "--output", metavar="OUT.png", help="The sheet.")],
    columns: Annotated[int, typer.Option(min=1, max=100, help="Frames in a row.")] = 8,
    overwrite: Overwrite = False,
    debug: Debug = False,
) -> None:
    """Draw evenly spaced frames of several videos in one picture, to look at and compare.

    Example: stg-run sheet runs/fire/observed.npy new.mp4 -o sheet.png
    """
    from stg_runtime.contact_sheet import contact_sheet, save_image
    from stg_runtime.errors import InputError
    from stg_runtime.files import check_output
    from stg_runtime.video import count_clips, read_clip

    check_output(output, overwrite, suffixes=(".png", ".jpg"))
    rows = []
    for video in videos:
        count = count_clips(video)
        for clip in range(count):
            label = video.name if count == 1 else f"{video.name} {clip}"
            rows.append((label, read_clip(video, clip=clip).frames))
    sizes = {video.shape[1:3] for _, video in rows}
    if len(sizes) > 1:
        named = ", ".join(f"{name} {video.shape[1]}x{video.shape[2]}" for name, video in rows)
        raise InputError(f"a sheet takes videos of one size; got {named} (height x width)")
    save_image(output, contact_sheet(rows, columns=columns))
    print(output)


@app.command()
def info(
    model: Model,
    verify: Annotated[
        bool,
        typer.Option(
            "--verify",
            help="Check hashes, versions and the gradient against the energy; 1 if one fails.",
        ),
    ] = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Say what a model is and what it can make.

    Example: stg-run info fire.onnx

    With --verify: is the file whole, and its gradient still that of its energy on this machine?
    """
    from stg_runtime.backends.onnxruntime_cpu import read_scales

    if verify:
        _verify(model, as_json)
        return
    metadata, *coarser = read_scales(model)
    if as_json:
        value = metadata.model_dump(mode="json", exclude={"mean_image", "spot"})
        if coarser:
            value["coarser"] = [
                scale.model_dump(mode="json", exclude={"mean_image", "spot"}) for scale in coarser
            ]
        print_json(value)
        return
    free = [axis for axis in "NTHW" if axis in metadata.free_axes]
    a = metadata.step_size**2 / (2 * metadata.reference_std**2)
    rows = {
        "model": f"{model} ({model.stat().st_size / 1e6:.1f} MB)",
        "recipe": metadata.recipe,
        "makes": f"{metadata.size} (frames x height x width) at {metadata.fps:g} frames/s",
        "free sizes": ", ".join(free) if free else "none",
        "smallest": _smallest(metadata),
        "steps": f"{metadata.n_steps} of size {metadata.step_size:g}, a = {a:.3g}",
        "noise": f"factor {metadata.noise_scale:g}{_falling(metadata)}",
        "reference": f"standard deviation {metadata.reference_std:g}",
        "first noise": _first_noise(metadata),
        "pixels": f"(grey level - {_levels(metadata)}) / {metadata.pixel_scale:.4g}",
        "precision": f"{metadata.precision}, opset {metadata.opset}, lowering {metadata.lowering}",
        "parity": _parity(metadata.parity),
        **({"coarser scales": "; ".join(_scale(scale) for scale in coarser)} if coarser else {}),
        "clips": ", ".join(clip[:12] for clip in metadata.clips),
        "versions": ", ".join(f"{name} {value}" for name, value in metadata.versions.items()),
    }
    print_rows(rows)


def _smallest(metadata: Any) -> str:
    from stg_runtime.windows import coarsest

    size, frames, edge = metadata.min_size, metadata.margin_frames, metadata.margin_size
    high, wide = coarsest(metadata, "H"), coarsest(metadata, "W")
    sides = ((size.frames, frames), (size.height * high, edge), (size.width * wide, edge))
    return "x".join(str(max(1, least - 2 * margin)) for least, margin in sides)


def _verify(model: Path, as_json: bool) -> None:
    from stg_runtime.verify import verify

    found = verify(model)
    if as_json:
        print_json({"model": str(model), "checks": [check.as_dict() for check in found]})
    else:
        print_rows({check.name: f"{check.result:<8}{check.detail}" for check in found})
    if any(check.passed is False for check in found):
        raise typer.Exit(1)


def _falling(metadata: Any) -> str:
    if metadata.noise_end == 1:
        return ""
    return f", falling to {metadata.noise_scale * metadata.noise_end:.3g} over the steps"


def _first_noise(metadata: Any) -> str:
    if metadata.first_noise == "white":
        return f"white, standard deviation {metadata.init_std:g}"
    whole = metadata.first_noise == "time" and metadata.noise_cells == 1
    return (
        f"the clip's covariance along {metadata.first_noise.replace('-', ' and ')}"
        f"{', one noise for the whole frame' if whole else ''}"
    )


def _levels(metadata: Any) -> str:
    mean = "(" + ", ".join(f"{value:.1f}" for value in metadata.pixel_mean) + ")"
    return mean if metadata.mean_image is None else f"mean image around {mean}"


def _scale(metadata: Any) -> str:
    return f"{metadata.size}, {_parity(metadata.parity)}"


def _parity(parity: tuple[Any, ...]) -> str:
    if not parity:
        return "not checked"
    worst = max(figure.energy_grad_error for figure in parity)
    return f"gradient within {worst:.1e} of float64 autograd at {len(parity)} sizes"


@app.command()
def doctor(as_json: AsJson = False, debug: Debug = False) -> None:
    """Say what this machine can run, what was found, and how to mend what is missing.

    Example: stg-run doctor
    """
    from dataclasses import asdict

    from stg_runtime.doctor import PACKAGES, diagnose

    found = diagnose()
    if as_json:
        print_json(asdict(found))
    else:
        print_rows(found.machine)
        print()
        print_rows(
            {
                name: f"{value or 'not installed':<16} {PACKAGES[name]}"
                for name, value in found.packages.items()
            }
        )
        print()
        written = [suffix for suffix, there in found.encoders.items() if there]
        print_rows(
            {
                "synthesize on": ", ".join(found.devices) or "nothing yet",
                "providers": ", ".join(found.providers) or "none",
                "writes": ", ".join([*written, ".gif", ".npy", "PNG folders"]),
            }
        )
        for fault in found.problems:
            print(f"\nproblem: {fault['problem']}\n    fix: {fault['fix']}")
    if not found.devices:
        raise typer.Exit(1)


app.command()(bench.bench)
app.command()(bench.engine)


def main() -> None:
    """Entry point of stg-run."""
    run_app(app)
