"""stg-run compare: how close synthesized videos are to their clip, and whether they are new."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stg_cli.common import AsJson, Debug, print_json, printable

if TYPE_CHECKING:
    from stg_runtime.video import Clip

Observed = Annotated[
    Path, typer.Argument(metavar="OBSERVED", help="The clip; an .npy may hold several.")
]
Synthesized = Annotated[
    list[Path], typer.Argument(metavar="SYNTHESIZED...", help="Videos of the clip's size.")
]


def compare(
    observed: Observed, synthesized: Synthesized, as_json: AsJson = False, debug: Debug = False
) -> None:
    """Measure synthesized videos against their clip: likeness, motion, sharpness, novelty.

    Example: stg-run compare runs/fire/observed.npy new-0.npy new-1.npy

    A run's observed.npy is the clip as it was learned: cropped, resized and cut. Videos are
    compared frame by frame, whatever their rates; lengths may differ. Several videos give their
    diversity. Compare .npy files where you can: the encoding of .mp4 and .gif shows in the figures.
    """
    from stg_runtime.measures import compare as measures_of
    from stg_runtime.measures import table

    clips = [clip for _, clip in read_all([observed])]
    videos = read_all(synthesized)
    rates = {clip.fps for clip in clips} | {clip.fps for _, clip in videos}
    if len(rates) > 1:
        shown = ", ".join(f"{rate:g}" for rate in sorted(rates))
        print(f"note: rates of {shown} frames/s; compared frame by frame", file=sys.stderr)
    names = [name for name, _ in videos]
    found = measures_of([clip.frames for clip in clips], [clip.frames for _, clip in videos], names)
    if as_json:
        result: dict[str, Any] = {
            "observed": str(observed),
            "synthesized": [
                {"video": name, **measures.as_dict()}
                for (name, _), measures in zip(videos, found.videos, strict=True)
            ],
            "diversity": found.diversity,
            "halves": found.halves.as_dict() if found.halves else None,
            "independent": found.independent,
        }
        print_json(result)
        return
    print_table(table(found, [Path(name).name for name in names]))


def read_all(paths: list[Path]) -> list[tuple[str, Clip]]:
    """Every clip of every path, with a name that tells them apart."""
    from stg_runtime.video import count_clips, read_clip

    found = []
    for path in paths:
        count = count_clips(path)
        for clip in range(count):
            name = str(path) if count == 1 else f"{path} {clip}"
            found.append((name, read_clip(path, clip=clip)))
    return found


def print_table(rows: list[list[str]]) -> None:
    """Rows of cells on stdout, the first column left, the others right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        cells = [f"{cell:>{width}}" for cell, width in zip(row[1:], widths[1:], strict=True)]
        print(printable("  ".join([f"{row[0]:<{widths[0]}}", *cells]).rstrip()))
