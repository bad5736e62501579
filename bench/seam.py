"""Is an object gone from a video? The filled hole against frames in which the object is not there.

    python bench/seam.py VIDEO FILLED --mask MASK [--mask-grow 3] [--clean 0 31] [--under 80] \
        [--json OUT.json]

FILLED is what `stg-run inpaint` wrote, whole. Frames of --clean, in which nothing is hidden, are
looked at under the mask of as many frames from --under on: what the figures read where nothing was
filled.

Columns: kink, around, ratio (the seam, see `stg_runtime.inpaint.Seam`); then the hole against known
pixels within 8 px of it, each against what the clean frames have at its place, their mean over time
and their standard deviation: level, by how many grey levels the hole's luminance is the higher;
contrast, the ratio of root mean square deviations of luminance, and the same of R - G and of G - B;
motion, the ratio of mean absolute changes of luminance between frames; turn, that where a pixel
becomes hidden or known, over that of the known ones. Best: those of the clean frames.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from stg_runtime.inpaint import NEAR, seam
from stg_runtime.mask import dilate, read_masked_clip
from stg_runtime.video import read_clip

Float = NDArray[np.float64]
SPAN = 18  # frames of a row


def tones(frames: NDArray[np.uint8]) -> Float:
    """Luminance, R - G and G - B, (T, H, W, 3) to (3, T, H, W)."""
    mix = np.array([[0.299, 0.587, 0.114], [1, -1, 0], [0, 1, -1]])
    return np.asarray(np.einsum("ic,thwc->ithw", mix, frames.astype(np.float64)))


def figures(
    frames: NDArray[np.uint8], known: NDArray[np.bool_], mean: Float, spread: Float
) -> dict[str, float]:
    """A row; `mean` and `spread`, (3, H, W), are the clean frames' over time."""
    edge = seam(frames, known)
    assert edge is not None
    off = tones(frames) - mean[:, None]
    hole = ~known
    near = np.stack([dilate(hidden, NEAR) for hidden in hole]) & known
    inside, beside = (
        np.sqrt((off**2 * at).sum((1, 2, 3)) / (spread[:, None] ** 2 * at).sum((1, 2, 3)))
        for at in (hole, near)
    )
    size = inside / beside
    change = np.abs(np.diff(tones(frames)[0], axis=0))
    still = change[near[1:] & near[:-1]].mean()
    return {
        "kink": edge.kink,
        "around": edge.kink_around,
        "ratio": edge.ratio,
        "level": float(off[0][hole].mean() - off[0][near].mean()),
        "contrast": float(size[0]),
        "R - G": float(size[1]),
        "G - B": float(size[2]),
        "motion": float(change[hole[1:] & hole[:-1]].mean() / still),
        "turn": float(change[hole[1:] != hole[:-1]].mean() / still),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("video", type=Path)
    parser.add_argument("filled", type=Path)
    parser.add_argument("--mask", required=True)
    parser.add_argument("--mask-grow", type=int, default=0)
    parser.add_argument("--clean", type=int, nargs=2, default=[0, 31], metavar=("FIRST", "END"))
    parser.add_argument("--under", type=int, default=80)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    clip = read_masked_clip(options.video, options.mask, mask_grow=options.mask_grow)
    known, filled = clip.observed_mask, read_clip(options.filled).frames
    if filled.shape != clip.frames.shape:
        parser.error(f"{options.filled} is {filled.shape}, {options.video} {clip.frames.shape}")
    if (filled[known] != clip.frames[known]).any():
        parser.error(f"{options.filled}: known pixels differ; pass the .npy of the same mask")
    first, end = options.clean
    clean = clip.frames[first:end]
    under = known[options.under : options.under + len(clean)]
    if not known[first:end].all() or len(under) < len(clean):
        parser.error("--clean: something is hidden there, or --under has too few frames")
    mean, spread = tones(clean).mean(1), tones(clean).std(1)
    rows = {"clean": figures(clean, under, mean, spread)}
    rows["filled"] = figures(filled, known, mean, spread)
    hides = np.flatnonzero(~known.all((1, 2)))
    for begin in range(int(hides[0]), int(hides[-1]) + 1, SPAN):
        part = slice(begin, begin + SPAN)
        rows[f"frames {begin} on"] = figures(filled[part], known[part], mean, spread)
    names = list(rows["clean"])
    print(f"{'':<14}" + "".join(f"{name:>10}" for name in names))
    for name, row in rows.items():
        print(f"{name:<14}" + "".join(f"{row[key]:>10.2f}" for key in names))
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
