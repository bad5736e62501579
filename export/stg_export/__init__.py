"""The gradient graph of an energy, as one ONNX file."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stg_export.onnx import export_energy_grad
    from stg_export.parity import check_parity
    from stg_export.run import export_run
    from stg_export.tensorrt import build_engine

__all__ = ["build_engine", "check_parity", "export_energy_grad", "export_run"]

_HOME = {
    "build_engine": "tensorrt",
    "check_parity": "parity",
    "export_energy_grad": "onnx",
    "export_run": "run",
}


def __getattr__(name: str) -> Any:
    """Import on first use: torch and its exporter take seconds."""
    if name in _HOME:
        return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
