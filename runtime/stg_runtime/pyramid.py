"""Chains of a multi-grid model: the finest scale's, with those of the coarser ones beside them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from stg_runtime.artifact import Metadata
from stg_runtime.backends.base import Chains
from stg_runtime.backends.host import HostChains
from stg_runtime.langevin import Float32
from stg_runtime.spot import NO_WRAP, Spot, Wrap


class Pyramid:
    """The `Chains` of the finest scale of a model, which start where the coarser ones lead.

    Args:
        chains: of this scale.
        coarser: of the next coarser scale, themselves a `Pyramid` where there are more.
        coarser_metadata: of that scale.
    """

    def __init__(self, chains: Chains, coarser: Chains, coarser_metadata: Metadata) -> None:
        self.shape = chains.shape
        self.coarser, self.coarser_metadata = coarser, coarser_metadata
        self._chains = chains

    def start(
        self,
        *,
        seed: int,
        numbers: Sequence[int],
        init_std: float,
        spot: Spot | None = None,
        wrap: Wrap = NO_WRAP,
    ) -> None:
        """See `Chains.start`; of this scale alone."""
        self._chains.start(seed=seed, numbers=numbers, init_std=init_std, spot=spot, wrap=wrap)

    @property
    def silent(self) -> Sequence[int]:
        """See `Chains.silent`; of this scale alone."""
        return self._chains.silent

    def write(self, x: Float32) -> None:
        """See `Chains.write`."""
        self._chains.write(x)

    def clamp(self, values: Float32, known: NDArray[np.bool_]) -> None:
        """See `Chains.clamp`."""
        self._chains.clamp(values, known)

    def step(self, number: int, *, step_size: float, noise_scale: float) -> Float32 | None:
        """See `Chains.step`."""
        return self._chains.step(number, step_size=step_size, noise_scale=noise_scale)

    def release(self) -> None:
        """See `HostChains.release`; of this scale alone."""
        assert isinstance(self._chains, HostChains), "models of several scales walk on the host"
        self._chains.release()

    def energies(self) -> Float32:
        """See `Chains.energies`."""
        return self._chains.energies()

    def read(self) -> Float32:
        """See `Chains.read`."""
        return self._chains.read()
