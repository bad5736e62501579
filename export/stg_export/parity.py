"""Is the file the energy it claims to be? Compared with float64 autograd on fresh random inputs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from stg_export.gradient import energy_and_grad, frozen
from stg_runtime.artifact import ENERGY, ENERGY_GRAD, VIDEO, Parity, Precision
from stg_runtime.backends.onnxruntime_cpu import require_onnxruntime
from stg_runtime.errors import InputError, StgError

TOLERANCE: Final[dict[Precision, tuple[float, float, float]]] = {
    "fp32": (1e-5, 1e-5, 1e-3),
    "fp16": (2e-3, 1e-1, 1e-1),
}
"""Largest relative error of the energy, of 99 % of the gradient's values, and of all of them.

The gradient's is relative to its part that is not along the input. Where rounding moves a response
across a ReLU's kink, that unit's whole gradient appears or goes: the share of such units grows with
the precision's rounding, and the error as the square root of the share. Measured on the built-in
networks, all values: 2e-7 to 3e-4 in fp32, where few units switch and 99 % of the values stay below
1e-5; 1e-2 to 4e-2 in fp16. A gradient that is wrong in one row of pixels of 224 misses by 7e-2.
"""

_ROUNDING: Final = 1e-6  # of a whole gradient in float32
_DRAWS: Final = 3  # a small network may have a kink under one input; a wrong graph misses all


INPUT_STDS: Final = (1.0, 10.0)
"""Of the random inputs: the scale that a model of normalized pixels lives at, and a larger one."""


def check_parity(
    path: Path,
    energy: nn.Module,
    shapes: Sequence[tuple[int, ...]],
    *,
    precision: Precision = "fp32",
    seed: int | None = None,
    name: str | None = None,
) -> tuple[Parity, ...]:
    """Compare an exported file with the energy's own float64 gradient.

    The reference walks one input at a time, so that an energy that couples the inputs of a batch
    cannot pass. A miss is tried again with other inputs, `_DRAWS` in all.

    Args:
        path: the exported file.
        energy: what it was exported from.
        shapes: of the batches; the first is checked at every scale of `INPUT_STDS`, the others at
            the first of them.
        precision: chooses the tolerance.
        seed: of the inputs; None draws fresh ones.
        name: what messages call the file; its path by default.

    Returns:
        One comparison per batch. A shape of fewer than five axes is filled up with ones.

    Raises:
        StgError: a figure above the tolerance, or a value that is not finite.
        InputError: the file cannot be run.
    """
    name = name or str(path)
    session = _session(path, name)
    reference = frozen(energy).double()
    generator = torch.Generator()
    if seed is None:
        generator.seed()
    else:
        generator.manual_seed(seed)
    batches = [(shape, INPUT_STDS[0]) for shape in shapes]
    batches += [(shapes[0], std) for std in INPUT_STDS[1:]]
    found = []
    for shape, std in batches:
        where = f"{name}: inputs of shape {shape}, standard deviation {std:g}"
        for left in reversed(range(_DRAWS)):
            x = std * torch.randn(shape, generator=generator)
            try:
                value, grad = session.run([ENERGY, ENERGY_GRAD], {VIDEO: x.numpy()})
            except Exception as error:  # onnxruntime's errors share no public base
                raise StgError(f"{where}: the graph does not run: {_one_line(error)}") from None
            try:
                found.append(_compare(reference, x, value, grad, precision, where))
                break
            except _MissError:
                if not left:
                    raise
    return tuple(found)


class _MissError(StgError):
    """A figure above its tolerance."""


def _compare(
    reference: nn.Module,
    x: torch.Tensor,
    value: NDArray[np.float32],
    grad: NDArray[np.float32],
    precision: Precision,
    where: str,
) -> Parity:
    if value.shape != x.shape[:1] or grad.shape != x.shape:
        raise StgError(
            f"{where}: the graph returns shapes {value.shape} and {grad.shape}; expected "
            f"{tuple(x.shape[:1])} and {tuple(x.shape)}"
        )
    expected = np.empty(value.shape)
    worst = [0.0, 0.0, 0.0]  # as in TOLERANCE
    grad_error = 0.0
    for index in range(len(x)):
        one = x[index : index + 1].double()
        e, g = (t.numpy() for t in energy_and_grad(reference, one))
        expected[index] = e[0]
        if not (np.isfinite(e).all() and np.isfinite(g).all()):
            raise InputError(f"{where}: the energy itself is not finite there, in float64")
        if not (np.isfinite(value[index]) and np.isfinite(grad[index]).all()):
            way_out = (
                "float16 overflows; export with precision fp32, or with a smaller gradient_scale"
                if precision == "fp16"
                else "the energy overflows in float32; scale it down"
            )
            raise StgError(f"{where}: the graph's result is not finite. {way_out}")
        slope = float(np.linalg.norm(g))
        misses = np.abs(grad[index] - g[0]).ravel()
        miss = float(np.linalg.norm(misses))
        grad_error = max(grad_error, _ratio(miss, slope))
        # Terms of both signs may cancel in an energy, not in |x| |dE/dx|: a rounding error is as
        # large as its terms.
        size = max(abs(float(e[0])), float(one.norm()) * slope)
        # A quadratic term, as of a Gaussian reference, may dwarf the network's part. It points
        # along the input: what does not is held to the tolerance, the rest to float32's rounding.
        along = float((g * one.numpy()).sum()) / max(float(one.square().sum()), 1e-300)
        network = float(np.linalg.norm(g - along * one.numpy()))
        kept = len(misses) - len(misses) // 100
        most = float(np.linalg.norm(np.partition(misses, kept - 1)[:kept]))
        errors = (
            _ratio(abs(float(value[index] - e[0])), size),
            _ratio(max(most - _ROUNDING * slope, 0.0), network),
            _ratio(max(miss - _ROUNDING * slope, 0.0), network),
        )
        worst = [max(pair) for pair in zip(worst, errors, strict=True)]
    if not all(error <= most for error, most in zip(worst, TOLERANCE[precision], strict=True)):
        figures = ", ".join(
            f"{what} by {error:.1e} (allowed {allowed:.0e})"
            for what, error, allowed in zip(
                ("energy", "99 % of the gradient", "the gradient"),
                worst,
                TOLERANCE[precision],
                strict=True,
            )
        )
        raise _MissError(
            f"{where}: the graph differs from float64 autograd: {figures}, relative. Is the energy "
            "free of randomness, of state, of coupling between the inputs of a batch and of sizes "
            "fixed in its code?"
        )
    error = _ratio(float(np.linalg.norm(value - expected)), float(np.linalg.norm(expected)))
    t, h, w = ((*x.shape[2:], 1, 1, 1))[:3]
    shape = (x.shape[0], x.shape[1] if x.dim() > 1 else 1, t, h, w)
    return Parity(shape=shape, energy_error=error, energy_grad_error=grad_error)


def _ratio(error: float, size: float) -> float:
    if error == 0:
        return 0.0
    return error / size if size > 0 else math.inf


def _session(path: Path, name: str) -> Any:
    onnxruntime = require_onnxruntime()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        reason = _one_line(error).replace(str(path), name)
        raise StgError(f"{name}: onnxruntime cannot load it: {reason}") from None


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:400]
