"""What a walk does to first noise when the energy is its Gaussian reference alone.

    python bench/pull.py NAME=CLIP[@X,Y,W,H][:FRAMES] ... [--draws 4] [--json OUT.json]

Each clip's recipe is the one that stg-train would choose, margins included. Rows: the start; after
20 and 60 steps of a = 0.002 and of a = 0.0002, the share of the way to the mean that a step takes;
60 steps of a = 0.002 without Langevin noise; and 60 steps of the noise without the pull. What a
learned energy reads beyond these rows is what it does. Means over the draws; docs/measures.md says
what the figures are. `independent` is what an unrelated video's difference would read.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from first_noise import FIGURES, overrides_of
from saved import save

from stg_runtime.measures import compare
from stg_runtime.video import to_pixels
from stg_train.choose import choose
from stg_train.observed import read_observed
from stg_train.select import mean_score

# Steps, share of the way to the mean that each takes, whether it adds noise.
WALKS = {
    "start": (0, 0.0, False),
    "20 steps, a 0.002": (20, 0.002, True),
    "60 steps, a 0.002": (60, 0.002, True),
    "20 steps, a 0.0002": (20, 0.0002, True),
    "60 steps, a 0.0002": (60, 0.0002, True),
    "60 steps, a 0.002, no noise": (60, 0.002, False),
    "60 steps, noise alone": (60, 0.0, True),
}
SEED = 7


def rows_of(text: str, draws: int) -> dict[str, Any]:
    """The recipe, what an independent video reads, and the mean figures of every walk."""
    overrides = overrides_of(text)
    recipe = choose(overrides["data.videos"], None, overrides).recipe
    first_noise, margin = recipe.langevin.first_noise, recipe.output.margin_frames
    assert first_noise != "white"
    with tempfile.TemporaryFile() as file:
        observed = read_observed(recipe.data, recipe.pixels, file)
        spot = observed.spot(first_noise)
        _, T, H, W, C = observed.pixels.shape
        shape = (C, T + 2 * margin, H, W)
        rng = np.random.default_rng(SEED)
        starts = []
        for _ in range(draws):
            noise = rng.standard_normal(spot.noise_size(shape)).astype(np.float32)
            starts.append(spot.make(noise, shape))
        rows = {}
        for label, (steps, share, noisy) in WALKS.items():
            spread = np.float32(recipe.langevin.step_size if noisy else 0)
            videos = []
            for start in starts:
                x = start
                for _ in range(steps):
                    x = np.float32(1 - share) * x
                    if noisy:
                        x += spread * rng.standard_normal(shape, dtype=np.float32)
                video = to_pixels(x, observed.mean, observed.scale)
                videos.append(video[margin : margin + T])
            found = compare(list(observed.pixels), videos)
            means = {
                key: float(np.mean([getattr(v, key) for v in found.videos])) for key in FIGURES
            }
            rows[label] = {"score": mean_score(found), **means}
    return {"recipe": recipe.name, "independent": found.independent, "rows": rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("clips", nargs="+")
    parser.add_argument("--draws", type=int, default=4)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    clips: dict[str, Any] = {}
    print(f"{'':<40}" + " ".join(f"{name:>16}" for name in ("score", *FIGURES)))
    for text in options.clips:
        name, _, rest = text.partition("=")
        clips[name] = rows_of(rest, options.draws)
        for label, row in clips[name]["rows"].items():
            print(f"{name:<11} {label:<28}" + " ".join(f"{value:>16.3f}" for value in row.values()))
        print(f"{name:<11} recipe {clips[name]['recipe']}, independent: ", end="")
        print(f"{clips[name]['independent']:.3f}", flush=True)
        what = "first noise walked with the reference alone, no learned energy"
        save(options.json, what, ("numpy",), threads=1, draws=options.draws, clips=clips)


if __name__ == "__main__":
    main()
