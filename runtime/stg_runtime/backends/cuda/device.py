"""One NVIDIA GPU: memory, a stream, kernels, graphs and events, through the CUDA driver."""

from __future__ import annotations

import ctypes
import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Self

from numpy.typing import NDArray

from stg_runtime.backends.cuda.compile import kernels
from stg_runtime.errors import InputError, StgError

THREADS: Final = 256  # per block; the kernels' __launch_bounds__
MOST_ROWS: Final = 65535  # of a grid: blocks in y
_OLDEST: Final = (7, 5)  # what CUDA 13's compilers still make code for
_DRIVER: Final = "libcuda.so.1"
_OUT_OF_MEMORY: Final = 2


class DeviceMemoryError(StgError):
    """The device has not the memory that was asked for."""


@dataclass(frozen=True)
class Graph:
    """A captured sequence of launches.

    Attributes:
        handle: the executable graph.
    """

    handle: Any


class CudaDevice:
    """A GPU with its stream and our kernels; everything is enqueued on that stream, in order.

    Use `open_device`.

    Attributes:
        index: of the GPU.
        name: for instance "NVIDIA H200".
        capability: compute capability, (9, 0).
        driver_version: newest CUDA that the driver runs, (13, 0).
        stream: handle of the stream, an integer.
    """

    def __init__(self, driver: Any, index: int) -> None:
        self._driver = driver
        self.index = index
        handle = self._call("cuDeviceGet", index)
        self._handle = handle
        name = self._call("cuDeviceGetName", 128, handle)
        self.name = bytes(name).split(b"\0")[0].decode(errors="replace")
        attribute = driver.CUdevice_attribute
        self.capability = (
            self._call(
                "cuDeviceGetAttribute",
                attribute.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR,
                handle,
            ),
            self._call(
                "cuDeviceGetAttribute",
                attribute.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR,
                handle,
            ),
        )
        version = self._call("cuDriverGetVersion")
        self.driver_version = (version // 1000, version % 1000 // 10)
        # The primary context: the one that onnxruntime and TensorRT use too.
        self._context = self._call("cuDevicePrimaryCtxRetain", handle)
        self.activate()
        flags = driver.CUstream_flags.CU_STREAM_NON_BLOCKING
        self._stream = self._call("cuStreamCreate", int(flags))
        self.stream = int(self._stream)
        self._functions: dict[str, Any] = {}
        self._module: Any = None

    def activate(self) -> None:
        """Make this the GPU of the calling thread."""
        self._call("cuCtxSetCurrent", self._context)

    def allocate(self, size: int) -> int:
        """Address of `size` new bytes, aligned to 256.

        Raises:
            DeviceMemoryError: there are not so many.
        """
        return int(self._call("cuMemAlloc", max(size, 1)))

    def free(self, address: int) -> None:
        """Give memory of `allocate` back, once the stream has passed."""
        self.wait()
        self._call("cuMemFree", address)

    def memory(self) -> tuple[int, int]:
        """Free and total memory, bytes."""
        free, total = self._call("cuMemGetInfo")
        return int(free), int(total)

    def upload(self, address: int, array: NDArray[Any]) -> None:
        """Copy an array to the device, in the stream's order; the array may change afterwards."""
        assert array.flags.c_contiguous
        self._call("cuMemcpyHtoDAsync", address, array.ctypes.data, array.nbytes, self._stream)
        if array.nbytes > 1 << 16:  # below, the driver keeps its own copy
            self.wait()

    def download(self, address: int, array: NDArray[Any]) -> None:
        """Fill an array from the device; waits for the stream."""
        assert array.flags.c_contiguous
        self._call("cuMemcpyDtoHAsync", array.ctypes.data, address, array.nbytes, self._stream)
        self.wait()

    def copy(self, to: int, source: int, size: int) -> None:
        """Copy within the device."""
        self._call("cuMemcpyDtoDAsync", to, source, size, self._stream)

    def wait(self) -> None:
        """Until everything enqueued so far is done."""
        self._call("cuStreamSynchronize", self._stream)

    def launch(self, name: str, grid: tuple[int, int], *arguments: Any) -> None:
        """Enqueue one of the kernels of langevin.cu, in blocks of `THREADS`.

        Args:
            name: of the kernel.
            grid: blocks in x and y.
            arguments: ctypes values, in the kernel's order.
        """
        function = self._functions.get(name)
        if function is None:
            if self._module is None:
                major, minor = self.capability
                self._module = self._call("cuModuleLoadData", kernels(f"sm_{major}{minor}"))
            function = self._call("cuModuleGetFunction", self._module, name.encode())
            self._functions[name] = function
        # An array of the arguments' addresses, as the C interface takes it; read during the call.
        addresses = (ctypes.c_void_p * len(arguments))(*(ctypes.addressof(a) for a in arguments))
        self._call(
            "cuLaunchKernel",
            *(function, *grid, 1, THREADS, 1, 1, 0, self._stream),
            *(ctypes.addressof(addresses), 0),
        )

    def capture(self, work: Callable[[], None]) -> Graph:
        """Record what `work` enqueues on the stream, without running it.

        Raises:
            StgError: something in it cannot be captured; the stream is as it was.
        """
        mode = self._driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
        self._call("cuStreamBeginCapture", self._stream, mode)
        try:
            work()
        except BaseException:
            self._driver.cuStreamEndCapture(self._stream)  # leaves the mode; its error is ours
            raise
        graph = self._call("cuStreamEndCapture", self._stream)
        try:
            return Graph(self._call("cuGraphInstantiate", graph, 0))
        finally:
            self._call("cuGraphDestroy", graph)

    def end_capture(self) -> None:
        """Leave a capture that a library began on the stream and did not finish, if any."""
        code, graph = self._driver.cuStreamEndCapture(self._stream)
        if not int(code) and int(graph):
            self._driver.cuGraphDestroy(graph)

    def replay(self, graph: Graph) -> None:
        """Enqueue a captured graph."""
        self._call("cuGraphLaunch", graph.handle, self._stream)

    def drop(self, graph: Graph) -> None:
        """Forget a captured graph, once the stream has passed."""
        self.wait()
        self._call("cuGraphExecDestroy", graph.handle)

    def event(self) -> Any:
        """A mark in the stream, for `elapsed_ms`."""
        event = self._call("cuEventCreate", 0)
        self._call("cuEventRecord", event, self._stream)
        return event

    def elapsed_ms(self, begin: Any, end: Any) -> float:
        """Milliseconds of device time between two marks; waits for the second."""
        self._call("cuEventSynchronize", end)
        return float(self._call("cuEventElapsedTime", begin, end))

    def _call(self, function: str, *arguments: Any) -> Any:
        """Call the driver; its one result, or its results, or an error."""
        code, *results = getattr(self._driver, function)(*arguments)
        if int(code):
            text = _error_text(self._driver, code)
            where = f"{self.name}: " if hasattr(self, "name") else ""
            kind = DeviceMemoryError if int(code) == _OUT_OF_MEMORY else StgError
            raise kind(f"{where}{function} failed: {text}")
        return results[0] if len(results) == 1 else tuple(results)

    @classmethod
    def open(cls, index: int) -> Self:
        """See `open_device`."""
        return cls(load_driver(), index)


def open_device(index: int = 0) -> CudaDevice:
    """A GPU that our kernels run on.

    Args:
        index: as the driver counts (CUDA_VISIBLE_DEVICES applies).

    Raises:
        InputError: no driver, one that is too old, no such GPU, one that is too old, or a missing
            package; each message names the fix.
    """
    driver = load_driver()
    count = gpu_count(driver)
    if index >= count:
        have = "there is one GPU" if count == 1 else f"there are {count} GPUs"
        raise InputError(
            f"no GPU {index}: {have} here, counted from 0; pass a lower number (or change "
            "CUDA_VISIBLE_DEVICES)"
        )
    device = CudaDevice(driver, index)
    if device.capability < _OLDEST:
        raise InputError(
            f"{device.name}: its compute capability {device.capability[0]}.{device.capability[1]} "
            f"is below {_OLDEST[0]}.{_OLDEST[1]}, the oldest that CUDA 13 runs on; pass --device "
            "cpu"
        )
    return device


def require_driver() -> None:
    """Is there a driver at all? Asked first: without one, no package helps.

    The bindings' own search for the library can hang after it failed (13.5).

    Raises:
        InputError: there is none.
    """
    try:
        ctypes.CDLL(_DRIVER)
    except OSError:
        raise InputError(
            f"no NVIDIA driver on this machine ({_DRIVER} is not found): install one, or pass "
            "--device cpu"
        ) from None


def load_driver() -> Any:
    """The driver's bindings, initialized.

    Raises:
        InputError: see `open_device`.
    """
    require_driver()
    if importlib.util.find_spec("cuda") is None or (
        importlib.util.find_spec("cuda.bindings") is None
    ):
        raise InputError("cuda-bindings is not installed: pip install 'stg[gpu]'")
    from cuda.bindings import driver

    (code,) = driver.cuInit(0)
    if int(code):
        raise InputError(
            f"the NVIDIA driver finds no usable GPU ({_error_text(driver, code)}); look at "
            "nvidia-smi and CUDA_VISIBLE_DEVICES, or pass --device cpu"
        )
    _, version = driver.cuDriverGetVersion()
    needed = int(driver.CUDA_VERSION)
    if version // 1000 < needed // 1000:
        raise InputError(
            f"the NVIDIA driver is too old: it runs CUDA {version // 1000}.{version % 1000 // 10}, "
            f"and the installed packages are for CUDA {needed // 1000}; update the driver"
            f"{' to 580 or newer' if needed // 1000 == 13 else ''}"
        )
    return driver


def gpu_count(driver: Any) -> int:
    """How many GPUs the driver shows."""
    code, count = driver.cuDeviceGetCount()
    return 0 if int(code) else int(count)


def _error_text(driver: Any, code: Any) -> str:
    found, text = driver.cuGetErrorString(code)
    told = text.decode(errors="replace") if not int(found) and text else "unknown error"
    return f"{told}, {getattr(code, 'name', int(code))}"


def blocks(size: int) -> int:
    """Blocks that cover `size` values of a chain, 8 to a thread."""
    return -(-size // (8 * THREADS))


def pointer(address: int) -> ctypes.c_void_p:
    """A kernel's pointer argument."""
    return ctypes.c_void_p(address or None)


def total(sizes: Sequence[int]) -> int:
    """Bytes that allocations of these sizes take, each rounded up to 256."""
    return sum(-(-size // 256) * 256 for size in sizes)
