"""From an energy to one torch graph of its energy and its input gradient.

The backward pass is traced together with the forward pass, operator by operator. What is left to
do is to write the backward operators in terms of forward ones (`_DECOMPOSITIONS`), and to keep the
seed of the backward pass, a tensor of equal values, a scalar (`cleaning`), because an exporter
would store it at the size of the video.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._decomp import core_aten_decompositions, get_decompositions
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.experimental.symbolic_shapes import (
    DimDynamic,
    ShapeEnv,
    StatelessSymbolicContext,
)
from torch.nn.attention import SDPBackend, sdpa_kernel

from stg_export.cleaning import clean, is_random
from stg_export.lowering import (
    blocked_input_grad,
    blocked_layer,
    full_layer,
    full_layer_input_grad,
    input_grad,
    is_blockable,
    is_full,
)
from stg_export.phases import pays_in_phases, phase_input_grad
from stg_runtime.artifact import Precision
from stg_runtime.errors import InputError

aten = torch.ops.aten


def frozen(energy: nn.Module) -> nn.Module:
    """A copy for evaluation on the CPU, with weights that need no gradient."""
    return copy.deepcopy(energy).cpu().eval().requires_grad_(False)


def energy_and_grad(
    energy: nn.Module, x: Tensor, scale: float = 1.0, *weights: Tensor
) -> tuple[Tensor, Tensor]:
    """E(x) and dE/dx, the gradient computed as that of scale * E, divided by `scale` afterwards.

    Args:
        energy: maps (N, ...) to (N,).
        x: batch of inputs.
        scale: keeps the backward pass of a low precision in range.
        weights: the energy's second argument, where it takes one.

    Returns:
        Energies, (N,), and gradients of the shape of `x`, both of the type of `x`.

    Raises:
        InputError: the module is not an energy: a wrong output shape, or no dependence on `x`.
    """
    name = type(energy).__name__
    x = x.detach().requires_grad_(True)
    with torch.enable_grad():
        value = energy(x, *weights)
        if not isinstance(value, Tensor) or value.shape != x.shape[:1]:
            got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise InputError(
                f"{name}: returns {got} for an input of shape {tuple(x.shape)}; "
                f"an energy returns one value per input, shape ({x.shape[0]},)"
            )
        value = value.to(x.dtype)
        if not value.requires_grad:
            raise InputError(_NO_DEPENDENCE.format(name=name))
        try:
            (grad,) = torch.autograd.grad((value * scale).sum(), x)
        except RuntimeError as error:
            if "not have been used" in str(error):
                raise InputError(_NO_DEPENDENCE.format(name=name)) from None
            raise
    return value.detach(), grad / scale


_NO_DEPENDENCE = (
    "{name}: its energy does not depend on its input through differentiable operations, so it has "
    "no gradient to export; remove detach(), no_grad() or .item() from its forward"
)


def traced_shape(example_shape: Sequence[int], free_dims: Sequence[int]) -> tuple[int, ...]:
    """Sizes to trace at: on a free axis large enough that no layer has a single response there.

    Tracing takes a size of 1 for a constant.
    """
    return tuple(
        max(size, _TRACED) if dim in free_dims and dim > 1 else size
        for dim, size in enumerate(example_shape)
    )


_TRACED = 32
# Broadcast over the video; a runtime gives one value for each unit.
UNIT_WEIGHTS_TRACED = (1, 1, 1, 1, 1)


def trace(
    energy: nn.Module,
    example_shape: Sequence[int],
    *,
    free_dims: Sequence[int] = (),
    precision: Precision = "fp32",
    gradient_scale: float = 1.0,
    lowering: str = "none",
    unit_weights: bool = False,
) -> tuple[fx.GraphModule, str]:
    """Trace energy and gradient into one graph of forward operators.

    Args:
        energy: a module from `frozen`.
        example_shape: sizes of the fixed axes, and typical sizes of the free ones.
        free_dims: positions of the free axes.
        precision: "fp16" runs convolutions and matrix products in float16; input, outputs and sums
            stay float32.
        gradient_scale: see `energy_and_grad`.
        lowering: one of `LOWERINGS`.
        unit_weights: give the energy a second argument of that name, `UNIT_WEIGHTS_TRACED`.

    Returns:
        A module from the input, float32, to energy and gradient, float32; the lowering that was
        applied.

    Raises:
        InputError: the module is not an energy.
    """
    # Symbolic tracing also of fixed sizes: one path, and fixed axes come out as plain numbers.
    mode = FakeTensorMode(allow_non_fake_inputs=True, shape_env=ShapeEnv())
    dims = [
        DimDynamic.DYNAMIC if dim in free_dims else DimDynamic.STATIC
        for dim in range(len(example_shape))
    ]
    example = mode.from_tensor(
        torch.empty(traced_shape(example_shape, free_dims)),
        symbolic_context=StatelessSymbolicContext(dims),
    )

    def graph(x: Tensor, *weights: Tensor) -> tuple[Tensor, Tensor]:
        return energy_and_grad(energy, x, gradient_scale, *weights)

    examples = [example]
    if unit_weights:
        examples.append(mode.from_tensor(torch.ones(UNIT_WEIGHTS_TRACED)))

    found: set[str] = set()
    half = torch.autocast("cpu", torch.float16) if precision == "fp16" else nullcontext()
    # The fused attention kernels are single operators with an argument for dropout; written out,
    # attention is matrix products that every runtime has.
    with warnings.catch_warnings(), half, sdpa_kernel(SDPBackend.MATH):
        warnings.simplefilter("ignore")
        traced = make_fx(
            graph,
            tracing_mode="symbolic",
            decomposition_table=_DECOMPOSITIONS
            | ({} if lowering == "none" else _lowered(found, lowering)),
            _allow_non_fake_inputs=True,
        )(*examples)
    # A GPU's convolutions want their kernels as constants, both directions' own.
    clean(traced, repeat_weights=lowering == "space-to-depth")
    random = [str(node.target) for node in traced.graph.nodes if is_random(node)]
    if random:
        raise InputError(
            f"{type(energy).__name__}: draws random numbers ({random[0]}); an energy must give the "
            "same value for the same input"
        )
    return traced, _name(found)


# --- backward operators, written as forward ones


def _convolution_backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    bias_sizes: Any,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    output_padding: Sequence[int],
    groups: int,
    output_mask: Sequence[bool],
) -> tuple[Tensor | None, None, None]:
    """The input's part of the gradient: a convolution of the other direction."""
    if not output_mask[0]:
        return None, None, None
    if transposed:
        zeros = [0] * len(stride)
        out = aten.convolution(grad, weight, None, stride, padding, dilation, False, zeros, groups)
        return out, None, None
    return input_grad(grad, x.shape[2:], weight, stride, padding, dilation, groups), None, None


def _threshold_backward(grad: Tensor, y: Tensor, threshold: float) -> Tensor:
    # A product with 0 or 1: onnxruntime's Where takes 4 to 9 times as long.
    limit = aten.scalar_tensor(threshold, dtype=y.dtype)
    passed: Tensor = grad * (y > limit).to(grad.dtype)
    return passed


def _slice_backward(
    grad: Tensor, sizes: Sequence[int], dim: int, start: int, end: int, step: int
) -> Any:
    """Zeros around it, on an axis of one size; PyTorch's way is to scatter."""
    dim = dim % grad.dim()
    size = sizes[dim]
    # Of a free axis a bound may lie beyond the end at another size than the traced one.
    if step != 1 or isinstance(size, torch.SymInt) or not 0 <= start <= size:
        return NotImplemented
    after = size - start - grad.shape[dim]
    return aten.constant_pad_nd(grad, [*[0, 0] * (grad.dim() - 1 - dim), start, after])


def _power(x: Tensor, exponent: float) -> Any:
    if exponent == 1:
        return x
    if exponent == 2:
        return x * x
    return NotImplemented


def _sum(
    x: Tensor, dim: Any = None, keepdim: bool = False, *, dtype: torch.dtype | None = None
) -> Any:
    """Sum halves in float32: a float16 sum over a video overflows."""
    if x.dtype != torch.float16 or dtype is not None:
        return NotImplemented
    return aten.sum.dim_IntList(x, dim, keepdim, dtype=torch.float32)


def _mean(
    x: Tensor, dim: Any = None, keepdim: bool = False, *, dtype: torch.dtype | None = None
) -> Any:
    if x.dtype != torch.float16 or dtype is not None:
        return NotImplemented
    return aten.mean.dim(x, dim, keepdim, dtype=torch.float32)


def _for_halves(decomposition: Callable[..., Any]) -> Callable[..., Any]:
    """Normalize halves step by step: ONNX has no norm of halves with float32 weights."""

    def decomposed(x: Tensor, *args: Any) -> Any:
        return decomposition(x, *args) if x.dtype == torch.float16 else NotImplemented

    return decomposed


_DECOMPOSITIONS: dict[Any, Callable[..., Any]] = {
    op: function
    for op, function in dict[Any, Any](core_aten_decompositions()).items()
    if "backward" in str(op)
}
_NORMS = (aten.native_layer_norm.default, aten.native_group_norm.default)
_DECOMPOSITIONS |= {
    op: _for_halves(function) for op, function in dict[Any, Any](get_decompositions(_NORMS)).items()
}
_DECOMPOSITIONS |= {
    aten.convolution_backward.default: _convolution_backward,
    aten.threshold_backward.default: _threshold_backward,
    aten.slice_backward.default: _slice_backward,
    aten.pow.Tensor_Scalar: _power,
    aten.sum.default: _sum,
    aten.sum.dim_IntList: _sum,
    aten.mean.default: _mean,
    aten.mean.dim: _mean,
}


def _name(found: set[str]) -> str:
    """What a file records of the lowerings that were applied."""
    if "space-to-depth" in found:
        return "space-to-depth"  # includes "matmul"
    return "+".join(sorted(found)) or "none"


def _lowered(found: set[str], lowering: str) -> dict[Any, Callable[..., Any]]:
    """Decompositions of a lowering; notes in `found` which ways were taken."""
    blocks, phases = lowering == "space-to-depth", lowering == "auto"

    def convolution(
        x: Tensor, weight: Tensor, bias: Tensor | None, stride: Any, padding: Any, *args: Any
    ) -> Any:
        dilation, transposed, _, groups = args
        if is_full(x, weight, padding, dilation, transposed, groups):
            found.add("matmul")
            return full_layer(x, weight, bias, stride, padding)
        if blocks and is_blockable(dilation, transposed) and any(s > 1 for s in stride):
            found.add("space-to-depth")
            return blocked_layer(x, weight, bias, stride, padding, groups)
        return NotImplemented

    def convolution_backward(
        grad: Tensor, x: Tensor, weight: Tensor, bias_sizes: Any, *args: Any
    ) -> Any:
        stride, padding, dilation, transposed, _, groups, output_mask = args
        if not output_mask[0]:
            return None, None, None
        if is_full(x, weight, padding, dilation, transposed, groups):
            dx = full_layer_input_grad(grad, x, weight, stride, padding, plain=blocks)
        elif blocks and is_blockable(dilation, transposed):
            found.add("space-to-depth")
            dx = blocked_input_grad(grad, x.shape[2:], weight, stride, padding, dilation, groups)
        elif phases and pays_in_phases(weight, stride, padding, dilation, transposed, groups):
            found.add("phases")
            dx = phase_input_grad(grad, x.shape[2:], weight, stride, padding)
        else:
            return _convolution_backward(grad, x, weight, bias_sizes, *args)
        return dx, None, None

    return {
        aten.convolution.default: convolution,
        aten.convolution_backward.default: convolution_backward,
    }
