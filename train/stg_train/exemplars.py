"""The exemplar network: at every place, how near a video comes to some moment of the clips.

g(x) = <x, (1 - P) x> / 2
     + sum over levels, windows v and times t of share * m e tau log sum_u exp(r_vtu / tau), where

    r_vtu = (<x, P c_u> - <c_u, P c_u> / 2) / (m e) + b_vu

compares the video around (t, v) with moment u of the clips at the same place, both seen through the
window's weights (mass m; e is the clips' mean square in it). It is a ConvNet of one layer whose
filters are the clips themselves, with log-sum-exp over the filters in place of the ReLU. The
windows' weights add up to one, so dE/dx = (P x - mean of P c over the likely moments) / sigma^2:
each piece of the energy is a Gaussian of precision P around an arrangement of exemplars.

What is learned, by analysis by synthesis, are the biases b, so that a moment that the chains use
too rarely becomes likelier, and the precision

    P = 1 - k - k' D^T D / 4 - sum over lags j of q_j R_j,    (R_j x)_t = (x_(t-j) + x_(t+j)) / 2,

k and k' of each place (D takes differences of neighbouring frames) and one q_j for all places, of
lags from 2 frames to as far as a window reaches. Where moments are blended, chains lose contrast
and motion; the gradients of k, k' and q_j, at filters as they are, are what chains lack of the
clips' mean square, of that of their differences, and of what frames j apart have in common. The
filters P c are the clips; c, where a chain of one moment would come to rest, has the more contrast
that blends lack, but is bounded by what the clips ever show at that place: what is white there
would be beyond white, and cut off.

Source: Xie, Lu, Zhu, Wu, "A Theory of Generative ConvNet", ICML 2016 (piecewise Gaussian, filters
as means of the pieces); that patches of one video, coarse and fine, chosen anew from noise, make
new video is from Haim et al., "Diverse Generation from a Single Video Made Possible", ECCV 2022.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from stg_runtime.errors import InputError
from stg_train.descriptor import Network

# Added to the clips' mean square of each channel, model units squared: a window in which nothing
# moves has a size, too.
_FLOOR = 0.003
# Largest k, largest k', and the q_j of all lags together: the precision stays between 0.02 and
# 1.98, and below 2 whole steps are stable.
_LOOSEST = 0.4
_LAGS = 0.18
# Rate of q_j in that of k: what one number for all places is told at an update is less of a chance.
_LAG_RATE = 0.4
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
    waves: Tensor
    modes: Tensor

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
        waves, modes = _cosines(frames, spec.frames - 1)
        self.register_buffer("waves", waves.float(), persistent=False)
        self.register_buffer("modes", modes.float(), persistent=False)
        self._kept: tuple[tuple[int, ...], tuple[Tensor, Tensor]] | None = None
        self.levels = nn.ModuleList()
        window = spec.window
        for _ in spec.shares:
            level = Level((height, width), window, spec.stride, len(moments))
            self.levels.append(level)
            window, (height, width) = 2 * spec.stride, level.extent
        self.looseness = nn.Parameter(torch.zeros(2, *self.widths()[0].extent))
        # All places add to the gradient of one number: in units of this much it is as large as that
        # of their k, with which it is clipped.
        self.lag_scale = math.sqrt(math.prod(self.widths()[0].extent))
        self.lags = nn.Parameter(torch.zeros(spec.frames - 2))

    def see(self, clips: Tensor) -> None:
        """Take clips, (M, C, T, H, W), model units, for exemplars."""
        with torch.no_grad():
            self.clips.copy_(clips.transpose(0, 1).flatten(1, 2))
            pooled = (self.clips.square().mean(1) + _FLOOR).sum(0)[..., None]
            for level in self.widths():
                pooled = level.pool(pooled)
                level.size.copy_(pooled[..., None])

    def compared(self, frames: int) -> int:
        """Values that the gradient of one video of so many frames holds at least.

        What is in the windows of clips and video; products, probabilities and their gradient.
        """
        channels, count, *_ = self.clips.shape
        frames += 2 * self.spec.frames - 1
        first = self.widths()[0]
        cut_out = first.weights.numel() * channels * (frames + count)
        return cut_out + 3 * math.prod(first.extent) * frames * count

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

    def widths(self) -> list[Level]:
        """The levels, finest windows first."""
        return [cast(Level, level) for level in self.levels]

    def _exemplars(self) -> tuple[Tensor, Tensor]:
        """What a video is compared with.

        The filters are many times the clips. In training they are kept until an update, which
        PyTorch counts (but not one of Adam's with fused=True); a file holds the clips, and who runs
        it makes the filters once.

        Returns:
            The frames in the finest windows, weighed, (H', W', kh kw C, frames); and half of each
            moment's <c, P c> there, (H', W', moments).
        """
        keep = self.training and not torch.compiler.is_compiling()
        versions = (self.clips._version, self.looseness._version, self.lags._version)
        if keep and self._kept is not None and self._kept[0] == versions:
            return self._kept[1]
        first = self.widths()[0]
        with torch.no_grad():
            centres, frames = (x.flatten(1, 2) for x in self._centres())
            weights = first.weights.repeat_interleave(len(frames), -1)
            filters = weights[..., None] * first.cut_out(frames.permute(2, 3, 0, 1))
            squares, moments = 0.5 * (centres * frames).sum(0).permute(1, 2, 0), len(self.never)
            over_time = enumerate(_hann(self.spec.frames))
            half = torch.stack([w * squares[..., d : d + moments] for d, w in over_time]).sum(0)
            made = (filters, first.pool(half))
        self._kept = (versions, made) if keep else None
        return made

    def _apply(self, *args: Any, **kwargs: Any) -> Self:
        self._kept = None  # of another type or device
        return cast(Self, super()._apply(*args, **kwargs))  # type: ignore[no-untyped-call]

    def _loose(self) -> Tensor:
        """Of each place k and k', (2, H, W): the mean of those of the windows that see it."""
        first = self.widths()[0]
        bounded: Tensor = _LOOSEST * (self.looseness / _LOOSEST).tanh()
        return first.rows.t() @ bounded @ first.columns

    def _common(self) -> Tensor:
        """q_j of lags 2, 3, ..., (frames - 2,)."""
        most = _LAGS / len(self.lags)
        bounded: Tensor = most * (_LAG_RATE / self.lag_scale / most * self.lags).tanh()
        return bounded

    def _centres(self) -> tuple[Tensor, Tensor]:
        """What the moments show, c, and P c; each (C, M, T, H, W)."""
        all_of_it, fast = self._loose()
        channels, _, *extent = self.clips.shape
        clips = self.clips.reshape(channels, -1, len(self.waves), *extent)
        # P is diagonal in cosines over time, whatever the place: beyond its ends a clip goes back.
        fast = fast * self.modes[0, :, None, None]
        common = (self._common() @ self.modes[1:])[:, None, None]
        precision = (1 - all_of_it - fast - common).flatten(1)
        spread = (self.waves @ clips.flatten(3)) / precision
        centres = (self.waves.t() @ spread).reshape(clips.shape)
        centres = centres.maximum(clips.amin((1, 2), keepdim=True))
        centres = centres.minimum(clips.amax((1, 2), keepdim=True))
        spread = (self.waves @ centres.flatten(3)) * precision
        return centres, (self.waves.t() @ spread).reshape(clips.shape)

    def _terms(self, x: Tensor) -> Tensor:
        """The terms of each time, (N, 1, T', 1, 1)."""
        spec, (first, *_) = self.spec, self.widths()
        n, _, frames, *_ = x.shape
        more = spec.frames - 1
        times, moments = frames + more, len(self.never)
        # Every frame with every frame, then the sums over as many as a moment has.
        video = F.pad(x, (0, 0, 0, 0, more, more + 1))
        video = first.cut_out(video.permute(3, 4, 1, 0, 2).flatten(3))
        filters, half = self._exemplars()
        products = video.transpose(2, 3) @ filters  # (H', W', N frames, frames)
        products = products.reshape(*first.extent, n, -1, products.shape[-1])
        weights = _hann(spec.frames)
        products = cast(Tensor, _Moments.apply(products, weights))  # type: ignore[no-untyped-call]
        terms = x.new_zeros(1)
        for share, level in zip(spec.shares, self.widths(), strict=True):
            if level is not first:
                half = level.pool(half)
                products = level.pool(products.flatten(2))
                products = products.reshape(*level.extent, n, times, moments)
            scale = 1 / (spec.temperature * level.size)
            known = (level.biases + self.never) / spec.temperature - half[..., None, :] * scale
            likeness = torch.addcmul(known[..., None, :], products, scale[..., None])
            total = cast(Tensor, _LogSumExp.apply(likeness))  # type: ignore[no-untyped-call]
            total = total * level.size[..., None, 0]
            terms = terms + share * spec.temperature * total.sum((0, 1))
        return (terms.reshape(n, times) + self._slack(x)).reshape(n, 1, times, 1, 1)

    def _slack(self, x: Tensor) -> Tensor:
        """<x, (1 - P) x> / 2 of each time, (N, T')."""
        (all_of_it, fast), middle = self._loose(), self.spec.frames // 2
        steps = cast(Tensor, _Steps.apply(x))  # type: ignore[no-untyped-call]
        still = (0.5 * all_of_it * x.square()).sum((1, 3, 4))
        moving = (0.125 * fast * steps.square()).sum((1, 3, 4))
        # Each frame with those to come, which the last window that sees it sees, too. Beyond a
        # video's ends there is nothing (clips go back there): what differs is of the margin.
        later = cast(Tensor, _Later.apply(x, self._common()))  # type: ignore[no-untyped-call]
        together = (0.5 * x * later).sum((1, 3, 4))
        terms = F.pad(still, (middle, middle)) + F.pad(moving, (middle, middle + 1))
        return terms + F.pad(together, (2 * middle, 0))


class _Moments(torch.autograd.Function):
    """y[..., t, u] = sum_d weights[d] x[..., t + d, u + d].

    The weights are symmetric, and the last row of x is to spare. Its gradient is the same sum;
    PyTorch's own, of slices, fills a whole tensor for each.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weights: Sequence[float]) -> Tensor:
        ctx.weights = weights
        return _along(x, weights)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        more = len(ctx.weights) - 1
        grad = F.pad(grad, (more, more, more, more + 1))
        return F.pad(_along(grad, ctx.weights), (0, 0, 0, 1)), None


def _along(x: Tensor, weights: Sequence[float]) -> Tensor:
    """See `_Moments`."""
    # Rows end to end: each part is one stretch, and what ran over the end of a row is cut off.
    (rows, width), more = x.shape[-2:], len(weights) - 1
    length = (rows - more - 1) * width
    x = x.flatten(-2)
    parts = [x[..., d * (width + 1) :][..., :length] for d in range(len(weights))]
    middle = more // 2
    y = weights[middle] * parts[middle]
    for d in range(middle):
        y.add_(parts[d] + parts[more - d], alpha=weights[d])
    return y.reshape(*y.shape[:-1], -1, width)[..., : width - more]


class _Steps(torch.autograd.Function):
    """Differences of neighbouring frames, (N, C, T, H, W) to (N, C, T - 1, H, W).

    The gradient is of pads: an exporter has nothing that runs everywhere for PyTorch's own, of
    slices of an axis of any length.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x[:, :, 1:] - x[:, :, :-1]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return F.pad(grad, (0, 0, 0, 0, 1, 0)) - F.pad(grad, (0, 0, 0, 0, 0, 1))


class _Later(torch.autograd.Function):
    """y_t = sum over j of q_j x_(t+j), lags 2, 3, ..., of (N, C, T, H, W); see `_Steps`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, common: Tensor) -> Tensor:
        ctx.save_for_backward(x, common)
        return _added(x, common, 1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None]:
        x, common = ctx.saved_tensors
        before = _added(grad, common, -1)
        if not ctx.needs_input_grad[1]:
            return before, None
        lags = range(2, 2 + len(common))
        return before, torch.stack([(grad * _shifted(x, lag)).sum() for lag in lags])


def _added(x: Tensor, common: Tensor, sign: int) -> Tensor:
    """Sum over j of q_j x_(t + sign j)."""
    y = common[0] * _shifted(x, 2 * sign)
    for lag, q in enumerate(common[1:], 3):
        y = y + q * _shifted(x, lag * sign)
    return y


def _shifted(x: Tensor, lag: int) -> Tensor:
    """x_(t+lag), 0 beyond the ends; a video may be shorter than the lag."""
    if lag > 0:
        return F.pad(x, (0, 0, 0, 0, 0, lag))[:, :, lag:]
    return F.pad(x, (0, 0, 0, 0, -lag, 0))[:, :, :lag]


class _LogSumExp(torch.autograd.Function):
    """Over the last axis, by softmax: one pass over what is large, and one for the gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        chances = x.softmax(-1)
        ctx.save_for_backward(chances)
        return x.amax(-1) - chances.amax(-1).log()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        chances: Tensor = ctx.saved_tensors[0]
        return chances * grad[..., None]


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
    weights: Tensor
    size: Tensor

    def __init__(self, extent: tuple[int, int], window: int, stride: int, moments: int) -> None:
        super().__init__()
        rows, columns = (overlapping(length, window, stride) for length in extent)
        self.register_buffer("rows", rows, persistent=False)
        self.register_buffer("columns", columns, persistent=False)
        self.extent, self.stride = (len(rows), len(columns)), stride
        self.steps = -(-window // stride)
        ours = (_stretches(w.t(), stride, self.steps).diagonal(0, 0, 2) for w in (rows, columns))
        high, wide = ours  # (kh, H'), (kw, W')
        weights = high.t()[:, None, :, None] * wide.t()[:, None, :]
        self.register_buffer("weights", weights.flatten(2), persistent=False)
        self.register_buffer("size", torch.ones(*self.extent, 1, 1))
        self.biases = nn.Parameter(torch.zeros(*self.extent, 1, moments))

    def cut_out(self, x: Tensor) -> Tensor:
        """What is in the windows, (H, W, C, K) to (H', W', kh kw C, K)."""
        y = _stretches(x, self.stride, self.steps).transpose(0, 2)
        y = _stretches(y.contiguous(), self.stride, self.steps)  # (W', kw, kh, H', C, K)
        return y.permute(3, 0, 2, 1, 4, 5).flatten(2, 4)

    def pool(self, x: Tensor) -> Tensor:
        """Weighted sums over the windows: (H, W, K) to (H', W', K)."""
        height, width, depth = x.shape
        y = self.rows @ x.reshape(height, width * depth)
        return self.columns @ y.reshape(len(self.rows), width, depth)


def _stretches(x: Tensor, stride: int, steps: int) -> Tensor:
    """What windows of steps * stride see of the first axis, (L, ...) to (windows, seen, ...)."""
    first, count = _centres(len(x), stride)
    before = math.floor(stride * steps / 2 - first)
    padded = (count + steps - 1) * stride
    x = F.pad(x, (0, 0) * (x.dim() - 1) + (before, padded - before - len(x)))
    x = x.reshape(-1, stride, *x.shape[1:])
    return torch.cat([x[j : j + count] for j in range(steps)], 1)


def _centres(extent: int, stride: int) -> tuple[float, int]:
    """Of the windows over an axis: where the first is, and how many there are."""
    count = (extent + stride - 2) // stride + 1
    return (extent - 1 - (count - 1) * stride) / 2, count


def _hann(length: int) -> list[float]:
    """Weights over time, which add up to one."""
    weights = [math.sin(d * math.pi / (length + 1)) ** 2 for d in range(1, length + 1)]
    return [weight / sum(weights) for weight in weights]


def _cosines(length: int, furthest: int) -> tuple[Tensor, Tensor]:
    """Cosines over time, (length, length), orthonormal, and what is made of each by the precision.

    Returns:
        The cosines; of each D^T D / 4 and R_j of lags 2 to `furthest`, (furthest, length).
    """
    times = torch.arange(length, dtype=torch.float64)
    angles = math.pi / length * times
    waves = torch.cos(angles[:, None] * (times + 0.5)) * math.sqrt(2 / length)
    waves[0] /= math.sqrt(2)
    lags = torch.arange(2, furthest + 1)
    return waves, torch.cat([(angles / 2).sin().square()[None], (lags[:, None] * angles).cos()])


def overlapping(extent: int, window: int, stride: int) -> Tensor:
    """Hann windows over an axis, (windows, extent); at every position they add up to one."""
    first, count = _centres(extent, stride)
    centres = first + stride * torch.arange(count, dtype=torch.float64)
    distance = (torch.arange(extent) - centres[:, None]).abs()
    weights = torch.where(distance < window / 2, (distance * math.pi / window).cos().square(), 0.0)
    return (weights / weights.sum(0)).float()
