"""stg-run inpaint: fill what a mask hides of a video; needs no PyTorch."""

from __future__ import annotations

import math
import time
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from stg_cli.common import (
    AsJson,
    Debug,
    NoBuild,
    Overwrite,
    Threads,
    check_no_build,
    parse_crop,
    print_json,
    progress_bar,
)


def inpaint(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="The .onnx file of stg-export.")],
    video: Annotated[
        Path, typer.Argument(metavar="VIDEO", help="Video file, image, image folder or .npy.")
    ],
    mask: Annotated[
        str,
        typer.Option(
            metavar="FILE|PATTERN",
            help="What is to be removed and filled: a video, image, image folder or .npy, white "
            "(nonzero) where hidden; or region:60, fixed-region:60, frames:0.5, salt-pepper:0.5; "
            "or cdnet, the labels of VIDEO where it is a scene of CDnet.",
        ),
    ],
    output: Annotated[
        Path,
        typer.Option(
            "-o",
            "--output",
            metavar="OUT",
            help=".npy or a folder of PNGs keep known pixels to the bit; .mp4, .webm and .gif "
            "encode them anew.",
        ),
    ],
    crop: Annotated[
        str,
        typer.Option(
            metavar="none|auto|X,Y,W,H",
            help="Walk this part of the frame only, auto: around the mask; the result is pasted "
            "back.",
        ),
    ] = "none",
    init: Annotated[
        Literal["noise", "interpolate"],
        typer.Option(
            help="Begin at noise, for texture, or at an interpolation of the known pixels, for "
            "small holes."
        ),
    ] = "noise",
    start: Annotated[int, typer.Option(min=0, help="First frame taken.")] = 0,
    frames: Annotated[int | None, typer.Option(min=1, help="Frames taken [default: all].")] = None,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Langevin steps [default: as it was trained].")
    ] = None,
    seed: Annotated[
        int | None, typer.Option(min=0, max=2**64 - 1, help="Of the noise [default: a new one].")
    ] = None,
    mask_resize: Annotated[
        bool, typer.Option("--mask-resize", help="Bring a mask of another size or length to fit.")
    ] = False,
    mask_grow: Annotated[
        int,
        typer.Option(min=0, max=1000, help="Pixels by which a mask file hides more, all around."),
    ] = 0,
    max_memory: Annotated[
        str | None,
        typer.Option(metavar="2G", help="Of this process [default: most of what is free]."),
    ] = None,
    device: Annotated[
        str, typer.Option(metavar="auto|cpu|cuda[:i]|tensorrt", help="Where to run.")
    ] = "auto",
    threads: Threads = None,
    no_build: NoBuild = False,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Fill what a mask hides of a video: remove an object, repair damage.

    Example: stg-run inpaint river.onnx boat.mp4 --mask boat-mask.mp4 --crop auto -o river.mp4
    """
    import secrets

    import numpy as np

    from stg_runtime.backends import open_backend
    from stg_runtime.backends.base import HostGradient
    from stg_runtime.inpaint import held_bytes, plan, seam, start_bytes
    from stg_runtime.inpaint import inpaint as walk
    from stg_runtime.mask import read_masked_clip
    from stg_runtime.memory import budget, refuse_larger
    from stg_runtime.video_write import check_rate, check_video_output, write_video

    check_video_output(output, overwrite)
    check_no_build(no_build, device)
    box = parse_crop(crop) if crop not in ("none", "auto") else None
    backend = open_backend(model, device, threads, may_build=not no_build)
    if seed is None:
        seed = secrets.randbelow(2**32)
    clip = read_masked_clip(
        video,
        mask,
        start=start,
        frames=frames,
        mask_resize=mask_resize,
        mask_grow=mask_grow,
        seed=seed,
    )
    check_rate(output, clip.fps)
    known = clip.observed_mask
    job = plan(
        backend.metadata,
        known,
        crop=box or ("auto" if crop == "auto" else "none"),
        n_steps=steps,
        seed=seed,
        init=init,
    )
    if isinstance(backend, HostGradient):
        refuse_larger(
            backend,
            job.graph[2:],
            held=held_bytes(job),
            start=start_bytes(backend.metadata, job, int(np.count_nonzero(~known))),
            finished=known.shape,
            limit=budget(max_memory),
            hint="pass --crop auto, or --start and --frames for a part",
        )
    began = time.perf_counter()
    with progress_bar() as bar:
        task = bar.add_task("steps", total=job.n_steps) if bar else None

        def told(step: int, energy: float) -> None:
            if bar is not None and task is not None:
                bar.figures = f"energy {energy:.5g}"
                bar.update(task, completed=step)

        found = walk(backend, job, clip.frames, known, progress=told)
    made = found.frames
    write_video(output, made, clip.fps, overwrite=overwrite)
    seconds = time.perf_counter() - began
    edge = seam(made, known)
    error = None
    if clip.truth is not None:
        difference = made[~known].astype(np.int16) - clip.truth[~known]
        error = float(np.abs(difference).mean())
    x, y, width, height = job.box
    result: dict[str, Any] = {
        "file": str(output),
        "size": f"{len(made)}x{made.shape[1]}x{made.shape[2]}",
        "fps": clip.fps,
        "hidden": round(float((~known).mean()), 6),
        "box": [x, y, width, height],
        "frames": list(job.frames),
        "init": init,
        "beside_texture": round(found.beside, 6),
        "steps": job.n_steps,
        "seed": seed,
        "seam": edge and {**asdict(edge), "ratio": edge.ratio},
        "mean_absolute_error": error,
        "device": backend.description,
        "seconds": round(seconds, 3),
    }
    if as_json:
        print_json(result)
        return
    print(
        f"{output}  ({result['size']}, {result['hidden']:.1%} filled, walked "
        f"{job.frames[1] - job.frames[0]} frames of {height}x{width} at {x},{y}, {job.n_steps} "
        f"steps, seed {seed}, {backend.description}, {seconds:.1f} s)"
    )
    if found.beside:
        print(
            f"{found.beside:.1%} of the filled pixels lie over something else than the model's "
            "texture, by what is seen there at other times: interpolated in time"
        )
    if edge is not None:
        print(
            f"seam: gradient discontinuity across the mask's edge {edge.kink:.2f} grey levels, "
            f"around it {edge.kink_around:.2f}, "
            + (
                f"ratio {edge.ratio:.2f} (1: invisible)"
                if math.isfinite(edge.ratio)
                else "no ratio: it is flat"
            )
        )
    if error is not None:
        print(f"mean absolute error over hidden pixels {error:.2f} of 255 grey levels")
