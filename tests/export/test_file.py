"""What is in the file: sizes, names, operators, each weight once."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from energies import CONVOLUTIONAL, FULL, SIGMA, SIZE, autograd, error, run, stg_energy

from stg_export import export_energy_grad
from stg_runtime.errors import InputError


def parameter_bytes(layers: tuple) -> int:
    return 4 * sum(p.numel() for p in stg_energy(layers).parameters())


@pytest.mark.parametrize(
    ("name", "layers", "halves"),
    [
        ("fp32", CONVOLUTIONAL, 1),
        ("fp32-plain", CONVOLUTIONAL, 1),
        ("fp16", CONVOLUTIONAL, 2),
        ("full", FULL, 1),
    ],
)
def test_each_weight_is_stored_once(
    name: str, layers: tuple, halves: int, static_files: dict, free_files: dict
) -> None:
    for files in (static_files, free_files):
        size = files[name].stat().st_size
        weights = parameter_bytes(layers) / halves
        assert weights < size < weights + 24_000
        assert 4 * 3 * np.prod(SIZE) > 24_000  # so nothing of the video's size is stored
        graph = onnx.load(files[name]).graph
        used = {
            kind: {node.input[1] for node in graph.node if node.op_type == kind}
            for kind in ("Conv", "ConvTranspose")
        }
        if name == "fp32-plain":
            assert used["Conv"] == used["ConvTranspose"]  # both directions, one tensor


@pytest.mark.parametrize("kind", ["static", "free"])
def test_operators_and_names(kind: str, static_files: dict, free_files: dict) -> None:
    for path in (static_files if kind == "static" else free_files).values():
        model = onnx.load(path)
        onnx.checker.check_model(model, full_check=True)
        assert {node.domain for node in model.graph.node} == {""}
        operators = {node.op_type for node in model.graph.node}
        assert not operators & {"Pow", "Where", "RandomNormal", "RandomNormalLike", "ScatterND"}
        assert [item.name for item in model.graph.input] == ["video"]
        assert [item.name for item in model.graph.output] == ["energy", "energy_grad"]
        used = {name for node in model.graph.node for name in node.input} | {"energy_grad"}
        assert all(set(node.output) & (used | {"energy"}) for node in model.graph.node)
        assert {item.name for item in model.graph.initializer} <= used
        for value in (*model.graph.input, *model.graph.output):
            dims = [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
            whole = ["N", 3, "T", "H", "W"] if kind == "free" else [2, 3, *SIZE]
            if kind == "free" and "full" in path.name:
                whole[3:] = SIZE[1:]
            assert dims == (whole[:1] if value.name == "energy" else whole)


@pytest.mark.parametrize("sizes", [(1, 7, 3, 7), (2, 9, 4, 8), (5, 12, 19, 23), (1, 24, 17, 10)])
@pytest.mark.parametrize("name", ["fp32", "fp32-plain", "fp16"])
def test_free_file_at_sizes_it_never_saw(name: str, sizes: tuple, free_files: dict) -> None:
    n, t, h, w = sizes
    x = np.random.default_rng(t).standard_normal((n, 3, t, h, w), np.float32)
    value, grad = run(free_files[name], x)
    expected_value, expected_grad = autograd(stg_energy(CONVOLUTIONAL), x)
    limit = 2e-2 if name == "fp16" else 1e-6
    assert error(value, expected_value) < limit
    assert error(grad, expected_grad) < limit


@pytest.mark.parametrize("frames", [1, 2, 11, 20])
def test_full_layer_as_matrix_products(frames: int, free_files: dict, static_files: dict) -> None:
    x = np.random.default_rng(frames).standard_normal((3, 3, frames, *SIZE[1:]), np.float32)
    expected = autograd(stg_energy(FULL), x)
    for found, right in zip(run(free_files["full"], x), expected, strict=True):
        assert error(found, right) < 1e-6
    kinds = {
        name: [node.op_type for node in onnx.load(static_files[name]).graph.node]
        for name in ("full", "full-plain")
    }
    assert "MatMul" in kinds["full"]
    assert "MatMul" not in kinds["full-plain"]


@pytest.mark.parametrize("name", ["full", "full-plain", "full-fp16"])
def test_static_full_files_agree(name: str, static_files: dict) -> None:
    x = np.random.default_rng(4).standard_normal((2, 3, *SIZE), np.float32)
    expected = autograd(stg_energy(FULL), x)
    for found, right in zip(run(static_files[name], x), expected, strict=True):
        assert error(found, right) < (2e-2 if "fp16" in name else 1e-6)


@pytest.mark.parametrize("opset", [17, 19, 20])
def test_opset_is_what_was_asked_for(opset: int, tmp_path: Path) -> None:
    path = tmp_path / "e.onnx"
    energy = stg_energy(CONVOLUTIONAL)
    export_energy_grad(energy, path, example_shape=(1, 3, *SIZE), opset=opset)
    model = onnx.load(path)
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", opset)]
    onnx.checker.check_model(model, full_check=True)
    x = np.random.default_rng(opset).standard_normal((1, 3, *SIZE), np.float32)
    assert error(run(path, x)[1], autograd(energy, x)[1]) < 1e-6


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"opset": 16}, "17 to 20"),
        ({"opset": 21}, "17 to 20"),
        ({"precision": "bf16"}, "fp32 or fp16"),
        ({"lowering": "fast"}, "auto, none"),
        ({"free_axes": ("D",)}, "choose among N, C, T, H, W"),
        ({"free_axes": ("T", "T")}, "each once"),
        ({"free_axes": ("T",), "min_size": (1, 2)}, "one size"),
        ({"free_axes": ("T",), "min_size": (40,)}, "below its smallest size 40"),
        ({"example_shape": (1, 3, 2, 3, 4, 5)}, "2 to 5 axes"),
        ({"example_shape": (1, 3, 2, 2, 2)}, "cannot be traced"),
    ],
)
def test_wrong_options(options: dict, message: str, tmp_path: Path) -> None:
    given = {"example_shape": (1, 3, *SIZE)} | options
    with pytest.raises(InputError, match=message) as caught:
        export_energy_grad(stg_energy(CONVOLUTIONAL), tmp_path / "e.onnx", **given)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_output_is_checked_before_the_work(tmp_path: Path) -> None:
    energy = stg_energy(CONVOLUTIONAL)
    with pytest.raises(InputError, match="suffix"):
        export_energy_grad(energy, tmp_path / "e.pt", example_shape=(1, 3, *SIZE))
    (tmp_path / "e.onnx").touch()
    with pytest.raises(InputError, match="overwrite"):
        export_energy_grad(energy, tmp_path / "e.onnx", example_shape=(1, 3, *SIZE))


def test_export_prints_nothing(tmp_path: Path) -> None:
    code = (
        "import torch; from torch import nn; from pathlib import Path; import stg_export, sys\n"
        "assert 'torch.onnx' not in sys.modules or 'onnxscript' not in sys.modules\n"
        "class E(nn.Module):\n"
        "    def forward(self, x): return x.relu().square().sum(1)\n"
        f"stg_export.export_energy_grad(E(), Path({str(tmp_path / 'e.onnx')!r}), "
        "example_shape=(2, 3), free_axes=('N',))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_the_reference_std_reaches_the_gradient(static_files: dict) -> None:
    x = np.zeros((2, 3, *SIZE), np.float32)
    x[:, 0, 0, 0, 0] = 1000  # the Gaussian's part alone is as large
    grad = run(static_files["fp32"], x)[1]
    assert grad[0, 0, 0, 0, 0] == pytest.approx(1000 / SIGMA**2, rel=1e-2)
