"""How long a Langevin step takes, what of it is the gradient, and how far that is from the limits.

The limits are measured in the same run: a large matrix product and a large copy. On a GPU times are
the device's own (events), on the processor the wall's.
"""

from __future__ import annotations

import json
import math
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from stg_runtime.artifact import VIDEO, ConvLayer, Metadata
from stg_runtime.backends.base import Backend, Shape
from stg_runtime.backends.cuda.chains import DeviceChains
from stg_runtime.backends.cuda.device import CudaDevice
from stg_runtime.backends.host import HostChains
from stg_runtime.backends.onnxruntime_cpu import OnnxRuntimeCpu, read_model, require_onnxruntime
from stg_runtime.errors import StgError

UPDATE_BYTES: Final = 12  # per value: read x, read gradient, write x
_ROUNDS: Final = 5  # of which the median is told


@dataclass(frozen=True)
class Figures:
    """What was measured; None where the device cannot do it.

    Attributes:
        device: for people.
        shape: (N, C, T, H, W) of the walk, margins included.
        steps: Langevin steps of one video.
        step_ms: one step of all chains.
        chain_ms: the same for one chain.
        gradient_ms: of a step.
        update_ms: of a step: noise, update, clamp.
        gradient_share: of the two.
        gflop: of one gradient of all chains by the network as it was trained; as the graph computes
            it where the file does not tell the network.
        graph_gflop: the same as this graph computes it, lowerings included.
        tflop_per_s: achieved by the gradient, counting `gflop`.
        matmul_tflop_per_s: of a large matrix product in the graph's precision on the same device.
        update_gb_per_s: achieved by the update, counting `UPDATE_BYTES` a value.
        copy_gb_per_s: of a large copy, counting bytes read and bytes written.
        floor_ms: the network's FLOPs over the product's rate plus the update's bytes over the
            copy's.
        frames_per_s: finished frames, sampling alone.
        times_real_time: the same over the model's frames per second.
        memory_mib: of the device (GPU: in use by all of its programs; CPU: this process's peak).
        note: what is to be known besides.
    """

    device: str
    shape: Shape
    steps: int
    step_ms: float
    chain_ms: float
    gradient_ms: float
    update_ms: float
    gradient_share: float
    gflop: float
    graph_gflop: float
    tflop_per_s: float
    matmul_tflop_per_s: float | None
    update_gb_per_s: float
    copy_gb_per_s: float
    floor_ms: float | None
    frames_per_s: float
    times_real_time: float
    memory_mib: float
    note: str

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def measure(
    backend: Backend, path: Path, shape: Shape, *, frames: int, steps: int, repeats: int
) -> Figures:
    """Time steps of a backend.

    Args:
        backend: from `open_backend`.
        path: of its model.
        shape: (N, C, T, H, W) of the walk.
        frames: of a finished video, margins cut.
        steps: Langevin steps of one video.
        repeats: steps in one timing; `_ROUNDS` timings are made.

    Raises:
        StgError: the device has not the memory.
    """
    metadata = backend.metadata
    chains = backend.chains(shape)
    chains.start(seed=0, numbers=list(range(shape[0])), init_std=metadata.init_std)
    note = ""
    if isinstance(chains, DeviceChains):
        device = chains.device
        times = _time_device(chains, device, metadata, repeats)
        free, total = device.memory()
        memory = (total - free) / 2**20
        note = chains.graph_note or getattr(backend, "graph_note", "")
        copy = copy_rate_device(device)
        matmul = _matmul_device(backend, device, metadata)
        chains.close()
    else:
        assert isinstance(chains, HostChains)
        assert isinstance(backend, OnnxRuntimeCpu)
        times = _time_host(backend, chains, metadata, repeats)
        copy = copy_rate_host()
        matmul = matmul_rate_host(backend.threads)
        memory = peak_memory_mib()
        if metadata.scales > 1:
            note = f"of the finest of {metadata.scales} scales alone"
    step, gradient, update = times
    graph_flop = shape[0] * count_flop(path, (1, *shape[1:]), metadata)
    flop = shape[0] * network_flop(metadata.layers, shape) if metadata.layers else graph_flop
    moved = UPDATE_BYTES * math.prod(shape)
    floor = None if matmul is None else flop / matmul + moved / copy
    made = frames * shape[0] / (steps * step)
    return Figures(
        device=backend.description,
        shape=shape,
        steps=steps,
        step_ms=1e3 * step,
        chain_ms=1e3 * step / shape[0],
        gradient_ms=1e3 * gradient,
        update_ms=1e3 * update,
        gradient_share=gradient / (gradient + update),
        gflop=flop / 1e9,
        graph_gflop=graph_flop / 1e9,
        tflop_per_s=flop / gradient / 1e12,
        matmul_tflop_per_s=None if matmul is None else matmul / 1e12,
        update_gb_per_s=moved / update / 1e9,
        copy_gb_per_s=copy / 1e9,
        floor_ms=None if floor is None else 1e3 * floor,
        frames_per_s=made,
        times_real_time=made / metadata.fps,
        memory_mib=memory,
        note=note,
    )


# --- times, seconds


def time_device(device: CudaDevice, work: Callable[[], None], repeats: int) -> float:
    """Median seconds of device time of one `work`, of `_ROUNDS` timings of `repeats` each."""
    work()
    found = []
    for _ in range(_ROUNDS):
        begin = device.event()
        for _ in range(repeats):
            work()
        found.append(device.elapsed_ms(begin, device.event()) / repeats / 1e3)
    return statistics.median(found)


def time_host(work: Callable[[], object], repeats: int) -> float:
    """Median seconds of one `work` by the wall's clock."""
    work()
    found = []
    for _ in range(repeats):
        began = time.perf_counter()
        work()
        found.append(time.perf_counter() - began)
    return statistics.median(found)


def _time_device(
    chains: DeviceChains, device: CudaDevice, metadata: Metadata, repeats: int
) -> tuple[float, float, float]:
    number = 0

    def step() -> None:
        nonlocal number
        number += 1
        chains.step(number, step_size=metadata.step_size, noise_scale=metadata.noise_scale)

    for _ in range(3):  # a first run, the capture, a replay
        step()
    whole = time_device(device, step, repeats)
    gradient = time_device(device, lambda: chains.run_part("gradient"), repeats)
    update = time_device(device, lambda: chains.run_part("update"), repeats)
    return whole, gradient, update


def _time_host(
    backend: OnnxRuntimeCpu, chains: HostChains, metadata: Metadata, repeats: int
) -> tuple[float, float, float]:
    size = {"step_size": metadata.step_size, "noise_scale": metadata.noise_scale}
    number = 0

    def step() -> None:
        nonlocal number
        number += 1
        chains.step(number, **size)

    whole = time_host(step, repeats)
    gradient = time_host(backend.run, repeats)
    return whole, gradient, max(whole - gradient, 1e-9)


# --- the limits


def copy_rate_host(size: int = 1 << 28) -> float:
    """Bytes per second of a large copy in main memory, bytes read plus bytes written."""
    source = np.ones(size // 4, np.float32)
    target = np.empty_like(source)
    return 2 * size / time_host(lambda: np.copyto(target, source), 3)


def copy_rate_device(device: CudaDevice, size: int = 1 << 30) -> float:
    """The same within a GPU's memory; smaller where less is free."""
    size = min(size, device.memory()[0] // 4 // 256 * 256)
    a, b = device.allocate(size), device.allocate(size)
    try:
        return 2 * size / time_device(device, lambda: device.copy(b, a, size), 10)
    finally:
        device.free(a)
        device.free(b)


def matmul_rate_host(threads: int, n: int = 1024) -> float:
    """FLOPs per second of onnxruntime's float32 matrix product on the processor."""
    onnxruntime = require_onnxruntime()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(
        matmul_model(n), options, providers=["CPUExecutionProvider"]
    )
    a, b = np.random.default_rng(0).standard_normal((2, n, n), np.float32)
    return 2 * n**3 / time_host(lambda: session.run(None, {"a": a, "b": b}), 5)


def _matmul_device(backend: Any, device: CudaDevice, metadata: Metadata) -> float | None:
    """The same on a GPU, through the backend's own library."""
    n, half = 8192, metadata.precision == "fp16"
    item = 2 if half else 4
    if 3 * item * n * n > device.memory()[0]:
        return None
    run_product = getattr(backend, "product", None)
    if run_product is None:
        return None
    values = np.random.default_rng(0).standard_normal(n * n, np.float32)
    values = values.astype(np.float16) if half else values
    addresses = [device.allocate(item * n * n) for _ in range(3)]
    try:
        for address in addresses[:2]:
            device.upload(address, values)
        run = run_product(matmul_model(n, half=half), n, half, addresses)
        return 2 * n**3 / time_device(device, run, 5)
    except StgError:
        return None
    finally:
        for address in addresses:
            device.free(address)


def matmul_model(n: int, *, half: bool = False) -> bytes:
    """An ONNX file of c = a b, n x n, written by hand: the runtime has no onnx package."""
    kind = 10 if half else 1  # TensorProto.FLOAT16, FLOAT

    def field(number: int, value: bytes | str | int) -> bytes:
        if isinstance(value, int):
            return _varint(number << 3) + _varint(value)
        data = value.encode() if isinstance(value, str) else value
        return _varint(number << 3 | 2) + _varint(len(data)) + data

    def tensor(name: str) -> bytes:
        dims = field(1, field(1, n)) * 2
        return field(1, name) + field(2, field(1, field(1, kind) + field(2, dims)))

    node = field(1, "a") + field(1, "b") + field(2, "c") + field(4, "MatMul")
    graph = field(1, node) + field(2, "product")
    graph += field(11, tensor("a")) + field(11, tensor("b")) + field(12, tensor("c"))
    return field(1, 8) + field(7, graph) + field(8, field(1, "") + field(2, 17))


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


# --- operations


def network_flop(layers: Sequence[ConvLayer], shape: Shape) -> float:
    """Floating-point operations of one chain's gradient by the network as it is written.

    Every convolution forward, and as many operations back to its input.
    """
    flop, channels, extent = 0.0, shape[1], shape[2:]
    for layer in layers:
        sizes = zip(extent, layer.kernel, layer.stride, layer.padding, strict=True)
        t, h, w = ((size + 2 * p - k) // s + 1 for size, k, s, p in sizes)
        extent = (t, h, w)
        flop += 2 * 2 * math.prod(extent) * layer.filters * channels * math.prod(layer.kernel)
        channels = layer.filters
    return flop


def count_flop(path: Path, shape: Shape, metadata: Metadata) -> float:
    """Floating-point operations of convolutions and matrix products in one gradient.

    Counted, not timed: onnxruntime's profile of one run on the processor tells every operator's
    shapes.

    Args:
        path: the .onnx file.
        shape: (N, C, T, H, W).
        metadata: of the model.
    """
    onnxruntime = require_onnxruntime()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.enable_profiling = True
    with tempfile.TemporaryDirectory(prefix="stg-") as folder:
        options.profile_file_prefix = str(Path(folder) / "profile")
        session = onnxruntime.InferenceSession(
            read_model(path), options, providers=["CPUExecutionProvider"]
        )
        if "N" not in metadata.free_axes:
            shape = (session.get_inputs()[0].shape[0], *shape[1:])
        session.run(None, {VIDEO: np.zeros(shape, np.float32)})
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    return float(sum(_flop(event.get("args", {})) for event in events)) / shape[0]


def _flop(operator: dict[str, Any]) -> int:
    kind = operator.get("op_name")
    if kind not in ("Conv", "ConvTranspose", "MatMul") or "input_type_shape" not in operator:
        return 0
    first, second = (_extents(entry) for entry in operator["input_type_shape"][:2])
    result = _extents(operator["output_type_shape"][0])
    if kind == "MatMul":
        return 2 * math.prod(result) * first[-1]
    # Every output of a convolution sums over a filter; every input of a transposed one is spread.
    return 2 * math.prod(result if kind == "Conv" else first) * math.prod(second[1:])


def _extents(entry: dict[str, Sequence[int]]) -> Sequence[int]:
    (extents,) = entry.values()
    return extents


def peak_memory_mib() -> float:
    """Peak resident memory of this process, MiB; NaN where the system does not tell."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return math.nan
    return next((int(v.split()[1]) / 1024 for v in lines if v.startswith("VmHWM")), math.nan)
