"""Tidy a traced graph: constants computed once, equal values as scalars, sums of few terms."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any, Final

import torch
from torch import Tensor, fx

aten = torch.ops.aten


def clean(module: fx.GraphModule, *, repeat_weights: bool = False) -> None:
    """Rewrite a graph from `make_fx` to an equal one that stores and computes less."""
    _drop_copies(module)
    _fold_constants(module, repeat_weights)
    _split_sums(module)
    _fold_uniform(module)
    _merge_terms(module)
    module.graph.eliminate_dead_code()
    _copy_returned_inputs(module)
    module.recompile()


def _drop_copies(module: fx.GraphModule) -> None:
    for node in list(module.graph.nodes):
        if node.target in (aten.detach.default, aten.alias.default):
            node.replace_all_uses_with(node.args[0])
            module.graph.erase_node(node)


def _copy_returned_inputs(module: fx.GraphModule) -> None:
    """An output that is the input itself (the gradient of |x|^2 / 2) loses its name otherwise."""
    output = module.graph.output_node()
    for source in output.all_input_nodes:
        if source.op == "placeholder":
            with module.graph.inserting_before(output):
                copy_ = module.graph.call_function(aten.clone.default, (source,))
            copy_.meta["val"] = source.meta["val"]
            output.replace_input_with(source, copy_)


def _fold_constants(module: fx.GraphModule, repeat_weights: bool) -> None:
    """Compute what depends on weights alone, and store each weight once for all its uses."""
    graph = module.graph
    first: dict[str, fx.Node] = {}
    values: dict[fx.Node, Tensor] = {}
    origins: dict[fx.Node, set[fx.Node]] = {}  # values that a value was computed from, itself too
    for node in list(graph.nodes):
        if node.op == "get_attr":
            value = getattr(module, node.target)
        elif _depends_on_constants_alone(node, values):
            args, kwargs = fx.map_arg((node.args, node.kwargs), values.__getitem__)
            value = node.target(*args, **kwargs)
        else:
            continue
        key = f"{node.op} {node.target} {node.args} {node.kwargs}"
        if key in first:
            node.replace_all_uses_with(first[key])
            graph.erase_node(node)
        elif isinstance(value, Tensor):
            first[key], values[node] = node, value
            origins[node] = {node}.union(*(origins[source] for source in node.all_input_nodes))
    for node in [node for node in values if _is_stored(node, values, origins, repeat_weights)]:
        value = values[node]
        name = f"constant_{node.name}"
        module.register_buffer(name, value.contiguous())
        with graph.inserting_before(node):
            stored = graph.get_attr(name)
        stored.meta["val"] = node.meta["val"]
        node.replace_all_uses_with(stored)
    graph.eliminate_dead_code()


def _is_stored(
    node: fx.Node,
    values: dict[fx.Node, Tensor],
    origins: dict[fx.Node, set[fx.Node]],
    repeat_weights: bool,
) -> bool:
    """Is this value to be stored in place of the operators that compute it?"""
    if node.op == "get_attr" or all(user in values for user in node.users):
        return False
    sources = origins[node] - {node}
    made_of = sum(values[source].numel() for source in sources if source.op == "get_attr")
    if values[node].numel() > _GROWN * max(made_of, _SMALL):
        return False
    stays = any(user not in values for source in sources for user in source.users)
    # Else it would be stored twice; a runtime computes it once, as it loads the file.
    return repeat_weights or not stays or values[node].numel() <= 16


def _depends_on_constants_alone(node: fx.Node, values: dict[fx.Node, Tensor]) -> bool:
    if node.op != "call_function" or not isinstance(node.meta.get("val"), Tensor):
        return False
    inputs = node.all_input_nodes
    if not inputs:
        return node.target is aten.eye.default
    if not all(source in values for source in inputs) or is_random(node):
        return False
    if node.target is aten.constant_pad_nd.default:
        return True  # of a weight, to whole blocks: at most a few times its size
    stored = sum(values[source].numel() for source in inputs)
    return int(node.meta["val"].numel()) <= max(stored, _SMALL)


_SMALL: Final = 1024  # values that may be stored where an operator would make them
_GROWN: Final = 4  # times the values it is made of, beyond which a runtime makes a constant itself


def is_random(node: fx.Node) -> bool:
    """Does the operator draw random numbers?"""
    return torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())


def _split_sums(module: fx.GraphModule) -> None:
    """Sum axis after axis, and without flattening first.

    onnxruntime adds up in one running float32 sum, which over the millions of values of a video is
    off by 1e-5 and more; rows of rows keep it at 1e-7.
    """
    for node in list(module.graph.nodes):
        if node.target is not aten.sum.dim_IntList:
            continue
        x, dims, *rest = list[Any](node.args)
        keepdim = bool(rest[0]) if rest else False
        rank = x.meta["val"].dim()
        dims = sorted({dim % rank for dim in dims or range(rank)}, reverse=True)
        if dims == [rank - 1] and not keepdim and x.target is aten.view.default:
            whole = x.args[0].meta["val"]
            if whole.shape[: rank - 1] == x.meta["val"].shape[: rank - 1]:
                x, dims = x.args[0], list(range(whole.dim() - 1, rank - 2, -1))
        if len(dims) < 2:
            continue
        value = x.meta["val"]
        with module.graph.inserting_before(node):
            for dim in dims:
                value = value.sum([dim], keepdim, **node.kwargs)
                x = module.graph.call_function(node.target, (x, [dim], keepdim), node.kwargs)
                x.meta["val"] = value
        node.replace_all_uses_with(x)
    module.graph.eliminate_dead_code()


_FILLED: dict[Any, Callable[[fx.Node], Any]] = {
    aten.ones_like.default: lambda node: 1.0,
    aten.zeros_like.default: lambda node: 0.0,
    aten.ones.default: lambda node: 1.0,
    aten.zeros.default: lambda node: 0.0,
    aten.new_zeros.default: lambda node: 0.0,
    aten.new_ones.default: lambda node: 1.0,
    aten.full.default: lambda node: node.args[1],
    aten.full_like.default: lambda node: node.args[1],
    aten.scalar_tensor.default: lambda node: node.args[0],
}
_MOVED = {
    aten.expand.default,
    aten.view.default,
    aten._unsafe_view.default,
    aten.reshape.default,
    aten.unsqueeze.default,
    aten.squeeze.dim,
    aten.squeeze.dims,
    aten.permute.default,
    aten.transpose.int,
    aten.t.default,
    aten.slice.Tensor,
    aten.select.int,
    aten._to_copy.default,
}
_ARITHMETIC: dict[Any, Callable[..., float]] = {
    aten.neg.default: operator.neg,
    aten.add.Tensor: operator.add,
    aten.sub.Tensor: operator.sub,
    aten.mul.Tensor: operator.mul,
    aten.mul.Scalar: operator.mul,
    aten.div.Tensor: operator.truediv,
    aten.div.Scalar: operator.truediv,
}


def _fold_uniform(module: fx.GraphModule) -> None:
    """Let elementwise operators take a scalar for an operand whose values are all equal."""
    values: dict[fx.Node, float] = {}
    for node in list(module.graph.nodes):
        value = _uniform_value(node, values)
        if value is not None and math.isfinite(value):
            values[node] = value
        elif node.target in _ARITHMETIC or node.target is aten.where.self:
            _use_scalars(module, node, values)


def _uniform_value(node: fx.Node, values: dict[fx.Node, float]) -> float | None:
    if node.op != "call_function":
        return None
    target, args = node.target, list[Any](node.args)
    if target in _FILLED:
        return _number(_FILLED[target](node))
    if target in _MOVED:
        return values.get(args[0])
    if target in _ARITHMETIC and not node.kwargs:
        numbers = [values.get(a) if isinstance(a, fx.Node) else _number(a) for a in args]
        known = [number for number in numbers if number is not None]
        if len(known) == len(args) and not (_ARITHMETIC[target] is operator.truediv and 0 in known):
            return _ARITHMETIC[target](*known)
    return None


def _use_scalars(module: fx.GraphModule, node: fx.Node, values: dict[fx.Node, float]) -> None:
    out = node.meta["val"]
    operands = [a for a in node.args if isinstance(a, fx.Node)]
    others = [a.meta["val"] for a in operands if a not in values]
    # The result must keep its shape and type without the operand.
    if not any(o.shape == out.shape for o in others):
        return
    if node.target is not aten.where.self and any(o.dtype != out.dtype for o in others):
        return
    for operand in operands:
        if operand not in values or operand.meta["val"].dim() == 0:
            continue
        dtype = operand.meta["val"].dtype
        with module.graph.inserting_before(node):
            scalar = module.graph.call_function(
                aten.scalar_tensor.default, (values[operand],), {"dtype": dtype}
            )
        scalar.meta["val"] = operand.meta["val"].new_empty(())
        values[scalar] = values[operand]
        node.replace_input_with(operand, scalar)


def _merge_terms(module: fx.GraphModule) -> None:
    """Write a * x + b * x as (a + b) * x, (x * a) * b as x * (a b), and x * 1 as x."""
    graph = module.graph
    for node in reversed(list(graph.nodes)):  # a whole sum before its parts
        direct = _linear_terms(node) if node.users else []
        if not direct:
            continue
        opened = _open_terms(direct)
        terms: dict[fx.Node, float] = {}
        for x, factor in opened:
            terms[x] = terms.get(x, 0.0) + factor
        single = len(terms) == 1 and (direct != opened or 1.0 in terms.values())
        if len(terms) == len(opened) and not single:
            continue
        total: fx.Node | None = None
        with graph.inserting_before(node):
            for x, factor in terms.items():
                part = x if factor == 1 else _call(graph, aten.mul.Tensor, (x, factor), node)
                total = (
                    part if total is None else _call(graph, aten.add.Tensor, (total, part), node)
                )
        assert total is not None
        node.replace_all_uses_with(total)
        graph.eliminate_dead_code()


def _open_terms(terms: list[tuple[fx.Node, float]]) -> list[tuple[fx.Node, float]]:
    """Open the sums and products among the terms that nothing else uses.

    A sum with a factor stays closed: to open it would multiply more tensors than before.
    """
    opened = []
    for x, factor in terms:
        parts = _linear_terms(x) if len(x.users) == 1 else []
        if parts and (factor == 1 or len(parts) == 1):
            opened += _open_terms([(part, factor * f) for part, f in parts])
        else:
            opened.append((x, factor))
    return opened


def _linear_terms(node: fx.Node) -> list[tuple[fx.Node, float]]:
    """The terms of a sum of two tensors, or the one of a tensor times a number; else none."""
    if node.op != "call_function" or node.kwargs or len(node.args) != 2:
        return []
    out, (a, b) = node.meta["val"], list[Any](node.args)
    if not isinstance(out, Tensor) or not out.is_floating_point():
        return []

    def alike(x: Any) -> bool:
        return isinstance(x, fx.Node) and (
            x.meta["val"].shape == out.shape and x.meta["val"].dtype == out.dtype
        )

    number_a, number_b = _number(a), _number(b)
    if node.target in (aten.mul.Tensor, aten.mul.Scalar):
        if alike(a) and number_b is not None:
            return [(a, number_b)]
        if alike(b) and number_a is not None:
            return [(b, number_a)]
    elif node.target in (aten.div.Tensor, aten.div.Scalar):
        if alike(a) and number_b:
            return [(a, 1 / number_b)]
    elif node.target is aten.add.Tensor and alike(a) and alike(b):
        return [(a, 1.0), (b, 1.0)]
    return []


def _call(graph: fx.Graph, target: Any, args: tuple[Any, ...], like: fx.Node) -> fx.Node:
    node = graph.call_function(target, args)
    node.meta["val"] = like.meta["val"]
    return node


def _number(value: Any) -> float | None:
    if isinstance(value, fx.Node):
        scalar = value.target is aten.scalar_tensor.default
        value = value.args[0] if scalar else None
    plain = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if plain else None
