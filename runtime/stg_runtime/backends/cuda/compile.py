"""The kernels, compiled for this GPU with NVRTC and kept in the user's cache."""

from __future__ import annotations

import hashlib
import importlib.util
import os
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from stg_runtime.errors import InputError, StgError
from stg_runtime.files import atomic_write_bytes

SOURCE: Final = Path(__file__).with_name("langevin.cu")
# No contraction: products and sums round as NumPy's do; the fused ones are written in the source.
_OPTIONS: Final = {"std": "c++17", "fma": False, "prec_sqrt": True, "ftz": False}


def cache_folder() -> Path:
    """Where what is compiled here is kept: $STG_CACHE, or `stg` in the user's cache folder."""
    given = os.environ.get("STG_CACHE")
    if given:
        return Path(given)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "stg"


def kernels(arch: str, folder: Path | None = None) -> bytes:
    """Machine code of `langevin.cu`, from the cache where it was compiled before.

    The cache is keyed by the source, the options, the architecture and NVRTC's version, and an
    entry holds its own SHA-256: one that was cut short or changed is compiled again. A cache that
    cannot be written is done without.

    Args:
        arch: for instance "sm_90".
        folder: of the cache; `cache_folder()` by default.

    Returns:
        A cubin.

    Raises:
        InputError: cuda-core or NVRTC is not installed.
        StgError: NVRTC refuses the source for this architecture.
    """
    source = SOURCE.read_bytes()
    key = hashlib.sha256(repr((_OPTIONS, arch, nvrtc_version())).encode() + source).hexdigest()
    path = (folder or cache_folder()) / "kernels" / f"langevin-{arch}-{key[:32]}.cubin"
    with suppress(OSError):
        stored = path.read_bytes()
        digest, code = stored[:32], stored[32:]
        if hashlib.sha256(code).digest() == digest:
            return code
    code = _compile(source.decode(), arch)
    with suppress(OSError, StgError):
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        atomic_write_bytes(path, hashlib.sha256(code).digest() + code)
    return code


def nvrtc_version() -> str:
    """Version of the run-time compiler, for instance "13.0".

    Raises:
        InputError: it is not installed.
    """
    if importlib.util.find_spec("cuda") is None or importlib.util.find_spec("cuda.core") is None:
        raise InputError("cuda-core is not installed: pip install 'stg[gpu]'")
    try:
        from cuda.bindings import nvrtc

        code, major, minor = nvrtc.nvrtcVersion()
    except Exception as error:  # cuda.pathfinder's errors share no public base
        raise InputError(
            f"CUDA's run-time compiler (NVRTC) does not load ({_one_line(error)}): "
            "pip install nvidia-cuda-nvrtc"
        ) from None
    if int(code):
        raise StgError(f"NVRTC does not tell its version (error {code})")
    return f"{major}.{minor}"


def _compile(source: str, arch: str) -> bytes:
    from cuda.core import Program, ProgramOptions

    options: Any = ProgramOptions(name=SOURCE.name, arch=arch, **_OPTIONS)
    try:
        return bytes(Program(source, "c++", options).compile("cubin").code)
    except Exception as error:  # cuda.core raises RuntimeError and its own classes
        raise StgError(
            f"NVRTC cannot compile {SOURCE.name} for {arch}: {_one_line(error)}"
        ) from None


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
