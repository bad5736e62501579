"""Hostile model files are refused before onnxruntime sees them; every file of ours passes."""

import contextlib
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from stg_runtime.backends.onnxruntime_cpu import open_session
from stg_runtime.errors import InputError
from stg_runtime.onnx_check import check_onnx


def plain() -> onnx.ModelProto:
    """relu(video * weight), as small as a graph can be."""
    value = helper.make_tensor_value_info
    weight = numpy_helper.from_array(np.ones((1,), np.float32), "weight")
    shape = numpy_helper.from_array(np.array([1, 3, 4], np.int64), "shape")
    graph = helper.make_graph(
        [
            helper.make_node("Mul", ["video", "weight"], ["product"]),
            helper.make_node("Relu", ["product"], ["energy"]),
        ],
        "g",
        [value("video", TensorProto.FLOAT, ["N", 3, 4])],
        [value("energy", TensorProto.FLOAT, ["N", 3, 4])],
        [weight, shape],
    )
    opsets = [helper.make_opsetid("", 18)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def node(model: onnx.ModelProto, operator: str, inputs: list[str], **kwargs: object) -> None:
    model.graph.node.append(helper.make_node(operator, inputs, [f"out-{operator}"], **kwargs))


def integers(model: onnx.ModelProto, *values: int) -> str:
    name = f"i{len(model.graph.initializer)}"
    array = np.array(values, np.int64)
    model.graph.initializer.append(numpy_helper.from_array(array, name))
    return name


def external(model: onnx.ModelProto, location: str = "../../../etc/passwd") -> None:
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", location


def hidden_external(model: onnx.ModelProto) -> None:
    """Only marked, without the field that names the file."""
    model.graph.initializer[0].data_location = TensorProto.EXTERNAL


def branch(model: onnx.ModelProto) -> None:
    body = helper.make_graph([], "body", [], [])
    node(model, "If", ["video"], then_branch=body, else_branch=body)


def loop_attribute(model: onnx.ModelProto) -> None:
    """A subgraph where an allowed operator should have none."""
    body = helper.make_graph([], "body", [], [])
    node(model, "Relu", ["video"], body=body)


def function(model: onnx.ModelProto) -> None:
    relu = helper.make_node("Relu", ["a"], ["b"])
    opsets = [helper.make_opsetid("", 18)]
    model.functions.append(helper.make_function("own", "F", ["a"], ["b"], [relu], opsets))


def other_domain(model: onnx.ModelProto) -> None:
    node(model, "Relu", ["video"], domain="com.microsoft")


def opset_domain(model: onnx.ModelProto) -> None:
    model.opset_import.append(helper.make_opsetid("com.evil", 1))


def old_opset(model: onnx.ModelProto) -> None:
    model.opset_import[0].version = 9


def sparse(model: onnx.ModelProto) -> None:
    tensor = model.graph.sparse_initializer.add()
    tensor.dims.append(1 << 40)


def lying_size(model: onnx.ModelProto) -> None:
    model.graph.initializer[0].dims[0] = 1 << 40


def negative(model: onnx.ModelProto) -> None:
    model.graph.initializer[0].dims[0] = -1


def twice(model: onnx.ModelProto) -> None:
    model.graph.initializer[0].float_data.append(1.0)


def huge_axis(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 1 << 40


def huge_product(model: onnx.ModelProto) -> None:
    for dim in model.graph.input[0].type.tensor_type.shape.dim:
        dim.dim_value = 1 << 20


def huge_pad(model: onnx.ModelProto) -> None:
    node(model, "Pad", ["video", integers(model, 0, 0, 1 << 30, 0, 0, 0)])


def huge_kernel(model: onnx.ModelProto) -> None:
    node(model, "Conv", ["video", "weight"], pads=[1 << 30, 0, 0, 0])


def huge_size(model: onnx.ModelProto) -> None:
    integers(model, 1 << 50)


def constant_node(model: onnx.ModelProto) -> None:
    """The same by way of a Constant."""
    tensor = numpy_helper.from_array(np.array([1 << 16, 1 << 16], np.int64), "")
    model.graph.node.append(helper.make_node("Constant", [], ["size"], value=tensor))
    node(model, "Expand", ["video", "size"])


def strings(model: onnx.ModelProto) -> None:
    tensor = model.graph.initializer.add()
    tensor.data_type, tensor.name = TensorProto.STRING, "s"
    tensor.string_data.append(b"x")


def custom(operator: str) -> Callable[[onnx.ModelProto], None]:
    def make(model: onnx.ModelProto) -> None:
        node(model, operator, ["video"])

    make.__name__ = operator
    return make


def training(model: onnx.ModelProto) -> None:
    model.training_info.add()


def expand(model: onnx.ModelProto) -> None:
    node(model, "Expand", ["video", integers(model, 1 << 20, 1 << 20)])


def fill(model: onnx.ModelProto) -> None:
    node(model, "ConstantOfShape", [integers(model, 1 << 16, 1 << 16)])


HOSTILE: list[tuple[Callable[[onnx.ModelProto], None], str]] = [
    (external, "external data"),
    (hidden_external, "external data"),
    (branch, "subgraph"),
    (loop_attribute, "subgraph"),
    (function, "functions"),
    (other_domain, "another domain"),
    (opset_domain, "another domain"),
    (old_opset, "operator set 9"),
    (sparse, "sparse"),
    (lying_size, "needs 4398046511104 bytes and has 4"),
    (negative, "negative extent"),
    (twice, "twice"),
    (huge_axis, "declared shape"),
    (huge_product, "declared shape"),
    (expand, "Expand to a shape"),
    (fill, "ConstantOfShape to a shape"),
    (huge_pad, "Pad by"),
    (huge_kernel, "'pads' is"),
    (huge_size, "no size of a video"),
    (constant_node, "Expand to a shape"),
    (strings, "strings"),
    (training, "training"),
    *((custom(name), name) for name in ("Loop", "Scan", "RandomNormal", "PyOp", "StringSplit")),
]


@pytest.mark.parametrize(
    ("change", "says"), HOSTILE, ids=lambda item: getattr(item, "__name__", "")
)
def test_what_stg_export_does_not_write_is_refused(
    tmp_path: Path, change: Callable[[onnx.ModelProto], None], says: str
) -> None:
    model = plain()
    check_onnx(model.SerializeToString(), "m.onnx")
    change(model)
    path = tmp_path / "m.onnx"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(InputError, match="refused before it is loaded") as caught:
        open_session(path, 1)
    message = str(caught.value)
    assert says in message and message.startswith(str(path)) and "\n" not in message
    assert len(message) < 600


def test_two_graphs_are_refused() -> None:
    """Protobuf merges a field that occurs twice; another reader might take the last one."""
    data = plain().SerializeToString()
    with pytest.raises(InputError, match="twice"):
        check_onnx(data + data, "m.onnx")


def test_a_field_from_the_future_is_refused() -> None:
    data = plain().SerializeToString() + b"\xfa\x07\x01x"  # field 127
    with pytest.raises(InputError, match="number 127"):
        check_onnx(data, "m.onnx")


@pytest.mark.parametrize("data", [b"", b"\x08", b"PK\x03\x04", b"\x80\x04K\x01.", b"\xff" * 64])
def test_other_files_are_refused(data: bytes) -> None:
    with pytest.raises(InputError, match="refused before it is loaded"):
        check_onnx(data, "m.onnx")


def test_every_cut_and_every_flipped_byte_is_judged_quickly(trained_model: bytes) -> None:
    """Whatever is damaged: accepted or refused in one way, in no memory to speak of."""
    random = np.random.default_rng(0)
    tracemalloc.start()
    began = time.perf_counter()
    for _ in range(300):
        data = bytearray(trained_model)
        if random.random() < 0.3:
            del data[random.integers(len(data)) :]
        for place in random.integers(max(len(data), 1), size=4):
            data[place : place + 1] = bytes([random.integers(256)])
        with contextlib.suppress(InputError):
            check_onnx(bytes(data), "m.onnx")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 20
    assert time.perf_counter() - began < 30


@pytest.fixture(scope="module")
def trained_model() -> bytes:
    return plain().SerializeToString()


def test_a_sparse_file_of_two_gigabytes_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    with path.open("wb") as file:
        file.truncate(1 << 31)
    with pytest.raises(InputError, match="larger than 2 GiB"):
        open_session(path, 1)
