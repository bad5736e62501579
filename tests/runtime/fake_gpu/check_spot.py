"""Spot noise made on the device is the processor's, up to rounding, and never waits."""

import ctypes
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))

from springs import Spring, calls

from stg_runtime.backends.cuda import spot as module
from stg_runtime.backends.cuda.chains import DeviceChains
from stg_runtime.backends.cuda.device import CudaDevice, open_device, pointer
from stg_runtime.backends.cuda.spot import DeviceSpot, _roots, device_bytes, factors
from stg_runtime.equalizer import Equalizer
from stg_runtime.errors import StgError
from stg_runtime.spot import NO_WRAP, Axes, Shape, Spot, Wrap, first_noise


@pytest.fixture
def device() -> CudaDevice:
    return open_device(0)


@pytest.fixture
def started(device: CudaDevice) -> Iterator[list[DeviceChains]]:
    made: list[DeviceChains] = []
    yield made
    for chains in made:
        chains.close()


def a_clip(shape: tuple, seed: int = 0) -> np.ndarray:
    """Moving waves, dark at most times, in model units."""
    rng = np.random.default_rng(seed)
    M, C, T, H, W = shape
    t, y, x = np.mgrid[:T, :H, :W]
    waves = [np.cos(rng.normal() * t + rng.normal() * y + rng.normal() * x + c) for c in range(C)]
    return (np.exp(np.stack(waves))[None] * rng.uniform(0.5, 2, (M, 1, 1, 1, 1))).astype(np.float32)


@pytest.mark.parametrize("equalized", [False, True])
@pytest.mark.parametrize(
    ("axes", "clip", "shape", "wrap"),
    [
        ("time", (1, 3, 12, 9, 11), (3, 17, 9, 11), NO_WRAP),
        ("time", (3, 3, 20, 6, 5), (3, 8, 6, 5), NO_WRAP),
        ("time", (1, 1, 7, 3, 4), (1, 5, 3, 4), (True, False, False)),  # fewer places than cells
        ("time", (1, 3, 9, 12, 10), (3, 13, 12, 10), (True, False, False)),
        ("time", (1, 2, 1, 6, 5), (2, 4, 6, 5), NO_WRAP),  # a single frame
        ("space-time", (1, 3, 12, 15, 18), (3, 16, 18, 25), NO_WRAP),
        ("space-time", (2, 3, 20, 24, 18), (3, 9, 8, 10), NO_WRAP),  # smaller than the clip
        ("space-time", (1, 1, 8, 9, 10), (1, 7, 22, 13), (True, True, True)),  # primes
        ("space-time", (1, 4, 5, 6, 7), (4, 11, 6, 7), (True, False, False)),
    ],
)
def test_it_is_the_processors(
    device: CudaDevice,
    started: list,
    axes: Axes,
    clip: tuple,
    shape: Shape,
    wrap: Wrap,
    equalized: bool,
) -> None:
    plain, fitted = Spot(a_clip(clip), axes), Spot.fitted(a_clip(clip), axes, levels=50.0)
    spot = fitted if equalized else plain
    numbers = [0, 1, 2**40]
    chains = DeviceChains(Spring(device), (3, *shape))
    started.append(chains)
    chains.start(seed=2**63 + 1, numbers=numbers, init_std=1.0, spot=spot, wrap=wrap)
    for row, number in zip(chains.read(), numbers, strict=True):
        expected = first_noise(spot, shape, seed=2**63 + 1, number=number, init_std=1.0, wrap=wrap)
        np.testing.assert_allclose(row, expected, atol=2e-5 * float(np.abs(expected).max()))
        assert float(row.std()) > 0.1


@pytest.mark.parametrize("cells", [1, 2, 7])
def test_cells_are_the_processors(device: CudaDevice, started: list, cells: int) -> None:
    spot, shape = Spot(a_clip((1, 3, 8, 9, 10)), "time", cells=cells), (3, 11, 9, 10)
    chains = DeviceChains(Spring(device), (1, *shape))
    started.append(chains)
    chains.start(seed=1, numbers=[2], init_std=1.0, spot=spot)
    expected = first_noise(spot, shape, seed=1, number=2, init_std=1.0)
    np.testing.assert_allclose(chains.read()[0], expected, atol=1e-4)


def test_a_video_of_more_lines_than_a_grid_has_rows(device: CudaDevice, started: list) -> None:
    taps = Equalizer(np.array([0.25, 0.5, 0.25], np.float32), np.ones((1, 1), np.float32))
    spot, shape = Spot(a_clip((1, 3, 5, 2, 2)), "time", taps), (3, 22_000, 2, 2)
    chains = DeviceChains(Spring(device), (1, *shape))
    started.append(chains)
    chains.start(seed=1, numbers=[0], init_std=1.0, spot=spot)
    expected = first_noise(spot, shape, seed=1, number=0, init_std=1.0)
    np.testing.assert_allclose(chains.read()[0], expected, atol=1e-4)


@pytest.mark.parametrize("axes", ["time", "space-time"])
def test_a_further_video_uploads_nothing_of_the_clip(
    device: CudaDevice, started: list, axes: Axes
) -> None:
    spot = Spot(a_clip((1, 3, 8, 9, 10)), axes)
    chains = DeviceChains(Spring(device), (2, 3, 8, 9, 10))
    started.append(chains)
    for seed in (1, 2):
        calls()
        chains.start(seed=seed, numbers=[0, 1], init_std=1.0, spot=spot)
    made = calls()
    assert [name for name in made if not name.startswith("stg_")] == ["upload", "upload"]  # keys
    assert "stg_draw" in made and "stg_start" not in made
    # The walk goes on as ever: one graph launch a step.
    for step in (1, 2, 3):
        chains.step(step, step_size=0.1, noise_scale=1.0)
    assert calls()[-2:] == ["replay", "replay"]


def test_another_wrap_or_clip_is_heeded(device: CudaDevice, started: list) -> None:
    shape = (2, 6, 9, 10)
    chains = DeviceChains(Spring(device), (1, *shape))
    started.append(chains)
    for seed in (0, 1):
        spot = Spot(a_clip((1, 2, 8, 9, 10), seed), "space-time")
        for wrap in (NO_WRAP, (True, False, False)):
            chains.start(seed=3, numbers=[7], init_std=1.0, spot=spot, wrap=wrap)
            expected = first_noise(spot, shape, seed=3, number=7, init_std=1.0, wrap=wrap)
            np.testing.assert_allclose(chains.read()[0], expected, atol=1e-4)
    chains.start(seed=3, numbers=[7], init_std=0.5)  # white again
    white = first_noise(None, shape, seed=3, number=7, init_std=0.5)
    np.testing.assert_allclose(chains.read()[0], white, atol=1e-5)


def test_of_many_clips_the_oldest_leave(
    device: CudaDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    spot = Spot(a_clip((4, 2, 8, 6, 5)), "time")
    shape = (2, 6, 6, 5)
    monkeypatch.setattr(module, "KEPT_BYTES", 9000)  # two clips
    free, _ = device.memory()
    made = DeviceSpot(device, spot, shape, NO_WRAP)
    x = device.allocate(4 * int(np.prod(shape)))
    for number in range(12):
        made.fill(x, 5, [number])
        out = np.empty(shape, np.float32)
        device.download(x, out)
        expected = first_noise(spot, shape, seed=5, number=number, init_std=1.0)
        np.testing.assert_allclose(out, expected, atol=1e-4)
        assert len(made._clips) <= 2
    made.close()
    device.free(x)
    assert device.memory()[0] == free


@pytest.mark.parametrize("axes", ["time", "space-time"])
def test_memory_is_known_before_and_given_back(
    device: CudaDevice, axes: Axes, monkeypatch: pytest.MonkeyPatch
) -> None:
    spot = Spot.fitted(a_clip((1, 3, 8, 30, 32)), axes, levels=50.0)
    shape = (3, 8, 30, 32)
    free, _ = device.memory()
    chains = DeviceChains(Spring(device), (1, *shape))
    before, _ = device.memory()
    chains.start(seed=1, numbers=[0], init_std=1.0, spot=spot)
    taken = before - device.memory()[0]
    assert 0.7 * taken <= device_bytes(spot, shape, NO_WRAP) <= 1.3 * taken
    chains.close()
    assert device.memory()[0] == free
    chains = DeviceChains(Spring(device), (1, *shape))
    monkeypatch.setenv("FAKE_CUDA_MEMORY", str(free - device.memory()[0] + 100_000))
    with pytest.raises(StgError, match="are free: not even one fits"):
        chains.start(seed=1, numbers=[0], init_std=1.0, spot=spot)
    chains.close()


@pytest.mark.parametrize("n", [1, 2, 7, 30, 72, 121, 225, 262])
def test_the_transform_is_numpys(device: CudaDevice, n: int) -> None:
    assert int(np.prod(factors(n))) == n
    rng = np.random.default_rng(n)
    line = (rng.standard_normal((2, n, 3)) + 1j * rng.standard_normal((2, n, 3))).astype("c8")
    a, b, roots = (device.allocate(size) for size in (line.nbytes, line.nbytes, 8 * n))
    device.upload(roots, _roots(n))
    for sign, reference in ((1, np.fft.fft), (-1, lambda x, axis: np.fft.ifft(x, axis=axis) * n)):
        device.upload(a, line)
        source, to, done = a, b, 1
        for radix in factors(n):
            count = line.size // radix
            step = module._Pass(source, to, roots, n, radix, done, 3, count, sign)
            device.launch("stg_fourier", (-(-count // 256), 1), step)
            source, to, done = to, source, done * radix
        out = np.empty_like(line)
        device.download(source, out)
        expected = reference(line.astype(complex), axis=1)
        np.testing.assert_allclose(out, expected, atol=3e-6 * np.sqrt(n) * np.abs(expected).max())
    for address in (a, b, roots):
        device.free(address)


def test_the_noise_is_the_counted_stream_from_any_value_on(device: CudaDevice) -> None:
    from stg_runtime.langevin import standard_normal

    for skip, size in ((0, 9), (1, 40), (5, 3), (8, 16)):
        for stride in (1, 2):
            out = np.full((size, stride), np.nan, np.float32)
            to = device.allocate(out.nbytes)
            keys = (ctypes.c_uint64(11), ctypes.c_uint64(4))
            sizes = (ctypes.c_uint32(skip), ctypes.c_uint64(size), ctypes.c_uint32(stride))
            device.launch("stg_draw", (1, 1), pointer(to), *keys, *sizes)
            device.download(to, out)
            device.free(to)
            expected = standard_normal(skip + size, seed=11, chain=4, step=0)[skip:]
            np.testing.assert_allclose(out[:, 0], expected, rtol=1e-6, atol=1e-6)
            assert (out[:, 1:] == 0).all()
