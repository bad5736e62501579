"""How close synthesized video is to its clip: the measures, and a contact sheet to look at.

    python bench/samples.py RUN MODEL.onnx [--seeds 1001 1002] [--sheet OUT.png] [--json OUT.json]

Each seed is synthesized in the steps that the model was trained with, and in three times as many.
What the figures are: docs/measures.md.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
from saved import save

from stg_runtime.backends import open_backend
from stg_runtime.contact_sheet import contact_sheet, save_image
from stg_runtime.measures import compare, independent_difference
from stg_runtime.synthesize import fitted_chains, plan, synthesize


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("model", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1001, 1002])
    parser.add_argument("--sheet", type=Path)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    clips = list(np.load(options.run / "observed.npy"))
    backend = open_backend(options.model)
    trained = backend.metadata.n_steps
    videos, rows, between = {}, {}, {}
    for steps in (trained, 3 * trained):
        made = []
        for seed in options.seeds:
            job = plan(backend.metadata, n_steps=steps, seed=seed)
            began = time.perf_counter()
            made.append(synthesize(fitted_chains(backend, job), backend.metadata, job, number=0))
            seconds = time.perf_counter() - began
            rows[f"K {steps}, seed {seed}"] = {"seconds": seconds}
            videos[f"K {steps}, seed {seed}"] = made[-1]
        found = compare(clips, made)
        for seed, measures in zip(options.seeds, found.videos, strict=True):
            rows[f"K {steps}, seed {seed}"] |= measures.as_dict()
        between[f"K {steps}"] = found.diversity
    independent = independent_difference(clips)
    names = [name for name in next(iter(rows.values())) if name != "seconds"]
    print(f"{'':<18}" + " ".join(f"{name:>{max(7, len(name))}}" for name in names))
    for name, row in rows.items():
        cells = [f"{row[key]:>{max(7, len(key))}.3f}" for key in names]
        print(f"{name:<18}" + " ".join(cells))
    print(f"an independent video's difference: {independent:.3f}")
    print("diversity " + ", ".join(f"{name}: {value}" for name, value in between.items()))
    if options.sheet:
        sheet = contact_sheet([("observed", clips[0]), *videos.items()], columns=10)
        save_image(options.sheet, sheet)
    save(
        options.json,
        f"samples of {options.run.name} from fresh noise against its clip",
        ("onnxruntime",),
        recipe=backend.metadata.recipe,
        rows=rows,
        diversity=between,
        independent=independent,
    )


if __name__ == "__main__":
    main()
