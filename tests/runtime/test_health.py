"""Chains that went wrong are reported with step, seed and energy; nothing of them is delivered."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from support import run, tiny_metadata

from stg_runtime.artifact import Metadata, Size
from stg_runtime.backends.host import HostChains
from stg_runtime.errors import DivergenceError
from stg_runtime.health import check_levels, check_pixels, is_silent, not_finite
from stg_runtime.synthesize import plan, synthesize_together

MEAN = np.full((3, 1, 1), 120, np.float32)


def metadata(**changes: object) -> Metadata:
    free = {"free_axes": ("N", "T"), "min_size": Size(frames=4, height=8, width=8)}
    return Metadata.model_validate(tiny_metadata(**free) | changes)


class Energy:
    """The reference, and a network that is on up to a step, or pulls with a force."""

    description = "test"
    threads = 1

    def __init__(self, on: int = 10**9, force: float = 0.0, **changes: object) -> None:
        self.metadata = metadata(**changes)
        self.on, self.force, self.calls = on, force, 0

    def bind(self, x: NDArray[np.float32], energy_grad: NDArray[np.float32]) -> None:
        self.x, self.grad = x, energy_grad

    def run(self, *, release: bool = False) -> NDArray[np.float32]:
        self.calls += 1
        variance = np.float32(self.metadata.reference_std**2)
        np.divide(self.x, variance, out=self.grad)
        if self.calls < self.on:
            self.grad[..., 0, 0] -= 0.25  # one place is enough
        self.grad -= np.float32(self.force)
        return (self.x**2).sum((1, 2, 3, 4)) / 2 / variance

    def make(self, *numbers: int) -> list[NDArray[np.uint8]]:
        job = plan(self.metadata, seed=9)
        chains = HostChains(self, (len(numbers), *job.graph[1:]))
        return synthesize_together(chains, self.metadata, job, numbers=numbers)


def test_a_live_chain_is_delivered() -> None:
    assert [video.shape for video in Energy().make(4, 5)] == [(6, 8, 8, 3)] * 2


def test_a_network_that_fell_silent_is_reported() -> None:
    with pytest.raises(DivergenceError) as caught:
        Energy(on=3).make(4)
    message = str(caught.value)
    assert "chain 4 (seed 9): the network is silent from step 3 of 6 on" in message
    assert "energy " in message and "\n" not in message


def test_a_network_that_is_silent_for_a_while_is_not() -> None:
    energy = Energy()
    energy.calls = -10  # counts up from here: on at every step

    def flicker() -> NDArray[np.float32]:
        energy.on = 0 if energy.calls == -8 else 10**9
        return Energy.run(energy)

    energy.run = flicker  # type: ignore[method-assign]
    assert len(energy.make(0)) == 1


def test_a_saturated_chain_is_reported() -> None:
    with pytest.raises(DivergenceError, match=r"chain 2 .* saturated after 6 steps: 100"):
        Energy(force=300.0).make(2)


def test_a_chain_of_one_colour_is_reported() -> None:
    with pytest.raises(DivergenceError, match=r"chain 0 .* dead .*: all pixels are \(100"):
        Energy(pixel_scale=1e-6).make(0)


def test_silence_is_exact() -> None:
    x = np.random.default_rng(0).normal(size=(3, 9, 40, 40)).astype(np.float32)
    for sigma in (0.37, 1.0, 12.5):
        grad = x / np.float32(sigma**2)
        assert is_silent(x, grad, sigma) and is_silent(x, x * np.float32(1 / sigma**2), sigma)
        for where in (0, x.size // 2 + 1, x.size - 1):  # off the sample, too
            live = grad.copy()
            live.flat[where] += 1e-4 * abs(grad.flat[where]) + 1e-9
            assert not is_silent(x, live, sigma)


def test_few_values_may_be_equal_or_clipped() -> None:
    check_pixels(np.zeros((1, 2, 2, 3), np.uint8), "chain", "now")
    check_levels(np.full((3, 1, 2, 2), 100, np.float32), MEAN, 50.0, "chain", "now")
    mixed = np.full((3, 4, 8, 8), 100, np.float32)
    mixed[:, :, 0] = 0
    check_levels(mixed, MEAN, 50.0, "chain", "now")  # an eighth is a picture


def test_float16_overflow_is_named_with_its_way_out() -> None:
    half: Any = SimpleNamespace(precision="fp16", n_steps=5, step_size=0.1)
    said = str(not_finite("chain 1 (seed 2)", 3, np.inf, 1e4, half))
    assert "step 3 (energy inf, the one before 1e+04)" in said
    assert "float16" in said and "--precision fp32" in said
    full: Any = SimpleNamespace(precision="fp32", n_steps=5, step_size=0.1)
    assert "float16" not in str(not_finite("chain 1 (seed 2)", 3, np.inf, 1e4, full))


def test_a_model_that_overflows_in_float16_makes_no_file(free_model: Path, tmp_path: Path) -> None:
    """A file whose half-precision weights are beyond what half precision can sum."""
    import onnx
    from onnx import numpy_helper

    model = onnx.load(free_model)
    for tensor in model.graph.initializer:
        if tensor.data_type == onnx.TensorProto.FLOAT16 and len(tensor.dims) == 5:
            weights = numpy_helper.to_array(tensor)
            loud = np.full_like(weights, 30000)
            tensor.CopyFrom(numpy_helper.from_array(loud, tensor.name))
    onnx.save(model, tmp_path / "loud.onnx")
    result = run("stg-run", "synthesize", tmp_path / "loud.onnx", "-o", tmp_path / "o.mp4")
    assert result.returncode == 1, result.stderr
    assert "float16" in result.stderr and "chain 0 (seed " in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "o.mp4").exists()


@pytest.fixture(scope="module")
def free_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An fp16 model of a tiny untrained network."""
    import torch

    from stg_export import export_energy_grad
    from stg_train.descriptor import ConvSpec, Descriptor, init_he
    from stg_train.descriptor import Energy as Learned

    path = tmp_path_factory.mktemp("fp16") / "model.onnx"
    descriptor = Descriptor((ConvSpec(2, (2, 2, 2), (1, 1, 1), (0, 0, 0)),), 3, (8, 8, 8))
    init_he(descriptor, torch.Generator().manual_seed(0))

    export_energy_grad(
        Learned(descriptor, 1.5), path, example_shape=(1, 3, 8, 8, 8), precision="fp16",
        gradient_scale=1.5**2,
        metadata=lambda parity, used, digest: Metadata.model_validate(
            tiny_metadata(precision="fp16", parity=parity, lowering=used)
        ),
    )  # fmt: skip
    return path
