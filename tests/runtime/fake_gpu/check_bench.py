"""bench/gpu.py's checks pass on a right device and fail on a wrong one."""

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stg_runtime.backends.cuda.device import CudaDevice, open_device
from stg_runtime.bench import copy_rate_device

PATH = Path(__file__).parents[3] / "bench" / "gpu.py"


@pytest.fixture
def gpu() -> Any:
    spec = importlib.util.spec_from_file_location("bench_gpu", PATH)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    import sys

    sys.modules["bench_gpu"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_a_right_kernel_passes(gpu: Any) -> None:
    found = gpu.check_kernel(open_device(0))
    assert len(found) == 2


LEFT_OUT = (
    "stg_step",
    "stg_draw",
    "stg_colour",
    "stg_filter_time",
    "stg_filter_space",
    "stg_fourier",
    "stg_take",
)


class Wrong(CudaDevice):
    """Spoils what one kernel wrote."""

    kernel = ""

    def launch(self, name: str, grid: tuple, *arguments: Any) -> None:
        if name == self.kernel and name in LEFT_OUT:
            return
        super().launch(name, grid, *arguments)
        if name == self.kernel:
            place = arguments[-1 if name == "stg_words" else 0].value
            self.upload(place, np.array([5], np.uint64))


@pytest.mark.parametrize("kernel", ["stg_words", "stg_start", "stg_step"])
def test_a_wrong_kernel_fails(gpu: Any, kernel: str) -> None:
    device = Wrong.open(0)
    device.kernel = kernel
    with pytest.raises(AssertionError):
        gpu.check_kernel(device)


def test_right_spot_noise_passes(gpu: Any) -> None:
    (found,) = gpu.check_spot(open_device(0), gpu.SPOT_CASES[:4])
    assert "of 4 kinds" in found


@pytest.mark.parametrize("kernel", LEFT_OUT[1:])
def test_wrong_spot_noise_fails(gpu: Any, kernel: str) -> None:
    device = Wrong.open(0)
    device.kernel = kernel
    case = 0 if kernel in ("stg_colour", "stg_filter_time", "stg_filter_space") else 2
    with pytest.raises(AssertionError, match="spot noise along"):
        gpu.check_spot(device, gpu.SPOT_CASES[case : case + 1])


def test_first_noise_is_timed(gpu: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(gpu.FIRST, "st", ("space-time", (3, 8, 9, 10)))
    found = gpu.first(open_device(0), "st")
    assert min(found.values()) > 0
    assert found["device_ms"] == pytest.approx(1 / 5)  # the stand-in's clock says 1 ms always


def test_the_update_is_timed_alone(gpu: Any) -> None:
    found = gpu.kernel_speed(open_device(0), (2, 3, 4, 8, 8))
    assert found["noise_ms"] > 0
    assert found["ratio"] == found["noise_ms"] / found["floor_ms"]


def test_copies_are_counted_twice() -> None:
    # The stand-in's clock says 1 ms for any ten copies.
    assert copy_rate_device(open_device(0), 1 << 20) == pytest.approx(2 * (1 << 20) * 10 / 1e-3)
