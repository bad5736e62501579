"""What the measures read on known material, and on the classical baseline.

    python bench/measures.py [NAME=CLIP[@START+FRAMES][:X,Y,W,H] ...] [--json OUT.json]

Each clip is read at 64x64, 64 frames or as many as FRAMES says; the next as many frames of the same
file, where it has them, are "another segment". Without clips, the generated sea alone is measured.
"""

from __future__ import annotations

import argparse
import re
import time
from pathlib import Path

import numpy as np
from lds import learn, sample
from numpy.typing import NDArray
from saved import save

from stg_runtime.errors import InputError
from stg_runtime.measures import MEASURES, compare, measure
from stg_runtime.video import read_clip
from stg_train.sea import Sea

Video = NDArray[np.uint8]
SIZE = (64, 64)
STATES = (20, 50)  # of the linear dynamical system
SHIFT = 9


def blurred(clip: Video, radius: int) -> Video:
    """Each frame averaged over 2 radius + 1 px squares."""
    padded = np.pad(
        clip.astype(np.float64), [(0, 0), (radius, radius), (radius, radius), (0, 0)], "edge"
    )
    height, width = clip.shape[1:3]
    reach = range(2 * radius + 1)
    total = sum(padded[:, y : y + height, x : x + width] for y in reach for x in reach)
    return np.rint(total / len(reach) ** 2).astype(np.uint8)


def known(clip: Video, more: Video) -> dict[str, Video]:
    """Material whose figures can be foretold. `more` is the clip and what follows it."""
    frames = len(clip)
    generator = np.random.default_rng(0)
    shaken = clip + generator.normal(0, 5, clip.shape)
    videos = {"itself": clip}
    if len(more) >= 2 * frames:
        videos["another segment"] = more[frames : 2 * frames]
    if len(more) >= frames + SHIFT:
        videos[f"replay, {SHIFT} frames later"] = more[SHIFT : SHIFT + frames]
    return {
        **videos,
        "replay backwards": clip[::-1],
        "replay with noise of 5": np.clip(np.rint(shaken), 0, 255).astype(np.uint8),
        "blurred, 3x3": blurred(clip, 1),
        "mean frame": np.repeat(np.rint(clip.mean(0))[None].astype(np.uint8), frames, 0),
        "white noise": generator.integers(0, 256, clip.shape, dtype=np.uint8),
    }


def read(argument: str) -> tuple[str, Video, Video]:
    """Name, clip, and the clip with all that follows it."""
    found = re.fullmatch(r"(?:([^=]+)=)?(.+?)(?:@(\d+)\+(\d+))?(?::(\d+,\d+,\d+,\d+))?", argument)
    assert found
    path = Path(found[2])
    start, frames = int(found[3] or 0), int(found[4] or 64)
    crop = tuple(map(int, found[5].split(","))) if found[5] else None
    assert crop is None or len(crop) == 4
    more = read_clip(path, size=SIZE, frames=frames, start=start, crop=crop).frames
    if not found[4]:  # a clip that was cut out by hand ends where it says
        for count in (2 * frames, frames + SHIFT):
            try:
                more = read_clip(path, size=SIZE, frames=count, start=start, crop=crop).frames
                break
            except InputError:
                continue
    return found[1] or path.stem, more[:frames], more


def rows_of(clip: Video, more: Video) -> dict[str, dict[str, float]]:
    rows = {name: measure(clip, video).as_dict() for name, video in known(clip, more).items()}
    halves = compare([clip], [clip]).halves
    assert halves is not None
    rows["its halves"] = halves.as_dict()
    for states in STATES:
        system = learn(clip, states)
        videos = [sample(system, len(clip), seed) for seed in (1, 2)]
        found = compare([clip], videos)
        for seed, figures in zip((1, 2), found.videos, strict=True):
            rows[f"linear system, {states} states, seed {seed}"] = {
                **figures.as_dict(),
                "diversity": found.diversity or 0.0,
            }
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("clips", nargs="*")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    sea = Sea(*SIZE).render(128)
    results = {}
    for name, clip, more in [("sea", sea[:64], sea), *(read(clip) for clip in options.clips)]:
        results[name] = {"frames": len(clip), "rows": rows_of(clip, more)}
        keys = [item.key for item in MEASURES]
        print(f"{name + ', ' + str(len(clip)) + ' frames':<36}", *(f"{key[:9]:>9}" for key in keys))
        for row, figures in results[name]["rows"].items():
            print(f"{row:<36}", *(f"{figures[key]:>9.3f}" for key in keys))
    large = Sea(224, 224).render(70)
    began = time.process_time()
    measure(large, large)
    seconds = time.process_time() - began
    print(f"224x224x70 took {seconds:.1f} processor seconds")
    what = "the measures on known material and on the linear dynamical system, 64x64"
    took = {"processor seconds for 224x224x70": round(seconds, 2)}
    save(options.json, what, ("numpy",), clips=results, **took)


if __name__ == "__main__":
    main()
