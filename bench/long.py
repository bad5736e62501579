"""Loops, windows and endless video: seams, time, memory and drift.

    python bench/long.py MODEL.onnx [--frames 2000] [--json bench/results/long-cpu.json]

windows: time of one gradient in the windows of a budget over that in one piece, wall and CPU,
alternating in one process, and their largest difference over the gradient's own largest value;
memory: peak of a synthesis in a process of its own, over its --max-memory; loop: difference of last
and first frame over the mean difference of neighbouring frames; endless: frames per second and
resident memory along the stream, late over early, and mean, standard deviation and motion of its
first and last quarter, levels.
"""

from __future__ import annotations

import argparse
import datetime
import json
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from stg_runtime.backends.onnxruntime_cpu import OnnxRuntimeCpu
from stg_runtime.doctor import memory, processor, version
from stg_runtime.endless import Endless
from stg_runtime.memory import MIB, parse_memory, plan_windows, resident_memory
from stg_runtime.synthesize import fitted_chains, plan, synthesize
from stg_runtime.threads import usable_threads
from stg_runtime.windows import Windowed

# Not getrusage: a process begins with the peak of the one that started it.
_PEAK = """
import re, sys
from stg_cli.run import app
app(sys.argv[1:], standalone_mode=False)
print(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1], file=sys.stderr)
"""


def windows(
    model: Path, lengths: tuple[int, int, int], limit: str, repeats: int, threads: int
) -> dict[str, Any]:
    """One gradient of a video in the windows that a budget allows, and in one piece."""
    whole = OnnxRuntimeCpu(model, threads)
    gradient = OnnxRuntimeCpu(model, threads)
    metadata = whole.metadata
    cut = plan_windows(gradient, lengths, limit=parse_memory(limit))
    assert cut.pieces != (1, 1, 1), "it fits in one piece; nothing to compare"
    windowed = Windowed(gradient, pieces=cut.pieces)
    x = np.random.default_rng(0).standard_normal((1, metadata.channels, *lengths), np.float32)
    grads = [np.empty_like(x), np.empty_like(x)]
    wall: list[list[float]] = [[], []]
    busy: list[list[float]] = [[], []]
    for _ in range(repeats + 1):
        for index, each in enumerate((whole, windowed)):
            each.bind(x, grads[index])
            began, used = time.perf_counter(), time.process_time()
            each.run()
            busy[index].append(time.process_time() - used)
            wall[index].append(time.perf_counter() - began)
    error = float(np.abs(grads[1] - grads[0]).max() / np.abs(grads[0]).max())
    assert error < 1e-4, error
    return {
        "video": "x".join(map(str, lengths)),
        "budget": limit,
        "pieces": cut.pieces,
        "largest piece, share of the video": cut.largest / float(np.prod(lengths)),
        "work ratio": cut.work,
        "time ratio": _ratio(wall),
        "CPU time ratio": _ratio(busy),
        "CPU seconds whole": statistics.median(busy[0][1:]),
        "difference": error,
    }


def _ratio(times: list[list[float]]) -> float:
    """Of windows over one piece: the median over neighbouring runs, the first pair left out."""
    return statistics.median(b / a for a, b in zip(times[0][1:], times[1][1:], strict=True))


def peak(model: Path, limit: str, frames: int, size: str) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        command = ["synthesize", str(model), "-o", f"{folder}/o.mp4", "--frames", str(frames)]
        command += ["--size", size, "--steps", "2", "--max-memory", limit, "--seed", "1"]
        done = subprocess.run(
            [sys.executable, "-c", _PEAK, *command], capture_output=True, text=True
        )
    assert done.returncode == 0, done.stderr
    used = int(done.stderr.split()[-1]) << 10
    return {
        "video": f"{frames}x{size}",
        "budget": limit,
        "peak MiB": used / MIB,
        "peak over budget": used / parse_memory(limit),
    }


def loop(model: Path, frames: int, seeds: int, threads: int) -> dict[str, Any]:
    backend = OnnxRuntimeCpu(model, threads)
    ratios = []
    for seed in range(seeds):
        job = plan(backend.metadata, frames=frames, loop=True, seed=seed)
        video = synthesize(fitted_chains(backend, job), backend.metadata, job, number=0)
        levels = video.astype(np.float64)
        motion = np.abs(np.diff(levels, axis=0)).mean()
        ratios.append(float(np.abs(levels[0] - levels[-1]).mean() / motion))
    return {"frames": frames, "seam over motion": ratios, "mean": statistics.mean(ratios)}


def endless(model: Path, frames: int, threads: int) -> dict[str, Any]:
    gradient = OnnxRuntimeCpu(model, threads)
    size = gradient.metadata.size
    stream = Endless(
        gradient,
        (size.height, size.width),
        n_steps=gradient.metadata.n_steps,
        seed=1,
    )
    curve, rows = [], []
    began, last = time.perf_counter(), None
    made = 0
    for block in stream:
        made += len(block)
        levels = block.astype(np.float64)
        motion = [] if last is None else [np.abs(levels[0] - last).mean()]
        motion += [np.abs(b - a).mean() for a, b in pairwise(levels)]
        last = levels[-1]
        rows.append((levels.mean(), levels.std(), float(np.mean(motion))))
        curve.append(
            {
                "frame": made,
                "seconds": round(time.perf_counter() - began, 3),
                "MiB": round(resident_memory() / MIB, 1),
            }
        )
        if made >= frames:
            break
    quarter = len(rows) // 4
    early, late = np.mean(rows[:quarter], axis=0), np.mean(rows[-quarter:], axis=0)

    def rate(part: list[dict[str, float]]) -> float:
        return (part[-1]["frame"] - part[0]["frame"]) / (part[-1]["seconds"] - part[0]["seconds"])

    half = len(curve) // 2
    names = ("mean", "standard deviation", "motion")
    return {
        "frames": made,
        "seconds before the first": curve[0]["seconds"],
        "frames per second": rate(curve),
        "rate of the second half over the first": rate(curve[half:]) / rate(curve[: half + 1]),
        "first quarter": dict(zip(names, early.tolist(), strict=True)),
        "last quarter": dict(zip(names, late.tolist(), strict=True)),
        "late over early": dict(zip(names, (late / early).tolist(), strict=True)),
        "MiB at a quarter and at the end": [curve[quarter]["MiB"], curve[-1]["MiB"]],
        "curve": curve[:: max(1, len(curve) // 40)],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--frames", type=int, default=2000, help="of the stream; 0 for none")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    model = options.model
    threads = options.threads or usable_threads()
    result: dict[str, Any] = {
        "what": "windows, loops and endless video on the CPU",
        "date": datetime.date.today().isoformat(),
        "hardware": {
            "processor": processor(),
            "memory": memory(),
            "threads": threads,
        },
        "versions": {name: version(name) for name in ("stg", "onnxruntime", "numpy")},
        "windows": [
            windows(model, lengths, limit, options.repeats, threads)
            for lengths, limit in (
                ((400, 64, 64), "240M"),
                ((800, 64, 64), "300M"),
                ((72, 256, 256), "400M"),
                ((128, 128, 128), "280M"),
                ((128, 128, 128), "260M"),
                ((128, 128, 128), "240M"),
            )
        ],
        "memory": [
            peak(model, "260M", 400, "64x64"),
            peak(model, "400M", 64, "256x256"),
            peak(model, "500M", 64, "256x256"),
        ],
        "loop": loop(model, 64, 2, threads),
    }
    print(json.dumps(result, indent=2), file=sys.stderr)
    if options.json:  # what is measured so far
        options.json.write_text(json.dumps(result, indent=2) + "\n")
    if not options.frames:
        return
    result["endless"] = endless(model, options.frames, threads)
    shown = {key: value for key, value in result["endless"].items() if key != "curve"}
    print(json.dumps(shown, indent=2), file=sys.stderr)
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
