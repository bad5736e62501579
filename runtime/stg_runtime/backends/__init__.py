"""Backends: an energy gradient on buffers that stay on its device."""

from __future__ import annotations

import re
from pathlib import Path

from stg_runtime.backends.base import Backend
from stg_runtime.errors import InputError


def open_backend(path: Path, device: str = "auto", threads: int | None = None) -> Backend:
    """Load a model on a device.

    Args:
        path: the .onnx file.
        device: "auto", "cpu", "cuda", "cuda:i" or "tensorrt".
        threads: of the processor; None for all this process may use.

    Raises:
        InputError: a device that this version or this machine does not have (never a silent fall
            back to the CPU), or a file that is not an stg model.
    """
    if re.fullmatch(r"cuda(:\d+)?|tensorrt", device):
        raise InputError(
            f"--device {device}: this version of stg-run has no GPU backend; pass --device cpu"
        )
    if device not in ("auto", "cpu"):
        raise InputError(f"--device {device}: expected auto, cpu, cuda, cuda:i or tensorrt")
    from stg_runtime.backends.onnxruntime_cpu import OnnxRuntimeCpu

    return OnnxRuntimeCpu(path, threads)
