"""stg-run: synthesize video from an exported model; needs no PyTorch."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stg_cli.common import (
    AsJson,
    Debug,
    Overwrite,
    Threads,
    parse_size,
    print_json,
    progress_bar,
    run_app,
)
from stg_cli.inpaint import inpaint

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy as np
    from numpy.typing import NDArray

    from stg_runtime.backends.base import Backend
    from stg_runtime.synthesize import Plan

app = typer.Typer(
    add_completion=False,
    rich_markup_mode=None,
    help="Synthesize and repair video with an exported model; needs no PyTorch.\n\n"
    "Example: stg-run synthesize fire.onnx -o fire.mp4",
)

app.command()(inpaint)

Model = Annotated[Path, typer.Argument(metavar="MODEL", help="The .onnx file of stg-export.")]


@app.command()
def synthesize(
    model: Model,
    output: Annotated[
        Path,
        typer.Option(
            "-o", "--output", metavar="OUT", help=".mp4, .webm, .gif, .npy, or a folder of PNGs."
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
    device: Annotated[
        str, typer.Option(metavar="auto|cpu|cuda[:i]|tensorrt", help="Where to run.")
    ] = "auto",
    grid: Annotated[
        bool, typer.Option("--grid", help="All videos side by side in one file.")
    ] = False,
    threads: Threads = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Make new video from noise.

    Example: stg-run synthesize fire.onnx -o fire.mp4 --seed 7

    With -n, OUT becomes OUT-000, OUT-001, ... (one .npy holds them all), or one file with --grid.
    """
    import secrets

    from stg_runtime.backends import open_backend
    from stg_runtime.synthesize import plan
    from stg_runtime.video_write import check_video_output

    together = grid or output.suffix.lower() == ".npy"
    names = output_names(output, 1 if together else count)
    for name in names:
        check_video_output(name, overwrite)
    backend = open_backend(model, device, threads)
    if seed is None:
        seed = secrets.randbelow(2**32)
    job = plan(backend.metadata, frames=frames, size=parse_size(size), n_steps=steps, seed=seed)
    began = time.perf_counter()
    videos = _videos(backend, job, count)
    _write(videos, names, backend.metadata.fps, together=together, grid=grid, overwrite=overwrite)
    seconds = time.perf_counter() - began
    result: dict[str, Any] = {
        "files": [str(name) for name in names],
        "videos": count,
        "size": str(job.size),
        "steps": job.n_steps,
        "seed": seed,
        "device": backend.description,
        "seconds": round(seconds, 3),
        "frames_per_second": round(count * job.size.frames / seconds, 2),
    }
    if as_json:
        print_json(result)
        return
    shown = str(names[0]) if len(names) == 1 else f"{names[0]} ... {names[-1]}"
    print(
        f"{shown}  ({count} x {job.size}, {job.n_steps} steps, seed {seed}, "
        f"{backend.description}, {seconds:.1f} s)"
    )


def output_names(output: Path, count: int) -> list[Path]:
    """`fire.mp4` for one video; `fire-000.mp4`, `fire-001.mp4`, ... for several."""
    if count == 1:
        return [output]
    digits = max(3, len(str(count - 1)))
    return [output.with_name(f"{output.stem}-{i:0{digits}d}{output.suffix}") for i in range(count)]


def _videos(backend: Backend, job: Plan, count: int) -> Iterator[NDArray[np.uint8]]:
    from stg_runtime.synthesize import synthesize as make

    chains = backend.chains(job.graph)
    with progress_bar() as bar:
        task = bar.add_task("steps", total=count * job.n_steps) if bar else None
        for number in range(count):

            def told(step: int, energy: float, number: int = number) -> None:
                if bar is not None and task is not None:
                    done = number * job.n_steps + step
                    bar.figures = f"video {number + 1} of {count}, energy {energy:.5g}"
                    bar.update(task, completed=done)

            video = make(chains, backend.metadata, job, number=number, progress=told)
            if bar is None and count > 1:
                print(f"video {number + 1} of {count}", file=sys.stderr)
            yield video


def _write(
    videos: Iterator[NDArray[np.uint8]],
    names: list[Path],
    fps: float,
    *,
    together: bool,
    grid: bool,
    overwrite: bool,
) -> None:
    import numpy as np

    from stg_runtime.video import tile
    from stg_runtime.video_write import write_video

    if not together:
        for name, video in zip(names, videos, strict=True):
            write_video(name, video, fps, overwrite=overwrite)
        return
    stack = np.stack(list(videos))
    write_video(names[0], tile(stack) if grid else stack, fps, overwrite=overwrite)


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
def info(model: Model, as_json: AsJson = False, debug: Debug = False) -> None:
    """Say what a model is and what it can make.

    Example: stg-run info fire.onnx
    """
    from stg_runtime.backends.onnxruntime_cpu import open_session

    _, metadata = open_session(model, 1, optimize=False)
    if as_json:
        print_json(metadata.model_dump(mode="json", exclude={"mean_image"}))
        return
    free = [axis for axis in "NTHW" if axis in metadata.free_axes]
    a = metadata.step_size**2 / (2 * metadata.reference_std**2)
    rows = {
        "model": f"{model} ({model.stat().st_size / 1e6:.1f} MB)",
        "recipe": metadata.recipe,
        "makes": f"{metadata.size} (frames x height x width) at {metadata.fps:g} frames/s",
        "free sizes": ", ".join(free) if free else "none",
        "smallest": _smallest(metadata.min_size, metadata.margin_frames),
        "steps": f"{metadata.n_steps} of size {metadata.step_size:g}, a = {a:.3g}",
        "reference": f"standard deviation {metadata.reference_std:g}",
        "first noise": f"standard deviation {metadata.init_std:g}",
        "pixels": f"(grey level - {_levels(metadata)}) / {metadata.pixel_scale:.4g}",
        "precision": f"{metadata.precision}, opset {metadata.opset}, lowering {metadata.lowering}",
        "parity": _parity(metadata.parity),
        "clips": ", ".join(clip[:12] for clip in metadata.clips),
        "versions": ", ".join(f"{name} {value}" for name, value in metadata.versions.items()),
    }
    _table(rows)


def _smallest(size: Any, margin: int) -> str:
    return f"{max(1, size.frames - 2 * margin)}x{size.height}x{size.width}"


def _levels(metadata: Any) -> str:
    mean = "(" + ", ".join(f"{value:.1f}" for value in metadata.pixel_mean) + ")"
    return mean if metadata.mean_image is None else f"mean image around {mean}"


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
        _table(found.machine)
        print()
        _table(
            {
                name: f"{value or 'not installed':<16} {PACKAGES[name]}"
                for name, value in found.packages.items()
            }
        )
        print()
        written = [suffix for suffix, there in found.encoders.items() if there]
        _table(
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


def _table(rows: dict[str, str]) -> None:
    width = max(len(name) for name in rows)
    for name, value in rows.items():
        print(f"{name:<{width}}  {value}")


def main() -> None:
    """Entry point of stg-run."""
    run_app(app)
