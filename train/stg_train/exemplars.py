"""The exemplar network: at every place, how near a video comes to some moment of the clips.

g(x) = sum over levels, windows v and times t of share * m e tau log sum_u exp(r_vtu / tau), where

    r_vtu = (<x, c_u> - |c_u|^2 / 2) / (m e) + b_vu

compares the video around (t, v) with moment u of the clips at the same place, times a gain, both
seen through the window's weights (mass m; e is the clips' mean square in it). It is a ConvNet of
one layer whose filters are the clips themselves, with log-sum-exp over the filters in place of the
ReLU. The windows' weights add up to one, so dE/dx = (x - mean of the likely moments) / sigma^2:
each piece of the energy is a Gaussian around an arrangement of exemplars. What is learned, by
analysis by synthesis, are the biases b, so that a moment that the chains use too rarely becomes
likelier, and the gain at each place, which makes up for what chains lose where moments are blended.

Source: Xie, Lu, Zhu, Wu, "A Theory of Generative ConvNet", ICML 2016 (piecewise Gaussian, filters
as means of the pieces); that patches of one video, coarse and fine, chosen anew from noise, make
new video is from Haim et al., "Diverse Generation from a Single Video Made Possible", ECCV 2022.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stg_runtime.errors import InputError
from stg_train.descriptor import Network

# Added to the clips' mean square of each channel, model units squared: a window in which nothing
# moves has a size, too.
_FLOOR = 0.003
# In place of the bias of a moment that is none: its frames would come from two clips.
_NEVER = -1e4
# Frames of all clips together: each frame of a video is compared with every one of them.
MOST_MOMENTS = 512


@dataclass(frozen=True)
class ExemplarSpec:
    """The windows that exemplars are seen through.

    Attributes:
        frames: of a window, odd; their weights are those of Hann.
        window: pixels of the finest windows.
        stride: pixels between their centres; centres of the next level are `stride` of these apart,
            and its windows twice that wide.
        shares: of each level in the energy, finest first; together 1.
        temperature: tau, in units of a window's mean square.
    """

    frames: int
    window: int
    stride: int
    shares: tuple[float, ...]
    temperature: float


class Exemplars(Network):
    """g(x), shape (N,), of a clip's own moments; a `Descriptor`'s place in an `Energy`.

    Args:
        spec: the windows.
        channels: C of the video.
        size: (M, T, H, W) of the clips.

    Raises:
        InputError: the clips have more than `MOST_MOMENTS` frames.
    """

    weighs_units = True
    may_collapse = False  # the filters are given, and far from the clips g may be negative
    clips: Tensor
    never: Tensor
    times: Tensor
    copies: Tensor

    def __init__(self, spec: ExemplarSpec, channels: int, size: tuple[int, int, int, int]) -> None:
        super().__init__()
        count, frames, height, width = size
        if count * frames > MOST_MOMENTS:
            raise InputError(
                f"{count} clip(s) of {frames} frames are {count * frames} exemplars; at most "
                f"{MOST_MOMENTS}. Take fewer --frames, --windows or videos, or --recipe fc-s"
            )
        self.spec, self.convs, self.depth, self.free_axes = spec, nn.ModuleList(), 1, ("T",)
        self.register_buffer("clips", torch.zeros(channels, count * frames, height, width))
        moments = torch.arange(count * frames - spec.frames + 1)
        whole = moments // frames == (moments + spec.frames - 1) // frames
        self.register_buffer("never", torch.where(whole, 0.0, _NEVER), persistent=False)
        rise = torch.arange(1, spec.frames + 1) * (math.pi / (spec.frames + 1))
        weights = rise.sin().square()
        weights = (weights / weights.sum()).repeat_interleave(channels)
        self.register_buffer("times", weights, persistent=False)
        # Filter (d, c) copies colour c of frame d.
        copies = torch.eye(spec.frames * channels).view(-1, spec.frames, channels, 1, 1)
        self.register_buffer("copies", copies.transpose(1, 2).contiguous(), persistent=False)
        self.gains = nn.Parameter(torch.ones(height, width))
        self.levels = nn.ModuleList()
        window = spec.window
        for _ in spec.shares:
            level = Level((height, width), window, spec.stride, len(moments))
            self.levels.append(level)
            window, (height, width) = 2 * spec.stride, level.extent

    def see(self, clips: Tensor) -> None:
        """Take clips, (M, C, T, H, W), model units, for exemplars."""
        with torch.no_grad():
            self.clips.copy_(clips.transpose(0, 1).flatten(1, 2))
            pooled = (self.clips.square().mean(1) + _FLOOR).sum(0)[None, ..., None]
            for level in self.levels:
                assert isinstance(level, Level)
                pooled = level.pool(pooled)
                level.size.copy_(pooled[0, ..., None])

    def compared(self, frames: int) -> int:
        """Values that the gradient of one video of so many frames holds."""
        channels, _, height, width = self.clips.shape
        times, moments = frames + self.spec.frames - 1, len(self.never)
        held = height * width * (moments + self.spec.frames * channels)
        for level in self.levels:
            assert isinstance(level, Level)
            below, (height, width) = width, level.extent
            # Sums over rows and over both; likeness less its largest, and its exponential.
            held += height * (below + 4 * width) * moments
        return times * held

    def forward(self, x: Tensor, unit_weights: Tensor | None = None) -> Tensor:
        """The sum g of each video.

        Args:
            x: videos, (N, C, T, H, W), model units.
            unit_weights: of the terms of each time, (1, 1, T', 1, 1), T' = T + frames - 1; 1 if not
                given.

        Returns:
            g(x), shape (N,).
        """
        # Differences of large sums: bfloat16 would lose them.
        with torch.autocast(x.device.type, enabled=False):
            terms = self._terms(x.to(self.clips.dtype))
            if unit_weights is not None:
                terms = terms * unit_weights
            total: Tensor = terms.flatten(1).sum(1)
        return total

    def _terms(self, x: Tensor) -> Tensor:
        """The terms of each time, (N, 1, T', 1, 1)."""
        spec, moments = self.spec, len(self.never)
        each = torch.stack([self.clips[:, d : d + moments] for d in range(spec.frames)])
        exemplars = each.flatten(0, 1).permute(2, 3, 0, 1)  # (H, W, frames C, U)
        exemplars = exemplars * self.gains[..., None, None]
        weighed = exemplars * self.times[:, None]
        half = 0.5 * (exemplars * weighed).sum(2)[None]  # (1, H, W, U)
        # The values around each place and time, (N, H, W, T', frames C).
        around = F.conv3d(x, self.copies, padding=(spec.frames - 1, 0, 0)).permute(0, 3, 4, 2, 1)
        # Contiguous: PyTorch would multiply other ones matrix by matrix.
        products = around.contiguous() @ weighed.contiguous()  # (N, H, W, T', U)
        times = products.shape[3]
        products = products.flatten(3)
        terms = x.new_zeros(1)
        for share, level in zip(spec.shares, self.levels, strict=True):
            assert isinstance(level, Level)
            products, half = level.pool(products), level.pool(half)
            n, height, width, _ = products.shape
            found = products.reshape(n, height, width, times, moments) - half[..., None, :]
            likeness = (found / level.size + level.biases + self.never) / spec.temperature
            # logsumexp, written out: its parts are what the gradient is made of.
            top = likeness.detach().amax(-1)
            total = top + (likeness - top[..., None]).exp().sum(-1).log()
            terms = terms + share * spec.temperature * (total * level.size[..., 0]).sum((1, 2))
        return terms.reshape(x.shape[0], 1, times, 1, 1)


class Level(nn.Module):
    """Windows of one width over the frame, and what is learned of each.

    Args:
        extent: (H, W) that they cover: pixels, or windows of the level below.
        window: their width there.
        stride: between their centres there.
        moments: how many exemplars there are.

    Attributes:
        extent: (H', W'), how many windows there are.
        size: each window's mass times the clips' mean square in it, (H', W', 1, 1).
        biases: b, (H', W', 1, moments).
    """

    rows: Tensor
    columns: Tensor
    size: Tensor

    def __init__(self, extent: tuple[int, int], window: int, stride: int, moments: int) -> None:
        super().__init__()
        for name, length in zip(("rows", "columns"), extent, strict=True):
            self.register_buffer(name, overlapping(length, window, stride), persistent=False)
        self.extent = (len(self.rows), len(self.columns))
        self.register_buffer("size", torch.ones(*self.extent, 1, 1))
        self.biases = nn.Parameter(torch.zeros(*self.extent, 1, moments))

    def pool(self, x: Tensor) -> Tensor:
        """Weighted sums over the windows: (N, H, W, K) to (N, H', W', K)."""
        n, height, width, depth = x.shape
        y = self.rows @ x.reshape(n, height, width * depth)
        return self.columns @ y.reshape(n, len(self.rows), width, depth)


def overlapping(extent: int, window: int, stride: int) -> Tensor:
    """Hann windows over an axis, (windows, extent); at every position they add up to one."""
    count = (extent + stride - 2) // stride + 1
    centres = torch.arange(count, dtype=torch.float64) * stride
    centres += (extent - 1 - centres[-1]) / 2
    distance = (torch.arange(extent) - centres[:, None]).abs()
    weights = torch.where(distance < window / 2, (distance * math.pi / window).cos().square(), 0.0)
    return (weights / weights.sum(0)).float()
