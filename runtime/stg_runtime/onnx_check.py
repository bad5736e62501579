"""Is an ONNX file harmless? Read and judged here before onnxruntime, or any parser, sees it.

An exported model is data from a stranger. What `stg-export` writes needs little of what ONNX can
say: one graph of plain arithmetic, its weights inside the file. Everything else is refused: other
operators and other domains, functions, subgraphs (If, Loop, Scan), weights in other files, sparse
or oversized tensors, sizes that no video has. The reader knows protobuf's wire format only, copies
no weights, and takes time and memory in proportion to the file; it needs no onnx package.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Final

from stg_runtime.errors import InputError

LARGEST_FILE: Final = 2**31 - 1  # protobuf's limit
OPSETS: Final = range(17, 24)
IR_VERSIONS: Final = range(7, 14)
LARGEST_AXIS: Final = 1 << 24  # extent of a declared axis
LARGEST_VALUES: Final = 1 << 31  # of a tensor whose shape the file states outright
LARGEST_ATTRIBUTE: Final = 1 << 16  # kernel sizes, strides, paddings, dilations, axes
MOST_NODES: Final = 1 << 17
MOST_TENSORS: Final = 1 << 16
MOST_AXES: Final = 16
LONGEST_NAME: Final = 1 << 12

# What stg-export writes of its networks ...
_OURS: Final = (
    "Add Cast Concat Conv ConvTranspose Div Expand Greater MatMul Mul Pad ReduceSum Relu Reshape "
    "Shape Slice Squeeze Sub Transpose Unsqueeze"
)
# ... and arithmetic of energies of other makers. Nothing here runs code, reads files, branches or
# draws numbers.
_OTHERS: Final = (
    "Abs And Clip Constant ConstantOfShape Elu Equal Erf Exp Flatten Gather Gelu Gemm "
    "GreaterOrEqual HardSigmoid Identity LeakyRelu Less LessOrEqual Log Max Min Neg Not Or Pow "
    "Reciprocal ReduceMax ReduceMean ReduceMin Selu Sigmoid Sign Softmax Softplus Split Sqrt Sum "
    "Tanh Tile Where"
)
OPERATORS: Final = frozenset(f"{_OURS} {_OTHERS}".split())

# Element type: bytes, and the field of TensorProto that holds it when it is not raw.
_TYPES: Final = {
    1: (4, 4),  # float
    6: (4, 5),  # int32
    7: (8, 7),  # int64
    9: (1, 5),  # bool
    10: (2, 5),  # float16
    11: (8, 10),  # double
}
_FREE_FROM: Final = 1 << 62  # "to the end", in Slice

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5

# Fields that are read or may be passed over, by message; any other is refused.
_MODEL: Final = {1: 0, 2: 2, 3: 2, 4: 2, 5: 0, 6: 2, 7: 2, 8: 2, 14: 2}
_GRAPH: Final = {1: 2, 2: 2, 5: 2, 10: 2, 11: 2, 12: 2, 13: 2, 16: 2}
_NODE: Final = {1: 2, 2: 2, 3: 2, 4: 2, 5: 2, 6: 2, 7: 2, 8: 2, 9: 2}
_KNOWN_BAD: Final = {
    ("model", 20): "training information",
    ("model", 25): "functions",
    ("graph", 15): "sparse weights",
    ("graph", 14): "quantization notes",
    ("attribute", 6): "a subgraph",
    ("attribute", 11): "subgraphs",
    ("attribute", 22): "a sparse tensor",
    ("attribute", 23): "sparse tensors",
    ("attribute", 21): "a reference to a function's attribute",
    ("tensor", 13): "weights in another file (external data)",
    ("tensor", 3): "a segmented tensor",
    ("tensor", 6): "a tensor of strings",
}


class _BadError(Exception):
    """Why the file is refused."""


@dataclass
class Summary:
    """What a checked file holds.

    Attributes:
        opset: of ai.onnx.
        nodes: how many.
        operators: how often each occurs.
        weights: bytes of all constants.
        metadata: text by key.
        inputs: declared shape by name, a name or number for each axis.
        outputs: the same.
        graph: the graph's bytes in the file.
    """

    opset: int = 0
    nodes: int = 0
    operators: dict[str, int] = field(default_factory=dict)
    weights: int = 0
    metadata: dict[str, str] = field(default_factory=dict)
    inputs: dict[str, tuple[int | str, ...]] = field(default_factory=dict)
    outputs: dict[str, tuple[int | str, ...]] = field(default_factory=dict)
    graph: memoryview = field(default_factory=lambda: memoryview(b""))


def check_onnx(data: bytes, source: str) -> Summary:
    """Judge a model file's bytes.

    Args:
        data: of the whole file.
        source: its name, for messages.

    Raises:
        InputError: not an ONNX file, or one that holds what stg-export does not write.
    """
    if len(data) > LARGEST_FILE:
        raise InputError(f"{source}: {len(data) / 2**30:.1f} GiB; no model is larger than 2 GiB")
    try:
        return _Reader().model(memoryview(data))
    except _BadError as error:
        raise InputError(
            f"{source}: refused before it is loaded: {error}; expected the .onnx file that "
            "stg-export -o wrote"
        ) from None


def _fields(data: memoryview, kind: str) -> Iterator[tuple[int, int, int, memoryview]]:
    """Number, wire type, integer value and bytes of every field of a message."""
    place, end = 0, len(data)
    while place < end:
        key, place = _varint(data, place)
        number, wire = key >> 3, key & 7
        value, content = 0, data[:0]
        if number == 0:
            raise _BadError("not an ONNX file, or a damaged one")
        if wire == _VARINT:
            value, place = _varint(data, place)
        elif wire in (_BYTES, _FIXED32, _FIXED64):
            length = 4 if wire == _FIXED32 else 8
            if wire == _BYTES:
                length, place = _varint(data, place)
            if length > end - place:
                raise _BadError("not an ONNX file, or one that was cut short")
            content = data[place : place + length]
            place += length
        else:
            raise _BadError(f"not an ONNX file, or a damaged one (wire type {wire} in its {kind})")
        what = _KNOWN_BAD.get((kind, number))
        if what is not None:
            raise _BadError(f"it holds {what}")
        yield number, wire, value, content


def _varint(data: memoryview, place: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if place >= len(data) or shift > 63:
            raise _BadError("not an ONNX file, or one that was cut short")
        byte = data[place]
        place += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & (2**64 - 1), place
        shift += 7


def _signed(value: int) -> int:
    return value - 2**64 if value >= 2**63 else value


def _text(content: memoryview, most: int = LONGEST_NAME) -> str:
    if len(content) > most:
        raise _BadError(f"a name of {len(content)} bytes")
    try:
        return bytes(content).decode()
    except UnicodeDecodeError:
        raise _BadError("a name that is not UTF-8") from None


def _integers(wire: int, value: int, content: memoryview) -> list[int]:
    """Of a repeated integer field, packed or not."""
    if wire == _VARINT:
        return [_signed(value)]
    if wire != _BYTES:
        raise _BadError("a damaged list of integers")
    found, place = [], 0
    while place < len(content):
        item, place = _varint(content, place)
        found.append(_signed(item))
    return found


def _only(kind: str, allowed: dict[int, int], number: int, wire: int) -> None:
    if allowed.get(number) != wire:
        raise _BadError(f"its {kind} has a field (number {number}) that stg-export does not write")


@dataclass
class _Tensor:
    name: str
    kind: int
    dims: tuple[int, ...]
    integers: tuple[int, ...] | None  # of small integer tensors


class _Reader:
    def __init__(self) -> None:
        self.summary = Summary()
        self.constants: dict[str, _Tensor] = {}

    def model(self, data: memoryview) -> Summary:
        seen: set[int] = set()
        graph: memoryview | None = None
        for number, wire, value, content in _fields(data, "model"):
            _only("model", _MODEL, number, wire)
            if number not in (8, 14):
                if number in seen:  # protobuf would merge the two, and parsers might not
                    raise _BadError(f"its model holds field {number} twice")
                seen.add(number)
            if number == 1 and value not in IR_VERSIONS:
                raise _BadError(
                    f"ONNX file version {value}; {IR_VERSIONS[0]} to {IR_VERSIONS[-1]} are read"
                )
            if number == 7:
                graph = content
            elif number == 8:
                self._opset(content)
            elif number == 14:
                self._metadata(content)
        if graph is None or not self.summary.opset:
            raise _BadError("not an ONNX file: it has no graph or no operator set")
        self.summary.graph = graph
        self._graph(graph)
        return self.summary

    def _opset(self, data: memoryview) -> None:
        domain, version = "", 0
        for number, wire, value, content in _fields(data, "operator set"):
            _only("operator set", {1: 2, 2: 0}, number, wire)
            if number == 1:
                domain = _text(content)
            else:
                version = value
        if domain not in ("", "ai.onnx"):
            raise _BadError(f"operators of another domain, {domain[:60]!r}")
        if self.summary.opset or version not in OPSETS:
            raise _BadError(f"ONNX operator set {version}; {OPSETS[0]} to {OPSETS[-1]} are taken")
        self.summary.opset = version

    def _metadata(self, data: memoryview) -> None:
        entry = ["", ""]
        for number, wire, _value, content in _fields(data, "metadata"):
            _only("metadata", {1: 2, 2: 2}, number, wire)
            entry[number - 1] = _text(content, LARGEST_FILE if number == 2 else LONGEST_NAME)
        if entry[0] in self.summary.metadata:
            raise _BadError(f"its metadata holds {entry[0][:60]!r} twice")
        self.summary.metadata[entry[0]] = entry[1]

    def _graph(self, data: memoryview) -> None:
        nodes = []
        for number, wire, _value, content in _fields(data, "graph"):
            _only("graph", _GRAPH, number, wire)
            if number == 5:
                tensor = self._tensor(content)
                if tensor.name in self.constants:
                    raise _BadError(f"two constants are called {tensor.name[:60]!r}")
                self.constants[tensor.name] = tensor
                if len(self.constants) > MOST_TENSORS:
                    raise _BadError(f"more than {MOST_TENSORS} constants")
            elif number == 1:
                nodes.append(content)
                if len(nodes) > MOST_NODES:
                    raise _BadError(f"more than {MOST_NODES} operators")
            elif number in (11, 12, 13):
                name, shape = self._value(content)
                if number == 11:
                    self.summary.inputs[name] = shape
                elif number == 12:
                    self.summary.outputs[name] = shape
        for node in nodes:  # after the constants that they take
            self._node(node)
        self.summary.nodes = len(nodes)

    def _value(self, data: memoryview) -> tuple[str, tuple[int | str, ...]]:
        """ValueInfoProto: a tensor's name, and its declared shape."""
        name = ""
        shape: tuple[int | str, ...] = ()
        for number, wire, _value, content in _fields(data, "value"):
            _only("value", {1: 2, 2: 2, 3: 2, 4: 2}, number, wire)
            if number == 1:
                name = _text(content)
            elif number == 2:
                for kind, kind_wire, _v, inner in _fields(content, "type"):
                    _only("type", {1: 2, 6: 2}, kind, kind_wire)
                    if kind == 1:
                        shape = self._shape_of(inner)
        return name, shape

    def _shape_of(self, data: memoryview) -> tuple[int | str, ...]:
        shape: tuple[int | str, ...] = ()
        for number, wire, value, content in _fields(data, "tensor type"):
            _only("tensor type", {1: 0, 2: 2}, number, wire)
            if number == 1 and value not in _TYPES:
                raise _BadError(f"a tensor of element type {value}")
            if number == 2:
                shape = tuple(self._axis(axis) for _n, _w, _v, axis in _fields(content, "shape"))
        if len(shape) > MOST_AXES:
            raise _BadError(f"a tensor of {len(shape)} axes")
        _bounded([extent for extent in shape if isinstance(extent, int)], "a declared shape")
        return shape

    def _axis(self, data: memoryview) -> int | str:
        extent: int | str = "?"
        for number, wire, value, content in _fields(data, "axis"):
            _only("axis", {1: 0, 2: 2, 3: 2}, number, wire)
            extent = _signed(value) if number == 1 else _text(content) if number == 2 else extent
        return extent

    def _tensor(self, data: memoryview) -> _Tensor:
        name, kind, dims, location = "", 0, [], 0
        stored: dict[int, list[memoryview]] = {}
        counted = 0
        integers: list[int] = []
        for number, wire, value, content in _fields(data, "tensor"):
            if number == 1:
                dims += _integers(wire, value, content)
                if len(dims) > MOST_AXES:
                    raise _BadError(f"a constant of more than {MOST_AXES} axes")
            elif number == 2 and wire == _VARINT:
                kind = value
            elif number == 8 and wire == _BYTES:
                name = _text(content)
            elif number == 14 and wire == _VARINT:
                location = value
            elif number in (4, 5, 7, 9, 10) and wire == _BYTES:
                stored.setdefault(number, []).append(content)
                if number in (5, 7):
                    integers += _integers(wire, value, content)
            elif number in (5, 7) and wire == _VARINT:
                integers.append(_signed(value))
                stored.setdefault(number, [])
            elif not (number in (12, 16) and wire == _BYTES):
                raise _BadError(
                    f"a constant has a field (number {number}) that stg-export does not write"
                )
        if location:
            raise _BadError("it holds weights in another file (external data)")
        if kind not in _TYPES:
            raise _BadError(f"a constant of element type {kind}")
        size, typed = _TYPES[kind]
        if any(extent < 0 for extent in dims):
            raise _BadError(f"constant {name[:60]!r} has a negative extent")
        count = math.prod(dims)
        if len(stored) > 1 or (9 in stored and len(stored[9]) > 1):
            raise _BadError(f"constant {name[:60]!r} stores its values twice")
        if 9 in stored:
            raw = stored[9][0]
            counted = len(raw)
            if kind == 7 and counted == 8 * count and count <= 64:
                integers = list(struct.unpack(f"<{count}q", raw))
        elif typed in stored:
            values = sum(map(len, stored[typed]))
            counted = {4: values, 10: values}.get(typed, size * len(integers))
        elif stored:
            raise _BadError(f"constant {name[:60]!r} stores its values in the wrong place")
        if counted != size * count:
            raise _BadError(
                f"constant {name[:60]!r} of {'x'.join(map(str, dims)) or 'one value'} needs "
                f"{size * count} bytes and has {counted}"
            )
        self.summary.weights += counted
        if kind == 7:
            for value in integers:
                if LARGEST_VALUES < abs(value) < _FREE_FROM:
                    raise _BadError(f"constant {name[:60]!r} holds {value}, no size of a video")
        small = tuple(integers) if kind == 7 and count <= 64 else None
        return _Tensor(name, kind, tuple(dims), small)

    def _node(self, data: memoryview) -> None:
        inputs: list[str] = []
        outputs: list[str] = []
        operator = ""
        constant: _Tensor | None = None
        for number, wire, _value, content in _fields(data, "operator"):
            _only("operator", _NODE, number, wire)
            if number == 1:
                inputs.append(_text(content))
            elif number == 2:
                outputs.append(_text(content))
            elif number == 4:
                operator = _text(content)
            elif number == 5:
                tensor = self._attribute(content)
                constant = tensor or constant
            elif number == 7 and _text(content) not in ("", "ai.onnx"):
                raise _BadError(f"an operator of another domain, {_text(content)[:60]!r}")
            elif number == 8 and len(content):
                raise _BadError("an overloaded function")
        if operator not in OPERATORS:
            raise _BadError(f"operator {operator[:60]!r}, which no energy of ours needs")
        if operator == "Constant" and constant is not None and outputs:
            self.constants[outputs[0]] = constant
        place = _SHAPE_INPUT.get(operator)
        if place is not None and len(inputs) > place[0]:
            given = self.constants.get(inputs[place[0]])
            if given is not None:
                place[1](given.integers or (), operator)
        counts = self.summary.operators
        counts[operator] = counts.get(operator, 0) + 1

    def _attribute(self, data: memoryview) -> _Tensor | None:
        tensor = None
        allowed = {1: 2, 2: 5, 3: 0, 4: 2, 5: 2, 7: 2, 8: 2, 9: 2, 13: 2, 20: 0}
        name = ""
        integers: list[int] = []
        for number, wire, value, content in _fields(data, "attribute"):
            if number in (7, 8) and wire in (_VARINT, _FIXED32):  # not packed
                pass
            else:
                _only("attribute", allowed, number, wire)
            if number == 1:
                name = _text(content)
            elif number == 3 or number == 8:
                integers += _integers(wire, value, content)
            elif number == 5:
                tensor = self._tensor(content)
        for value in integers:
            if abs(value) > LARGEST_ATTRIBUTE and not abs(value) >= _FREE_FROM:
                raise _BadError(f"attribute {name[:60]!r} is {value}; at most {LARGEST_ATTRIBUTE}")
        return tensor


def _bounded(extents: list[int], what: str) -> None:
    if any(extent < 0 or extent > LARGEST_AXIS for extent in extents) or (
        math.prod(extents) > LARGEST_VALUES
    ):
        shown = "x".join(map(str, extents))[:80]
        raise _BadError(f"{what} of {shown}; at most {LARGEST_VALUES} values")


def _shape_input(values: tuple[int, ...], operator: str) -> None:
    _bounded([max(value, 1) for value in values], f"{operator} to a shape")


def _pads_input(values: tuple[int, ...], operator: str) -> None:
    if any(abs(value) > LARGEST_ATTRIBUTE for value in values):
        raise _BadError(f"{operator} by {max(map(abs, values))}; at most {LARGEST_ATTRIBUTE}")


_SHAPE_INPUT: Final[dict[str, tuple[int, Callable[[tuple[int, ...], str], None]]]] = {
    "Expand": (1, _shape_input),
    "ConstantOfShape": (0, _shape_input),
    "Tile": (1, _shape_input),
    "Reshape": (1, _shape_input),
    "Pad": (1, _pads_input),
}
"""Inputs that name a size: where, and how they are bounded when they are constants."""
