"""The input gradient of a strided convolution as plain convolutions, phase by phase.

It is a transposed convolution, which onnxruntime makes as one product that writes every tap of
every output, then adds these up. Output positions of one phase (position modulo the stride) see the
same taps, so that the gradient is also plain convolutions, one per group of phases with equally
many taps, whose outputs are interleaved. The number of multiplications is the same; the large
buffer is gone.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any, Final

import torch
from torch import Tensor

aten = torch.ops.aten

# Phases unroll faster than a transposed convolution adds up: at 1.5 times the values (`st` at paper
# size) they take half the time, at 40 times (`fc-s`) four times as long.
_WORTH: Final = 3


def pays_in_phases(
    weight: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    groups: int,
) -> bool:
    """Is `phase_input_grad` possible for this convolution, and faster?

    What counts is the values that are unrolled for the matrix products: filters times taps for the
    phases, channels times taps for the transposed convolution.
    """
    F, C, *kernel = weight.shape
    taps = F
    for K, s in zip(kernel, stride, strict=True):
        taps *= sum(count for _, _, count in _phase_groups(K, s))
    return (
        not transposed
        and groups == 1
        and all(d == 1 for d in dilation)
        and all(p < k for p, k in zip(padding, kernel, strict=True))
        and taps <= _WORTH * C * math.prod(kernel)
    )


def phase_input_grad(
    grad: Tensor,
    size: Sequence[Any],
    weight: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
) -> Tensor:
    """The input's gradient of a convolution, as plain convolutions of the responses' gradient.

    Position o of the input, counted with the padding, gets tap k = r + s j of response q - j, where
    o = s q + r: a convolution over q for each phase r, with ceil((K - r) / s) taps.

    Args:
        grad: of the responses, (N, F, ...).
        size: of the input, without N and C.
        weight: of the convolution, (F, C, ...).
        stride: likewise.
        padding: likewise, less than the kernel.

    Returns:
        (N, C, *size).

    Source: sub-pixel convolution, Shi et al., "Is the deconvolution layer the same as a
    convolutional layer?", 2016.
    """
    axes = range(len(stride))
    F, C = weight.shape[:2]
    kernels = weight
    most = []  # taps of the phase that has the most
    for i in axes:
        K, s = weight.shape[2 + i], stride[i]
        most.append(-(-K // s))
        at = 2 + 2 * i
        lacking = [0] * (2 * (kernels.dim() - 1 - at)) + [0, most[i] * s - K]
        kernels = aten.constant_pad_nd(kernels, lacking) if lacking[-1] else kernels
        kernels = kernels.reshape(*kernels.shape[:at], most[i], s, *kernels.shape[at + 1 :])
        kernels = kernels.flip(at) if most[i] > 1 else kernels
    # (F, C, taps, phases, taps, phases, ...) to (C, phases..., F, taps...)
    kernels = kernels.permute(1, *(3 + 2 * i for i in axes), 0, *(2 + 2 * i for i in axes))

    def convolved(chosen: list[tuple[int, int, int]]) -> Tensor:
        """(N, C, phases..., q...) of the phases [first, last) that have so many taps, per axis."""
        kernel, padded = kernels, list[int]()
        for i, (first, last, taps) in enumerate(chosen):
            kernel = aten.slice.Tensor(kernel, 1 + i, first, last)
            kernel = aten.slice.Tensor(kernel, 2 + len(axes) + i, most[i] - taps, most[i])
            K, s, p = weight.shape[2 + i], stride[i], padding[i]
            if s == 1:  # one phase: exactly the positions that the input has
                padded = [K - 1 - p, K - 1 - p, *padded]
            else:
                end = _beyond(grad.shape[2 + i], size[i], K, s, p)
                padded = [taps - 1, end, *padded]
        phases = [last - first for first, last, _ in chosen]
        kernel = kernel.reshape(-1, F, *(taps for _, _, taps in chosen))
        ones, zeros = [1 for _ in axes], [0 for _ in axes]
        out = aten.convolution(
            aten.constant_pad_nd(grad, padded), kernel, None, ones, zeros, ones, False, zeros, 1
        )
        split: Tensor = out.reshape(grad.shape[0], C, *phases, *out.shape[2:])
        return split

    def joined(chosen: list[tuple[int, int, int]]) -> Tensor:
        i = len(chosen)
        if i == len(axes):
            return convolved(chosen)
        groups = _phase_groups(weight.shape[2 + i], stride[i])
        parts = [joined([*chosen, group]) for group in groups]
        return torch.cat(parts, 2 + i) if len(parts) > 1 else parts[0]

    out = _interleave(joined([]), stride)
    for i in axes:
        exact = isinstance(size[i], int) and not padding[i] and out.shape[2 + i] == size[i]
        if stride[i] > 1 and not exact:
            out = aten.slice.Tensor(out, 2 + i, padding[i], padding[i] + size[i])
    return out


def _phase_groups(K: int, s: int) -> list[tuple[int, int, int]]:
    """Phases [first, last) of a kernel of K at stride s that have equally many taps, and how many.

    A phase without a tap gets one, which is zero.
    """
    taps = [max(1, -(-(K - r) // s)) for r in range(s)]
    first = 0
    groups = []
    for count, run in itertools.groupby(taps):
        last = first + len(list(run))
        groups.append((first, last, count))
        first = last
    return groups


def _beyond(n: Any, size: Any, K: int, s: int, p: int) -> int:
    """Positions q from the number of responses on that the input reaches into.

    Where the input's size is free, the most there can be.
    """
    if isinstance(size, int) and isinstance(n, int):
        return (p + size - 1) // s + 1 - n
    return 1 + (K - p - 2) // s


def _interleave(y: Tensor, stride: Sequence[int]) -> Tensor:
    """(N, C, phases..., q...) to (N, C, positions...), position = stride * q + phase.

    In two steps, the last axis first: onnxruntime transposes matrices, and moves whole rows, four
    times as fast as it does both at once.
    """
    nd = len(stride)
    N, C = y.shape[:2]
    q = y.shape[2 + nd :]
    if stride[-1] > 1:
        y = y.reshape(-1, stride[-1], math.prod(q)).permute(0, 2, 1)
    rows = [*q[:-1], q[-1] * stride[-1]]
    y = y.reshape(N, C, *stride[:-1], *rows)
    if any(s > 1 for s in stride[:-1]):
        outer = [axis for i in range(nd - 1) for axis in (1 + nd + i, 2 + i)]
        y = y.permute(0, 1, *outer, 2 * nd)
    return y.reshape(N, C, *(count * s for count, s in zip(q, stride, strict=True)))
