"""From an energy to an ONNX file of its energy and gradient, checked before it is kept."""

from __future__ import annotations

import hashlib
import logging
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import onnx
import torch
from onnx.defs import SchemaError, get_schema
from torch import fx, nn

from stg_export.gradient import UNIT_WEIGHTS_TRACED, frozen, trace, traced_shape
from stg_export.lowering import LOWERINGS
from stg_export.parity import check_parity
from stg_export.units import declare_unit_weights, weigh_units
from stg_runtime.artifact import (
    DIGEST_KEY,
    ENERGY,
    ENERGY_GRAD,
    METADATA_KEY,
    UNIT_WEIGHTS,
    VIDEO,
    Metadata,
    Parity,
    Precision,
    digest,
)
from stg_runtime.errors import InputError
from stg_runtime.files import atomic_path, check_output
from stg_runtime.grids import COARSER_KEY, pack_coarser

OPSETS: Final = range(17, 21)
"""Newer ConvTranspose and Pad have no CUDA kernel in current onnxruntime (its issue 26393)."""

_EXPORTER_OPSET: Final = 18  # the oldest that torch.onnx translates to
_LARGEST_FILE: Final = 2**31 - 1  # protobuf's limit
_LARGEST_FOLDED: Final = 1024  # values; shapes and scalars, never something of a video's size
_AXES: Final = {2: "NC", 3: "NCT", 4: "NCHW", 5: "NCTHW"}


def export_energy_grad(
    energy: nn.Module,
    path: Path,
    *,
    example_shape: tuple[int, ...],
    free_axes: Sequence[str] = (),
    min_size: Sequence[int] | None = None,
    precision: Precision = "fp32",
    opset: int = 18,
    lowering: str = "auto",
    metadata: Callable[[tuple[Parity, ...], str, str], Metadata] | None = None,
    gradient_scale: float = 1.0,
    coarser: bytes | None = None,
    unit_weights: bool = False,
    overwrite: bool = False,
    seed: int | None = None,
) -> tuple[Parity, ...]:
    """Write the energy and the input gradient of any energy module as one ONNX graph.

    The file appears only when it agrees with float64 autograd (see `check_parity`): at
    `example_shape`, and for free axes at the smallest sizes and two odd ones, with several inputs
    in a batch when N is free.

    Args:
        energy: maps inputs (N, ...), float32, to one energy each, (N,). Lower is likelier. It is
            exported in evaluation mode.
        path: the .onnx file. Input `video`; outputs `energy` (N,) and `energy_grad`, float32.
        example_shape: of the input; the sizes of fixed axes, typical ones of free axes.
        free_axes: names of axes whose size is left open: N, C, T, H, W for five axes, N, C, H, W
            for four.
        min_size: smallest sizes of the free axes, in the order of `free_axes`. None: 1 for N, the
            example's for the others.
        precision: "fp16" runs convolutions and matrix products in float16, with the input, the
            outputs, sums and everything else in float32.
        opset: ONNX operator set, 17 to 20.
        lowering: one of `LOWERINGS`: "auto" computes spatially full layers as matrix products and
            gradients of strided layers phase by phase where that pays; what was applied is
            recorded ("matmul", "phases", both with a +, "space-to-depth" or "none").
        metadata: called with parity, the lowering's name and the graph's SHA-256; gives what is in
            the file for the runtime; None for an energy that is not stg's.
        gradient_scale: the backward pass is that of gradient_scale * energy, divided again in
            float32, so that a large or small constant in the energy leaves float16's range alone.
        coarser: a whole file of the next coarser scale, to be held by this one; see
            `stg_runtime.grids`.
        unit_weights: add the input that weighs top units, of an stg energy; see `weigh_units`.
        overwrite: an existing file may be replaced.
        seed: of the inputs of the check; None draws fresh ones.

    Returns:
        The comparisons with float64 autograd.

    Raises:
        InputError: an option out of range, a module that is not an energy, or one that cannot be
            exported (the message names the operator).
        StgError: the graph misses the tolerance; nothing was written.
    """
    final = check_output(path, overwrite, suffixes=[".onnx"])
    free_dims, smallest = _free_dims(example_shape, free_axes, min_size)
    if opset not in OPSETS:
        raise InputError(
            f"opset {opset}: not supported; choose one of {OPSETS.start} to {OPSETS.stop - 1}"
        )
    if precision not in ("fp32", "fp16"):
        raise InputError(f"precision {precision!r}: unknown; choose fp32 or fp16")
    if lowering not in LOWERINGS:
        raise InputError(f"lowering {lowering!r}: unknown; choose one of {', '.join(LOWERINGS)}")
    model, used = to_onnx(
        energy,
        example_shape,
        free_dims=free_dims,
        precision=precision,
        opset=opset,
        gradient_scale=gradient_scale,
        lowering=lowering,
        unit_weights=unit_weights and _weighs_units(energy),
    )
    if unit_weights:
        if _weighs_units(energy):
            declare_unit_weights(model)
        else:
            weigh_units(model)
        onnx.checker.check_model(model)
    if coarser is not None:
        _add_property(model, COARSER_KEY, pack_coarser(coarser))
    if model.ByteSize() > _LARGEST_FILE:
        raise InputError(
            f"{path}: the graph takes {model.ByteSize() / 2**30:.1f} GiB and an ONNX file at most "
            "2; use a smaller network or precision fp16"
        )
    with atomic_path(final, replace=overwrite) as temporary:
        onnx.save(model, temporary)
        found = check_parity(
            temporary,
            energy,
            check_shapes(example_shape, free_dims, smallest),
            precision=precision,
            seed=seed,
            name=str(path),
        )
        if metadata is not None:
            graph = hashlib.sha256(model.graph.SerializeToString(deterministic=True)).hexdigest()
            _add_property(model, METADATA_KEY, metadata(found, used, graph).to_json())
            stored = {entry.key: entry.value for entry in model.metadata_props}
            _add_property(model, DIGEST_KEY, digest(stored))
            onnx.save(model, temporary)
    return found


def _weighs_units(energy: nn.Module) -> bool:
    return bool(getattr(getattr(energy, "descriptor", None), "weighs_units", False))


def _add_property(model: onnx.ModelProto, key: str, value: str) -> None:
    entry = model.metadata_props.add()
    entry.key, entry.value = key, value


def to_onnx(
    energy: nn.Module,
    example_shape: Sequence[int],
    *,
    free_dims: Sequence[int] = (),
    precision: Precision = "fp32",
    opset: int = 18,
    gradient_scale: float = 1.0,
    lowering: str = "none",
    unit_weights: bool = False,
) -> tuple[onnx.ModelProto, str]:
    """The ONNX graph of energy and gradient, unchecked, and the lowering that was applied.

    See `export_energy_grad` for the arguments.

    Raises:
        InputError: not an energy, or one with an operator that cannot be exported.
    """
    # A size of 1 would be taken for a constant.
    shape = [max(size, 2) if dim in free_dims else size for dim, size in enumerate(example_shape)]
    name = type(energy).__name__
    with _quiet():
        try:
            graph, used = trace(
                frozen(energy),
                shape,
                free_dims=free_dims,
                precision=precision,
                gradient_scale=gradient_scale,
                lowering=lowering,
                unit_weights=unit_weights,
            )
        except InputError:
            raise
        except Exception as error:
            raise InputError(_cannot(name, "traced", error, shape)) from error
        try:
            opset_made = max(opset, _EXPORTER_OPSET)
            model = _translate(graph, shape, free_dims, opset_made, unit_weights)
        except Exception as error:
            raise InputError(_cannot(name, "translated to ONNX", error, shape)) from error
    _clean(model, shape, free_dims)
    if opset < _EXPORTER_OPSET:
        _lower_opset(model, opset, name)
    written = [(entry.domain, entry.version) for entry in model.opset_import]
    if written != [("", opset)]:
        needs = ", ".join(f"{domain or 'ai.onnx'} {version}" for domain, version in written)
        raise InputError(
            f"{name}: cannot be written in ONNX opset {opset} alone (it needs {needs}); use "
            f"--opset {_EXPORTER_OPSET}"
        )
    onnx.checker.check_model(model)
    return model, used


def _translate(
    graph: fx.GraphModule,
    shape: Sequence[int],
    free_dims: Sequence[int],
    opset: int,
    unit_weights: bool,
) -> onnx.ModelProto:
    from onnxscript import optimizer

    examples: tuple[torch.Tensor, ...] = (torch.empty(traced_shape(shape, free_dims)),)
    dynamic: tuple[dict[int, Any], ...] = (dict.fromkeys(free_dims, torch.export.Dim.DYNAMIC),)
    if unit_weights:
        examples, dynamic = (*examples, torch.ones(UNIT_WEIGHTS_TRACED)), (*dynamic, {})
    program = torch.export.export(graph, examples, dynamic_shapes=dynamic, strict=False)
    exported = torch.onnx.export(
        program,
        examples,
        dynamo=True,
        opset_version=opset,
        optimize=False,
        verbose=False,
        input_names=[VIDEO, UNIT_WEIGHTS][: len(examples)],
        output_names=[ENERGY, ENERGY_GRAD],
    )
    assert exported is not None
    optimizer.optimize_ir(
        exported.model, input_size_limit=_LARGEST_FOLDED, output_size_limit=_LARGEST_FOLDED
    )
    return exported.model_proto


def _clean(model: onnx.ModelProto, shape: Sequence[int], free_dims: Sequence[int]) -> None:
    """Drop the exporter's notes, and call the axes by their names."""
    graph = model.graph
    del model.metadata_props[:], graph.metadata_props[:], graph.value_info[:]
    for item in (*graph.node, *graph.input, *graph.output, *graph.initializer):
        del item.metadata_props[:]
    for node in graph.node:
        node.ClearField("doc_string")
    model.producer_name, model.producer_version = "stg", ""
    names = _AXES[len(shape)]
    for value in (*graph.input[:1], *graph.output):
        dims = value.type.tensor_type.shape.dim
        for dim, size in enumerate(shape[: 1 if value.name == ENERGY else None]):
            dims[dim].Clear()
            if dim in free_dims:
                dims[dim].dim_param = names[dim]
            else:
                dims[dim].dim_value = size


def _lower_opset(model: onnx.ModelProto, opset: int, name: str) -> None:
    """Mark the graph with an older operator set, in which its operators are the same."""
    for node in model.graph.node:
        try:
            same = get_schema(node.op_type, _EXPORTER_OPSET).since_version <= opset
            # What opset 18 added to Pad is its fourth input, the axes.
            same = same or (node.op_type == "Pad" and len(node.input) < 4)
        except SchemaError:
            same = False
        if not same:
            raise InputError(
                f"{name}: its operator {node.op_type} changed after ONNX opset {opset}; use "
                f"--opset {_EXPORTER_OPSET}"
            )
    for entry in model.opset_import:
        entry.version = opset


def check_shapes(
    example_shape: tuple[int, ...], free_dims: Sequence[int], smallest: Sequence[int]
) -> list[tuple[int, ...]]:
    """Shapes that the file is checked at, the example first.

    On free axes also the smallest sizes and two that strides seldom divide, with 2 and 3 inputs.
    """
    shapes = [example_shape]
    for more, inputs in ((0, 2), (1, 3), (4, 2)) if free_dims else ():
        shape = list(example_shape)
        for dim, least in zip(free_dims, smallest, strict=True):
            size = least + more * (1 + dim % 2)
            shape[dim] = max(inputs, least) if dim == 0 else size
        shapes.append(tuple(shape))
    return shapes


def _free_dims(
    example_shape: tuple[int, ...], free_axes: Sequence[str], min_size: Sequence[int] | None
) -> tuple[list[int], list[int]]:
    names = _AXES.get(len(example_shape))
    if names is None or min(example_shape) < 1:
        raise InputError(
            f"example_shape {tuple(example_shape)}: needs 2 to 5 axes, each of size 1 or more"
        )
    unknown = [axis for axis in free_axes if axis not in names]
    if unknown or len(set(free_axes)) != len(free_axes):
        raise InputError(
            f"free_axes {tuple(free_axes)}: choose among {', '.join(names)}, each once, for an "
            f"input of {len(example_shape)} axes"
        )
    dims = [names.index(axis) for axis in free_axes]
    least = list(min_size or [1 if dim == 0 else example_shape[dim] for dim in dims])
    if len(least) != len(dims) or any(size < 1 for size in least):
        raise InputError(
            f"min_size {tuple(least)}: needs one size of 1 or more for each of free_axes "
            f"{tuple(free_axes)}"
        )
    for dim, size in zip(dims, least, strict=True):
        if size > example_shape[dim]:
            raise InputError(
                f"example_shape {tuple(example_shape)}: {names[dim]} {example_shape[dim]} is below "
                f"its smallest size {size}"
            )
    return dims, least


def _cannot(name: str, what: str, error: Exception, shape: Sequence[int]) -> str:
    text = " ".join(str(error).split())
    ops = re.findall(r"\baten[.:]+\w+(?:\.\w+)?", text)
    reason = f"operator {ops[0]} has no export" if ops else text[:160]
    return (
        f"{name}: its gradient cannot be {what} for an input of shape {tuple(shape)}: {reason}. "
        "Write the energy with other operators"
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporters' notes to their own developers off the terminal."""
    loggers = [logging.getLogger(name) for name in ("torch", "torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
