"""Space-to-depth: the same function, without strides and without transposed convolutions."""

from pathlib import Path

import onnx
import pytest
import torch
from energies import CONVOLUTIONAL, FULL, SIGMA, SIZE, autograd, error, run, stg_energy
from hypothesis import given, settings
from hypothesis import strategies as st

from stg_export import export_energy_grad
from stg_export.lowering import blocked_input_grad, blocked_layer
from stg_runtime.artifact import Precision

axis = st.tuples(st.integers(1, 7), st.integers(1, 4), st.integers(0, 8), st.integers(0, 9))


@settings(max_examples=150, deadline=None)
@given(axes=st.lists(axis, min_size=1, max_size=3), groups=st.sampled_from([1, 2]))
def test_layer_and_gradient_are_the_convolutions(
    axes: list[tuple[int, int, int, int]], groups: int
) -> None:
    """Any kernel, stride, padding (also wider than the kernel) and remainder."""
    kernel, stride, padding, more = ([a[i] for a in axes] for i in range(4))
    padding = [min(p, k + 1) for p, k in zip(padding, kernel, strict=True)]
    size = [max(k - 2 * p, 1) + m for k, p, m in zip(kernel, padding, more, strict=True)]
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2, 2 * groups, *size, generator=generator, dtype=torch.float64)
    w = torch.randn(3 * groups, 2, *kernel, generator=generator, dtype=torch.float64)
    b = torch.randn(3 * groups, generator=generator, dtype=torch.float64)
    leaf = x.clone().requires_grad_()
    function = (torch.conv1d, torch.conv2d, torch.conv3d)[len(axes) - 1]
    expected = function(leaf, w, b, stride, padding, 1, groups)
    y = blocked_layer(x, w, b, stride, padding, groups)
    torch.testing.assert_close(y, expected.detach())
    g = torch.randn(expected.shape, generator=generator, dtype=torch.float64)
    (dx,) = torch.autograd.grad(expected, leaf, g)
    found = blocked_input_grad(g, size, w, stride, padding, [1] * len(axes), groups)
    torch.testing.assert_close(found, dx)


@pytest.mark.parametrize(
    ("precision", "full", "free"),
    [("fp32", False, True), ("fp32", True, True), ("fp32", True, False), ("fp16", False, False)],
)
def test_files(precision: Precision, full: bool, free: bool, tmp_path: Path) -> None:
    """Parity is checked by the export itself, at several sizes; here once more, and the graph."""
    axes = (("N", "T") if full else ("N", "T", "H", "W")) if free else ()
    energy = stg_energy(FULL if full else CONVOLUTIONAL)
    path = tmp_path / "m.onnx"
    export_energy_grad(
        energy,
        path,
        example_shape=(2, 3, *SIZE),
        free_axes=axes,
        min_size=((1, 1) if full else (1, 7, 3, 7)) if free else None,
        precision=precision,
        lowering="space-to-depth",
        gradient_scale=SIGMA**2,
        seed=2,
    )
    nodes = onnx.load(path).graph.node
    kinds = [node.op_type for node in nodes]
    assert "Conv" in kinds
    assert "ConvTranspose" not in kinds
    for node in nodes:
        strides = [a.ints for a in node.attribute if a.name == "strides"]
        assert all(set(ints) == {1} for ints in strides), node.name
    assert ("MatMul" in kinds) == full
    x = torch.randn(2, 3, *SIZE, generator=torch.Generator().manual_seed(3)).numpy()
    tolerance = 1e-5 if precision == "fp32" else 5e-2
    for found, right in zip(run(path, x), autograd(energy, x), strict=True):
        assert error(found, right) < tolerance


def test_weights_are_constants(tmp_path: Path) -> None:
    """Nothing that depends on weights alone is computed at every step."""
    path = tmp_path / "m.onnx"
    export_energy_grad(
        stg_energy(CONVOLUTIONAL),
        path,
        example_shape=(1, 3, *SIZE),
        lowering="space-to-depth",
        gradient_scale=SIGMA**2,
    )
    graph = onnx.load(path).graph
    stored = {initializer.name for initializer in graph.initializer}
    for node in graph.node:
        assert not all(name in stored for name in node.input if name) or not node.input, node


@pytest.mark.parametrize(
    ("asked", "full", "recorded"),
    [
        ("matmul", True, "matmul"),
        ("matmul", False, "none"),
        ("space-to-depth", True, "space-to-depth"),
    ],
)
def test_what_was_applied_is_recorded(asked: str, full: bool, recorded: str) -> None:
    from stg_export.onnx import to_onnx

    energy = stg_energy(FULL if full else CONVOLUTIONAL)
    assert to_onnx(energy, (1, 3, *SIZE), lowering=asked)[1] == recorded
