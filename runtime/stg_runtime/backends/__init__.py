"""Backends: an energy gradient on buffers that stay on its device."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from stg_runtime.backends.base import Backend
from stg_runtime.errors import InputError, StgError

if TYPE_CHECKING:
    from stg_runtime.backends.onnxruntime_cpu import OnnxRuntimeCpu


def open_backend(
    path: Path,
    device: str = "auto",
    threads: int | None = None,
    *,
    may_build: bool = True,
    tf32: bool = True,
    host_only: str = "",
) -> Backend:
    """Load a model on a device.

    Args:
        path: the .onnx file.
        device: "auto", "cpu", "cuda", "cuda:i" or "tensorrt" ("tensorrt:i"). "auto" is onnxruntime
            on the first GPU where that works, else the CPU; on a machine with a driver it says on
            stderr why the GPU is not used.
        threads: of the processor; None for all this process may use.
        may_build: TensorRT may build an engine that is not in the cache, which takes minutes.
        tf32: GPUs may round the factors of float32 products to 10 bits, which their tensor cores
            take; False for comparisons.
        host_only: the user's option that only the processor can do, or "". "auto" then is the CPU,
            and a GPU that is asked for is an error.

    Raises:
        InputError: a device that this machine does not have (never a silent fall back to the CPU),
            or that cannot do what is asked; or a file that is not an stg model.
    """
    asked = re.fullmatch(r"(auto|cpu|cuda|tensorrt)(?::(\d+))?", device)
    if asked is None or (asked[2] is not None and asked[1] in ("auto", "cpu")):
        raise InputError(f"--device {device}: expected auto, cpu, cuda, cuda:i or tensorrt")
    kind, index = asked[1], int(asked[2] or 0)
    if host_only and kind in ("tensorrt", "cuda"):
        raise InputError(
            f"--device {device}: {host_only} does not work on GPUs yet; pass --device cpu"
        )
    if kind in ("tensorrt", "cuda"):
        try:
            if kind == "cuda":
                return _cuda(path, index, tf32)
            return _of_one_scale(_tensorrt(path, index, may_build, tf32))
        except InputError as error:
            about_file = str(error).startswith(f"{path}:")
            raise InputError(str(error) if about_file else f"--device {device}: {error}") from None
    if kind == "auto" and host_only and _has_driver():
        print(f"auto: the CPU, because {host_only} does not work on GPUs yet", file=sys.stderr)
    elif kind == "auto" and _has_driver():
        try:
            return _cuda(path, index, tf32)
        except StgError as error:
            if str(error).startswith(f"{path}:"):
                raise
            print(f"auto: the CPU, because {error}", file=sys.stderr)
    from stg_runtime.backends.onnxruntime_cpu import OnnxRuntimeCpu

    return _with_scales(OnnxRuntimeCpu(path, threads), path, threads)


def _with_scales(backend: OnnxRuntimeCpu, path: Path, threads: int | None) -> OnnxRuntimeCpu:
    """Load the coarser scales of a multi-grid model, too."""
    from stg_runtime.backends.onnxruntime_cpu import OnnxRuntimeCpu, coarser_file, read_scales

    if backend.metadata.scales > 1:
        read_scales(path)  # all there, before the work begins
        with coarser_file(path) as inner:
            backend.coarser = _with_scales(OnnxRuntimeCpu(inner, threads), inner, threads)
    return backend


def _of_one_scale(backend: Backend) -> Backend:
    scales = backend.metadata.scales
    if scales > 1:
        raise InputError(
            f"a model of {scales} scales (--regime multi-grid) runs on the processor alone; pass "
            "--device cpu"
        )
    return backend


def _has_driver() -> bool:
    from stg_runtime.backends.cuda.device import require_driver

    try:
        require_driver()
    except InputError:
        return False
    return True


def _cuda(path: Path, index: int, tf32: bool) -> Backend:
    from stg_runtime.backends.onnxruntime_cuda import CudaOptions, OnnxRuntimeCuda

    return _of_one_scale(OnnxRuntimeCuda(path, index, CudaOptions(tf32=tf32)))


def _tensorrt(path: Path, index: int, may_build: bool, tf32: bool) -> Backend:
    from stg_runtime.backends.tensorrt import TensorRt

    return TensorRt(path, index, may_build=may_build, tf32=tf32)
