"""The denoiser, a network whose energy is how far a video is from what the network makes of it.

E(x) = |x - N(x)|^2 / (2 sigma^2), N a residual ConvNet without biases. With g(x) = <x, N(x)> -
|N(x)|^2 / 2 that is the `Energy` of every other network here, (|x|^2 / 2 - g(x)) / sigma^2. Learned
by denoising score matching, x - sigma^2 dE/dx is the mean of the clean videos that noise may have
made x of: the gradient is that of the log density of noised clips, and learning it walks no chains.

Source: Vincent, "A Connection Between Score Matching and Denoising Autoencoders", Neural
Computation 2011. The form of the energy is from Salimans, Ho, "Should EBMs model the energy or the
score?", 2021, and Hurault, Leclaire, Papadakis, "Gradient Step Denoiser", ICLR 2022. That a network
without biases serves many noise levels is from Mohan, Kadkhodaie, Simoncelli, Fernandez-Granda,
ICLR 2020.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stg_train.chains import autocast
from stg_train.descriptor import ConvSpec, Network, fan_in

# Standard deviation over time below which a place counts as standing still, model units.
_STILL = 0.1
# Of the output layer's first weights: nearly N = 0, the energy of the reference alone.
_OUTPUT_GAIN = 0.3


class Denoiser(Network):
    """g(x) = <x, N(x)> - |N(x)|^2 / 2, shape (N,); a `Descriptor`'s place in an `Energy`.

    Args:
        layers: the convolutions, the last of them back to the video's channels; all of stride 1,
            padded to keep the size. Those between the first and the last are residual.
        channels: C of the video.
        places: (H, W) of a map that says in which share each place takes part, or None. Where it is
            0 the energy is that of the reference, and what stands still is its mean.
    """

    weighs_units = True

    def __init__(
        self, layers: Sequence[ConvSpec], channels: int, places: tuple[int, int] | None
    ) -> None:
        super().__init__()
        self.convs = nn.ModuleList()
        for spec in layers:
            t, h, w = (int(k) for k in spec.kernel)
            conv = nn.Conv3d(channels, spec.filters, (t, h, w), padding=spec.padding, bias=False)
            self.convs.append(conv)
            channels = spec.filters
        self.places = None if places is None else nn.Parameter(torch.ones(1, 1, 1, *places))
        self.depth = len(layers)
        self.free_axes = ("T", "H", "W") if places is None else ("T",)

    def see_places(self, variance: Tensor) -> None:
        """Set the map for clips with this variance over time, (H, W), model units."""
        assert self.places is not None
        with torch.no_grad():
            self.places.copy_((variance / (variance + _STILL**2)).sqrt())

    def forward(
        self, x: Tensor, at: tuple[int, int] = (0, 0), unit_weights: Tensor | None = None
    ) -> Tensor:
        """The sum g of each video.

        Args:
            x: videos, (N, C, T, H, W), model units.
            at: top and left of `x` in the frame that the map of places has, pixels.
            unit_weights: of each voxel's part in g, broadcast to (1, 1, T, H, W); 1 if not given.

        Returns:
            g(x), shape (N,).
        """
        first, *inner, last = self.convs
        y = x
        if self.places is not None:
            (top, left), (height, width) = at, x.shape[3:]
            y = x * self.places[..., top : top + height, left : left + width]
        y = F.relu(first(y))
        for conv in inner:
            y = y + F.relu(conv(y))
        clean = last(y).to(x.dtype)
        voxels = (x * clean - 0.5 * clean * clean).sum(1, keepdim=True)
        if unit_weights is not None:
            voxels = voxels * unit_weights
        total: Tensor = voxels.flatten(1).sum(1)
        return total


def init_denoiser(denoiser: Denoiser, generator: torch.Generator) -> None:
    """Normal weights, sqrt(2 / fan_in) (He et al. 2015), but of a small last layer; no biases."""
    for conv in denoiser.convs:
        assert isinstance(conv, nn.Conv3d)
        gain = _OUTPUT_GAIN if conv is denoiser.convs[-1] else math.sqrt(2)
        with torch.no_grad():
            conv.weight.normal_(0, gain / math.sqrt(fan_in(conv)), generator=generator)


def denoised(
    denoiser: Denoiser, noised: Tensor, at: tuple[int, int], precision: str
) -> tuple[Tensor, Tensor]:
    """The clean videos that noised ones are taken for, attached to the graph of the parameters.

    Args:
        denoiser: the network.
        noised: videos, (N, C, T, H, W), model units; a leaf.
        at: see `Denoiser.forward`.
        precision: see `autocast`.

    Returns:
        x - sigma^2 dE/dx, shape of `noised`; g, (N,).
    """
    noised.requires_grad_()
    with autocast(precision, noised.device):
        total = denoiser(noised, at)
    (clean,) = torch.autograd.grad(total.sum(), noised, create_graph=True)
    return clean, total
