"""Chains in NumPy arrays, on a gradient that needs no model."""

from types import SimpleNamespace

import numpy as np
import pytest
from numpy.typing import NDArray

from stg_runtime.backends.host import HostChains
from stg_runtime.langevin import langevin_step, standard_normal

SHAPE = (2, 3, 4, 5, 6)


class Spring:
    """E = |x|^2 / 2."""

    metadata = SimpleNamespace(reference_std=2.0)
    description = "spring"
    threads = 2

    def bind(self, x: NDArray[np.float32], energy_grad: NDArray[np.float32]) -> None:
        self.x, self.grad = x, energy_grad

    def run(self, *, release: bool = False) -> NDArray[np.float32]:
        np.copyto(self.grad, self.x)
        return (self.x**2).sum((1, 2, 3, 4)) / 2


def noise(number: int, step: int) -> NDArray[np.float32]:
    size = int(np.prod(SHAPE[1:]))
    return standard_normal(size, seed=5, chain=number, step=step).reshape(SHAPE[1:])


@pytest.fixture
def chains() -> HostChains:
    chains = HostChains(Spring(), SHAPE)  # type: ignore[arg-type]
    chains.start(seed=5, numbers=[7, 2], init_std=0.5)
    return chains


def test_each_chain_walks_as_if_alone(chains: HostChains) -> None:
    for step in (1, 2, 3):
        chains.step(step, step_size=0.3, noise_scale=1.0)
    for number, walked in zip([7, 2], chains.read(), strict=True):
        x = 0.5 * noise(number, 0)
        for step in (1, 2, 3):
            x = langevin_step(x, x, noise(number, step), step_size=0.3)
        np.testing.assert_allclose(walked, x, rtol=1e-5, atol=1e-6)


def test_energies_are_those_before_each_step(chains: HostChains) -> None:
    expected = [(chains.read() ** 2).sum((1, 2, 3, 4)) / 2]
    chains.step(1, step_size=0.3, noise_scale=1.0)
    expected.append((chains.read() ** 2).sum((1, 2, 3, 4)) / 2)
    chains.step(2, step_size=0.3, noise_scale=1.0)
    np.testing.assert_allclose(chains.energies(), expected, rtol=1e-6)


def test_known_values_are_held_to_the_bit_and_the_rest_moves(chains: HostChains) -> None:
    rng = np.random.default_rng(0)
    values = rng.standard_normal(SHAPE, dtype=np.float32)
    known = rng.random(SHAPE) < 0.5
    free = chains.read().copy()
    chains.clamp(values, known)
    for step in (1, 2):
        chains.step(step, step_size=0.3, noise_scale=1.0)
        assert np.array_equal(chains.read()[known], values[known])
    assert (chains.read()[~known] != free[~known]).all()


def test_a_new_start_forgets_everything(chains: HostChains) -> None:
    chains.clamp(np.zeros(SHAPE, np.float32), np.ones(SHAPE, bool))
    chains.step(1, step_size=0.3, noise_scale=1.0)
    chains.start(seed=5, numbers=[7, 2], init_std=0.5)
    np.testing.assert_array_equal(chains.read(), 0.5 * np.stack([noise(7, 0), noise(2, 0)]))
    assert chains.energies().shape == (0, 2)


def test_written_values_are_walked_on(chains: HostChains) -> None:
    written = np.full(SHAPE, 0.25, np.float32)
    chains.write(written)
    chains.step(1, step_size=0.3, noise_scale=0.0)
    np.testing.assert_allclose(chains.read(), written * (1 - 0.3**2 / 2), rtol=1e-6)
