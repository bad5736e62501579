"""What this machine can run, what it found, and the one command that mends what is missing."""

from __future__ import annotations

import importlib.metadata
import platform
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stg_runtime.backends.onnxruntime_cpu import require_onnxruntime
from stg_runtime.errors import InputError
from stg_runtime.threads import usable_threads

# What each distribution is for; the order is the order of the table.
PACKAGES = {
    "stg": "this program",
    "numpy": "arrays, noise",
    "onnxruntime": "synthesis on the CPU",
    "onnxruntime-gpu": "synthesis on NVIDIA GPUs",
    "cuda-core": "the fused Langevin step on NVIDIA GPUs",
    "tensorrt": "engines for NVIDIA GPUs",
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
