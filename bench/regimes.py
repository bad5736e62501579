"""Learning regimes x clips x measures, for equal processor time: who synthesizes from fresh noise?

    python bench/regimes.py OUT.json NAME=CLIP ... --budget 120 [--size 64x64] [--frames 64]
        [--regimes NAME ...] [--sheets DIR] [--table]

Every run gets the same seconds of processor time for its updates (the time of one is taken first,
so that learning rates fall as in a whole run), on one thread. Then two videos from fresh noise, in
the steps of training, are measured against the clip; docs/measures.md says what the figures are.
The JSON is written after each run, and what is in it is not made again. --table prints it for docs.
"""

from __future__ import annotations

import argparse
import datetime
import json
import re
import time
from pathlib import Path
from typing import Any

import torch

from stg_runtime.contact_sheet import contact_sheet, save_image
from stg_runtime.doctor import processor, version
from stg_runtime.errors import DivergenceError
from stg_runtime.files import atomic_write_text
from stg_runtime.measures import compare
from stg_train.learn import Learner
from stg_train.observed import Observed, read_observed
from stg_train.recipe import Recipe, load_recipe
from stg_train.run import resolve
from stg_train.sample import sample

# From white noise the start must be forgotten in K steps, and the energy makes everything.
WHITE = {
    "langevin.first_noise": "white",
    "langevin.step_size": 0.01,
    "learning.learning_rate": 0.02,
}
NOTHING = 1e-12  # a rate that moves no parameter
SPOT: dict[str, Any] = {}  # the recipe's own
VALID = {"network.padding": "valid", "output.margin_frames": 14, "output.margin_size": 22}

RUNS: dict[str, tuple[str, dict[str, Any]]] = {
    "persistent, white": ("fc-s", {**WHITE, "learning.regime": "persistent"}),
    "persistent, spot": ("fc-s", {**SPOT, "learning.regime": "persistent"}),
    "short-run, white": ("fc-s", {**WHITE, "learning.regime": "short-run"}),
    "short-run, spot": ("fc-s", {**SPOT, "learning.regime": "short-run"}),
    "rejuvenated, spot": ("fc-s", {**SPOT, "learning.regime": "rejuvenated"}),
    "multi-grid, white": ("fc-s", {**WHITE, "learning.regime": "multi-grid"}),
    "multi-grid, spot": ("fc-s", {**SPOT, "learning.regime": "multi-grid"}),
    "denoising, spot": ("denoising", {}),
    "exemplars": ("exemplars", {}),
    "exemplars, no lags": ("exemplars", {}),
    "exemplars, biases alone": ("exemplars", {"learning.learning_rate": NOTHING}),
    "exemplars, as they are": (
        "exemplars",
        {"learning.learning_rate": NOTHING, "learning.bias_rate": NOTHING},
    ),
    "st, zeros": ("st", {}),
    "st, zeros, windows in space": ("st", {"data.window_size": [48, 48]}),
    "st, valid": ("st", VALID),
    "st, valid, windows in space": ("st", {**VALID, "data.window_size": [48, 48]}),
}
REGIMES = [name for name in RUNS if not name.startswith("st")]
UNLEARNED = {"exemplars, no lags": "lags"}  # parameters that have no rate of their own in a recipe
KEYS = (
    ("spatial_db", "spatial dB"),
    ("temporal_db", "temporal dB"),
    ("motion", "motion"),
    ("sharpness", "sharpness"),
    ("feature_distance", "feature distance"),
    ("difference", "difference"),
)
TIMED = 4  # updates whose time is taken; the first of them is left out
LONGEST = 1.25  # of the budget: a machine that slows down ends a run early
SEED = 4001  # of the samples


def learner_of(recipe: Recipe, observed: Observed, unlearned: str | None) -> Learner:
    torch.manual_seed(0)
    learner = Learner(recipe, observed)
    if unlearned is not None:
        left = getattr(learner.descriptor, unlearned)
        (group,) = (g for g in learner.optimizer.param_groups if g["params"][0] is left)
        group["base"] = 0.0
    return learner


def seconds_per_update(recipe: Recipe, observed: Observed) -> float:
    learner, times = learner_of(recipe, observed, None), []
    for _ in range(TIMED):
        began = time.process_time()
        learner.update()
        times.append(time.process_time() - began)
    return sum(times[1:]) / (TIMED - 1)


def run(
    recipe: Recipe, observed: Observed, budget: float, unlearned: str | None
) -> tuple[dict[str, Any], Any]:
    """Learn for the budget, synthesize, measure: one cell of the table, and its videos."""
    each = seconds_per_update(recipe, observed)
    updates = max(4, round(budget / each))
    learning = recipe.learning.model_copy(update={"updates": updates})
    learner = learner_of(recipe.model_copy(update={"learning": learning}), observed, unlearned)
    began, wall = time.process_time(), time.perf_counter()
    cell: dict[str, Any] = {"planned": updates, "guard": 0}
    videos = None
    try:
        while learner.update_count < updates and time.process_time() - began < LONGEST * budget:
            cell["guard"] += learner.update().returned_to is not None
        cell |= {
            "updates": learner.update_count,
            "seconds": round(time.process_time() - began, 1),
            "wall_seconds": round(time.perf_counter() - wall, 1),
        }
        videos = sample(learner, count=2, seed=SEED).videos
        found = compare(list(observed.pixels), list(videos))
        cell["videos"] = [figures.as_dict() for figures in found.videos]
        cell["diversity"] = found.diversity
    except DivergenceError as error:
        cell |= {"updates": learner.update_count, "failed": str(error)}
    return cell, videos


def _short(value: float, digits: int) -> str:
    """`.93` for 0.93."""
    text = f"{value:.{digits}f}"
    return text[1:] if text.startswith("0.") else text


def table(result: dict[str, Any]) -> None:
    """The figures as a table of Markdown."""
    print("| clip | regime, first noise | updates | " + " | ".join(text for _, text in KEYS) + " |")
    print("| --- " * (3 + len(KEYS)) + "|")
    for clip, rows in result["clips"].items():
        for name, cell in rows.items():
            figures = ["failed", *[""] * (len(KEYS) - 1)]
            if "videos" in cell:
                digits = {key: 3 if key == "feature_distance" else 2 for key, _ in KEYS}
                figures = [
                    ", ".join(_short(video[key], digits[key]) for video in cell["videos"])
                    for key, _ in KEYS
                ]
            print(f"| {clip} | {name} | {cell['updates']} | " + " | ".join(figures) + " |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("clips", nargs="*", metavar="NAME=CLIP[:X,Y,W,H]")
    parser.add_argument("--budget", type=float, default=120.0, help="processor seconds of a run")
    parser.add_argument("--size", default="64x64")
    parser.add_argument("--frames", type=int, default=64)
    parser.add_argument("--regimes", nargs="+", default=REGIMES, choices=RUNS, metavar="NAME")
    parser.add_argument("--sheets", type=Path, help="folder of contact sheets")
    parser.add_argument("--table", action="store_true")
    options = parser.parse_intermixed_args()
    torch.set_num_threads(1)
    setting = {"budget": options.budget, "size": options.size, "frames": options.frames}
    result: dict[str, Any] = {"clips": {}}
    if options.out.exists():
        result = json.loads(options.out.read_text())
        if result["setting"] != setting:
            parser.error(f"{options.out} is of {result['setting']}, not of {setting}")
    size = tuple(int(part) for part in options.size.split("x"))
    for argument in options.clips:
        found = re.fullmatch(r"([^=]+)=(.+?)(?::(\d+,\d+,\d+,\d+))?", argument)
        if found is None:
            parser.error(f"{argument}: expected NAME=CLIP")
        crop = [int(part) for part in found[3].split(",")] if found[3] else None
        rows = result["clips"].setdefault(found[1], {})
        for name in options.regimes:
            if name in rows:
                continue
            base, overrides = RUNS[name]
            data = {"data.videos": [found[2]], "data.size": size, "data.crop": crop}
            data |= {"data.frames": options.frames, "data.window": options.frames // 2}
            recipe = resolve(load_recipe(base, overrides={**data, "threads": 1, **overrides}))
            observed = read_observed(recipe.data, recipe.pixels)
            rows[name], videos = run(recipe, observed, options.budget, UNLEARNED.get(name))
            if options.sheets and videos is not None:
                options.sheets.mkdir(parents=True, exist_ok=True)
                named = [("observed", observed.pixels[0]), (name, videos[0]), ("", videos[1])]
                file = f"{found[1]}-{name}.png".replace(", ", "-").replace(" ", "-")
                save_image(options.sheets / file, contact_sheet(named))
            result |= {
                "what": "regimes and paddings for equal processor time, fresh noise",
                "date": datetime.date.today().isoformat(),
                "hardware": {"processor": processor(), "threads": 1},
                "versions": {"stg": version("stg"), "torch": str(torch.__version__)},
                "setting": setting,
            }
            options.out.parent.mkdir(parents=True, exist_ok=True)
            atomic_write_text(options.out, json.dumps(result, indent=1) + "\n")
            print(f"{found[1]}: {name}: {json.dumps(rows[name])[:300]}", flush=True)
    if options.table:
        table(result)


if __name__ == "__main__":
    main()
