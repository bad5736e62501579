"""What every backend offers: chains that are walked on its device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from stg_runtime.artifact import Metadata
from stg_runtime.langevin import Float32
from stg_runtime.spot import NO_WRAP, Spot, Wrap

Shape = tuple[int, int, int, int, int]
"""(N, C, T, H, W)."""


class Chains(Protocol):
    """Videos that are walked together and stay where they are until they are read.

    Attributes:
        shape: (N, C, T, H, W).
    """

    shape: Shape

    @property
    def silent(self) -> Sequence[int]:
        """Of each chain, the step from which on its network has been silent, or 0.

        See `stg_runtime.health.is_silent`; a device that is not waited for says 0.
        """

    def start(
        self,
        *,
        seed: int,
        numbers: Sequence[int],
        init_std: float,
        spot: Spot | None = None,
        wrap: Wrap = NO_WRAP,
    ) -> None:
        """Begin with the first noise of each chain; nothing is clamped any more.

        Args:
            seed: of the noise, 0 <= seed < 2^64.
            numbers: one per chain; with the seed it fixes every value of the chain's noise.
            init_std: of white noise, N(0, init_std^2), model units.
            spot: makes the noise instead, see `stg_runtime.spot`.
            wrap: for T, H, W: does the axis go round? Heeded by spot noise.
        """

    def write(self, x: Float32) -> None:
        """Replace the chains' values: model units, of the chains' shape; the noise stays as set."""

    def clamp(self, values: Float32, known: NDArray[np.bool_]) -> None:
        """Hold known values: set now, and again after every step.

        Args:
            values: model units, of the chains' shape; read where `known`.
            known: True where the value is given, of the chains' shape.
        """

    def step(self, number: int, *, step_size: float, noise_scale: float) -> Float32 | None:
        """Make one Langevin step.

        Args:
            number: 1, 2, ...; with the seed it fixes the noise of the step.
            step_size: delta, model units.
            noise_scale: s; at 0 no noise is drawn.

        Returns:
            E before the step, (N,), where it costs nothing to say; None on a device that is not
            waited for.
        """

    def energies(self) -> Float32:
        """E before each step since the start, (steps, N); waits for the device."""

    def read(self) -> Float32:
        """The chains' values, of their shape, model units; valid until the next call of `step`."""


class Backend(Protocol):
    """A model on a device.

    Attributes:
        metadata: of the model.
        description: the device, for people.
        coarser: the next coarser scale of a multi-grid model, on the same device; else None.
    """

    metadata: Metadata
    description: str
    coarser: Backend | None

    def chains(self, shape: Shape) -> Chains:
        """Room for chains of this shape, to be used as often as wanted.

        Raises:
            StgError: the device has not enough memory.
        """


@runtime_checkable
class HostGradient(Protocol):
    """An energy gradient on NumPy arrays, evaluated in one run or piece by piece.

    Attributes:
        metadata: of the model.
        description: the device, for people.
        threads: that it uses, and that noise and update may use.
        weighs_units: `bind` takes weights of the top units; False of a file of an older export.
    """

    metadata: Metadata
    description: str
    threads: int
    weighs_units: bool

    def bind(self, x: Float32, energy_grad: Float32, unit_weights: Float32 | None = None) -> None:
        """Fix the buffers: each `run` reads `x` and overwrites `energy_grad` (both N,C,T,H,W).

        Args:
            x: model units.
            energy_grad: overwritten.
            unit_weights: of the top units' responses, (1, 1, T', H', W'); None is 1 for all.
        """

    def run(self, *, release: bool = False) -> Float32:
        """Compute dE/dx at `x` into the bound `energy_grad`.

        Args:
            release: give the memory that this took back afterwards, instead of keeping it for the
                next run.

        Returns:
            E(x), shape (N,), before the step.
        """
