"""On a machine with an NVIDIA GPU: is everything right, and how far from the limits is it?

Checks first, and stops where one fails: the kernel's integers against NumPy's to the bit, its step
against the formula, its repeatability; spot noise against NumPy's; then the video of CPU, CUDA and
TensorRT from one seed. Then measures the backends, PyTorch beside them, learning, every lowering
and precision, and holds the figures against the goals. What matters most comes first: what is not
begun when the minutes are over is left out and said, as is what is not installed (without PyAV no
file is written). Prints tables; writes JSON after every job, and goes on from it with --go-on.

    python bench/gpu.py [--networks st fc-s] [--minutes 25] [--plan] [--json FILE] [--go-on]
"""

from __future__ import annotations

import argparse
import ctypes
import datetime
import importlib.util
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from stg_runtime.artifact import Metadata, Size, pack_spot
from stg_runtime.backends.cuda.chains import ROWS, WALK, DeviceChains
from stg_runtime.backends.cuda.device import CudaDevice, blocks, open_device, pointer
from stg_runtime.backends.cuda.spot import DeviceSpot
from stg_runtime.bench import UPDATE_BYTES, copy_rate_device, measure, time_device
from stg_runtime.doctor import PACKAGES, memory, nvidia_gpu, processor, version
from stg_runtime.errors import StgError
from stg_runtime.langevin import langevin_step, standard_normal
from stg_runtime.spot import NO_WRAP, Axes, Spot, first_noise
from stg_runtime.synthesize import plan, synthesize

NETWORKS = ("st", "fc-s", "fc-s-large")
LOWERINGS = ("auto", "none", "space-to-depth")
PRECISIONS = ("fp32", "fp16")
BACKENDS = ("cuda", "tensorrt")
RESULTS = Path(__file__).parent / "results" / "gpu.json"
STEPS = 20  # of a video, and of the comparison of backends
UPDATES = 1000  # of a training whose time is told
# The first noise of each network's recipe, and of which size its videos are.
FIRST: dict[str, tuple[Axes, tuple[int, int, int, int]]] = {
    "st": ("space-time", (3, 70, 224, 224)),
    "fc-s": ("time", (3, 70, 100, 100)),
    "fc-s-large": ("time", (3, 70, 224, 224)),
}
WATCHED = (1, 2, 5, 10, 20)  # steps after which the backends' videos are compared
GOALS = {
    "torch": (3.0, "a step, times as fast as the better of PyTorch eager and compiled"),
    "update": (1.3, "the fused update, times the copy's floor, at most"),
    "floor": (2.5, "a step, times its floor, at most"),
    "real_time": (50.0, "70 frames from noise, times as fast as they play, first noise included"),
    "written": (10.0, "the same with the file written"),
    "train": (60.0, "1,000 updates at the paper's size, 3 chains, 20 steps, seconds, at most"),
    "grey_levels": (1.0, "CPU against GPU after 20 steps, mean absolute difference, below"),
}


@dataclass
class Plan:
    """What will be done, and what will not and why."""

    run: list[str] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)


def make_plan(options: argparse.Namespace, missing: dict[str, str]) -> Plan:
    """The jobs, in order.

    Args:
        options: of the command line.
        missing: why each of "gpu", "cuda", "tensorrt", "export", "torch", "av" cannot be had.
    """
    made = Plan()

    def add(job: str, *needs: str) -> None:
        reason = next((missing[need] for need in needs if need in missing), None)
        if reason is None:
            made.run.append(job)
        else:
            made.left_out[job] = reason

    add("kernel check", "gpu")
    add("spot check", "gpu")
    for network in options.networks:
        for backend in BACKENDS:
            add(f"agree {network} {backend}", "gpu", "export", backend)
    add("kernel speed", "gpu")
    graphs = [(low, kind) for low in options.lowerings for kind in options.precisions]
    for network in options.networks:
        add(f"first {network}", "gpu")
        for backend in BACKENDS:
            for precision in options.precisions:  # of the first lowering, auto
                job = f"step {network} {backend} {options.lowerings[0]} {precision}"
                add(job, "gpu", "export", backend)
        add(f"torch {network}", "gpu", "export", "torch")
        add(f"train {network}", "gpu", "torch", "train")
        add(f"written {network}", "gpu", "export", "cuda", "av")
    for network in options.networks:
        for lowering, precision in graphs:
            for backend in BACKENDS:
                job = f"step {network} {backend} {lowering} {precision}"
                if job not in made.run and job not in made.left_out:
                    add(job, "gpu", "export", backend)
        add(f"search {network}", "gpu", "export", "cuda")
    return made


def find_missing() -> dict[str, str]:
    """Why something cannot be had on this machine; empty where all is there."""
    missing = {}

    def needs(name: str, check: Callable[[], object]) -> None:
        try:
            check()
        except StgError as error:
            missing[name] = str(error)

    def cuda() -> None:
        from stg_runtime.backends import onnxruntime_cuda as ort

        runtime = ort.require_cuda_wheel()
        ort.preload(runtime)
        told = ort.missing_library(runtime)
        if told:
            raise StgError(told)

    def tensorrt() -> None:
        from stg_runtime.backends.engine import load_tensorrt

        load_tensorrt()

    needs("gpu", lambda: open_device(0))
    needs("cuda", cuda)
    needs("tensorrt", tensorrt)
    if importlib.util.find_spec("av") is None:
        missing["av"] = "PyAV (av) is not installed, which writes video"
    if importlib.util.find_spec("safetensors") is None:
        missing["train"] = "safetensors is not installed"
    lost = [name for name in ("torch", "onnx", "onnxscript") if not importlib.util.find_spec(name)]
    if lost:
        missing["export"] = missing["torch"] = f"{', '.join(lost)} not installed"
    else:
        import torch

        if not torch.cuda.is_available():
            missing["torch"] = f"PyTorch {torch.__version__} finds no GPU"
    return missing


# --- the kernel


def check_kernel(device: CudaDevice) -> list[str]:
    """Bits, formula, clamp, tails, repeatability; returns what was found right.

    Raises:
        AssertionError: it is wrong.
    """
    groups = 100_003
    found = []
    words = np.empty(4 * groups, np.uint64)
    place = device.allocate(words.nbytes)
    for seed, chain, step in ((0, 0, 1), (7, 3, 20), (2**64 - 1, 2**63 + 1, 2**31)):
        device.upload(place, np.zeros_like(words))
        device.launch(
            "stg_words",
            (-(-groups // 256), 1),
            *(ctypes.c_uint64(seed), ctypes.c_uint64(chain), ctypes.c_uint32(step)),
            *(ctypes.c_uint64(groups), pointer(place)),
        )
        device.download(place, words)
        key, counter = np.array([seed, chain], np.uint64), np.array([0, step, 0, 0], np.uint64)
        expected = np.random.Philox(key=key, counter=counter).random_raw(len(words))
        assert np.array_equal(words, expected), f"Philox differs for {(seed, chain, step)}"
    device.free(place)
    found.append(f"{3 * len(words)} Philox words equal NumPy's to the bit")
    worst = 0.0
    for size in (1, 7, 8, 12, 2044, 2048, 4099, 1 << 20):
        for clamp in (False, True):
            worst = max(worst, _check_step(device, size, clamp))
    found.append(f"steps of 1 to {1 << 20} values within {worst:.1e} of NumPy's, with its clamp")
    return found


def _check_step(device: CudaDevice, size: int, clamp: bool) -> float:
    rng = np.random.default_rng(size)
    numbers = np.array([2**40, 1], np.uint64)
    grad, values = rng.standard_normal((2, 2, size), dtype=np.float32)
    known = (rng.random((2, size)) < 0.3).astype(np.uint8)
    state = np.zeros(1, WALK)
    state["seed"], state["step"], state["drift"], state["spread"] = 9, 1, 0.045, 0.3
    arrays = [grad, known, values, numbers, state, np.array([1, 2], np.float32)]
    places = [device.allocate(array.nbytes) for array in arrays]
    x, rows = device.allocate(8 * size), device.allocate(8 * ROWS)
    results = []
    for _ in range(3):  # a moving error is a race
        device.upload(x, np.full((2, size), np.nan, np.float32))
        for place, array in zip(places, arrays, strict=True):
            device.upload(place, np.ascontiguousarray(array))
        g, k, v, n, w, e = (pointer(place) for place in places)
        grid, length = (blocks(size), 2), ctypes.c_uint64(size)
        device.launch("stg_start", grid, pointer(x), w, n, ctypes.c_float(0.5), length)
        for _ in range(2):
            held = (k, v) if clamp else (pointer(0), pointer(0))
            arguments = (pointer(x), g, *held, e, pointer(rows), w, n)
            device.launch("stg_step", grid, *arguments, length, ctypes.c_uint32(ROWS))
        out = np.empty((2, size), np.float32)
        device.download(x, out)
        results.append(out)
    last = np.empty(1, WALK)
    device.download(places[4], last)
    energies = np.empty((2, 2), np.float32)
    device.download(rows, energies)
    for place in (*places, x, rows):
        device.free(place)
    assert all(np.array_equal(results[0], other) for other in results[1:]), "runs differ: a race"
    assert (last["step"][0], last["row"][0], last["arrived"][0]) == (3, 2, 0), "steps miscounted"
    assert energies.tolist() == [[1, 2], [1, 2]], "energies misplaced"
    worst = 0.0
    for index, number in enumerate(numbers):
        noise = [standard_normal(size, seed=9, chain=int(number), step=step) for step in range(3)]
        expected = 0.5 * noise[0]
        for step in (1, 2):
            expected = langevin_step(expected, grad[index], noise[step], step_size=0.3)
            if clamp:
                expected = np.where(known[index] == 1, values[index], expected)
        error = float(np.abs(results[0][index] - expected).max())
        assert error < 1e-5, f"size {size}, clamp {clamp}: off by {error}"
        worst = max(worst, error)
    return worst


def clip_like(shape: tuple[int, ...]) -> np.ndarray:
    """A clip with the spectrum of natural video, uint8, (T, H, W, 3): any will do for times."""
    rng = np.random.default_rng(0)
    frames = rng.standard_normal((*shape, 3), dtype=np.float32)
    for axis in range(3):  # a running mean, three times: smooth, not flat
        frames = np.add.reduce([np.roll(frames, step, axis) for step in range(3)])
    return (128 + 25 * frames / frames.std()).clip(0, 255).astype(np.uint8)


def model_units(clip: np.ndarray) -> np.ndarray:
    return np.moveaxis((clip.astype(np.float32) - 128) / 25, -1, 0)[None]


SPOT_CASES: list[tuple[Axes, tuple, tuple]] = [
    ("time", (3, 40, 22, 30), NO_WRAP),
    ("time", (3, 37, 22, 30), (True, False, False)),
    ("space-time", (3, 40, 22, 30), NO_WRAP),
    ("space-time", (3, 37, 62, 30), (True, True, True)),
    ("time", (3, 70, 224, 224), NO_WRAP),
    ("space-time", (3, 70, 224, 224), NO_WRAP),
]


def check_spot(device: CudaDevice, cases: Sequence[tuple] = SPOT_CASES) -> list[str]:
    """Spot noise of both kinds, round and not, sizes with large prime factors among them.

    Raises:
        AssertionError: it is not NumPy's.
    """
    worst = 0.0
    for axes, shape, wrap in cases:
        like = shape[1:] if shape[1] == 70 else (30, 22, 30)
        spot = Spot.fitted(model_units(clip_like(like)), axes, 50.0)
        made = DeviceSpot(device, spot, shape, wrap)
        x, out = device.allocate(4 * int(np.prod(shape))), np.empty(shape, np.float32)
        made.fill(x, 5, [2**40])
        device.download(x, out)
        device.free(x)
        made.close()
        expected = first_noise(spot, shape, seed=5, number=2**40, init_std=1.0, wrap=wrap)
        error = float(np.abs(out - expected).max() / np.abs(expected).max())
        assert error < 1e-4, f"spot noise along {axes}, {shape}, {wrap}: off by {error}"
        worst = max(worst, error)
    return [f"spot noise of {len(cases)} kinds within {worst:.1e} of NumPy's largest value"]


def first(device: CudaDevice, network: str) -> dict[str, float]:
    """How long the first noise of one video takes, on the device and on the processor."""
    axes, shape = FIRST[network]
    spot = Spot.fitted(model_units(clip_like(shape[1:])), axes, 50.0)
    began = time.perf_counter()
    first_noise(spot, shape, seed=1, number=0, init_std=1.0)
    host = time.perf_counter() - began
    made = DeviceSpot(device, spot, shape, NO_WRAP)
    x = device.allocate(4 * int(np.prod(shape)))
    began = time.perf_counter()
    made.fill(x, 1, [0])
    device.wait()
    once = time.perf_counter() - began  # with the clip's upload
    seconds = time_device(device, lambda: made.fill(x, 1, [0]), 5)
    device.free(x)
    made.close()
    return {"device_ms": 1e3 * seconds, "first_use_ms": 1e3 * once, "host_ms": 1e3 * host}


class Nothing:
    """A gradient that is never asked for: the update alone; see `DeviceGradient`."""

    metadata: Any = None
    description = "update alone"
    in_graph = True

    def __init__(self, device: CudaDevice) -> None:
        self.device = device

    def bind(self, shape: Any, x: int, energy: int, energy_grad: int) -> None:
        """Any gradient will do."""
        values = 4 * int(np.prod(shape))
        self.device.copy(energy_grad, x, values)

    def run(self) -> None:
        """Nothing."""


def kernel_speed(device: CudaDevice, shape: tuple) -> dict[str, float]:
    """The update's time against a copy's."""
    copy = copy_rate_device(device)
    floor = UPDATE_BYTES * int(np.prod(shape)) / copy
    made = DeviceChains(Nothing(device), shape)
    made.start(seed=1, numbers=list(range(shape[0])), init_std=1.0)
    found = {"copy_gb_per_s": copy / 1e9, "floor_ms": 1e3 * floor}
    for name, scale in (("noise", 1.0), ("no_noise", 0.0)):
        made.step(1, step_size=0.01, noise_scale=scale)
        found[f"{name}_ms"] = 1e3 * time_device(device, lambda: made.run_part("update"), 20)
    made.close()
    found["ratio"] = found["noise_ms"] / found["floor_ms"]
    return found


# --- models


def export(network: str, lowering: str, precision: str, folder: Path) -> tuple[Path, Any]:
    """An untrained network of the paper's size, any number of chains, and its energy."""
    from stg_export import export_energy_grad
    from stg_export.run import conv_layers
    from stg_train.learn import build_energy
    from stg_train.recipe import load_recipe

    recipe = load_recipe(network, scale="paper", overrides={"data.videos": ["none"]})
    energy = build_energy(recipe, 3)
    path = folder / f"{network}-{lowering}-{precision}.onnx"
    langevin = recipe.langevin
    size = Size(
        frames=recipe.data.trained_frames, height=recipe.data.size[0], width=recipe.data.size[1]
    )
    # The whole clip, as it is synthesized; a network that is full in time has its own length.
    if "T" in energy.descriptor.free_axes:
        size = Size(frames=70, height=size.height, width=size.width)

    def metadata(parity: Any, used: str) -> Metadata:
        return Metadata(
            recipe=network,
            reference_std=langevin.reference_std,
            step_size=langevin.step_size,
            noise_scale=langevin.noise_scale,
            n_steps=STEPS,
            init_std=langevin.init_std,
            pixel_mean=(128.0, 128.0, 128.0),
            pixel_scale=25.0,
            size=size,
            margin_frames=0,
            fps=25.0,
            free_axes=("N",),
            graph_size=size,
            min_size=size,
            layers=conv_layers(energy.descriptor),
            clips=(),
            precision=precision,
            opset=18,
            lowering=used,
            versions={},
            parity=parity,
        )

    if not path.exists():
        export_energy_grad(
            energy,
            path,
            example_shape=(1, 3, size.frames, size.height, size.width),
            free_axes=("N",),
            precision=precision,
            lowering=lowering,
            metadata=metadata,
            gradient_scale=langevin.reference_std**2,
        )
    return path, energy


def open_gpu(kind: str, path: Path, **options: Any) -> Any:
    if kind == "tensorrt":
        from stg_runtime.backends.tensorrt import TensorRt

        return TensorRt(path, **options)
    from stg_runtime.backends.onnxruntime_cuda import CudaOptions, OnnxRuntimeCuda

    return OnnxRuntimeCuda(path, options=CudaOptions(**options))


def agree(kind: str, path: Path) -> dict[str, float]:
    """Grey levels between the CPU's video and the GPU's, one seed, fp32 without TF32."""
    from stg_runtime.backends.onnxruntime_cpu import OnnxRuntimeCpu

    both = [OnnxRuntimeCpu(path), open_gpu(kind, path, tf32=False)]
    metadata = both[0].metadata
    job = plan(metadata, seed=11)
    walks = []
    for backend in both:
        chains = backend.chains(job.graph)
        chains.start(seed=11, numbers=[0], init_std=metadata.init_std)
        walks.append(chains)
    found = {}
    for step in range(1, STEPS + 1):
        for chains in walks:
            chains.step(step, step_size=metadata.step_size, noise_scale=metadata.noise_scale)
        if step in WATCHED:
            cpu, gpu = (chains.read() for chains in walks)
            assert np.isfinite(gpu).all(), f"{kind}: not finite after {step} steps"
            found[str(step)] = float(np.abs(cpu - gpu).mean() * metadata.pixel_scale)
    off, limit = found[str(STEPS)], GOALS["grey_levels"][0]
    assert off < limit, f"{kind}: {off:.3g} grey levels from the CPU after {STEPS} steps"
    return found


def search(path: Path, shape: tuple) -> dict[str, float]:
    """What cuDNN's search costs at a new shape, and what it brings."""
    found = {}
    for how in ("HEURISTIC", "EXHAUSTIVE"):
        backend = open_gpu("cuda", path, search=how)
        chains = backend.chains(shape)
        began = time.perf_counter()
        chains.start(seed=1, numbers=list(range(shape[0])), init_std=1.0)
        backend.device.wait()
        found[f"{how}_first_s"] = time.perf_counter() - began
        work = lambda: chains.run_part("gradient")  # noqa: B023, E731
        found[f"{how}_gradient_ms"] = 1e3 * time_device(backend.device, work, 10)
        chains.close()
    return found


def written(path: Path, folder: Path, count: int = 4) -> dict[str, float]:
    """Videos from noise to files: each is encoded while the next one walks."""
    from stg_runtime.video_write import write_video

    backend = open_gpu("cuda", path)
    job = plan(backend.metadata, seed=3)
    chains = backend.chains(job.graph)
    metadata = with_spot(backend.metadata)
    synthesize(chains, metadata, job, number=0)  # warm
    began = time.perf_counter()
    with ThreadPoolExecutor(1) as writer:
        jobs = []
        for number in range(count):
            video = synthesize(chains, metadata, job, number=number)
            name = folder / f"{path.stem}-{number}.mp4"
            jobs.append(writer.submit(write_video, name, video, backend.metadata.fps))
        for item in jobs:
            item.result()
    seconds = time.perf_counter() - began
    chains.close()
    return {"times_real_time": count * job.size.frames / seconds / backend.metadata.fps}


def with_spot(metadata: Metadata) -> Metadata:
    """The same model with its recipe's first noise, of some clip."""
    axes, (_, *shape) = FIRST[metadata.recipe]
    pixels = clip_like(tuple(shape))[None]
    values = metadata.model_dump() | {"first_noise": axes, "spot_shape": pixels.shape[:4]}
    return Metadata.model_validate(values | {"spot": pack_spot(pixels)})


# --- learning


def train(
    network: str,
    updates: int,
    seconds: float,
    *,
    ways: Sequence[str] = ("eager", "compiled"),
    **changes: Any,
) -> dict[str, Any]:
    """Learning at the paper's size: 3 chains, 20 steps, the whole network from the first update.

    As many updates as the seconds allow. The time of `UPDATES` is the first one's, which
    translates, and the median of the others so many times; that is called extrapolated where fewer
    were made.
    Eager and compiled, the faster counts.

    Args:
        network: recipe.
        updates: most that are made.
        seconds: for both ways together.
        ways: which of "eager" and "compiled".
        changes: to the recipe.
    """
    import torch

    from stg_train.learn import Learner
    from stg_train.observed import scale_observed
    from stg_train.recipe import load_recipe
    from stg_train.run import resolve

    found: dict[str, Any] = {}
    for how in ways:
        recipe = load_recipe(
            network,
            scale="paper",
            overrides={
                "data.videos": ["none"],
                "device": "cuda",
                "compile": how == "compiled",
                "langevin.chains": 3,
                "langevin.n_steps": STEPS,
                "learning.growth": [],
                **changes,
            },
        )
        frames = (recipe.data.frames, *recipe.data.size)
        observed = scale_observed(clip_like(frames)[None], 25.0, recipe.pixels)
        try:
            learner = Learner(resolve(recipe), observed)
            began = time.perf_counter()
            learner.update()
            first_s = time.perf_counter() - began
            times = []
            while len(times) < updates - 1 and time.perf_counter() - began < seconds / len(ways):
                last = time.perf_counter()
                learner.update()  # ends with the device's answer
                times.append(time.perf_counter() - last)
        except (StgError, RuntimeError) as error:  # no compiler, no memory, a collapse
            found[how] = {"error": " ".join(str(error).split())[:200]}
            continue
        each = float(np.median(times)) if times else first_s
        whole = len(times) + 1 == UPDATES
        found[how] = {
            "first_s": first_s,
            "update_ms": 1e3 * each,
            "updates": len(times) + 1,
            "thousand_s": time.perf_counter() - began if whole else first_s + each * (UPDATES - 1),
            "extrapolated": not whole,
            "precision": learner.recipe.precision,
        }
        if learner.device.type == "cuda":
            found[how]["memory_mib"] = torch.cuda.max_memory_allocated() / 2**20
        del learner
        torch.cuda.empty_cache()
    done = [row["thousand_s"] for row in found.values() if "error" not in row]
    if not done:
        raise StgError(f"learning failed: {found}")
    return found | {"thousand_s": min(done)}


# --- all together


def work(made: Plan, options: argparse.Namespace, folder: Path) -> Iterator[tuple[str, Any]]:
    """Each job's result; a job that fails gives its error, a failed check stops everything."""
    device = open_device(0) if made.run else None
    end = time.monotonic() + 60 * options.minutes
    for job in list(made.run):
        assert device is not None
        kind, *rest = job.split()
        if time.monotonic() > end:
            made.run.remove(job)
            made.left_out[job] = f"the {options.minutes:g} minutes were over (--minutes, --go-on)"
            continue
        print(f"... {job}", file=sys.stderr, flush=True)
        try:
            if job == "kernel check":
                yield job, check_kernel(device)
            elif job == "kernel speed":
                yield job, kernel_speed(device, (options.chains, 3, 70, 224, 224))
            elif job == "spot check":
                yield job, check_spot(device)
            elif kind == "first":
                yield job, first(device, rest[0])
            elif kind == "train":
                left = end - time.monotonic()
                yield job, train(rest[0], options.updates, min(240.0, left))
            elif kind == "agree":
                path, _ = export(rest[0], "auto", "fp32", folder)
                yield job, agree(rest[1], path)
            elif kind == "step":
                network, backend, lowering, precision = rest
                path, _ = export(network, lowering, precision, folder)
                opened = open_gpu(backend, path)
                size = opened.metadata.graph_size
                row = {}
                for chains in sorted({1, options.chains}):
                    shape = (chains, 3, size.frames, size.height, size.width)
                    figures = measure(
                        *(opened, path, shape),
                        frames=size.frames,
                        steps=STEPS,
                        repeats=options.repeats,
                    )
                    row[str(chains)] = figures.to_dict()
                yield job, row
            elif kind == "search":
                path, _ = export(rest[0], "auto", "fp32", folder)
                from stg_runtime.backends.onnxruntime_cpu import open_session

                size = open_session(path, 1, optimize=False)[1].graph_size
                shape = (options.chains, 3, size.frames, size.height, size.width)
                yield job, search(path, shape)
            elif kind == "torch":
                from stg_train.timing import time_energy

                path, energy = export(rest[0], "auto", "fp32", folder)
                from stg_runtime.backends.onnxruntime_cpu import open_session

                metadata = open_session(path, 1, optimize=False)[1]
                size = metadata.graph_size
                shape = (options.chains, 3, size.frames, size.height, size.width)
                settings = (metadata.step_size, metadata.noise_scale)
                yield (
                    job,
                    time_energy(energy, shape, *settings, where="cuda:0", repeats=options.repeats),
                )
            elif kind == "written":
                path, _ = export(rest[0], "auto", "fp32", folder)
                yield job, written(path, folder)
        except StgError as error:
            yield job, {"error": str(error)}


def judge(results: dict[str, Any], chains: int) -> list[dict[str, Any]]:
    """The goals, each with what was measured; None where it was not."""
    rows: list[dict[str, Any]] = []

    def add(goal: str, what: str, value: float | None, *, most: bool) -> None:
        limit, text = GOALS[goal]
        met = None if value is None else (value <= limit if most else value >= limit)
        rows.append({"goal": text, "of": what, "limit": limit, "measured": value, "met": met})

    add("update", "kernel", results.get("kernel speed", {}).get("ratio"), most=True)
    networks = dict.fromkeys(name.split()[1] for name in results if name.count(" ") >= 2)
    for network in networks or ("st",):
        best: dict[str, Any] = {}
        single: dict[str, Any] = {}
        for name, row in results.items():
            if name.startswith(f"step {network} ") and "error" not in row:
                figures = row[str(chains)]
                if not best or figures["step_ms"] < best["step_ms"]:
                    best = figures | {"name": name}
                if not single or row["1"]["step_ms"] < single["step_ms"]:
                    single = row["1"]
        torch_ms = results.get(f"torch {network}", {}).get("torch_step_ms")
        ratio = torch_ms / best["step_ms"] if best and torch_ms else None
        add("torch", f"{network}, {best.get('name', 'not measured')}", ratio, most=False)
        floor = best["step_ms"] / best["floor_ms"] if best.get("floor_ms") else None
        add("floor", network, floor, most=True)
        noise_ms = results.get(f"first {network}", {}).get("device_ms")
        frames_ms = 1e3 * FIRST[network][1][1] / 25  # as long as the video plays
        video_ms = STEPS * single["step_ms"] + noise_ms if single and noise_ms else None
        add("real_time", network, frames_ms / video_ms if video_ms else None, most=False)
        learned = results.get(f"train {network}", {}).get("thousand_s")
        add("train", network, learned, most=True)
        far = results.get(f"written {network}", {}).get("times_real_time")
        add("written", network, far, most=False)
        for backend in BACKENDS:
            grown = results.get(f"agree {network} {backend}", {})
            add("grey_levels", f"{network} {backend}", grown.get(str(STEPS)), most=True)
    return rows


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=["st", "fc-s"])
    parser.add_argument("--lowerings", nargs="+", choices=LOWERINGS, default=list(LOWERINGS))
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS, default=list(PRECISIONS))
    parser.add_argument("--chains", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=20, help="steps in a timing")
    parser.add_argument("--models", type=Path, help="folder to keep the exported models in")
    parser.add_argument("--updates", type=int, default=UPDATES, help="of learning, at most")
    parser.add_argument("--minutes", type=float, default=25, help="no job is begun after them")
    parser.add_argument("--go-on", action="store_true", help="keep what the JSON file has already")
    parser.add_argument("--plan", action="store_true", help="say what would be done, and stop")
    parser.add_argument("--json", type=Path, default=RESULTS)
    options = parser.parse_args(arguments)
    if options.chains < 1 or options.repeats < 1:
        parser.error("--chains and --repeats must be at least 1")
    return options


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    made = make_plan(options, find_missing())
    for reason in dict.fromkeys(made.left_out.values()):
        jobs = [job for job, why in made.left_out.items() if why == reason]
        print(f"left out, because {reason}: {', '.join(jobs)}")
    if options.plan or not made.run:
        for job in made.run:
            print(f"would do: {job}")
        return 0 if options.plan else 1
    results: dict[str, Any] = {}
    failed = ""
    if options.go_on and options.json.is_file():
        kept = json.loads(options.json.read_text())["results"]
        results = {job: row for job, row in kept.items() if job in made.run and "error" not in row}
        made.run = [job for job in made.run if job not in results or job.endswith("check")]
    with tempfile.TemporaryDirectory(prefix="stg-bench-") as scratch:
        folder = options.models or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        try:
            for job, result in work(made, options, folder):
                results[job] = result
                write(options, made, results, failed, arguments)
                print(f"{job}: {json.dumps(result)[:160]}", flush=True)
        except AssertionError as error:
            failed = f"a check failed, nothing after it was measured: {error}"
    goals = write(options, made, results, failed, arguments)
    print(f"\n{'goal':<78} {'limit':>6} {'measured':>9}")
    for row in goals:
        value = "-" if row["measured"] is None else f"{row['measured']:.3g}"
        mark = {None: "", True: "met", False: "missed"}[row["met"]]
        print(f"{row['goal'][:56]:<57}{row['of'][:20]:<21} {row['limit']:>6g} {value:>9} {mark}")
    print(f"wrote {options.json}")
    if failed:
        print(failed, file=sys.stderr)
    broken = [job for job, row in results.items() if isinstance(row, dict) and "error" in row]
    for job in broken:
        print(f"failed: {job}: {results[job]['error']}", file=sys.stderr)
    return 1 if failed or broken else 0


def write(
    options: argparse.Namespace,
    made: Plan,
    results: dict[str, Any],
    failed: str,
    arguments: list[str] | None,
) -> list[dict[str, Any]]:
    """Write what there is so far; a run that is cut off has lost nothing. Returns the goals."""
    goals = judge(results, options.chains)
    document = {
        "what": "GPU: checks, steps, goals",
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": " ".join([Path(sys.argv[0]).name, *(arguments or sys.argv[1:])]),
        "hardware": {"gpu": nvidia_gpu(), "processor": processor(), "memory": memory()},
        "versions": {name: version(name) for name in PACKAGES},
        "failed": failed,
        "left_out": made.left_out,
        "goals": goals,
        "results": results,
    }
    with suppress(OSError):
        options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(document, indent=1) + "\n")
    return goals


if __name__ == "__main__":
    sys.exit(main())
