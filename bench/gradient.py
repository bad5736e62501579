"""How much faster is the exported gradient than PyTorch's, on the CPU?

Checks every graph against PyTorch first, then times both in turn in one process, with the same
number of threads, and takes each one's fastest run. Prints a table; writes
bench/results/gradient-cpu.json.

    python bench/gradient.py [NETWORK ...] [--threads 2] [--repeats 5]
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

RESULTS = Path(__file__).parent / "results" / "gradient-cpu.json"
NETWORKS = {  # recipe and scale
    "st": ("st", "paper"),
    "fc-s": ("fc-s", "paper"),
    "fc-s-large": ("fc-s-large", "paper"),
    "st small": ("st", "small"),
    "fc-s small": ("fc-s", "small"),
}
TOLERANCE = 1e-5  # of a gradient, against PyTorch's float32
# A child that only loads the file and runs it: its peak memory is that of a deployment.
BARE = """
import sys, numpy as np, onnxruntime
def peak():  # VmHWM: getrusage's figure is inherited from the parent
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = int(sys.argv[2])
session = onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
loaded = peak()
x = np.zeros([int(size) for size in sys.argv[3].split("x")], np.float32)
for _ in range(2):
    session.run(None, {"video": x})
print(loaded, peak())
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("networks", nargs="*", metavar="NETWORK", help=", ".join(NETWORKS))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    names = arguments.networks or list(NETWORKS)
    unknown = [name for name in names if name not in NETWORKS]
    if unknown:
        parser.error(f"unknown network {unknown[0]}; choose among {', '.join(NETWORKS)}")
    rows, wrong = [], []
    header = ("network", "video", "lowering", "PyTorch", "runtime", "ratio", "median", "memory")
    print("{:<11} {:<12} {:<9} {:>9} {:>9} {:>6} {:>7} {:>9}".format(*header))
    for name in names:
        for lowering in ("auto", "none"):
            row = measure(name, lowering, arguments.threads, arguments.repeats)
            if row["gradient_difference"] > TOLERANCE:
                wrong.append(f"{name}: differs from PyTorch by {row['gradient_difference']:.1e}")
            if lowering == "none" and rows and row["lowering"] == rows[-1]["lowering"]:
                continue  # nothing was lowered: the same graph again
            rows.append(row)
            print(
                f"{name:<11} {row['video']:<12} {row['lowering']:<9} {row['torch_s']:>7.3f} s "
                f"{row['runtime_s']:>7.3f} s {row['ratio']:>5.2f}x {row['median_ratio']:>6.2f}x "
                f"{row['peak_mib']:>5.0f} MiB",
                flush=True,
            )
    if wrong:
        print("\n".join(wrong), file=sys.stderr)
        return 1
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(environment(arguments.threads) | {"rows": rows}, indent=1) + "\n")
    print(RESULTS)
    return 0


def measure(name: str, lowering: str, threads: int, repeats: int) -> dict[str, Any]:
    """One network: is it right, how fast, how much memory."""
    import onnx
    import onnxruntime
    import torch

    from stg_export.onnx import to_onnx
    from stg_train.learn import build_energy
    from stg_train.recipe import load_recipe

    torch.set_num_threads(threads)
    recipe_name, scale = NETWORKS[name]
    recipe = load_recipe(recipe_name, scale=scale, overrides={"data.videos": ["none"]})
    energy = build_energy(recipe, 3).requires_grad_(False)
    frames = recipe.data.frames + (2 * recipe.output.margin_frames if scale == "small" else 0)
    shape = (1, 3, frames, *recipe.data.size)
    model, used = to_onnx(
        energy, shape, lowering=lowering, gradient_scale=recipe.langevin.reference_std**2
    )
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))

    def eager() -> Any:
        leaf = x.detach().requires_grad_(True)
        (grad,) = torch.autograd.grad(energy(leaf).sum(), leaf)
        return grad.numpy()

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        onnx.save(model, path)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        session = onnxruntime.InferenceSession(
            str(path), options, providers=["CPUExecutionProvider"]
        )

        def runtime() -> Any:
            return session.run(["energy", "energy_grad"], {"video": x.numpy()})[1]

        expected, found = eager(), runtime()  # warms both up
        difference = float(np.linalg.norm(found - expected) / np.linalg.norm(expected))
        times: dict[str, list[float]] = {"torch": [], "runtime": []}
        for _ in range(repeats):
            for kind, run in (("torch", eager), ("runtime", runtime)):
                start = time.perf_counter()
                run()
                times[kind].append(time.perf_counter() - start)
        command = [sys.executable, "-c", BARE, str(path), str(threads), "x".join(map(str, shape))]
        bare = subprocess.run(command, capture_output=True, text=True, check=True)
    ratios = [a / b for a, b in zip(times["torch"], times["runtime"], strict=True)]
    loaded, peak = (float(value) for value in bare.stdout.split())
    return {
        "network": name,
        "video": "x".join(map(str, shape[2:])),
        "lowering": used,
        "torch_s": min(times["torch"]),
        "runtime_s": min(times["runtime"]),
        "ratio": min(times["torch"]) / min(times["runtime"]),
        "median_ratio": statistics.median(ratios),
        "gradient_difference": difference,
        "loaded_mib": loaded,
        "peak_mib": peak,
    }


def environment(threads: int) -> dict[str, Any]:
    """What the figures depend on."""
    import onnxruntime
    import torch

    cpu = Path("/proc/cpuinfo")
    models = (
        [
            line.split(":")[1].strip()
            for line in cpu.read_text().splitlines()
            if "model name" in line
        ]
        if cpu.exists()
        else []
    )
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "processor": (models or [platform.processor()])[0],
        "cores": len(models) or None,
        "threads": threads,
        "load_average": Path("/proc/loadavg").read_text().split()[0]
        if Path("/proc/loadavg").exists()
        else None,
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "onnxruntime": onnxruntime.__version__,
            "numpy": np.__version__,
        },
    }


if __name__ == "__main__":
    sys.exit(main())
