"""Are synthesized clips new, or copies? Distances to the training clips, in grey levels.

    python bench/nearest.py RUN SYNTHESIZED... [--json OUT.json]

For each synthesized clip: the nearest training clip and the root mean square difference to it,
frame by frame, over all pixels and colours. To compare with: how far each training clip is from the
nearest other one; how far the training clips' average is from its nearest clip (a blend of all,
which is new and worthless, is about that far); and how far synthesized clips are from each other
(0: the noise makes no difference). A clip much nearer to a training clip than training clips are to
each other is a copy, and is named so. With one training clip there is nothing to compare with: nan.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from stg_runtime.video import count_clips, read_clip

COPY = 0.25  # of the distance between training clips; nearer than that is called a copy


def rms(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    return float(np.sqrt(((a - b) ** 2).mean()))


def apart(clips: NDArray[np.float64]) -> NDArray[np.float64]:
    """Distances between all pairs, infinite on the diagonal."""
    found = np.full((len(clips), len(clips)), np.inf if len(clips) > 1 else np.nan)
    for i in range(len(clips)):
        for j in range(i):
            found[i, j] = found[j, i] = rms(clips[i], clips[j])
    return found


def distances(
    observed: NDArray[np.uint8], synthesized: NDArray[np.uint8]
) -> dict[str, float | list[dict[str, float | int | bool]]]:
    """All figures, from clips (M, T, H, W, 3) and (N, T, H, W, 3), grey levels."""
    train, new = observed.astype(np.float64), synthesized.astype(np.float64)
    between = apart(train).min(1)
    rows: list[dict[str, float | int | bool]] = []
    for i, clip in enumerate(new):
        to = np.array([rms(clip, other) for other in train])
        nearest = int(to.argmin())
        share = float(to[nearest] / between[nearest])
        rows.append(
            {
                "synthesized": i,
                "nearest": nearest,
                "distance": float(to[nearest]),
                "share": share,
                "copy": share < COPY,
            }
        )
    others = apart(new).min(1)
    return {
        "between training clips": float(between.mean()),
        "average of the training clips": min(rms(train.mean(0), clip) for clip in train),
        "between synthesized clips": float(others.mean()),
        "clips": rows,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="folder of stg-train")
    parser.add_argument("synthesized", type=Path, nargs="+")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    observed = np.load(options.run / "observed.npy", mmap_mode="r")
    new = np.stack(
        [
            read_clip(path, clip=clip).frames
            for path in options.synthesized
            for clip in range(count_clips(path))
        ]
    )
    margin = (observed.shape[1] - new.shape[1]) // 2  # cut from synthesized clips
    observed = observed[:, margin : observed.shape[1] - margin]
    if new.shape[1:] != observed.shape[1:]:
        parser.error(f"clips of {new.shape[1:]}; the training clips have {observed.shape[1:]}")
    found = distances(np.asarray(observed), new)
    print(f"{'synthesized':<12} {'nearest':>7} {'distance':>9} {'of between':>11}")
    for row in found["clips"]:
        copy = "  a copy" if row["copy"] else ""
        print(
            f"{row['synthesized']:<12} {row['nearest']:>7} {row['distance']:>9.1f} "
            f"{row['share']:>11.2f}{copy}"
        )
    for name, value in found.items():
        if name != "clips":
            print(f"{name}: {value:.1f} grey levels")
    if options.json:
        options.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
