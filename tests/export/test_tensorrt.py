"""TensorRT's own parser takes the files, and its builder makes engines of them without a GPU."""

import importlib.util
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from stg_export import build_engine
from stg_runtime.errors import InputError, StgError

installed = importlib.util.find_spec("tensorrt_rtx_bindings") is not None
needs_tensorrt = pytest.mark.skipif(
    not installed, reason="tensorrt_rtx_bindings is not installed (extra: dev)"
)
FREE_SHAPES = ((1, 3, 7, 7, 7), (1, 3, 11, 14, 15), (4, 3, 24, 32, 32))
FULL_SHAPES = ((1, 3, 1, 14, 15), (1, 3, 11, 14, 15), (4, 3, 24, 14, 15))


@needs_tensorrt
@pytest.mark.parametrize("name", ["fp32", "fp16", "full", "full-fp16", "full-plain"])
def test_static_file_builds(name: str, static_files: dict[str, Path]) -> None:
    assert len(build_engine(static_files[name], targets=["sm89"])) > 10_000


@needs_tensorrt
@pytest.mark.parametrize("name", ["fp32", "fp16", "full"])
def test_free_file_builds_with_one_profile(name: str, free_files: dict[str, Path]) -> None:
    shapes = FULL_SHAPES if name == "full" else FREE_SHAPES
    engine = build_engine(free_files[name], targets=["sm86", "sm120"], shapes=shapes)
    assert len(engine) > 10_000


@needs_tensorrt
def test_wrong_use(tmp_path: Path, static_files: dict, free_files: dict) -> None:
    with pytest.raises(InputError, match="no such file"):
        build_engine(tmp_path / "none.onnx")
    with pytest.raises(InputError, match="sm75, sm80"):
        build_engine(static_files["fp32"], targets=["sm90"])
    with pytest.raises(InputError, match="largest shape"):
        build_engine(free_files["fp32"])
    with pytest.raises(InputError, match="-1: free"):
        build_engine(free_files["fp32"], shapes=(FREE_SHAPES[0][:4],) * 3)


@needs_tensorrt
def test_what_the_parser_refuses_is_said(tmp_path: Path) -> None:
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("Det", ["video"], ["energy"])],
        "g",
        [value("video", TensorProto.FLOAT, [1, 2, 2])],
        [value("energy", TensorProto.FLOAT, [1])],
    )
    path = tmp_path / "det.onnx"
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.save(model, path)
    with pytest.raises(StgError, match="Det"):
        build_engine(path)


def test_without_tensorrt_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install 'stg\[tensorrt-rtx\]'"):
        build_engine(Path("any.onnx"))
