"""onnxruntime on an NVIDIA GPU: bound to the chains' memory, on their stream."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import io
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from math import prod
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np

from stg_runtime.artifact import ENERGY, ENERGY_GRAD, VIDEO
from stg_runtime.backends.base import Backend, Shape
from stg_runtime.backends.cuda.chains import DeviceChains, too_large
from stg_runtime.backends.cuda.device import CudaDevice, open_device, require_driver
from stg_runtime.backends.onnxruntime_cpu import open_session, require_onnxruntime
from stg_runtime.errors import InputError, StgError

CUDA: Final = "CUDAExecutionProvider"
_COPIES: Final = (b"MemcpyFromHost", b"MemcpyToHost")
_BOTH: Final = "pip uninstall -y onnxruntime onnxruntime-gpu && pip install 'stg[gpu]'"


@dataclass(frozen=True)
class CudaOptions:
    """How onnxruntime computes.

    Attributes:
        tf32: float32 convolutions may use tensor cores with 10-bit mantissas.
        search: how cuDNN chooses an algorithm at a new shape. "EXHAUSTIVE" times all of them
            first; "HEURISTIC" asks cuDNN's own model. onnxruntime's "DEFAULT" is never used
            (microsoft/onnxruntime #22705).
        graph: capture the gradient as a CUDA graph where onnxruntime can.
    """

    tf32: bool = True
    search: Literal["HEURISTIC", "EXHAUSTIVE"] = "HEURISTIC"
    graph: bool = True


class OnnxRuntimeCuda:
    """The `Backend`, and `DeviceGradient`, of onnxruntime's CUDA provider.

    A session is made for each shape, with the file's free axes fixed: then nothing is left for the
    host to compute, every node runs on the GPU, and the run can be a CUDA graph.

    Args:
        path: the .onnx file.
        index: of the GPU.
        options: see `CudaOptions`.

    Raises:
        InputError: a driver, wheel or library that is missing or will not do, each with its fix.
    """

    # onnxruntime captures its run in a graph of its own; it may not run inside another capture.
    in_graph = False

    coarser: Backend | None = None

    def __init__(self, path: Path, index: int = 0, options: CudaOptions | None = None) -> None:
        self.options = options or CudaOptions()
        require_driver()
        self._onnxruntime = require_cuda_wheel()
        self.device: CudaDevice = open_device(index)
        preload(self._onnxruntime)
        _, self.metadata = open_session(path, 1, optimize=False)
        self._path = path
        self.description = f"{self.device.name}, onnxruntime {self._onnxruntime.__version__} CUDA"
        self.graph_note = ""
        self._has_graph = False
        self._session: Any = None
        self._binding: Any = None
        self._run_options: Any = None
        self._shape: Shape | None = None
        self._places = (0, 0, 0)

    def chains(self, shape: Shape) -> DeviceChains:
        """See `Backend.chains`."""
        return DeviceChains(self, shape)

    def bind(self, shape: Shape, x: int, energy: int, energy_grad: int) -> None:
        """See `DeviceGradient.bind`; runs once, so that the walk itself allocates nothing."""
        # A CUDA graph holds the addresses it was captured with; a new binding does not change them.
        places = (x, energy, energy_grad)
        if self._shape != shape or self._places != places:
            self._session = self._binding = None
            gc.collect()  # the last shape's memory, before this one's is asked for
            self._session = self._open(shape)
            self._shape, self._places = shape, places
        self._bind()
        before, _ = self.device.memory()
        self.device.upload(x, np.zeros(shape, np.float32))
        try:
            for _ in range(2 if self._has_graph else 1):  # captured, then replayed
                self.run()
                self.device.wait()
        except StgError as error:
            if not _is_out_of_memory(str(error)) or shape[0] == 1:
                raise
            raise self._what_fits(shape, before) from None

    def run(self) -> None:
        """See `DeviceGradient.run`; once more, and from then on, without a graph that fails."""
        try:
            self._session.run_with_iobinding(self._binding, self._run_options)
        except Exception as error:  # onnxruntime's errors share no base but Exception
            text = _one_line(error)
            if not self._has_graph or _is_out_of_memory(text):
                raise self._failed(text) from None
            assert self._shape is not None
            self.graph_note = f"onnxruntime's CUDA graph failed and is done without ({text})"
            print(f"{self._path}: {self.graph_note}", file=sys.stderr, flush=True)
            self.device.end_capture()
            self._session = self._binding = None
            gc.collect()
            self._session = self._create(self._shape, graph=False)
            self._has_graph = False
            self._bind()
            try:
                self._session.run_with_iobinding(self._binding, self._run_options)
            except Exception as again:
                raise self._failed(_one_line(again)) from None

    def _failed(self, text: str) -> StgError:
        return StgError(
            f"onnxruntime failed on {self.device.name} at a video of {self._shape}: {text}"
        )

    def _bind(self) -> None:
        shape, (x, energy, energy_grad) = self._shape, self._places
        assert shape is not None
        binding = self._session.io_binding()
        device = self.device.index
        binding.bind_input(VIDEO, "cuda", device, np.float32, shape, x)
        binding.bind_output(ENERGY, "cuda", device, np.float32, shape[:1], energy)
        binding.bind_output(ENERGY_GRAD, "cuda", device, np.float32, shape, energy_grad)
        self._binding = binding
        self._run_options = self._onnxruntime.RunOptions()
        # Ordering is the stream's; without this every run would wait for the device.
        self._run_options.add_run_config_entry("disable_synchronize_execution_providers", "1")

    def product(
        self, model: bytes, n: int, half: bool, addresses: Sequence[int]
    ) -> Callable[[], None]:
        """Enqueues c = a b of `matmul_model`, n x n at the three addresses; for measurement."""
        provider = provider_options(self.device, self.options, graph=False)
        session = self._onnxruntime.InferenceSession(model, providers=[(CUDA, provider)])
        if CUDA not in session.get_providers():
            raise StgError("the matrix product does not run on the GPU")
        kind = np.float16 if half else np.float32
        binding = session.io_binding()
        for name, address in zip("abc", addresses, strict=True):
            bind = binding.bind_output if name == "c" else binding.bind_input
            bind(name, "cuda", self.device.index, kind, (n, n), address)
        return lambda: session.run_with_iobinding(binding, self._run_options)

    def _open(self, shape: Shape) -> Any:
        """A session on the GPU alone, with a CUDA graph where that holds."""
        if self.options.graph:
            try:
                session = self._create(shape, graph=True)
            except _NotOnGpuError:
                raise
            except StgError as error:
                self.graph_note = str(error)
            else:
                self._has_graph = True
                return session
        self._has_graph = False
        return self._create(shape, graph=False)

    def _create(self, shape: Shape, *, graph: bool) -> Any:
        runtime = self._onnxruntime
        settings = runtime.SessionOptions()
        settings.log_severity_level = 4
        settings.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
        settings.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
        for axis, extent in zip("NCTHW", shape, strict=True):
            if axis in self.metadata.free_axes:
                settings.add_free_dimension_override_by_name(axis, extent)
        provider = provider_options(self.device, self.options, graph=graph)
        with tempfile.TemporaryDirectory(prefix="stg-") as folder:
            placed = Path(folder) / "placed.onnx"
            settings.optimized_model_filepath = str(placed)
            try:
                session = runtime.InferenceSession(
                    str(self._path), settings, providers=[(CUDA, provider)]
                )
            except Exception as error:
                raise self._refused(error, graph=graph) from None
            check_placement(session, self._path)
            graph_text = placed.read_bytes() if placed.is_file() else b""
        for kind in _COPIES:
            if kind in graph_text:
                raise _NotOnGpuError(
                    f"{self._path}: onnxruntime copies between host and GPU inside the graph "
                    f"({kind.decode()}); export it again with --static"
                )
        session.disable_fallback()
        return session

    def _refused(self, error: Exception, *, graph: bool) -> StgError:
        text = _one_line(error)
        missing = missing_library(self._onnxruntime)
        if missing:
            return InputError(missing)
        if "assigned to the default CPU EP" in text:
            if graph:
                return StgError(text)
            return _NotOnGpuError(
                f"{self._path}: onnxruntime {self._onnxruntime.__version__} has no CUDA kernel for "
                "a part of this graph; export it again with --static or --opset 18, or pass "
                "--device cpu"
            )
        return StgError(f"{self._path}: onnxruntime cannot load it on {self.device.name} ({text})")

    def _what_fits(self, shape: Shape, before: int) -> StgError:
        """After memory ran out: measure one chain, to say how many would fit."""
        self._session = self._binding = None
        self._shape = None
        gc.collect()
        if "N" not in self.metadata.free_axes:
            return too_large(self.device, shape, 2 * before, before)
        one: Shape = (1, *shape[1:])
        values = 4 * prod(one)
        buffers = [self.device.allocate(size) for size in (values, 256, values)]
        free, _ = self.device.memory()
        try:
            self.bind(one, *buffers)
            needed = (free - self.device.memory()[0] + 2 * values) * shape[0]
        except StgError:
            needed = 2 * before * shape[0]
        finally:
            self._session = self._binding = None
            self._shape = None
            for address in buffers:
                self.device.free(address)
        return too_large(self.device, shape, max(needed, before + 1), before)


class _NotOnGpuError(StgError):
    """A part of the graph would run on the processor."""


def provider_options(device: CudaDevice, options: CudaOptions, *, graph: bool) -> dict[str, str]:
    """Settings of onnxruntime's CUDA provider."""
    return {
        "device_id": str(device.index),
        "user_compute_stream": str(device.stream),
        "cudnn_conv_algo_search": options.search,
        "cudnn_conv_use_max_workspace": "1",
        "arena_extend_strategy": "kSameAsRequested",
        "do_copy_in_default_stream": "1",
        "use_tf32": "1" if options.tf32 else "0",
        "enable_cuda_graph": "1" if graph else "0",
    }


def check_placement(session: Any, path: Path) -> None:
    """Every node on the GPU, as the session itself tells.

    Raises:
        StgError: the session runs, or a node of it, somewhere else.
    """
    if CUDA not in session.get_providers():
        raise _NotOnGpuError(
            f"{path}: CUDA was asked for but the session runs on "
            f"{', '.join(session.get_providers())}; `stg-run doctor` says what is missing"
        )
    elsewhere: Counter[str] = Counter()
    for part in session.get_provider_graph_assignment_info():
        if part.ep_name != CUDA:
            elsewhere.update(f"{node.op_type} on {part.ep_name}" for node in part.get_nodes())
    if elsewhere:
        named = ", ".join(f"{count} {what}" for what, count in elsewhere.most_common(4))
        raise _NotOnGpuError(f"{path}: not every node runs on the GPU: {named}")


def require_cuda_wheel() -> Any:
    """Onnxruntime with its CUDA provider.

    Raises:
        InputError: none, the wheel for the CPU, or both wheels.
    """
    cpu, gpu = _version("onnxruntime"), _version("onnxruntime-gpu")
    if cpu and gpu:
        raise InputError(
            f"onnxruntime {cpu} and onnxruntime-gpu {gpu} are both installed and own the same "
            f"files: {_BOTH}"
        )
    if cpu and not gpu:
        raise InputError(
            f"onnxruntime {cpu} is the build for the processor: pip uninstall -y onnxruntime && "
            "pip install 'stg[gpu]', or pass --device cpu"
        )
    onnxruntime = require_onnxruntime()
    if CUDA not in onnxruntime.get_available_providers():
        raise InputError(
            f"onnxruntime {onnxruntime.__version__} here was built without CUDA: {_BOTH}"
        )
    if not hasattr(onnxruntime.InferenceSession, "get_provider_graph_assignment_info"):
        raise InputError(
            f"onnxruntime-gpu {onnxruntime.__version__} is too old to say where its nodes run: "
            "pip install --upgrade 'stg[gpu]'"
        )
    return onnxruntime


def preload(onnxruntime: Any) -> str:
    """Load CUDA's and cuDNN's libraries from their wheels; returns what onnxruntime said."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said):  # it prints what it misses
        onnxruntime.preload_dlls()
    return " ".join(said.getvalue().split())


def missing_library(onnxruntime: Any) -> str:
    """The library that keeps the CUDA provider from loading, with its fix, or ""."""
    folder = Path(onnxruntime.__file__).parent / "capi"
    try:
        ctypes.CDLL(str(folder / "libonnxruntime_providers_shared.so"), ctypes.RTLD_GLOBAL)
        ctypes.CDLL(str(folder / "libonnxruntime_providers_cuda.so"))
    except OSError as error:
        return explain_library(str(error))
    return ""


def explain_library(text: str) -> str:
    """The linker's complaint as one line that names the fix."""
    library = text.split(":")[0].strip()
    if "cannot open shared object file" not in text or ".so" not in library:
        return f"onnxruntime's CUDA provider does not load ({text[:200]}): {_BOTH}"
    if "cudnn" in library:
        return (
            f"cuDNN is missing ({library}): pip install nvidia-cudnn-cu13 (or 'stg[gpu]' again), "
            "or pass --device cpu"
        )
    return f"a CUDA library is missing ({library}): pip install 'stg[gpu]', or pass --device cpu"


def _version(distribution: str) -> str | None:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def _is_out_of_memory(text: str) -> bool:
    return any(sign in text for sign in ("out of memory", "Failed to allocate", "OUT_OF_MEMORY"))


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:400]
