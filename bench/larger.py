"""Is a video larger than the model's as like the clip as one of the model's own size?

    python bench/larger.py RUN MODEL.onnx --times 2 -o bench/results/larger-river.json

Crops of the model's own size are compared with the clip, as `stg-run compare` does, and so are
videos of that size; then how far the mean luminance of 16x16 pixels of one frame strays, grey
levels.
"""

from __future__ import annotations

import argparse
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from stg_runtime.backends.onnxruntime_cpu import OnnxRuntimeCpu
from stg_runtime.files import atomic_write_text
from stg_runtime.measures import measure
from stg_runtime.spot import luminance_weights
from stg_runtime.synthesize import fitted_chains, plan, synthesize
from stg_runtime.video import Frames

BLOCK = 16
SHOWN = ("spatial_db", "temporal_db", "motion", "sharpness", "moving_contrast", "feature_distance")


def patches(frames: Frames) -> float:
    """Standard deviation of the mean luminance of BLOCK x BLOCK pixels of a frame, grey levels."""
    light = frames.astype(np.float32) @ luminance_weights(frames.shape[-1])
    t, h, w = (n - n % m for n, m in zip(light.shape, (1, BLOCK, BLOCK), strict=True))
    blocks = light[:t, :h, :w].reshape(t, h // BLOCK, BLOCK, w // BLOCK, BLOCK)
    return float(blocks.mean((2, 4)).std())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("model", type=Path)
    parser.add_argument("--times", type=int, default=2, help="height and width, of the model's own")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("-o", "--output", type=Path)
    options = parser.parse_args()
    clip = np.load(options.run / "observed.npy")[0]
    backend = OnnxRuntimeCpu(options.model, options.threads)
    height, width = backend.metadata.size.height, backend.metadata.size.width
    rows: list[dict[str, Any]] = [{"video": "clip", "patches": patches(clip)}]
    for seed in range(options.seeds):
        for times in (1, options.times):
            job = plan(backend.metadata, size=(times * height, times * width), seed=seed)
            video = synthesize(fitted_chains(backend, job), backend.metadata, job, number=0)
            for y in range(0, times * height, height):
                for x in range(0, times * width, width):
                    crop = np.ascontiguousarray(video[:, y : y + height, x : x + width])
                    found = measure(clip, crop)
                    row = {"video": f"{times} times, seed {seed}", "crop": [x, y]}
                    row |= {name: round(getattr(found, name), 3) for name in SHOWN}
                    rows.append(row | {"patches": patches(video)})
                    print(rows[-1], flush=True)
    if options.output:
        result = {"date": datetime.now(UTC).isoformat(timespec="seconds"), "rows": rows}
        atomic_write_text(options.output, json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
