"""Other ways to compute the same layer, where one is faster.

A spatially full layer sums over whole frames: for a runtime it is a convolution with one output
position per frame and a kernel of megabytes, which onnxruntime unrolls column by column. As matrix
products with the same weights, both directions read each weight once: 3 to 5 times faster on the
CPU (fc-s-large: 0.49 s to 0.16 s per gradient, on one core).

A strided first layer has 3 channels and a kernel of 7 or 15: cuDNN has no path through tensor cores
for it. Space-to-depth moves the pixels of each block of stride x stride x stride into channels; the
layer becomes a convolution of stride 1 over blocks, with stride^3 times the channels and a kernel
of ceil(kernel / stride), zeros filling its last block up: 2.7 (kernel 15, stride 7), 2.1 (7, 3) or
1.5 (7, 2) times the products. Its input gradient is then a plain convolution too, with the kernel
flipped, and no transposed convolution is left in the graph.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final

import torch
from torch import Tensor

aten = torch.ops.aten

LOWERINGS: Final = ("auto", "none", "matmul", "space-to-depth")
"""What may be asked for.

"none": the network as written. "matmul": spatially full layers as matrix products. "auto": what
pays where it was measured, the CPU: that, and gradients of strided layers by phases (`phases.py`).
"space-to-depth": "matmul", and every other convolution with stride 1, its gradient as a plain
convolution. A file records what was applied.
"""


def is_full(
    x: Tensor,
    weight: Tensor,
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    groups: int,
) -> bool:
    """Does the kernel of a 3-D convolution cover the whole frame?"""
    return (
        weight.dim() == 5
        and not transposed
        and groups == 1
        and all(isinstance(size, int) for size in x.shape[3:])
        and tuple(x.shape[3:]) == tuple(weight.shape[3:])
        and weight.shape[3] * weight.shape[4] > 1
        and not any(padding[1:])
        and all(d == 1 for d in dilation)
    )


def full_layer(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: Sequence[int], padding: Sequence[int]
) -> Tensor:
    """The layer's responses: every frame times every kernel slice, then sums along time.

    Args:
        x: (N, C, T, H, W).
        weight: (F, C, K, H, W).
        bias: (F,).
        stride: of the convolution; only that in time matters.
        padding: of the convolution, in time only.

    Returns:
        (N, F, T', 1, 1).
    """
    N, C, T, H, W = x.shape
    F, K = weight.shape[0], weight.shape[2]
    frames = x.permute(1, 0, 2, 3, 4).reshape(C, N * T, H * W)
    products = torch.bmm(_slices(weight), frames.transpose(1, 2))  # (C, F * K, N * T)
    total = products.sum(0, dtype=torch.float32).to(x.dtype)
    total = total.view(F * K, N, T).transpose(0, 1)  # (N, F * K, T)
    out: Tensor = aten.convolution(
        total, _diagonal(weight), bias, stride[:1], padding[:1], [1], False, [0], F
    )
    return out.unsqueeze(-1).unsqueeze(-1)


def full_layer_input_grad(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    *,
    plain: bool = False,
) -> Tensor:
    """The input's gradient of `full_layer`, of the shape of `x`, from that of its responses.

    With `plain`, its part along time is a `blocked_input_grad`: no transposed convolution.
    """
    N, C, T, H, W = x.shape
    F, K = weight.shape[0], weight.shape[2]
    spread = (blocked_input_grad if plain else input_grad)(
        grad.view(*grad.shape[:3]), [T], _diagonal(weight), stride[:1], padding[:1], [1], F
    )  # (N, F * K, T): which response each kernel slice of each frame went to
    spread = spread.transpose(1, 2).reshape(1, N * T, F * K)
    frames = torch.bmm(spread.expand(C, N * T, F * K), _slices(weight))  # (C, N * T, H * W)
    return frames.view(C, N, T, H, W).permute(1, 0, 2, 3, 4)


def input_grad(
    grad: Tensor,
    size: Sequence[Any],
    weight: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> Tensor:
    """The input's gradient of a convolution, as a transposed convolution.

    Args:
        grad: of the responses.
        size: of the input, without N and C.
        weight: of the convolution.
        stride: likewise.
        padding: likewise.
        dilation: likewise.
        groups: likewise.
    """
    missing = [
        size[i]
        - ((grad.shape[2 + i] - 1) * s - 2 * padding[i] + dilation[i] * (weight.shape[2 + i] - 1))
        - 1
        for i, s in enumerate(stride)
    ]
    # On a free axis the rows that the stride left over are unknown: make the most, cut them off.
    extra = [m if isinstance(m, int) else s - 1 for m, s in zip(missing, stride, strict=True)]
    out: Tensor = aten.convolution(
        grad, weight, None, stride, padding, dilation, True, extra, groups
    )
    for i, m in enumerate(missing):
        if not isinstance(m, int):
            out = aten.slice.Tensor(out, 2 + i, 0, size[i])
    return out


def is_blockable(dilation: Sequence[int], transposed: bool) -> bool:
    """Can `blocked_layer` compute this convolution?"""
    return not transposed and all(d == 1 for d in dilation)


def blocked_layer(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    groups: int,
) -> Tensor:
    """A convolution as one of stride 1 over blocks of `stride` pixels (space-to-depth).

    Args:
        x: (N, C, ...).
        weight: (F, C / groups, ...).
        bias: (F,).
        stride: of the convolution.
        padding: likewise.
        groups: likewise.
    """
    rank = len(stride)
    size = x.shape[2:]
    counts = _block_counts(size, weight.shape[2:], stride, padding)
    for axis, s in enumerate(stride):
        if s > 1:  # exactly the pixels that the blocks hold: padding before, the rest behind
            x = _fit(x, 2 + axis, padding[axis], counts[axis] * s - padding[axis], s)
    x = _split(x, counts, stride)
    inner = [0 if s > 1 else p for s, p in zip(stride, padding, strict=True)]
    ones, zeros = [1] * rank, [0] * rank
    out: Tensor = aten.convolution(
        x, _block_weight(weight, stride), bias, ones, inner, ones, False, zeros, groups
    )
    return out


def blocked_input_grad(
    grad: Tensor,
    size: Sequence[Any],
    weight: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> Tensor:
    """The input's gradient of a convolution, as a plain convolution with the kernel flipped.

    Over blocks, for `blocked_layer`, and back to pixels (depth-to-space). The arguments are those
    of `input_grad`; `dilation` must be 1.
    """
    assert all(d == 1 for d in dilation)
    rank = len(stride)
    counts = _block_counts(size, weight.shape[2:], stride, padding)
    blocks = _block_weight(weight, stride)  # (F, C' / groups, ...)
    F, channels = blocks.shape[:2]
    flipped = blocks.reshape(groups, F // groups, *blocks.shape[1:]).transpose(1, 2)
    flipped = flipped.reshape(groups * channels, F // groups, *blocks.shape[2:])
    flipped = flipped.flip([2 + axis for axis in range(rank)])
    reach = []
    for axis, (s, p) in enumerate(zip(stride, padding, strict=True)):
        k = blocks.shape[2 + axis] - 1
        if s > 1:
            reach.append(k)
        elif p <= k:
            reach.append(k - p)
        else:  # rows that only padding saw
            grad = aten.slice.Tensor(grad, 2 + axis, p - k, grad.shape[2 + axis] - (p - k))
            reach.append(0)
    ones, zeros = [1] * rank, [0] * rank
    out: Tensor = aten.convolution(grad, flipped, None, ones, reach, ones, False, zeros, groups)
    out = _join(out, counts, stride)
    for axis, s in enumerate(stride):
        if s > 1:
            out = _fit(out, 2 + axis, -padding[axis], padding[axis] + size[axis], s)
    return out


def _block_counts(
    size: Sequence[Any], kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int]
) -> list[Any]:
    """Blocks along each axis: as many as the kernel's blocks reach from the outputs."""
    return [
        (n + 2 * p - k) // s + -(-k // s) if s > 1 else n
        for n, k, s, p in zip(size, kernel, stride, padding, strict=True)
    ]


def _fit(x: Tensor, dim: int, before: int, end: Any, most: int) -> Tensor:
    """Positions -before to end of an axis: zeros where there are none, less where there is more.

    Args:
        x: any tensor.
        dim: the axis.
        before: zeros in front; negative cuts.
        end: past the last position kept, counted in `x`; may be unknown while tracing.
        most: on an axis of unknown size, no more zeros than this times a kernel are needed behind.
    """
    size = x.shape[dim]
    known = isinstance(size, int) and isinstance(end, int)
    behind = max(end - size, 0) if known else _MOST_BEHIND * most
    start = max(-before, 0)
    pads = [0, 0] * (x.dim() - dim - 1) + [max(before, 0), behind]
    if any(pads):
        x = aten.constant_pad_nd(x, pads, 0.0)
    if start or not known or end < size:
        x = aten.slice.Tensor(x, dim, start, max(before, 0) + end)
    return x


_MOST_BEHIND: Final = 2  # strides: a block is at most one stride short, and a remainder another


def _split(x: Tensor, counts: Sequence[Any], stride: Sequence[int]) -> Tensor:
    """(N, C, blocks * stride, ...) to (N, C * strides, blocks, ...)."""
    N, C = x.shape[:2]
    shape, inside, outside = [N, C], [], []
    for count, s in zip(counts, stride, strict=True):
        outside.append(len(shape))
        shape.append(count)
        if s > 1:
            inside.append(len(shape))
            shape.append(s)
    if not inside:
        return x
    moved = x.reshape(shape).permute([0, 1, *inside, *outside])
    return moved.reshape([N, C * math.prod(stride), *counts])


def _join(x: Tensor, counts: Sequence[Any], stride: Sequence[int]) -> Tensor:
    """The inverse of `_split`."""
    several = [s for s in stride if s > 1]
    if not several:
        return x
    N, C = x.shape[0], x.shape[1] // math.prod(stride)
    moved = x.reshape([N, C, *several, *counts])
    order, at = [0, 1], 2
    for axis, s in enumerate(stride):
        order.append(2 + len(several) + axis)
        if s > 1:
            order.append(at)
            at += 1
    whole = [count * s for count, s in zip(counts, stride, strict=True)]
    return moved.permute(order).reshape([N, C, *whole])


def _block_weight(weight: Tensor, stride: Sequence[int]) -> Tensor:
    """The kernel over blocks: (F, C * strides, ceil(kernel / stride), ...)."""
    counts = [-(-k // s) for k, s in zip(weight.shape[2:], stride, strict=True)]
    pads: list[int] = []
    for k, count, s in zip(weight.shape[2:], counts, stride, strict=True):
        pads = [0, count * s - k, *pads]
    if any(pads):
        weight = aten.constant_pad_nd(weight, pads, 0.0)
    return _split(weight, counts, stride)


def _slices(weight: Tensor) -> Tensor:
    """(F, C, K, H, W) to (C, F * K, H * W), the one form that both directions use."""
    F, C, K, H, W = weight.shape
    return weight.permute(1, 0, 2, 3, 4).reshape(C, F * K, H * W)


def _diagonal(weight: Tensor) -> Tensor:
    """Kernels, one per filter, that put kernel slice k of a filter at time offset k."""
    F, K = weight.shape[0], weight.shape[2]
    return torch.eye(K, dtype=weight.dtype).repeat(F, 1).view(F, K, K)
