"""Any energy's gradient, against float64 autograd that the exporter has no part in."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from energies import Attending, Function, Quadratic, Summed, autograd, error, run
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from stg_export import check_parity, export_energy_grad
from stg_runtime.errors import InputError, StgError

torch.manual_seed(3)
ENERGIES: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "smooth video network": (
        Summed(nn.Conv3d(3, 8, 3, 2, 1), nn.SiLU(), nn.Conv3d(8, 4, 3), nn.Softplus()),
        (2, 3, 7, 9, 10),
    ),
    "quadratic form": (Quadratic(6), (3, 6)),
    "perceptron": (Summed(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 4), nn.ELU()), (3, 6)),
    "image network with norms": (
        Summed(
            nn.Conv2d(4, 8, 3, 1, 2, dilation=2, groups=2),
            nn.GroupNorm(2, 8),
            nn.LeakyReLU(0.1),
            nn.MaxPool2d(2),
            nn.LayerNorm((8, 4, 5)),
            nn.GELU(),
        ),
        (2, 4, 8, 10),
    ),
    "transposed convolution": (Summed(nn.ConvTranspose2d(3, 8, 4, 2, 1), nn.ReLU()), (2, 3, 5, 6)),
    "total variation": (Function(lambda x: x.diff(dim=-1).abs().sum((1, 2, 3))), (2, 3, 5, 6)),
    "circular padding": (
        Function(lambda x: F.pad(x, (1, 1), mode="circular").sin().sum((1, 2))),
        (2, 3, 9),
    ),
    "slices": (Function(lambda x: (x[..., -99:-2] * x[..., 2:11]).sin().sum((1, 2))), (2, 3, 9)),
    "attention": (Attending(16), (2, 6, 16)),
    "half a square": (Function(lambda x: 0.5 * x.square().sum(1)), (3, 5)),
    "normalized weights": (
        Summed(nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 8, 3)), nn.ReLU()),
        (2, 3, 6, 6),
    ),
}


WITHOUT_PRODUCTS = ("total variation", "circular padding", "half a square", "slices")


@pytest.mark.parametrize(
    ("name", "precision"),
    [(name, "fp32") for name in ENERGIES]
    + [(name, "fp16") for name in ENERGIES if name not in WITHOUT_PRODUCTS],
)
def test_file_is_the_energy_and_its_gradient(name: str, precision: str, tmp_path: Path) -> None:
    energy, shape = ENERGIES[name]
    path = tmp_path / "energy.onnx"
    found = export_energy_grad(energy, path, example_shape=shape, precision=precision, seed=2)
    x = np.random.default_rng(8).standard_normal(shape, np.float32)
    value, grad = run(path, x)
    expected_value, expected_grad = autograd(energy, x)
    assert error(value, expected_value) < (1e-5 if precision == "fp32" else 5e-3)
    assert error(grad, expected_grad) < (1e-5 if precision == "fp32" else 2e-2)
    # Not only autograd says so: the slope of the energy itself, along a random direction.
    step = 1e-4 * np.random.default_rng(9).standard_normal(shape)
    slope = (autograd(energy, x + step)[0] - autograd(energy, x - step)[0]) / 2
    along = (grad * step).reshape(shape[0], -1).sum(1)
    scale = np.linalg.norm(expected_grad) * np.linalg.norm(step)
    assert np.abs(along - slope).max() < (1e-3 if precision == "fp32" else 1e-2) * scale
    assert found[0].energy_grad_error < (1e-5 if precision == "fp32" else 1e-1)


def test_batch_alone_may_be_free(tmp_path: Path) -> None:
    path = tmp_path / "energy.onnx"
    energy = ENERGIES["perceptron"][0]
    found = export_energy_grad(energy, path, example_shape=(1, 6), free_axes=("N",))
    assert {parity.shape[0] for parity in found} > {1, 3}
    x = np.random.default_rng(1).standard_normal((7, 6), np.float32)
    assert error(run(path, x)[1], autograd(energy, x)[1]) < 1e-5


def test_slices_of_a_free_axis_are_cut_at_every_length(tmp_path: Path) -> None:
    def ends(x: torch.Tensor) -> torch.Tensor:
        return (x[:, :, :5].square().sum(2) + x[:, :, -5:].sin().sum(2)).sum((1, 2, 3))

    path, energy = tmp_path / "energy.onnx", Function(ends)
    options = {"example_shape": (1, 2, 20, 3, 4), "free_axes": ("T",), "min_size": (1,)}
    export_energy_grad(energy, path, **options)
    for frames in (1, 3, 5, 8, 31, 60):
        x = np.random.default_rng(frames).standard_normal((1, 2, frames, 3, 4), np.float32)
        assert error(run(path, x)[1], autograd(energy, x)[1]) < 1e-5


def coupled(x: torch.Tensor) -> torch.Tensor:
    return (x - x.mean(0)).square().flatten(1).sum(1)


REFUSED = {
    "coupling within the batch": (coupled, StgError, "coupling"),
    "noise": (lambda x: (x + torch.randn_like(x)).square().sum(1), InputError, "randn_like"),
    "dropout": (lambda x: F.dropout(x, 0.5).square().sum(1), InputError, "dropout"),
    "no dependence": (lambda x: x.detach().square().sum(1), InputError, "does not depend"),
    "one energy for all": (lambda x: x.square().sum(), InputError, r"shape \(3,\)"),
    "a size fixed in the code": (lambda x: (x[:2] ** 2).sum(1), InputError, r"returns \(2,\)"),
    "operator without export": (
        lambda x: torch.linalg.svdvals(x.unflatten(1, (2, 3))).sum(1),
        InputError,
        "aten",
    ),
    "overflow": (lambda x: (x * 1e30).square().sum(1), StgError, "not finite"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_and_nothing_written(name: str, tmp_path: Path) -> None:
    function, kind, message = REFUSED[name]
    with pytest.raises(kind, match=message) as caught:
        export_energy_grad(Function(function), tmp_path / "e.onnx", example_shape=(3, 6))
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_overflow_of_halves_names_the_way_out(tmp_path: Path) -> None:
    energy = Summed(nn.Linear(6, 4, bias=False), nn.ReLU())
    with torch.no_grad():
        energy.network[0].weight.fill_(6e4)
    with pytest.raises(StgError, match="fp32"):
        export_energy_grad(
            energy, tmp_path / "e.onnx", example_shape=(3, 6), precision="fp16", seed=0
        )
    assert list(tmp_path.iterdir()) == []


def test_gradient_scale_keeps_halves_in_range(tmp_path: Path) -> None:
    body = Summed(nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 4), nn.Tanh())
    energy = Function(lambda x, value: 1e6 * value.square(), body)
    path = tmp_path / "e.onnx"
    options = {"example_shape": (3, 6), "precision": "fp16"}
    with pytest.raises(StgError, match="gradient_scale"):
        export_energy_grad(energy, path, **options)
    export_energy_grad(energy, path, gradient_scale=1e-6, **options)
    x = np.random.default_rng(1).standard_normal((3, 6), np.float32)
    assert error(run(path, x)[1], autograd(energy, x)[1]) < 1e-2


def write_graph(path: Path, grad: np.ndarray, *, frozen: bool) -> None:
    """A file for |x|^2 / 2 whose gradient is wrong: frozen at one input, or of another energy."""
    shape = list(grad.shape)
    nodes = [
        helper.make_node("Mul", ["video", "video"], ["square"]),
        helper.make_node("ReduceSum", ["square", "axis"], ["sum"], keepdims=0),
        helper.make_node("Mul", ["sum", "half"], ["energy"]),
        helper.make_node("Identity", ["frozen"], ["energy_grad"])
        if frozen
        else helper.make_node("Mul", ["video", "almost"], ["energy_grad"]),
    ]
    constants = {
        "axis": np.array([1]),
        "half": np.float32(0.5),
        "frozen": grad,
        "almost": np.float32(1.0001),
    }
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("video", TensorProto.FLOAT, shape)],
        [
            helper.make_tensor_value_info("energy", TensorProto.FLOAT, shape[:1]),
            helper.make_tensor_value_info("energy_grad", TensorProto.FLOAT, shape),
        ],
        [numpy_helper.from_array(np.asarray(value), key) for key, value in constants.items()],
    )
    opset = helper.make_opsetid("", 18)
    onnx.save(helper.make_model(graph, opset_imports=[opset], ir_version=10), path)


@pytest.mark.parametrize("frozen", [True, False])
def test_check_catches_a_wrong_gradient(frozen: bool, tmp_path: Path) -> None:
    path = tmp_path / "wrong.onnx"
    write_graph(path, np.ones((2, 6), np.float32), frozen=frozen)
    with pytest.raises(StgError, match="differs from float64 autograd"):
        check_parity(path, Function(lambda x: 0.5 * x.square().sum(1)), [(2, 6)])


def test_a_dominant_quadratic_term_hides_nothing(tmp_path: Path) -> None:
    path = tmp_path / "e.onnx"
    network = Summed(nn.Linear(6, 4), nn.Tanh())
    without = Function(lambda x: 1e3 * x.square().sum(1))
    export_energy_grad(without, path, example_shape=(2, 6), precision="fp16")
    with pytest.raises(StgError, match="differs"):
        check_parity(
            path,
            Function(lambda x, value: 1e3 * x.square().sum(1) + value, network),
            [(2, 6)],
            precision="fp16",
        )


def test_a_miss_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "e.onnx"
    path.write_bytes(b"old")
    with pytest.raises(StgError):
        export_energy_grad(Function(coupled), path, example_shape=(3, 6), overwrite=True)
    assert [item.name for item in tmp_path.iterdir()] == ["e.onnx"]
    assert path.read_bytes() == b"old"
