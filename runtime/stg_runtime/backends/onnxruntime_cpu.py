"""onnxruntime on the CPU."""

from __future__ import annotations

import importlib.util
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from stg_runtime.artifact import (
    ENERGY,
    ENERGY_GRAD,
    METADATA_KEY,
    UNIT_WEIGHTS,
    VIDEO,
    Metadata,
    parse_metadata,
)
from stg_runtime.backends.base import Backend, Shape
from stg_runtime.backends.host import HostChains
from stg_runtime.errors import InputError, StgError
from stg_runtime.files import write_failed
from stg_runtime.grids import COARSER_KEY, unpack_coarser
from stg_runtime.interrupts import signals_wait
from stg_runtime.onnx_check import LARGEST_FILE, check_onnx
from stg_runtime.threads import usable_threads

if TYPE_CHECKING:
    from stg_runtime.langevin import Float32

_FATAL_ONLY = 4  # onnxruntime's log severity: what matters reaches us as an exception


def require_onnxruntime() -> Any:
    """Import onnxruntime, or say what to install.

    Raises:
        InputError: it is not installed, or does not load.
    """
    if importlib.util.find_spec("onnxruntime") is None:
        raise InputError(
            "onnxruntime is not installed: pip install 'stg[cpu]' (or 'stg[gpu]' on a machine with "
            "an NVIDIA GPU; never both)"
        )
    # Its wheels gather usage data under ~/.cache and send them home unless this is set.
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    try:
        with signals_wait():
            import onnxruntime

        _ = onnxruntime.InferenceSession
    except (ImportError, AttributeError) as error:
        # Removing one of the two wheels when both were installed takes the shared files along.
        raise InputError(
            f"onnxruntime does not load ({error}); `stg-run doctor` says how to mend it"
        ) from None
    return onnxruntime


def open_session(path: Path, threads: int, *, optimize: bool = True) -> tuple[Any, Metadata]:
    """Load a model into onnxruntime on the CPU and check that it is one of ours.

    Args:
        path: the .onnx file.
        threads: of each operator.
        optimize: False loads faster, to read the metadata only.

    Raises:
        InputError: missing, damaged, not written by stg-export, or of another schema version.
    """
    if not path.is_file():
        what = "is a folder, not a model" if path.is_dir() else "no such model"
        raise InputError(f"{path}: {what}; give the .onnx file that stg-export -o wrote")
    onnxruntime = require_onnxruntime()
    model = read_model(path)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = _FATAL_ONLY
    # onnxruntime's plan of a shape's memory comes on top of what its first run took: at 94x128x128
    # it doubled the peak (958 against 511 MiB) and was no faster.
    options.enable_mem_pattern = False
    _share_exactly(onnxruntime, options)
    if not optimize:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        # The bytes that were checked: the file may be another one by now, and from bytes nothing
        # leads to further files.
        session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    # onnxruntime's exceptions share no base class but Exception.
    except Exception as error:
        raise InputError(
            f"{path}: onnxruntime cannot load it ({_one_line(error)}); expected the .onnx file "
            "that stg-export -o wrote"
        ) from None
    stored = session.get_modelmeta().custom_metadata_map.get(METADATA_KEY)
    if stored is None:
        raise InputError(
            f"{path}: an ONNX file, but not one of stg-export (no {METADATA_KEY!r} metadata)"
        )
    metadata = parse_metadata(stored, str(path))
    _check_interface(path, session, metadata)
    return session, metadata


def _share_exactly(onnxruntime: Any, options: Any) -> None:
    """Let the next session's arena grow by what is asked for, rather than by powers of two.

    The arena of its own that a session makes reuses a chunk only if that is not twice too large;
    at 128x128x128 (`st`) it took 105 bytes a voxel, this one takes 78, and no more time. It can be
    had from the environment alone.
    """
    same, default = 1, -1
    arena = onnxruntime.OrtArenaCfg(
        {
            "max_mem": 0,
            "arena_extend_strategy": same,
            "initial_chunk_size_bytes": default,
            "max_dead_bytes_per_chunk": default,
        }
    )
    kind = onnxruntime.OrtAllocatorType.ORT_ARENA_ALLOCATOR
    where = onnxruntime.OrtMemoryInfo("Cpu", kind, 0, onnxruntime.OrtMemType.DEFAULT)
    # A session keeps the arena that is registered when it is made, so that each has its own; if a
    # second registration is refused, later sessions share the first one's. onnxruntime's exceptions
    # share no base class but Exception.
    with suppress(Exception):
        onnxruntime.create_and_register_allocator(where, arena)
    options.add_session_config_entry("session.use_env_allocators", "1")


def read_model(path: Path) -> bytes:
    """A model file's bytes, checked; see `stg_runtime.onnx_check`.

    Raises:
        InputError: it cannot be read, is too large, or is not what stg-export writes.
    """
    try:
        if path.stat().st_size > LARGEST_FILE:
            raise InputError(f"{path}: larger than 2 GiB; no model is")
        model = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from None
    check_onnx(model, str(path))
    return model


@contextmanager
def coarser_file(path: Path) -> Iterator[Path]:
    """The next coarser scale of a multi-grid model as a file of its own, there for the block.

    Raises:
        InputError: see `open_session`; the model holds none.
    """
    session, _ = open_session(path, 1, optimize=False)
    stored = session.get_modelmeta().custom_metadata_map.get(COARSER_KEY)
    with tempfile.TemporaryDirectory(prefix="stg-scale-") as folder:
        inner = Path(folder) / "coarser.onnx"
        try:
            inner.write_bytes(unpack_coarser(stored, str(path)))
        except OSError as error:
            raise write_failed(inner, error) from None
        yield inner


def read_scales(path: Path) -> list[Metadata]:
    """Metadata of all scales of a model, finest first; one for a model of one scale.

    Raises:
        InputError: see `open_session`; a coarser scale is missing, damaged or not of this file.
    """
    _, metadata = open_session(path, 1, optimize=False)
    if metadata.scales == 1:
        return [metadata]
    with coarser_file(path) as inner:
        try:
            coarser = read_scales(inner)
        except InputError as error:
            reason = str(error).replace(str(inner), "the file it holds")
            raise InputError(f"{path}, scale 2 of {metadata.scales}: {reason}") from None
    if len(coarser) != metadata.scales - 1:
        raise InputError(
            f"{path}: of {metadata.scales} scales, but {len(coarser) + 1} are there; export it "
            "again"
        )
    return [metadata, *coarser]


def _check_interface(path: Path, session: Any, metadata: Metadata) -> None:
    inputs = [(i.name, i.type, len(i.shape)) for i in session.get_inputs()]
    outputs = [(o.name, o.type) for o in session.get_outputs()]
    if inputs != [(VIDEO, "tensor(float)", 5)] or outputs != [
        (ENERGY, "tensor(float)"),
        (ENERGY_GRAD, "tensor(float)"),
    ]:
        raise InputError(
            f"{path}: takes {inputs} and gives {outputs}; an stg model takes float32 {VIDEO!r} "
            f"(N, C, T, H, W) and gives {ENERGY!r} and {ENERGY_GRAD!r}. Export it again"
        )

    size = metadata.graph_size
    fixed = {
        "N": 1,
        "C": metadata.channels,
        "T": size.frames,
        "H": size.height,
        "W": size.width,
    }
    for axis, extent in zip("NCTHW", session.get_inputs()[0].shape, strict=True):
        # A free axis has a name in the graph where a fixed one has a number.
        free = axis in metadata.free_axes
        if isinstance(extent, int) if free else extent != fixed[axis]:
            raise InputError(
                f"{path}: its graph takes {axis} = {extent}, but its metadata says "
                f"{'free' if free else fixed[axis]}; export it again"
            )


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]


class OnnxRuntimeCpu:
    """The `Backend`, and `HostGradient`, that runs on every machine.

    Args:
        path: the .onnx file.
        threads: of each operator; None for all this process may use.
    """

    coarser: Backend | None = None

    def __init__(self, path: Path, threads: int | None = None) -> None:
        self.threads = threads or usable_threads()
        self._session, self.metadata = open_session(path, self.threads)
        self.description = f"CPU, {self.threads} threads"
        given = [item.name for item in self._session.get_overridable_initializers()]
        self.weighs_units = UNIT_WEIGHTS in given
        self._release = require_onnxruntime().RunOptions()
        self._release.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
        self._binding: Any = None
        self._energy: Float32 = np.empty(0, np.float32)

    def chains(self, shape: Shape) -> HostChains:
        """See `Backend.chains`."""
        return HostChains(self, shape)

    def bind(self, x: Float32, energy_grad: Float32, unit_weights: Float32 | None = None) -> None:
        """See `HostGradient.bind`; onnxruntime works on the arrays' own memory, without copies."""
        assert x.flags.c_contiguous and energy_grad.flags.c_contiguous
        self._energy = np.empty(x.shape[0], np.float32)
        binding = self._session.io_binding()
        for name, array in ((ENERGY, self._energy), (ENERGY_GRAD, energy_grad)):
            binding.bind_output(name, "cpu", 0, np.float32, array.shape, array.ctypes.data)
        binding.bind_input(VIDEO, "cpu", 0, np.float32, x.shape, x.ctypes.data)
        if unit_weights is not None:
            assert self.weighs_units and unit_weights.flags.c_contiguous
            pointer = unit_weights.ctypes.data
            binding.bind_input(UNIT_WEIGHTS, "cpu", 0, np.float32, unit_weights.shape, pointer)
        self._binding = binding
        self._held = (x, energy_grad, unit_weights)  # the binding holds addresses, not references

    def run(self, *, release: bool = False) -> Float32:
        """See `HostGradient.run`."""
        assert self._binding is not None
        try:
            self._session.run_with_iobinding(self._binding, self._release if release else None)
        except Exception as error:
            raise StgError(
                f"onnxruntime failed on a video of {self._held[0].shape}: {_one_line(error)}"
            ) from None
        return self._energy
