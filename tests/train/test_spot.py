"""Spot noise in PyTorch is NumPy's, and a GPU would not be waited for while it is made."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from support import tiny_recipe
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from stg_runtime.spot import Axes, Shape, Spot
from stg_train.chains import walk
from stg_train.learn import Learner
from stg_train.observed import read_observed
from stg_train.run import resolve
from stg_train.spot import TorchSpot


def clips(shape: tuple[int, ...]) -> NDArray[np.float32]:
    rng = np.random.default_rng(3)
    t, y, x = np.mgrid[: shape[2], : shape[3], : shape[4]]
    waves = np.exp(np.cos(t * 0.7 + y * 0.4 - x * 0.9)) * rng.uniform(0.5, 2, (*shape[:2], 1, 1, 1))
    return (waves + 0.1 * rng.standard_normal(shape)).astype(np.float32)


CASES = [
    ("time", (1, 3, 12, 9, 11), (3, 17, 9, 11)),
    ("time", (4, 3, 20, 6, 5), (3, 8, 6, 5)),
    ("time", (1, 2, 1, 6, 5), (2, 4, 6, 5)),  # a single frame
    ("space-time", (1, 3, 12, 15, 18), (3, 16, 15, 18)),
    ("space-time", (3, 1, 20, 24, 18), (1, 9, 10, 10)),  # smaller than the clip
]


@pytest.mark.parametrize("equalized", [False, True])
@pytest.mark.parametrize(("axes", "clip", "shape"), CASES)
def test_it_is_numpys(axes: Axes, clip: tuple, shape: Shape, equalized: bool) -> None:
    spot = Spot.fitted(clips(clip), axes, 50.0) if equalized else Spot(clips(clip), axes)
    ours = TorchSpot(spot, torch.device("cpu"))
    for seed in range(4):
        noise = np.random.default_rng(seed).standard_normal(spot.noise_size(shape))
        noise = noise.astype(np.float32)
        expected = spot.make(noise, shape)
        found = ours.make(torch.from_numpy(noise), shape).numpy()
        np.testing.assert_allclose(found, expected, atol=3e-5 * float(np.abs(expected).max()))


def test_cells_are_numpys() -> None:
    shape = (3, 17, 9, 11)
    noise = np.random.default_rng(1).standard_normal(10_000).astype(np.float32)
    for cells in (1, 2, 7):
        spot = Spot(clips((1, 3, 12, 9, 11)), "time", cells=cells)
        drawn = noise[: spot.noise_size(shape)]
        found = TorchSpot(spot, torch.device("cpu")).make(torch.from_numpy(drawn), shape)
        np.testing.assert_allclose(found.numpy(), spot.make(drawn, shape), atol=1e-4)


class _Operators(TorchDispatchMode):
    KINDS = ("_local_scalar_dense", "nonzero", "masked_select", "is_nonzero")

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        name = func.overloadpacket.__name__
        # Where a boolean index is True decides how large the result is.
        boolean = name in ("index", "index_put", "index_put_") and any(
            index is not None and index.dtype == torch.bool for index in args[1]
        )
        if boolean or name in self.KINDS:
            raise AssertionError(f"{func} waits for the device")
        return func(*args, **(kwargs or {}))


class _Methods(TorchFunctionMode):
    KINDS = ("cpu", "numpy", "tolist", "item", "__bool__", "__float__", "__int__", "__array__")

    def __torch_function__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        if func.__name__ in self.KINDS:
            raise AssertionError(f"Tensor.{func.__name__} waits for the device")
        return func(*args, **(kwargs or {}))


@contextmanager
def nothing_waits() -> Iterator[None]:
    """Fails at what would copy a value of a GPU to the host, or need one to know a shape."""
    with _Methods(), _Operators():
        yield


@pytest.mark.parametrize(("axes", "clip", "shape"), CASES)
def test_nothing_is_copied_to_the_host(axes: Axes, clip: tuple, shape: Shape) -> None:
    spot = Spot(clips(clip), axes)
    ours = TorchSpot(spot, torch.device("cpu"))
    noise = torch.randn(spot.noise_size(shape))
    with nothing_waits():
        ours.make(noise, shape)
        with pytest.raises(AssertionError, match="waits"):
            noise[noise.argmax()]  # what it must not do: an index of no dimension is a number
        with pytest.raises(AssertionError, match="waits"):
            noise[noise > 0]
        with pytest.raises(AssertionError, match="waits"):
            noise.cpu()


@pytest.mark.parametrize("first", ["white", "time", "space-time"])
@pytest.mark.parametrize("regime", ["short-run", "rejuvenated", "persistent"])
def test_restarts_and_walks_wait_for_nothing(clip: Path, first: str, regime: str) -> None:
    changes = {"langevin.first_noise": first, "learning.regime": regime, "langevin.chains": 3}
    changes["pixels.mean"] = "image" if first == "time" else "channel"
    recipe = resolve(tiny_recipe(clip, **changes))
    learner = Learner(recipe, read_observed(recipe.data, recipe.pixels))
    learner.energy.requires_grad_(False)
    with nothing_waits():
        for update in range(1, 4):  # some chains of these stay, some begin anew
            learner.noise.begin(update)
            learner._restart()
            learner.chains, _ = walk(
                learner.energy,
                learner.chains,
                n_steps=2,
                step_size=recipe.langevin.step_size,
                noise_scale=1.0,
                draw=learner._draw,
                precision=recipe.precision,
            )
