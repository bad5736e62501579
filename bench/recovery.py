"""Recovery of hidden pixels: mean absolute error, ours against five other methods.

    python bench/recovery.py fire=fire_pot.avi@280,0,720,720 boil=boiling_water.avi \
        river=moving_boat.mp4@0,130,110,110 [--size 64x64] [--frames 32] [--updates 100] \
        [--masks region frames salt-pepper] [--json bench/results/recovery.json]

A clip is NAME=PATH, with @X,Y,W,H to cut that out first. The paper's masks are `region:60`,
`frames:0.5` and `salt-pepper:0.5` at 150x150x70 (--size 150x150 --frames 70); at another size the
region keeps its share of the height.

Columns, mean absolute error over hidden pixels and colours, grey levels 0..255, rounded like
written video: interp (temporal linear interpolation), mrf-l1 and mrf-l2 (Markov random field on the
six neighbours in space and time, absolute or squared differences), telea and ns (OpenCV's
inpainting of each frame, radius 3; of each row over time where whole frames are hidden), start (our
first values, before the network learned), ours (stg-train --mask: the estimate it writes; - with
--updates 0). The file is written row by row, and rows that it has are not made again.
"""

from __future__ import annotations

import argparse
import datetime
import itertools
import json
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stg_runtime.doctor import processor, version
from stg_runtime.fill import harmonic_fill, interpolate_in_time
from stg_runtime.threads import usable_threads
from stg_train.incomplete import MASK, TRUTH
from stg_train.recipe import load_recipe
from stg_train.run import Run

Float32 = NDArray[np.float32]
Mask = NDArray[np.bool_]

COLUMNS = ("interp", "mrf-l1", "mrf-l2", "telea", "ns", "start", "ours")


def mrf_l1(x: Float32, observed_mask: Mask, rounds: int = 12, iterations: int = 40) -> Float32:
    """Least sum of absolute differences of the six neighbours, by reweighted least squares.

    Each round solves with weights 1 / max(|difference|, 0.5 grey levels), by conjugate gradients.
    """
    hidden = ~observed_mask
    u = harmonic_fill(x, observed_mask)
    for c in range(len(u)):
        for _ in range(rounds):
            weights = [1 / np.maximum(np.abs(np.diff(u[c], axis=axis)), 0.5) for axis in range(3)]

            def laplace(v: Float32, weights: list[Float32] = weights) -> Float32:
                out = np.zeros_like(v)
                for axis, weight in enumerate(weights):
                    flow = np.diff(v, axis=axis) * weight
                    pad = [(0, 0)] * 3
                    pad[axis] = (1, 1)
                    out -= np.diff(np.pad(flow, pad), axis=axis)
                return out * hidden

            diagonal = np.zeros_like(u[c])
            for axis, weight in enumerate(weights):
                pad = [(0, 0)] * 3
                pad[axis] = (1, 1)
                padded = np.pad(weight, pad)
                n = padded.shape[axis]
                diagonal += padded.take(range(n - 1), axis) + padded.take(range(1, n), axis)
            r = -laplace(u[c])
            z = r / diagonal
            p, rz = z.copy(), float((r * z).sum(dtype=np.float64))
            for _ in range(iterations):
                if rz < 1e-6:
                    break
                ap = laplace(p)
                alpha = rz / float((p * ap).sum(dtype=np.float64))
                u[c] += np.float32(alpha) * p
                r -= np.float32(alpha) * ap
                z = r / diagonal
                new = float((r * z).sum(dtype=np.float64))
                p = z + np.float32(new / rz) * p
                rz = new
    return np.where(observed_mask, x, u)


def opencv(frames: NDArray[np.uint8], observed_mask: Mask, method: str) -> Float32:
    """OpenCV's inpainting of the frames, (T, H, W, 3) to (C, T, H, W)."""
    import cv2

    flag = {"telea": cv2.INPAINT_TELEA, "ns": cv2.INPAINT_NS}[method]
    hidden = (~observed_mask).astype(np.uint8) * 255
    out = np.where(observed_mask[..., None], frames, np.uint8(0))
    if not observed_mask.any((1, 2)).all():  # a hidden frame has no surroundings but in time
        for y in range(frames.shape[1]):
            row, mask = np.ascontiguousarray(out[:, y]), np.ascontiguousarray(hidden[:, y])
            out[:, y] = cv2.inpaint(row, mask, 3, flag)
    else:
        out = np.stack([cv2.inpaint(f, m, 3, flag) for f, m in zip(out, hidden, strict=True)])
    return out.transpose(3, 0, 1, 2).astype(np.float32)


def mask_of(kind: str, options: argparse.Namespace) -> str:
    """The paper's mask; a region of its share of the height."""
    height = int(options.size.split("x")[0])
    return f"region:{round(0.4 * height)}" if kind == "region" else f"{kind}:0.5"


def row(options: argparse.Namespace, clip: str, mask: str, folder: Path) -> dict[str, object]:
    """One line of the table."""
    path, _, crop = clip.partition("=")[2].partition("@")
    height, width = (int(part) for part in options.size.split("x"))
    recipe = load_recipe(
        options.recipe,
        overrides={
            "data.videos": [path],
            "data.size": [height, width],
            "data.frames": options.frames,
            "data.start": options.start,
            "data.crop": [int(part) for part in crop.split(",")] if crop else None,
            "data.mask": mask,
            "learning.updates": max(options.updates, 1),
            "seed": options.seed,
            "threads": options.threads,
            "device": options.device,
            "output.sheet_every": 10**6,
            "output.checkpoint_every": 10**6,
        },
    )
    began = time.perf_counter()
    run = Run.start(folder / "run", recipe, overwrite=True)
    found = None
    if options.updates:
        run.learn()
        found = run.finish_recovery()
    seconds = time.perf_counter() - began
    truth = np.load(folder / "run" / TRUTH)[0]
    observed_mask = np.load(folder / "run" / MASK)[0]
    levels = truth.transpose(3, 0, 1, 2).astype(np.float32)
    given = np.where(observed_mask, levels, np.float32(0))

    def error(guess: Float32) -> float:
        rounded = np.clip(np.rint(guess), 0, 255)
        return float(np.abs(rounded - levels)[:, ~observed_mask].mean())

    recovery, observed = run.learner.recovery, run.learner.observed
    assert recovery is not None
    first = recovery.first[0].cpu().numpy() * observed.scale + observed.mean[:, None]
    return {
        "clip": clip.partition("=")[0],
        "mask": mask,
        "interp": error(interpolate_in_time(given, observed_mask)),
        "mrf-l1": error(mrf_l1(given, observed_mask)),
        "mrf-l2": error(harmonic_fill(given, observed_mask)),
        "telea": error(opencv(truth, observed_mask, "telea")),
        "ns": error(opencv(truth, observed_mask, "ns")),
        "start": error(first),
        "ours": found.error if found else None,
        "learned": asdict(found) if found else None,
        "seconds": round(seconds, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("clips", nargs="+", metavar="NAME=PATH[@X,Y,W,H]")
    parser.add_argument("--masks", nargs="+", default=["region", "frames", "salt-pepper"])
    parser.add_argument("--size", default="64x64")
    parser.add_argument("--frames", type=int, default=32)
    parser.add_argument("--start", type=int, default=0)
    parser.add_argument("--updates", type=int, default=100, help="0: the start alone")
    parser.add_argument("--recipe", default="st")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    result: dict[str, Any] = {
        "what": "recovery of hidden pixels, mean absolute error, grey levels 0..255",
        "date": datetime.date.today().isoformat(),
        "hardware": {"processor": processor(), "threads": options.threads or usable_threads()},
        "versions": {name: version(name) for name in ("stg", "torch", "opencv-python-headless")},
        "size": f"{options.frames}x{options.size}",
        "recipe": options.recipe,
        "updates": options.updates,
        "seed": options.seed,
        "rows": [],
    }
    if options.json and options.json.exists():
        made = json.loads(options.json.read_text())
        for key in ("size", "recipe", "updates", "seed"):
            if made.get(key) != result[key]:
                parser.error(f"{options.json} has rows of another {key}, {made.get(key)}")
        result["rows"] = made["rows"]
    print(f"{'clip':<8} {'mask':<16}" + "".join(f"{name:>8}" for name in COLUMNS))
    for clip, kind in itertools.product(options.clips, options.masks):
        wanted = (clip.partition("=")[0], mask_of(kind, options))
        if any((old["clip"], old["mask"]) == wanted for old in result["rows"]):
            continue
        with tempfile.TemporaryDirectory() as folder:
            made = row(options, clip, wanted[1], Path(folder))
        result["rows"].append(made)
        cells = (
            f"{'-' if made[name] is None else format(made[name], '.2f'):>8}" for name in COLUMNS
        )
        print(f"{wanted[0]:<8} {wanted[1]:<16}{''.join(cells)}", flush=True)
        if options.json:
            options.json.parent.mkdir(parents=True, exist_ok=True)
            options.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
