"""What more of the same reads: segments of one film against each other.

    python bench/segments.py [NAME=CLIP | GENERATED ...] [--segments 8] [--json OUT.json]

CLIP is a file; GENERATED is a name of `bench/clips.py`, rendered long enough. Both are read at
64x64 and cut into segments of 64 frames, at most so many, and each is compared with every other:
what a sampler reads that is the process itself. What such pairs miss is missed by chance; a model
that comes nearer than they do has learned the clip rather than the process. What the figures are:
docs/measures.md.
"""

from __future__ import annotations

import argparse
import datetime
import json
import tempfile
from pathlib import Path

import numpy as np
from clips import CLIPS, FPS, render
from numpy.typing import NDArray

from stg_runtime.doctor import processor, version
from stg_runtime.errors import InputError
from stg_runtime.measures import compare
from stg_runtime.threads import usable_threads
from stg_runtime.video import count_frames, read_clip
from stg_runtime.video_write import write_video

Video = NDArray[np.uint8]
SIZE, FRAMES = (64, 64), 64
FIGURES = (
    "spatial_db",
    "temporal_db",
    "motion",
    "sharpness",
    "moving_contrast",
    "feature_distance",
    "difference",
    "replay",
    "nearest_frame",
)
# The goals of docs/training.md that are about one figure.
GOALS = {
    "spatial_db": (0.0, 1.0),
    "temporal_db": (0.0, 1.5),
    "motion": (0.9, 1.1),
    "sharpness": (0.9, 1.1),
    "difference": (0.9, np.inf),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("clips", nargs="*", default=["flag"])
    parser.add_argument("--segments", type=int, default=8)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    print(f"{'':<16}" + " ".join(f"{name[:14]:>14}" for name in FIGURES) + "   meet all goals")
    results = {}
    for text in options.clips:
        name, _, file = text.rpartition("=")
        name = name or file
        parts = segments(file, options.segments)
        pairs = [
            measures.as_dict()
            for i, clip in enumerate(parts)
            for measures in compare([clip], parts[:i] + parts[i + 1 :]).videos
        ]
        met = {
            figure: float(np.mean([low <= pair[figure] <= high for pair in pairs]))
            for figure, (low, high) in GOALS.items()
        }
        everything = float(
            np.mean([all(a <= pair[f] <= b for f, (a, b) in GOALS.items()) for pair in pairs])
        )
        spread = {
            figure: [float(q) for q in np.quantile([p[figure] for p in pairs], (0.1, 0.5, 0.9))]
            for figure in FIGURES
        }
        results[name] = {
            "segments": len(parts),
            "pairs": len(pairs),
            "tenth, median, nine tenths": spread,
            "share that meets": {**met, "all of these": everything},
        }
        digits = {figure: 3 if figure == "feature_distance" else 2 for figure in FIGURES}
        cells = ("-".join(f"{q:.{digits[f]}f}" for q in spread[f][::2]) for f in FIGURES)
        print(f"{name:<16}" + " ".join(f"{cell:>14}" for cell in cells) + f"   {everything:.2f}")
    if options.json:
        result = {
            "what": "segments of one film, 64x64x64, against each other",
            "date": datetime.date.today().isoformat(),
            "hardware": {"processor": processor(), "threads": usable_threads()},
            "versions": {"stg": version("stg"), "numpy": np.__version__},
            "goals": {figure: list(map(str, goal)) for figure, goal in GOALS.items()},
            "rows": results,
        }
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(result, indent=1) + "\n")


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
