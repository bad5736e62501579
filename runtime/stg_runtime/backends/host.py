"""Chains in NumPy arrays, walked by the processor on any gradient that works there."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from stg_runtime.backends.base import HostGradient, Shape
from stg_runtime.health import is_silent
from stg_runtime.langevin import Float32, Walker
from stg_runtime.spot import NO_WRAP, Spot, Wrap, first_noise


class HostChains:
    """The `Chains` of a `HostGradient`; no array is allocated per step.

    Args:
        gradient: bound to these chains' arrays until another `HostChains` binds it.
        shape: (N, C, T, H, W).

    Attributes:
        silent: see `Chains.silent`.
    """

    def __init__(self, gradient: HostGradient, shape: Shape) -> None:
        self.shape = shape
        self._gradient = gradient
        self._x = np.empty(shape, np.float32)
        self._grad = np.empty(shape, np.float32)
        self._walker = Walker(threads=gradient.threads)
        self._numbers: list[int] = []
        self._energies: list[Float32] = []
        self._known: NDArray[np.bool_] | None = None
        self._values: Float32 | None = None
        self.silent: list[int] = []

    def start(
        self,
        *,
        seed: int,
        numbers: Sequence[int],
        init_std: float,
        spot: Spot | None = None,
        wrap: Wrap = NO_WRAP,
    ) -> None:
        """See `Chains.start`."""
        assert len(numbers) == self.shape[0]
        self._gradient.bind(self._x, self._grad)
        self._known = self._values = None
        self._energies = []
        self._numbers = list(numbers)
        self.silent = [0] * len(numbers)
        self._walker.seed = seed
        for number, x in zip(numbers, self._x, strict=True):
            if spot is not None:
                first_noise(
                    spot,
                    x.shape,
                    seed=seed,
                    number=number,
                    init_std=init_std,
                    wrap=wrap,
                    out=x,
                    room=self._grad,
                )
                continue
            self._walker.chain = number
            self._walker.start(x, init_std=init_std)

    def write(self, x: Float32) -> None:
        """See `Chains.write`."""
        np.copyto(self._x, x)
        self._hold()

    def clamp(self, values: Float32, known: NDArray[np.bool_]) -> None:
        """See `Chains.clamp`."""
        assert values.shape == known.shape == self.shape
        self._values, self._known = values, known
        self._hold()

    def step(self, number: int, *, step_size: float, noise_scale: float) -> Float32:
        """See `Chains.step`."""
        energy = self._gradient.run().copy()
        self._energies.append(energy)
        sigma = self._gradient.metadata.reference_std
        for index, (chain, x, grad) in enumerate(
            zip(self._numbers, self._x, self._grad, strict=True)
        ):
            if not is_silent(x, grad, sigma):
                self.silent[index] = 0
            elif not self.silent[index]:
                self.silent[index] = number
            self._walker.chain = chain
            self._walker.step(x, grad, number, step_size=step_size, noise_scale=noise_scale)
        self._hold()
        return energy

    def release(self) -> None:
        """Give back what the gradient works in, until the next step; it is computed once more."""
        self._gradient.run(release=True)

    def energies(self) -> Float32:
        """See `Chains.energies`."""
        return np.array(self._energies, np.float32).reshape(-1, self.shape[0])

    def read(self) -> Float32:
        """See `Chains.read`."""
        return self._x

    def _hold(self) -> None:
        if self._known is not None and self._values is not None:
            np.copyto(self._x, self._values, where=self._known)
