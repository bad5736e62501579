import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from energies import CONVOLUTIONAL, FULL, SIGMA, SIZE, stg_energy

from stg_export import export_energy_grad
from stg_runtime.artifact import Precision


@pytest.fixture(scope="session")
def free_files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Files with every axis free (NTHW), and one of a spatially full network (NT)."""
    folder = tmp_path_factory.mktemp("free")
    cases: dict[str, tuple[Precision, bool, str]] = {
        "fp32": ("fp32", False, "auto"),
        "fp32-plain": ("fp32", False, "none"),
        "fp16": ("fp16", False, "auto"),
        "full": ("fp32", True, "auto"),
    }
    files = {}
    for name, (precision, full, lowering) in cases.items():
        files[name] = folder / f"{name}.onnx"
        export_energy_grad(
            stg_energy(FULL if full else CONVOLUTIONAL),
            files[name],
            example_shape=(1, 3, *SIZE),
            free_axes=("N", "T") if full else ("N", "T", "H", "W"),
            min_size=(1, 1) if full else (1, 7, 3, 7),
            precision=precision,
            lowering=lowering,
            gradient_scale=SIGMA**2,
            seed=2,
        )
    return files


@pytest.fixture(scope="session")
def static_files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One fixed size: two inputs, in both precisions, and the full network both ways."""
    folder = tmp_path_factory.mktemp("static")
    cases: dict[str, tuple[Precision, bool, str]] = {
        "fp32": ("fp32", False, "auto"),
        "fp32-plain": ("fp32", False, "none"),
        "fp16": ("fp16", False, "auto"),
        "full": ("fp32", True, "auto"),
        "full-fp16": ("fp16", True, "auto"),
        "full-plain": ("fp32", True, "none"),
    }
    files = {}
    for name, (precision, full, lowering) in cases.items():
        files[name] = folder / f"{name}.onnx"
        export_energy_grad(
            stg_energy(FULL if full else CONVOLUTIONAL),
            files[name],
            example_shape=(2, 3, *SIZE),
            precision=precision,
            lowering=lowering,
            gradient_scale=SIGMA**2,
            seed=2,
        )
    return files
