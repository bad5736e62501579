"""The input that weighs top units: ones by default, exact for any weights."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from energies import CONVOLUTIONAL, FULL, SIGMA, SIZE, error, run, stg_energy

from stg_export import export_energy_grad
from stg_export.onnx import to_onnx
from stg_export.units import weigh_units
from stg_runtime.artifact import Precision
from stg_runtime.errors import StgError


@pytest.mark.parametrize(
    ("precision", "lowering", "full"),
    [("fp32", "auto", False), ("fp16", "space-to-depth", False), ("fp16", "auto", True)],
)
def test_weights_leave_units_out(
    precision: Precision, lowering: str, full: bool, tmp_path: Path
) -> None:
    energy = stg_energy(FULL if full else CONVOLUTIONAL)
    path = tmp_path / "m.onnx"
    export_energy_grad(
        energy,
        path,
        example_shape=(1, 3, *SIZE),
        free_axes=("N", "T") if full else ("N", "T", "H", "W"),
        min_size=(1, 1) if full else (1, 7, 3, 7),
        precision=precision,
        lowering=lowering,
        gradient_scale=SIGMA**2,
        unit_weights=True,
    )
    onnx.checker.check_model(onnx.load(path), full_check=True)
    x = np.random.default_rng(0).standard_normal((2, 3, 20, *SIZE[1:]), np.float32)
    leaf = torch.from_numpy(x).double().requires_grad_(True)
    responses = leaf
    for conv in energy.double().descriptor.convs:
        responses = conv(responses).relu()
    some = torch.rand((1, 1, *responses.shape[2:]), generator=torch.Generator().manual_seed(1))
    limit = 2e-2 if precision == "fp16" else 1e-6
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    for weights in (None, (some > 0.5).double()):
        held = responses if weights is None else responses * weights
        value = ((leaf * leaf).flatten(1).sum(1) / 2 - held.flatten(1).sum(1)) / SIGMA**2
        (grad,) = torch.autograd.grad(value.sum(), leaf, retain_graph=True)
        if weights is None:
            found = run(path, x)
        else:
            given = {"video": x, "unit_weights": weights.float().numpy()}
            found = session.run(["energy", "energy_grad"], given)
        assert error(found[0], value.detach().numpy()) < limit
        assert error(found[1], grad.numpy()) < limit


def test_another_energy_has_no_units_to_weigh() -> None:
    model, _ = to_onnx(torch.nn.Sequential(torch.nn.Linear(3, 1), torch.nn.Flatten(0)), (2, 3))
    with pytest.raises(StgError, match="top responses"):
        weigh_units(model)
