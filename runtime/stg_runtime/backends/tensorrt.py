"""TensorRT itself: an engine on the chains' memory and stream, one CUDA graph with the update.

Not onnxruntime's TensorRT provider, whose wheels link another TensorRT major
(microsoft/onnxruntime #32278).
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from stg_runtime.artifact import ENERGY, ENERGY_GRAD, VIDEO
from stg_runtime.backends.base import Backend, Shape
from stg_runtime.backends.cuda.chains import DeviceChains, buffer_bytes, too_large
from stg_runtime.backends.cuda.device import CudaDevice, open_device, require_driver
from stg_runtime.backends.engine import (
    EngineCache,
    Record,
    Say,
    build,
    error_log,
    load_tensorrt,
    product,
    sha256,
)
from stg_runtime.backends.onnxruntime_cpu import open_session
from stg_runtime.errors import InputError, StgError


class TensorRt:
    """The `Backend`, and `DeviceGradient`, of TensorRT.

    The engine for a shape is taken from the cache, or built on first use.

    Args:
        path: the .onnx file.
        index: of the GPU.
        may_build: False refuses where no fitting engine is in the cache.
        tf32: may float32 products use TF32?
        say: told of a build and its reason; lines on stderr by default.
        cache: of engines.

    Raises:
        InputError: no driver, no TensorRT, or not a model.
    """

    in_graph = True

    coarser: Backend | None = None

    def __init__(
        self,
        path: Path,
        index: int = 0,
        *,
        may_build: bool = True,
        tf32: bool = True,
        say: Say | None = None,
        cache: EngineCache | None = None,
    ) -> None:
        require_driver()
        self._trt = load_tensorrt()
        self.device: CudaDevice = open_device(index)
        _, self.metadata = open_session(path, 1, optimize=False)
        self._path, self._may_build, self._tf32 = path, may_build, tf32
        self._say = say or _to_stderr
        self._cache = cache or EngineCache()
        self._log = error_log(self._trt)
        self._runtime = self._trt.Runtime(self._log)
        self._model = sha256(path)
        self._shape: Shape | None = None
        self._engine: Any = None
        self._context: Any = None
        self.description = f"{self.device.name}, {product(self._trt)}"

    def chains(self, shape: Shape) -> DeviceChains:
        """See `Backend.chains`."""
        self.load(shape)
        return DeviceChains(self, shape)

    def wanted(self, shape: Shape) -> Record:
        """What an engine for this shape must be."""
        device = self.device
        return Record(
            model=self._model,
            shapes=(shape, shape, shape),
            precision=self.metadata.precision,
            tf32=self._tf32,
            tensorrt=product(self._trt),
            gpu=device.name,
            capabilities=(f"sm{device.capability[0]}{device.capability[1]}",),
            driver=".".join(str(part) for part in device.driver_version),
        )

    def adopt(self, engine: Path, shape: Shape) -> None:
        """See `EngineCache.adopt`."""
        self._cache.adopt(self._path, engine, self.wanted(shape))

    def load(self, shape: Shape) -> None:
        """Have the engine for a shape in memory: from the cache, or built.

        Raises:
            InputError: there is none and building was not allowed.
            StgError: it cannot be built or loaded, or its memory is not there.
        """
        if self._shape == shape:
            return
        self._context = self._engine = self._shape = None
        wanted = self.wanted(shape)
        stored, why = self._cache.find(wanted)
        engine = None
        if stored is not None:
            engine = self._runtime.deserialize_cuda_engine(stored)
            why = "" if engine is not None else f"TensorRT does not load it ({self._reason()})"
        if engine is None:
            engine = self._build(wanted, why)
        self._engine = engine
        needed = buffer_bytes(shape) + int(engine.device_memory_size_v2)
        free, _ = self.device.memory()
        if needed > free:
            raise too_large(self.device, shape, needed, free)
        self._context = engine.create_execution_context()
        if self._context is None:
            raise StgError(f"{self.device.name}: TensorRT has no room to run ({self._reason()})")
        self._shape = shape

    def bind(self, shape: Shape, x: int, energy: int, energy_grad: int) -> None:
        """See `DeviceGradient.bind`."""
        self.load(shape)
        context = self._context
        fits = context.set_input_shape(VIDEO, shape)
        for name, address in ((VIDEO, x), (ENERGY, energy), (ENERGY_GRAD, energy_grad)):
            fits = fits and context.set_tensor_address(name, address)
        if not fits:
            raise StgError(f"{self._path}: the engine does not take {shape} ({self._reason()})")

    def run(self) -> None:
        """See `DeviceGradient.run`."""
        if not self._context.execute_async_v3(self.device.stream):
            raise StgError(f"{self.device.name}: TensorRT failed ({self._reason()})")

    def product(
        self, model: bytes, n: int, half: bool, addresses: Sequence[int]
    ) -> Callable[[], None]:
        """Enqueues c = a b of `matmul_model`, n x n at the three addresses; for measurement."""
        with tempfile.TemporaryDirectory(prefix="stg-") as folder:
            path = Path(folder) / "product.onnx"
            path.write_bytes(model)
            data = build(self._trt, path, shapes=None, tf32=self._tf32)
        engine = self._runtime.deserialize_cuda_engine(data)
        context = engine.create_execution_context() if engine is not None else None
        if context is None:
            raise StgError(f"TensorRT does not run a matrix product ({self._reason()})")
        for name, address in zip("abc", addresses, strict=True):
            context.set_tensor_address(name, address)

        def run() -> None:
            context.execute_async_v3(self.device.stream)

        return run

    def _build(self, wanted: Record, why: str) -> Any:
        size = "x".join(str(extent) for extent in wanted.shapes[1])
        what = f"{self._path}: engine for {size} on {self.device.name}"
        if not self._may_build:
            raise InputError(
                f"{what}: {why or 'there is none'}, and --no-build forbids to build one; leave it "
                "out, or use --device cuda"
            )
        self._say(f"{what}: building it" + (f", because {why}" if why else " (first use)"))
        static = not set(self.metadata.free_axes)
        data = build(
            self._trt,
            self._path,
            shapes=None if static else wanted.shapes,  # type: ignore[arg-type]
            tf32=self._tf32,
            timing_cache=self._cache.timing(self._trt, self.device.name),
            say=self._say,
        )
        engine = self._runtime.deserialize_cuda_engine(data)
        if engine is None:
            raise StgError(f"{what}: TensorRT does not load what it built ({self._reason()})")
        self._cache.keep(wanted, data)
        return engine

    def _reason(self) -> str:
        return str(self._log.errors[-1]) if self._log.errors else "no reason given"


def _to_stderr(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
