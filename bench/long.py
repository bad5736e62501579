"""Loops, windows and endless video: seams, time, memory and drift.

    python bench/long.py MODEL.onnx [--frames 2000] [--json bench/results/long-cpu.json]

windows: time of one gradient in the windows of a budget over that in one piece, wall and CPU,
alternating in one process, and their largest difference over the gradient's own largest value;
memory: peak of a synthesis in a process of its own, over its --max-memory; loop: difference of last
and first frame over the mean difference of neighbouring frames; endless: frames per second of wall
time and of the process's own processor time (with one thread other work does not count there) and
resident memory along the stream, and mean, standard deviation and motion of its first and last
quarter, levels.
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
from stg_runtime.endless import GROUP, Endless
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
    began, used, last = time.perf_counter(), time.process_time(), None
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
                "CPU seconds": round(time.process_time() - used, 3),
                "MiB": round(resident_memory() / MIB, 1),
            }
        )
        if made >= frames:
            break
    quarter = len(rows) // 4
    early, late = np.mean(rows[:quarter], axis=0), np.mean(rows[-quarter:], axis=0)
    # A stream moves by GROUP blocks: between two that lie a multiple apart, all work is theirs.
    groups = (len(curve) - 1) // GROUP
    assert groups >= 4, "too few frames for quarters"
    marks = [curve[GROUP * (groups * n // 4)] for n in range(5)]
    rates = {
        clock: [(b["frame"] - a["frame"]) / (b[clock] - a[clock]) for a, b in pairwise(marks)]
        for clock in ("seconds", "CPU seconds")
    }
    names = ("mean", "standard deviation", "motion")
    return {
        "model": f"{gradient.metadata.recipe}, {size.height}x{size.width}",
        "frames": made,
        "seconds before the first": curve[0]["seconds"],
        "CPU seconds before the first": curve[0]["CPU seconds"],
        "frames per second, quarters": rates["seconds"],
        "frames per CPU second, quarters": rates["CPU seconds"],
        "most over least, CPU": max(rates["CPU seconds"]) / min(rates["CPU seconds"]),
        "first quarter": dict(zip(names, early.tolist(), strict=True)),
        "last quarter": dict(zip(names, late.tolist(), strict=True)),
        "late over early": dict(zip(names, (late / early).tolist(), strict=True)),
        "MiB at the first block and the quarters' ends": [mark["MiB"] for mark in marks],
        "curve": curve[:: max(1, len(curve) // 40)],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--frames", type=int, default=2000, help="of the stream; 0 for none")
    parser.add_argument("--only-endless", action="store_true", help="nothing else; adds to --json")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    model = options.model
    threads = options.threads or usable_threads()
    if options.only_endless:
        result = json.loads(options.json.read_text()) if options.json else {}
        result["endless"] = [*result.get("endless", ()), endless(model, options.frames, threads)]
        _save(result, options.json)
        return
    result = {
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
            peak(model, "280M", 128, "128x128"),
            peak(model, "240M", 128, "128x128"),
            peak(model, "400M", 64, "256x256"),
            peak(model, "500M", 64, "256x256"),
        ],
        "loop": loop(model, 64, 2, threads),
    }
    _save(result, options.json)  # what is measured so far
    if options.frames:
        result["endless"] = [endless(model, options.frames, threads)]
        _save(result, options.json)


def _save(result: dict[str, Any], path: Path | None) -> None:
    shown = {**result, "endless": [{**e, "curve": ...} for e in result.get("endless", ())]}
    print(json.dumps(shown, indent=2, default=str), file=sys.stderr)
    if path:
        path.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
