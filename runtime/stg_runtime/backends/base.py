"""What every backend offers."""

from __future__ import annotations

from typing import Protocol

from stg_runtime.artifact import Metadata
from stg_runtime.langevin import Float32


class Backend(Protocol):
    """An energy gradient on buffers that stay where they are.

    Attributes:
        metadata: of the model it runs.
        description: the device, for people.
    """

    metadata: Metadata
    description: str

    def bind(self, x: Float32, energy_grad: Float32) -> None:
        """Fix the buffers: each `run` reads `x` and overwrites `energy_grad` (both N,C,T,H,W)."""

    def run(self) -> Float32:
        """Compute dE/dx at `x` into the bound `energy_grad`.

        Returns:
            E(x), shape (N,), before the step.
        """
