"""Convolutional networks of random weights, as gradients that work on NumPy arrays."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from stg_train.descriptor import ConvSpec, Descriptor, Energy, init_he, min_size, top_units

Array = NDArray[np.float32]
SMALL = (  # the layers of st, small
    ConvSpec(4, (4, 4, 4), (2, 2, 2), (1, 1, 1)),
    ConvSpec(5, (4, 4, 4), (2, 2, 2), (1, 1, 1)),
    ConvSpec(3, (3, 5, 5), (1, 1, 1), (1, 2, 2)),
)
PAPER = (  # the strides and kernels of the paper's
    ConvSpec(2, (15, 15, 15), (7, 7, 7), (4, 4, 4)),
    ConvSpec(2, (7, 7, 7), (3, 3, 3), (3, 3, 3)),
    ConvSpec(2, (2, 3, 3), (1, 2, 2), (0, 1, 1)),
)


class Network:
    """A `HostGradient` of random weights, in float64, so that pieces differ by rounding alone."""

    description = "torch"
    threads = 1
    coarser = None
    weighs_units = True

    def __init__(self, layers: tuple[ConvSpec, ...], free: str = "NTHW", channels: int = 1) -> None:
        descriptor = Descriptor(layers, channels, (64, 64, 64))
        init_he(descriptor, torch.Generator().manual_seed(0))
        for conv in descriptor.convs:
            torch.nn.init.uniform_(conv.bias, 0.0, 0.5, generator=torch.Generator().manual_seed(1))
        self.energy = Energy(descriptor.double(), 1.0).requires_grad_(False)
        units = top_units(layers, (64, 64, 64))
        least = min_size(layers, (1, 1, 1))
        self.metadata: Any = SimpleNamespace(
            free_axes=tuple(free),
            stride=units.stride,
            receptive_field=units.receptive_field,
            padding=units.padding,
            min_size=SimpleNamespace(frames=least[0], height=least[1], width=least[2]),
            recipe="test",
            reference_std=1.0,
            precision="fp32",
            spot_noise=None,
            scales=1,
        )
        self.sizes: list[int] = []

    def bind(self, x: Array, energy_grad: Array, unit_weights: Array | None = None) -> None:
        self.x, self.grad, self.weights = x, energy_grad, unit_weights

    def run(self, *, release: bool = False) -> Array:
        x = torch.from_numpy(self.x).double().requires_grad_(True)
        responses = x
        for conv in self.energy.descriptor.convs:  # type: ignore[union-attr]
            responses = conv(responses).relu()
        if self.weights is not None:
            # They would be broadcast, too, if windows counted the units wrongly.
            assert self.weights.shape[2:] == responses.shape[2:]
            responses = responses * torch.from_numpy(self.weights)
        energy = (x * x).flatten(1).sum(1) / 2 - responses.flatten(1).sum(1)
        (grad,) = torch.autograd.grad(energy.sum(), x)
        self.grad[...] = grad.numpy()
        self.sizes.append(self.x.size)
        return energy.detach().numpy().astype(np.float32)
