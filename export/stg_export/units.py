"""Weights of the top units: an input of the graph that a runtime may leave alone.

E(x) = (|x|^2 / 2 - sum of w_j r_j(x)) / sigma^2, r the top responses. All w are 1 unless a runtime
says otherwise: the value is an initializer that an input of the same name overrides, so a file with
it is used like one without. A runtime that makes the gradient of a large video from pieces gives
the weight 0 to the units of a piece that are not the piece's own (`stg_runtime.windows`).
"""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from stg_runtime.artifact import UNIT_WEIGHTS
from stg_runtime.errors import StgError


def weigh_units(model: onnx.ModelProto) -> None:
    """Add the input `unit_weights`, float32, (1, 1, T', H', W') of the top layer's units, or ones.

    In the graph of an stg energy the backward pass begins with one scalar times (responses > 0),
    and the energy with the sum of the responses; both are multiplied by the weights.

    Args:
        model: from `to_onnx`; changed in place.

    Raises:
        StgError: the graph is not of this form.
    """
    graph = model.graph
    made = {name: node for node in graph.node for name in node.output}
    users: dict[str, list[onnx.NodeProto]] = defaultdict(list)
    for node in graph.node:
        for name in node.input:
            users[name].append(node)
    scalars = {item.name: item.data_type for item in graph.initializer if not item.dims}
    found = []
    for node in graph.node:
        if node.op_type != "Mul":
            continue
        for seed, passed in (tuple(node.input), tuple(node.input)[::-1]):
            cast = made.get(passed)
            if seed in scalars and cast is not None and cast.op_type == "Cast":
                greater = made.get(cast.input[0])
                if greater is not None and greater.op_type == "Greater":
                    sums = [n for n in users[greater.input[0]] if n.op_type == "ReduceSum"]
                    found += [(node, seed, passed, greater.input[0], each) for each in sums]
    if len(found) != 1:
        raise StgError(
            f"the graph has {len(found)} places where its top responses are summed; expected 1"
        )
    (backward, seed, passed, responses, total) = found[0]

    weights = UNIT_WEIGHTS
    places = {id(node): index for index, node in enumerate(graph.node)}
    if scalars[seed] != TensorProto.FLOAT:
        weights = f"{UNIT_WEIGHTS}_cast"
        cast = helper.make_node("Cast", [UNIT_WEIGHTS], [weights], to=scalars[seed])
        graph.node.insert(0, cast)
    scaled, weighed = f"{UNIT_WEIGHTS}_seed", f"{UNIT_WEIGHTS}_responses"
    for place, node in sorted(
        (
            (places[id(backward)], helper.make_node("Mul", [seed, weights], [scaled])),
            (places[id(total)], helper.make_node("Mul", [responses, UNIT_WEIGHTS], [weighed])),
        ),
        key=lambda item: -item[0],
    ):
        graph.node.insert(place + (weights != UNIT_WEIGHTS), node)
    backward.input[:] = [scaled, passed]
    total.input[0] = weighed
    declare_unit_weights(model)


def declare_unit_weights(model: onnx.ModelProto) -> None:
    """Make `unit_weights`, which the graph multiplies by, an input that is 1 if not given."""
    graph = model.graph
    traced = [value for value in graph.input if value.name == UNIT_WEIGHTS]
    for value in traced:
        graph.input.remove(value)
    ones = numpy_helper.from_array(np.ones((1, 1, 1, 1, 1), np.float32), UNIT_WEIGHTS)
    graph.initializer.append(ones)
    graph.input.append(
        helper.make_tensor_value_info(
            UNIT_WEIGHTS, TensorProto.FLOAT, [1, 1, "T_units", "H_units", "W_units"]
        )
    )
