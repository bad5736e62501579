"""The descriptor network, as data, and the energy it defines.

Source: Xie, Zhu, Wu, "Synthesizing Dynamic Patterns by Spatial-Temporal Generative ConvNet", CVPR
2017; the exponential tilting of a Gaussian reference is from Xie, Lu, Zhu, Wu, "A Theory of
Generative ConvNet", ICML 2016.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stg_runtime.errors import InputError

AXES = ("frames", "height", "width")
MOST_WEIGHTS = 1 << 30  # of a layer; the largest built-in one has 8e7


@dataclass(frozen=True)
class ConvSpec:
    """One 3-D convolution followed by a ReLU; triples are (T, H, W).

    Attributes:
        filters: output channels.
        kernel: kernel size; "full" on H or W covers the whole input there, so the layer is
            spatially fully connected and the network is locked to the size it was built for.
        stride: stride.
        padding: zeros added at both ends.
    """

    filters: int
    kernel: tuple[int | Literal["full"], int | Literal["full"], int | Literal["full"]]
    stride: tuple[int, int, int]
    padding: tuple[int, int, int]


class Network(nn.Module):
    """What an energy is made of: g(x), shape (N,), of videos x.

    Attributes:
        convs: the convolutions, bottom first.
        depth: how many of them are in use. Layer-wise growth learns with the first, then the first
            two, and so on; parameters above `depth` take no part.
        free_axes: those of "THW" that may have any size.
        weighs_units: `forward` takes `unit_weights`, (1, 1, T', H', W'), of the terms of g; else an
            exporter finds the sum of the top responses, see `stg_export.units`.
        may_collapse: its responses are positive and part when learning collapses, which the
            learner guards against.
    """

    convs: nn.ModuleList
    depth: int
    free_axes: tuple[str, ...]
    weighs_units = False
    may_collapse = True


class Descriptor(Network):
    """The 3-D ConvNet whose top ReLU responses are summed: g(x), shape (N,).

    Args:
        layers: the convolutions, bottom first.
        channels: C of the video.
        size: (T, H, W) that "full" kernels are resolved at.
    """

    def __init__(
        self, layers: Sequence[ConvSpec], channels: int, size: tuple[int, int, int]
    ) -> None:
        super().__init__()
        kernels = resolve_kernels(layers, size)
        self.convs = nn.ModuleList()
        _check_weights(layers, kernels, channels)
        for spec, kernel in zip(layers, kernels, strict=True):
            self.convs.append(nn.Conv3d(channels, spec.filters, kernel, spec.stride, spec.padding))
            channels = spec.filters
        self.depth = len(layers)
        # An axis is free when no "full" kernel covers it.
        self.free_axes = tuple(
            name
            for axis, name in enumerate("THW")
            if all(spec.kernel[axis] != "full" for spec in layers)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Sum of the top responses of each video.

        Args:
            x: videos, (N, C, T, H, W), model units.

        Returns:
            g(x), shape (N,).
        """
        for conv in self.convs[: self.depth]:
            x = F.relu(_convolve(conv, x))
        # Half-precision responses are summed in float32.
        total: Tensor = x.flatten(1).sum(1, dtype=torch.promote_types(x.dtype, torch.float32))
        return total


def _convolve(conv: nn.Module, x: Tensor) -> Tensor:
    """The layer, around a fault of PyTorch's bf16 convolution on the CPU.

    Where the input is shorter than the kernel and only padding makes it long enough, the weight
    gradient comes out random, sometimes infinite (torch 2.13, oneDNN). With the padding written
    out it is right.
    """
    assert isinstance(conv, nn.Conv3d)
    short = any(n < k for n, k in zip(x.shape[2:], conv.kernel_size, strict=True))
    if not (short and x.device.type == "cpu" and torch.is_autocast_enabled("cpu")):
        y: Tensor = conv(x)
        return y
    t, h, w = (int(p) for p in conv.padding)
    return F.conv3d(F.pad(x, (w, w, h, h, t, t)), conv.weight, conv.bias, conv.stride)


class Energy(nn.Module):
    """E(x) = (|x|^2 / 2 - g(x)) / sigma^2, sigma = `reference_std`.

    That is the paper's E = -f + |x|^2 / (2 sigma^2) with f = g / sigma^2: at sigma = 1, the paper's
    setting, f and g are the same; at another sigma the responses are measured in units of the
    reference, so that neither the learned weights nor the gradient's balance depend on sigma.
    """

    def __init__(self, descriptor: nn.Module, reference_std: float) -> None:
        super().__init__()
        self.descriptor = descriptor
        self.reference_std = reference_std

    def forward(self, x: Tensor, unit_weights: Tensor | None = None) -> Tensor:
        """Energy of each video.

        Args:
            x: videos, (N, C, T, H, W), model units.
            unit_weights: see `Network.weighs_units`; 1 if not given.

        Returns:
            E(x), shape (N,); lower is likelier.
        """
        quadratic = 0.5 * (x * x).flatten(1).sum(1)
        weights = {} if unit_weights is None else {"unit_weights": unit_weights}
        energy: Tensor = (quadratic - self.descriptor(x, **weights)) / self.reference_std**2
        return energy


def _check_weights(
    layers: Sequence[ConvSpec], kernels: Sequence[tuple[int, int, int]], channels: int
) -> None:
    """Refuse a network that no memory holds, before any of it is allocated.

    Raises:
        InputError: a layer has more than `MOST_WEIGHTS` weights.
    """
    for index, (spec, kernel) in enumerate(zip(layers, kernels, strict=True)):
        count = channels * spec.filters * math.prod(kernel)
        if count > MOST_WEIGHTS:
            raise InputError(
                f"layer {index + 1} of the network would have {count:.2g} weights "
                f"({spec.filters} filters of {channels}x{'x'.join(map(str, kernel))}); at most "
                f"{MOST_WEIGHTS:.2g}. Use fewer filters, a smaller kernel, or a smaller --size"
            )
        channels = spec.filters


def resolve_kernels(
    layers: Sequence[ConvSpec], size: tuple[int, int, int]
) -> list[tuple[int, int, int]]:
    """Replace "full" by the extent of the layer's input for a video of `size`.

    Raises:
        InputError: the size is too small for a layer.
    """
    extent = list(size)
    kernels = []
    for index, spec in enumerate(layers):
        kernel = [
            extent[axis] + 2 * spec.padding[axis] if k == "full" else k
            for axis, k in enumerate(spec.kernel)
        ]
        for axis, name in enumerate(AXES):
            if extent[axis] + 2 * spec.padding[axis] < kernel[axis]:
                smallest = min_size(layers[: index + 1], size)[axis]
                raise InputError(
                    f"{name} {size[axis]} is too small for layer {index + 1} of the network; "
                    f"it needs at least {smallest}. Use a larger --size or --frames, or a recipe "
                    "with a smaller network"
                )
            extent[axis] = (extent[axis] + 2 * spec.padding[axis] - kernel[axis]) // spec.stride[
                axis
            ] + 1
        kernels.append((kernel[0], kernel[1], kernel[2]))
    return kernels


def min_size(layers: Sequence[ConvSpec], size: tuple[int, int, int]) -> tuple[int, int, int]:
    """Smallest (T, H, W) that every layer has an output for; `size` on an axis that is locked."""
    smallest = []
    for axis in range(3):
        if any(spec.kernel[axis] == "full" for spec in layers):
            smallest.append(size[axis])
            continue
        need = 1
        for spec in reversed(layers):
            kernel = spec.kernel[axis]
            assert kernel != "full"
            need = max((need - 1) * spec.stride[axis] + kernel - 2 * spec.padding[axis], 1)
        smallest.append(need)
    return smallest[0], smallest[1], smallest[2]


@dataclass(frozen=True)
class TopUnits:
    """Where the top units of a network look: triples are (T, H, W), voxels of the video.

    Unit j reads voxels j * stride - padding to j * stride - padding + receptive_field - 1; those
    before the first and behind the last voxel of the video are the zeros of some layer's padding.
    """

    stride: tuple[int, int, int]
    receptive_field: tuple[int, int, int]
    padding: tuple[int, int, int]


def top_units(layers: Sequence[ConvSpec], size: tuple[int, int, int]) -> TopUnits:
    """Stride, receptive field and padding of the top units, as multiples of one voxel.

    Args:
        layers: the convolutions, bottom first.
        size: (T, H, W) that "full" kernels are resolved at.

    Raises:
        InputError: the size is too small for a layer.
    """
    stride, extent, padding = [1, 1, 1], [1, 1, 1], [0, 0, 0]
    for spec, kernel in zip(layers, resolve_kernels(layers, size), strict=True):
        for axis in range(3):
            extent[axis] += (kernel[axis] - 1) * stride[axis]
            padding[axis] += spec.padding[axis] * stride[axis]
            stride[axis] *= spec.stride[axis]
    return TopUnits(
        (stride[0], stride[1], stride[2]),
        (extent[0], extent[1], extent[2]),
        (padding[0], padding[1], padding[2]),
    )


def init_he(descriptor: Network, generator: torch.Generator) -> None:
    """Normal weights of standard deviation sqrt(2 / fan_in), zero biases (He et al. 2015)."""
    for conv in descriptor.convs:
        assert isinstance(conv, nn.Conv3d)
        _init_normal(conv, math.sqrt(2 / fan_in(conv)), generator)


def init_normal(descriptor: Network, std: float, generator: torch.Generator) -> None:
    """Normal weights of one standard deviation, zero biases, as the paper's public code."""
    for conv in descriptor.convs:
        assert isinstance(conv, nn.Conv3d)
        _init_normal(conv, std, generator)


def _init_normal(conv: nn.Conv3d, std: float, generator: torch.Generator) -> None:
    with torch.no_grad():
        conv.weight.normal_(0, std, generator=generator)
        assert conv.bias is not None
        conv.bias.zero_()


def fan_in(conv: nn.Conv3d) -> int:
    """Inputs that one output value sums over."""
    return conv.weight[0].numel()
