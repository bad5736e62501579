"""Other ways to compute the same layer, where one is faster.

A spatially full layer sums over whole frames: for a runtime it is a convolution with one output
position per frame and a kernel of megabytes, which onnxruntime unrolls column by column. As matrix
products with the same weights, both directions read each weight once: 3 to 5 times faster on the
CPU (fc-s-large: 0.49 s to 0.16 s per gradient, on one core).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import torch
from torch import Tensor

aten = torch.ops.aten

LOWERINGS: Final = ("auto", "none")
"""What may be asked for: what pays, or the network as written. A file records "matmul" or "none".
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
    grad: Tensor, x: Tensor, weight: Tensor, stride: Sequence[int], padding: Sequence[int]
) -> Tensor:
    """The input's gradient of `full_layer`, of the shape of `x`, from that of its responses."""
    N, C, T, H, W = x.shape
    F, K = weight.shape[0], weight.shape[2]
    spread = input_grad(
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


def _slices(weight: Tensor) -> Tensor:
    """(F, C, K, H, W) to (C, F * K, H * W), the one form that both directions use."""
    F, C, K, H, W = weight.shape
    return weight.permute(1, 0, 2, 3, 4).reshape(C, F * K, H * W)


def _diagonal(weight: Tensor) -> Tensor:
    """Kernels, one per filter, that put kernel slice k of a filter at time offset k."""
    F, K = weight.shape[0], weight.shape[2]
    return torch.eye(K, dtype=weight.dtype).repeat(F, 1).view(F, K, K)
