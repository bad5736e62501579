"""What more of the same reads: segments of one film against each other.

    python bench/segments.py [NAME=CLIP | GENERATED ...] [--segments 8] [--json OUT.json]

CLIP is a file; GENERATED is a name of `bench/clips.py`, rendered long enough. Both are read at
64x64 and cut into segments of 64 frames, at most so many, and each is compared with every other:
what a sampler reads that is the process itself, and so what a goal asks of chance. A model that
learned from one clip matches that clip's own figures and may come nearer in all but novelty
(`difference`, `replay`, `nearest_frame`). What the figures are: docs/measures.md.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
from clips import CLIPS, FPS, render
from first_noise import FIGURES as SAMPLED
from numpy.typing import NDArray
from saved import save

from stg_runtime.errors import InputError
from stg_runtime.measures import measure
from stg_runtime.video import count_frames, read_clip
from stg_runtime.video_write import write_video

Video = NDArray[np.uint8]
SIZE, FRAMES = (64, 64), 64
FIGURES = (*SAMPLED, "replay", "nearest_frame")
# The goals of docs/training.md that are about one figure of one video.
GOALS = {
    "spatial_db": (0.0, 1.0),
    "temporal_db": (0.0, 1.5),
    "motion": (0.9, 1.1),
    "sharpness": (0.9, 1.1),
    "difference": (0.9, 1e9),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("clips", nargs="*", default=["flag"])
    parser.add_argument("--segments", type=int, default=8)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    heads = (f"{name[:16]:>16}" for name in FIGURES)
    print(
        f"{'least median most':<20}" + " ".join(heads) + "   meet these goals: " + ", ".join(GOALS)
    )
    results = {}
    for text in options.clips:
        name, _, source = text.rpartition("=")
        try:
            parts = segments(source, options.segments)
        except InputError as error:
            parser.error(str(error))
        pairs = [
            measure(clip, other).as_dict()
            for i, clip in enumerate(parts)
            for j, other in enumerate(parts)
            if i != j
        ]
        spread = {
            figure: [float(q) for q in np.quantile([pair[figure] for pair in pairs], (0, 0.5, 1))]
            for figure in FIGURES
        }
        meets = {f: [low <= p[f] <= high for p in pairs] for f, (low, high) in GOALS.items()}
        met = {figure: float(np.mean(found)) for figure, found in meets.items()}
        met["all of these"] = float(np.mean(np.all(list(meets.values()), 0)))
        results[name or source] = {
            "source": Path(source).name,
            "segments": len(parts),
            "pairs": len(pairs),
            "least, median, most": spread,
            "share of the pairs that meets": met,
        }
        shown = {
            f: "/".join(f"{q:.{3 if f == 'feature_distance' else 2}f}" for q in spread[f])
            for f in FIGURES
        }
        print(
            f"{name or source:<20}"
            + " ".join(f"{shown[figure]:>16}" for figure in FIGURES)
            + f"   {met['all of these']:.2f}",
            flush=True,
        )
    what = "segments of one film, in turn, against each other, both ways round"
    goals = {figure: list(goal) for figure, goal in GOALS.items()}
    size = [*SIZE, FRAMES]
    save(options.json, what, ("numpy",), size=size, goals=goals, rows=results)


def segments(source: str, most: int) -> list[Video]:
    """Segments of a file or of a generated clip, one after the other, uint8, (T, H, W, 3)."""
    if source in CLIPS:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / f"{source}.mp4"
            write_video(path, render(source, most * FRAMES), FPS)
            return cut(path, most)
    return cut(Path(source), most)


def cut(path: Path, most: int) -> list[Video]:
    count = min(count_frames(path, at_most=most * FRAMES) // FRAMES, most)
    if count < 2:
        raise InputError(f"{path}: has no two segments of {FRAMES} frames")
    whole = read_clip(path, size=SIZE, frames=count * FRAMES).frames
    return [whole[i * FRAMES : (i + 1) * FRAMES] for i in range(count)]


if __name__ == "__main__":
    main()
