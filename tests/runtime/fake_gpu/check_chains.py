"""DeviceChains: the walk of the CPU, one graph launch per step, nothing read in between."""

import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).parent))

from springs import Spring, calls

from stg_runtime.backends.cuda import chains as module
from stg_runtime.backends.cuda.chains import DeviceChains
from stg_runtime.backends.cuda.device import CudaDevice, open_device
from stg_runtime.backends.host import HostChains
from stg_runtime.errors import InputError, StgError

SHAPE = (2, 3, 4, 5, 7)  # 420 values a chain: whole groups of 4, not of 8


class HostSpring:
    metadata = SimpleNamespace(reference_std=2.0)
    description = "spring"
    threads = 1

    def bind(self, x: NDArray[np.float32], energy_grad: NDArray[np.float32]) -> None:
        self.x, self.grad = x, energy_grad

    def run(self) -> NDArray[np.float32]:
        np.copyto(self.grad, self.x)
        return (self.x**2).sum((1, 2, 3, 4)) / 2


@pytest.fixture
def device() -> CudaDevice:
    return open_device(0)


def pair(device: CudaDevice, shape: tuple = SHAPE) -> list:
    both = [HostChains(HostSpring(), shape), DeviceChains(Spring(device), shape)]
    for chains in both:
        chains.start(seed=2**63 + 5, numbers=list(range(3, 3 + shape[0])), init_std=0.5)
    return both


@pytest.mark.parametrize("shape", [SHAPE, (1, 1, 1, 1, 1), (3, 1, 3, 3, 3), (1, 3, 8, 16, 16)])
@pytest.mark.parametrize("clamp", [False, True])
@pytest.mark.parametrize("noise_scale", [0.0, 0.7])
def test_it_is_the_walk_of_the_cpu(
    device: CudaDevice, shape: tuple, clamp: bool, noise_scale: float
) -> None:
    rng = np.random.default_rng(0)
    host, gpu = pair(device, shape)
    if clamp:
        values = rng.standard_normal(shape, dtype=np.float32)
        known = rng.random(shape) < 0.4
        for chains in (host, gpu):
            chains.clamp(values, known)
        assert np.array_equal(gpu.read()[known], values[known])
    for step in range(1, 7):
        for chains in (host, gpu):
            chains.step(step, step_size=0.3, noise_scale=noise_scale)
    np.testing.assert_allclose(gpu.read(), host.read(), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(gpu.energies(), host.energies(), rtol=1e-4)
    if clamp:
        assert np.array_equal(gpu.read()[known], values[known])


def test_a_walk_is_one_graph_launch_per_step_and_nothing_comes_back(device: CudaDevice) -> None:
    chains = DeviceChains(Spring(device), SHAPE)
    calls()
    chains.start(seed=1, numbers=[0, 1], init_std=1.0)
    assert calls() == ["upload", "upload", "stg_start"]
    for step in range(1, 21):
        assert chains.step(step, step_size=0.1, noise_scale=1.0) is None
    recorded = ["begin capture", "record gradient", "record stg_step", "end capture"]
    assert calls() == ["upload", "gradient", "stg_step", *recorded, *["replay"] * 19]
    assert chains.energies().shape == (20, 2)
    assert calls() == ["download", "wait"]
    # Another seed, other chains: the same graph.
    chains.start(seed=2, numbers=[8, 9], init_std=1.0)
    for step in (1, 2):
        chains.step(step, step_size=0.1, noise_scale=1.0)
    assert calls() == ["upload", "upload", "stg_start", "upload", "replay", "replay"]


def test_a_step_size_that_changes_is_heeded(device: CudaDevice) -> None:
    host, gpu = pair(device)
    schedule = [(1, 0.3, 1.0), (2, 0.2, 1.0), (3, 0.2, 0.0), (9, 0.2, 1.0), (10, 0.2, 1.0)]
    for number, size, scale in schedule:
        for chains in (host, gpu):
            chains.step(number, step_size=size, noise_scale=scale)
    np.testing.assert_allclose(gpu.read(), host.read(), rtol=1e-5, atol=1e-6)


def test_written_values_and_a_clamp_in_mid_walk(device: CudaDevice) -> None:
    host, gpu = pair(device)
    values = np.full(SHAPE, 0.25, np.float32)
    known = np.zeros(SHAPE, bool)
    known[:, :, 1] = True
    for step in range(1, 9):
        for chains in (host, gpu):
            if step == 3:
                chains.write(2 * values)
            if step == 5:
                chains.clamp(values, known)
            chains.step(step, step_size=0.3, noise_scale=1.0)
    np.testing.assert_allclose(gpu.read(), host.read(), rtol=1e-5, atol=1e-6)
    gpu.start(seed=5, numbers=[7, 2], init_std=0.5)  # nothing is clamped any more
    gpu.step(1, step_size=0.3, noise_scale=1.0)
    assert (gpu.read()[known] != 0.25).all()


def test_a_walk_longer_than_the_device_keeps(
    device: CudaDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "ROWS", 4)
    host, gpu = pair(device)
    for step in range(1, 12):
        for chains in (host, gpu):
            chains.step(step, step_size=0.3, noise_scale=1.0)
    np.testing.assert_allclose(gpu.energies(), host.energies(), rtol=1e-4)
    assert gpu.energies().shape == (11, 2)


def test_what_cannot_be_captured_is_launched_and_said(device: CudaDevice) -> None:
    class Waits(Spring):
        def run(self) -> None:
            super().run()
            self.device.wait()  # not allowed in a capture

    host, _ = pair(device)
    gpu = DeviceChains(Waits(device), SHAPE)
    gpu.start(seed=2**63 + 5, numbers=[3, 4], init_std=0.5)
    for step in (1, 2, 3):
        for chains in (host, gpu):
            chains.step(step, step_size=0.3, noise_scale=1.0)
    assert "cuStreamSynchronize failed" in gpu.graph_note
    np.testing.assert_allclose(gpu.read(), host.read(), rtol=1e-5, atol=1e-6)


def test_memory_is_given_back(device: CudaDevice) -> None:
    free, _ = device.memory()
    chains = DeviceChains(Spring(device), SHAPE)
    chains.start(seed=1, numbers=[0, 1], init_std=1.0)
    chains.clamp(np.zeros(SHAPE, np.float32), np.ones(SHAPE, bool))
    for step in (1, 2, 3):
        chains.step(step, step_size=0.1, noise_scale=1.0)
    assert device.memory()[0] < free
    chains.close()
    assert device.memory()[0] == free


def test_too_little_memory_says_how_much_and_what_fits(
    device: CudaDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_CUDA_MEMORY", str(64 << 20))
    with pytest.raises(StgError, match=r"need 0\.\d GiB and 0\.1 GiB are free: 5 would fit"):
        DeviceChains(Spring(device), (8, 3, 64, 64, 128))
    with pytest.raises(StgError, match="not even one fits; make the video smaller"):
        DeviceChains(Spring(device), (1, 3, 256, 128, 128))


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("FAKE_CUDA_VERSION", "12040", r"too old: it runs CUDA 12\.4.* update the driver to 580"),
        ("FAKE_CUDA_INIT", "100", "no CUDA-capable device is detected"),
        ("FAKE_CUDA_DEVICES", "0", "there are 0 GPUs"),
        ("FAKE_CUDA_MAJOR", "7", r"compute capability 7\.0 is below 7\.5"),
    ],
)
def test_a_driver_that_will_not_do(
    variable: str, value: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(InputError, match=message):
        open_device(0)


def test_a_gpu_that_is_not_there() -> None:
    with pytest.raises(InputError, match="no GPU 3: there is one GPU here, counted from 0"):
        open_device(3)
