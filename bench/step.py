"""What a Langevin step on the CPU costs besides its gradient, and what memory a synthesis takes.

The gradient is that of an untrained network: its cost does not depend on the weights. The parts of
a step alternate in one process, so that their ratio holds when the machine's speed drifts; peak
memory is that of separate processes that do nothing else.

    python bench/step.py [--networks st fc-s-large] [--steps 8] [--json FILE]
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
from pathlib import Path

import numpy as np

from stg_runtime.backends.onnxruntime_cpu import OnnxRuntimeCpu
from stg_runtime.doctor import memory, processor, version
from stg_runtime.langevin import Walker, langevin_step, standard_normal
from stg_runtime.synthesize import plan, synthesize
from stg_runtime.threads import usable_threads


def export(name: str, folder: Path) -> Path:
    """A network of the paper's size, untrained, with its sizes fixed."""
    import torch

    from stg_export import export_run
    from stg_train.checkpoint import save_checkpoint
    from stg_train.learn import Learner
    from stg_train.observed import scale_observed
    from stg_train.recipe import load_recipe
    from stg_train.run import CHECKPOINT, OBSERVED, resolve, versions

    del torch
    overrides = {"device": "cpu", "output.margin_frames": 0}
    recipe = resolve(load_recipe(name, scale="paper", overrides=overrides))
    shape = (1, recipe.data.frames, *recipe.data.size, 3)
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    run = folder / name
    run.mkdir()
    np.save(run / OBSERVED, pixels)
    learner = Learner(recipe, scale_observed(pixels, 25.0, recipe.pixels))
    save_checkpoint(run / CHECKPOINT, learner, versions())
    path = folder / f"{name}.onnx"
    export_run(run, path, static=True)
    return path


def check() -> None:
    """The fused update is the formula, on a video of several blocks."""
    generator = np.random.default_rng(1)
    x, grad = generator.standard_normal((2, 3, 5, 128, 160), dtype=np.float32)
    noise = standard_normal(x.size, seed=7, chain=1, step=3).reshape(x.shape)
    expected = langevin_step(x, grad, noise, step_size=0.01)
    with Walker(seed=7, chain=1, threads=usable_threads()) as walker:
        walker.step(x, grad, 3, step_size=0.01)
    np.testing.assert_allclose(x, expected, rtol=1e-6, atol=1e-7)


def measure(path: Path, steps: int) -> dict[str, float]:
    """Median seconds of a gradient and of the rest of a step."""
    backend = OnnxRuntimeCpu(path)
    metadata = backend.metadata
    job = plan(metadata)
    x, grad = np.empty(job.graph, np.float32), np.empty(job.graph, np.float32)
    backend.bind(x, grad)
    gradient, rest = [], []
    with Walker(seed=0, chain=0, threads=backend.threads) as walker:
        walker.start(x, init_std=1.0)
        backend.run()
        for step in range(1, steps + 1):
            began = time.perf_counter()
            backend.run()
            middle = time.perf_counter()
            walker.step(x, grad, step, step_size=metadata.step_size)
            end = time.perf_counter()
            gradient.append(middle - began)
            rest.append(end - middle)
    g, r = statistics.median(gradient), statistics.median(rest)
    return {"gradient_s": g, "rest_s": r, "rest_share": r / (g + r)}


def peak_memory(path: Path, what: str) -> float:
    """Peak resident memory of a process that does one thing, MiB."""
    result = subprocess.run(
        [sys.executable, __file__, "--alone", what, str(path)],
        capture_output=True,
        text=True,
        check=True,
    )
    return float(result.stdout)


def alone(what: str, path: Path) -> None:
    """In a process of its own: one bare onnxruntime gradient, or one synthesis."""
    if what == "gradient":
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = usable_threads()
        session = onnxruntime.InferenceSession(
            str(path), options, providers=["CPUExecutionProvider"]
        )
        shape = session.get_inputs()[0].shape
        session.run(None, {"video": np.random.default_rng(0).standard_normal(shape, np.float32)})
    else:
        backend = OnnxRuntimeCpu(path)
        job = plan(backend.metadata, n_steps=3)
        synthesize(backend.chains(job.graph), backend.metadata, job, number=0)
    # Not getrusage: a child inherits its parent's peak there.
    lines = Path("/proc/self/status").read_text().splitlines()
    print(next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM")))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", nargs="+", default=["st", "fc-s-large", "fc-s"])
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--json", type=Path, default=Path("bench/results/step-cpu.json"))
    parser.add_argument("--alone", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.alone:
        alone(options.alone[0], Path(options.alone[1]))
        return
    check()
    rows = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in options.networks:
            path = export(name, Path(folder))
            row = measure(path, options.steps)
            row["gradient_mib"] = peak_memory(path, "gradient")
            row["synthesis_mib"] = peak_memory(path, "synthesis")
            row["memory_ratio"] = row["synthesis_mib"] / row["gradient_mib"]
            rows[name] = row
    print("a Langevin step on the CPU, one chain, static file")
    heads = {"gradient": 9, "rest": 8, "share": 6, "bare": 10, "synthesis": 9, "ratio": 5}
    print(f"{'network':<12} " + " ".join(f"{head:>{width}}" for head, width in heads.items()))
    for name, row in rows.items():
        print(
            f"{name:<12} {row['gradient_s'] * 1e3:>6.0f} ms {row['rest_s'] * 1e3:>5.0f} ms "
            f"{row['rest_share']:>6.1%}  {row['gradient_mib']:>5.0f} MiB "
            f"{row['synthesis_mib']:>5.0f} MiB {row['memory_ratio']:>5.2f}"
        )
    result = {
        "what": "Langevin step on the CPU: gradient, rest, peak memory",
        "date": datetime.date.today().isoformat(),
        "hardware": {"processor": processor(), "threads": usable_threads(), "memory": memory()},
        "versions": {name: version(name) for name in ("stg", "onnxruntime", "torch", "numpy")},
        "rows": rows,
    }
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(result, indent=2) + "\n")
    print(f"wrote {options.json}")


if __name__ == "__main__":
    main()
