"""Langevin chains in PyTorch: the gradient of an energy, and the walk on it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

from stg_runtime.langevin import langevin_step

Draw = Callable[[int, Tensor], Tensor]
"""Called with the step (1, 2, ...) and the chains; returns standard normal noise like them."""


class ChainNoise:
    """Standard normal draws for some chains of a run, keyed by (seed, chain, update).

    Which process walks a chain, or whether the run was stopped in between, changes nothing.

    Args:
        seed: of the run.
        chains: numbers of the chains, counted over all processes.
        device: that the chains live on; a GPU draws other values than the CPU.
    """

    def __init__(self, seed: int, chains: Sequence[int], device: torch.device) -> None:
        self._seed, self._chains, self._device = seed, chains, device
        self._generators = [torch.Generator(device) for _ in chains]

    @property
    def count(self) -> int:
        """How many chains it draws for."""
        return len(self._chains)

    def begin(self, update: int) -> None:
        """Draw from now on what belongs to an update; 0 is what comes before the first."""
        for chain, generator in zip(self._chains, self._generators, strict=True):
            key = f"{self._seed} {chain} {update}".encode()
            digest = hashlib.blake2b(key, digest_size=8).digest()
            generator.manual_seed(int.from_bytes(digest, "little") >> 1)

    def chances(self) -> list[float]:
        """A number in [0, 1) for each chain, of this update; the noise is not touched."""
        return [generator.initial_seed() / 2**63 for generator in self._generators]

    def like(self, x: Tensor) -> Tensor:
        """Noise for chains of shape (N, C, T, H, W), N the number of this object's chains."""
        return self._fill(torch.empty_like(x))

    def each(self, size: int) -> Iterator[Tensor]:
        """Noise of `size` values for one chain after the other, (size,)."""
        for generator in self._generators:
            yield torch.empty(size, device=self._device).normal_(0, 1, generator=generator)

    def _fill(self, noise: Tensor) -> Tensor:
        for row, generator in zip(noise, self._generators, strict=True):
            row.normal_(0, 1, generator=generator)
        return noise


def autocast(precision: str, device: torch.device) -> AbstractContextManager[object]:
    """The context that convolutions run in: "bf16" (weights stay float32), "tf32" or "fp32"."""
    if precision == "bf16":
        return torch.autocast(device.type, torch.bfloat16)
    return nullcontext()


def energy_and_grad(energy: nn.Module, x: Tensor, precision: str = "fp32") -> tuple[Tensor, Tensor]:
    """E(x), shape (N,), and dE/dx, shape of x; neither is attached to a graph."""
    leaf = x.detach().requires_grad_()
    with torch.enable_grad(), autocast(precision, x.device):
        value = energy(leaf)
    (grad,) = torch.autograd.grad(value.sum(), leaf)
    # A clone: a CUDA graph would write the next call's energies into the same place.
    return value.detach().clone(), grad


def walk(
    energy: nn.Module,
    x: Tensor,
    *,
    n_steps: int,
    step_size: float,
    noise_scale: float | Callable[[int], float],
    draw: Draw,
    precision: str = "fp32",
) -> tuple[Tensor, Tensor]:
    """Move chains by `n_steps` Langevin steps.

    Args:
        energy: maps (N, C, T, H, W) to (N,).
        x: chains, (N, C, T, H, W), model units.
        n_steps: K.
        step_size: delta, model units.
        noise_scale: s, or that of each step (1, 2, ...); where it is 0 `draw` is not called.
        draw: gives each step its noise.
        precision: of the convolutions.

    Returns:
        The moved chains, and the energies before each step, (K, N), both on the device of `x`;
        nothing is copied to the host on the way.
    """
    energies = []
    silent = torch.zeros((), device=x.device)
    for step in range(1, n_steps + 1):
        value, grad = energy_and_grad(energy, x, precision)
        energies.append(value)
        scale = noise_scale(step) if callable(noise_scale) else noise_scale
        noise = draw(step, x) if scale else silent
        x = langevin_step(x, grad, noise, step_size=step_size, noise_scale=scale)
    return x, torch.stack(energies)
