"""What this machine can run, what it found, and the one command that mends what is missing."""

from __future__ import annotations

import importlib.metadata
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stg_runtime.backends.onnxruntime_cpu import require_onnxruntime
from stg_runtime.errors import InputError, StgError
from stg_runtime.threads import usable_threads

# What each distribution is for; the order is the order of the table.
PACKAGES = {
    "stg": "this program",
    "numpy": "arrays, noise",
    "onnxruntime": "synthesis on the CPU",
    "onnxruntime-gpu": "synthesis on NVIDIA GPUs",
    "cuda-core": "the fused Langevin step on NVIDIA GPUs",
    "cuda-bindings": "the NVIDIA driver's interface",
    "nvidia-cuda-nvrtc": "compiles that step for the GPU",
    "nvidia-cudnn-cu13": "convolutions on NVIDIA GPUs",
    "tensorrt": "engines built on this machine: 'stg[tensorrt]'",
    "tensorrt-rtx-cu13-bindings": "engines built for, and on, other machines: 'stg[tensorrt-rtx]'",
    "av": "video",
    "pillow": "images, GIF",
    "torch": "training and export only",
    "onnx": "export only",
    "onnxscript": "export only",
}

# The two wheels own the same files, so pip's removal of either breaks the other: take both away.
_MEND_BOTH = "pip uninstall -y onnxruntime onnxruntime-gpu && pip install 'stg[{extra}]'"


@dataclass
class Diagnosis:
    """The findings.

    Attributes:
        machine: name and value of each fact about the machine.
        packages: version of each distribution, None where it is not installed.
        providers: execution providers that onnxruntime offers.
        encoders: video formats that can be written.
        devices: what `stg-run synthesize --device` takes on this machine.
        problems: what is wrong, each with the command that mends it.
    """

    machine: dict[str, str] = field(default_factory=dict)
    packages: dict[str, str | None] = field(default_factory=dict)
    providers: list[str] = field(default_factory=list)
    encoders: dict[str, bool] = field(default_factory=dict)
    devices: list[str] = field(default_factory=list)
    problems: list[dict[str, str]] = field(default_factory=list)

    def problem(self, what: str, fix: str) -> None:
        """Note something wrong and its remedy."""
        self.problems.append({"problem": what, "fix": fix})


def diagnose() -> Diagnosis:
    """Look at this machine; nothing is changed and nothing is downloaded."""
    found = Diagnosis()
    gpu = nvidia_gpu()
    found.machine = {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "processor": processor(),
        "threads": str(usable_threads()),
        "memory": memory(),
        "gpu": gpu or "none found (no NVIDIA driver)",
    }
    found.packages = {name: version(name) for name in PACKAGES}
    _check_onnxruntime(found, wants_gpu=gpu is not None)
    _check_gpu(found, there=gpu is not None)
    found.encoders = encoders()
    for suffix, there in found.encoders.items():
        if not there:
            found.problem(f"{suffix} cannot be written", "pip install --force-reinstall av")
    return found


def _check_onnxruntime(found: Diagnosis, *, wants_gpu: bool) -> None:
    both = found.packages["onnxruntime"] and found.packages["onnxruntime-gpu"]
    if both:
        found.problem(
            "onnxruntime and onnxruntime-gpu are both installed; they own the same files, and "
            "whichever came last works by luck",
            _MEND_BOTH.format(extra="gpu" if wants_gpu else "cpu"),
        )
    try:
        onnxruntime: Any = require_onnxruntime()
    except InputError as error:
        neither = not found.packages["onnxruntime"] and not found.packages["onnxruntime-gpu"]
        extra = "gpu" if wants_gpu else "cpu"
        if neither:
            found.problem(str(error).split(":")[0], f"pip install 'stg[{extra}]'")
        elif not both:
            found.problem(str(error).split(";")[0], _MEND_BOTH.format(extra=extra))
        return
    found.providers = list(onnxruntime.get_available_providers())
    if "CPUExecutionProvider" in found.providers:
        found.devices.append("cpu")


def _check_gpu(found: Diagnosis, *, there: bool) -> None:
    """Which GPU devices would work, asked of the checks that `--device` makes."""
    from stg_runtime.backends.cuda.compile import nvrtc_version
    from stg_runtime.backends.cuda.device import gpu_count, load_driver, open_device, require_driver
    from stg_runtime.backends.engine import RTX, load_tensorrt, product
    from stg_runtime.backends.onnxruntime_cuda import (
        missing_library,
        preload,
        require_cuda_wheel,
    )

    try:
        require_driver()
    except InputError as error:
        if there:  # nvidia-smi answers, its library is not found
            found.problem(*_halves(error))
        return

    def works(check: Callable[[], object]) -> bool:
        try:
            check()
        except StgError as error:
            found.problem(*_halves(error))
            return False
        return True

    def onnxruntime_loads() -> None:
        onnxruntime = require_cuda_wheel()
        preload(onnxruntime)
        missing = missing_library(onnxruntime)
        if missing:
            raise InputError(missing)

    if not (works(load_driver) and works(lambda: open_device(0)) and works(nvrtc_version)):
        return
    count = gpu_count(load_driver())
    if works(onnxruntime_loads):
        found.devices += ["cuda" if index == 0 else f"cuda:{index}" for index in range(count)]
    with suppress(InputError):  # an option: its absence is no problem
        trt = load_tensorrt()
        found.devices.append("tensorrt")
        elsewhere = "engines of stg-export --target run on it"
        if trt.__name__ not in RTX:
            elsewhere = "engines of stg-export --target need 'stg[tensorrt-rtx]' in its place"
        found.machine["tensorrt"] = f"{product(trt)}: {elsewhere}"


def _halves(error: StgError) -> tuple[str, str]:
    """A message's what and how, for the table of problems."""
    what, colon, fix = str(error).partition(": ")
    return (what, fix) if colon else (str(error), "see docs/gpu.md")


def version(distribution: str) -> str | None:
    """Version of an installed distribution, or None."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def processor() -> str:
    """The processor's name."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or "unknown"


def memory() -> str:
    """Main memory, GiB."""
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemTotal"):
                return f"{int(line.split()[1]) / 2**20:.1f} GiB"
    except (OSError, ValueError):
        pass
    return "unknown"


def nvidia_gpu() -> str | None:
    """Name, driver and memory of the first GPUs, as nvidia-smi tells them, or None."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    query = [program, "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True)  # noqa: S603
    except (OSError, subprocess.SubprocessError):
        return None
    return "; ".join(answer.stdout.split("\n")[:-1]) or None


def encoders() -> dict[str, bool]:
    """Which video formats this machine's FFmpeg libraries can write."""
    try:
        import av
    except ImportError as error:
        print(f"PyAV does not load: {error}", file=sys.stderr)
        return {".mp4": False, ".webm": False}
    available = av.codecs_available
    return {".mp4": "libx264" in available, ".webm": "libvpx-vp9" in available}
