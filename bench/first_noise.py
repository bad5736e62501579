"""What first noise alone reads: the measures before the first Langevin step, its parts in turn.

    python bench/first_noise.py NAME=CLIP[@X,Y,W,H][:FRAMES] ... [--draws 4] [--json OUT.json]

Rows: Gaussian noise along time, the same with each place's colours, and equalized, as recipe fc-s
starts; along space and time without and with the equalizer, as recipe st starts. The difference to
`bench/samples.py` is what the learned energy does. What the figures are: docs/measures.md.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from saved import save

from stg_runtime.measures import compare
from stg_runtime.spot import Axes, Spot
from stg_runtime.video import to_pixels
from stg_train.observed import Observed, read_observed
from stg_train.recipe import load_recipe

FIGURES = (
    "spatial_db",
    "temporal_db",
    "motion",
    "sharpness",
    "moving_contrast",
    "feature_distance",
    "difference",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("clips", nargs="+")
    parser.add_argument("--draws", type=int, default=4)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rows: dict[str, dict[str, Any]] = {}
    print(f"{'':<32}" + " ".join(f"{name:>16}" for name in FIGURES))
    for text in options.clips:
        name, _, rest = text.partition("=")
        rows[name] = {}
        for axes, recipe in (("time", "fc-s"), ("space-time", "st")):
            observed = prepared(rest, recipe)
            for label, found in variants(observed, axes, options.draws).items():
                rows[name][label] = found
                means = " ".join(f"{np.mean([v[key] for v in found]):>16.3f}" for key in FIGURES)
                print(f"{name[:14]:<15}{label:<17}" + means, flush=True)
    what = "first noise alone against its clip, no Langevin step"
    save(options.json, what, ("numpy",), draws=options.draws, rows=rows)


def overrides_of(text: str) -> dict[str, Any]:
    """What CLIP[@X,Y,W,H][:FRAMES] says, as `load_recipe` takes it."""
    path, _, frames = text.partition(":")
    path, _, crop = path.partition("@")
    overrides: dict[str, Any] = {"data.videos": [path]}
    if crop:
        overrides["data.crop"] = [int(number) for number in crop.split(",")]
    if frames:
        overrides["data.frames"] = int(frames)
    return overrides


def prepared(text: str, recipe: str) -> Observed:
    overrides = overrides_of(text)
    if "data.frames" in overrides:
        overrides["data.window"] = overrides["data.frames"] // 2
    loaded = load_recipe(recipe, overrides=overrides)
    return read_observed(loaded.data, loaded.pixels, tempfile.TemporaryFile())


def variants(observed: Observed, axes: Axes, draws: int) -> dict[str, list[dict[str, float]]]:
    fitted = observed.spot(axes)
    plain = Spot(fitted._plain, axes)
    made: dict[str, tuple[Spot, Callable[..., Any]]]
    if axes == "time":
        made = {
            "gaussian": (plain, plain.gaussian),
            "coloured": (plain, plain.make),
            "equalized": (fitted, fitted.make),
        }
    else:
        made = {"st plain": (plain, plain.make), "st equalized": (fitted, fitted.make)}
    _, T, H, W, C = observed.pixels.shape
    found = {}
    for label, (spot, make) in made.items():
        rng = np.random.default_rng(1)  # the same noise for each; not the equalizer's
        videos = []
        for _ in range(draws):
            noise = rng.standard_normal(spot.noise_size((C, T, H, W))).astype(np.float32)
            videos.append(to_pixels(make(noise, (C, T, H, W)), observed.mean, observed.scale))
        found[label] = [v.as_dict() for v in compare(list(observed.pixels), videos).videos]
    return found


if __name__ == "__main__":
    main()
