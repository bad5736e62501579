"""Is a model file what its exporter kept, and does this machine compute with it as it should?"""

from __future__ import annotations

import hashlib
import importlib.metadata
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np

from stg_runtime.artifact import DIGEST_KEY, Metadata, digest
from stg_runtime.backends.onnxruntime_cpu import (
    OnnxRuntimeCpu,
    coarser_file,
    read_model,
    read_scales,
)
from stg_runtime.langevin import Float32, standard_normal
from stg_runtime.memory import probe_size, refuse_least, resident_memory
from stg_runtime.onnx_check import check_onnx

TOLERANCE: Final = {"fp32": 0.02, "fp16": 0.2}
"""Largest relative difference of a directional derivative from finite differences of the energy.

What it can see is bounded by the energy's float32 rounding and by ReLUs that switch within the
step: 1e-5 to 3e-3 measured in fp32. A gradient of another network misses by about 1.
"""

_STEPS = (0.001, 0.003, 0.01)  # lengths of the finite differences, over the video's own
_VOXELS = 1 << 15  # of the check, about


@dataclass(frozen=True)
class Check:
    """One thing that was looked at.

    Attributes:
        name: what.
        passed: None where there is nothing to hold it against.
        detail: figures.
    """

    name: str
    passed: bool | None
    detail: str

    @property
    def result(self) -> str:
        """One word."""
        return {True: "ok", False: "FAILED", None: "-"}[self.passed]

    def as_dict(self) -> dict[str, Any]:
        """For programs."""
        return asdict(self)


def verify(path: Path) -> list[Check]:
    """Look at a model file in every way that needs no training run and no PyTorch.

    Of several scales each is looked at; the checks of the coarser ones have names that begin with
    "scale 2", "scale 3", ...

    Raises:
        InputError: it, or a scale that it holds, cannot be loaded at all.
    """
    checks, scales = _verify(path), len(read_scales(path))
    with ExitStack() as stack:
        for number in range(2, scales + 1):
            path = stack.enter_context(coarser_file(path))
            checks += [replace(item, name=f"scale {number}, {item.name}") for item in _verify(path)]
    return checks


def _verify(path: Path) -> list[Check]:
    """The checks of a file's finest scale."""
    data = read_model(path)
    summary = check_onnx(data, str(path))
    gradient = OnnxRuntimeCpu(path, 1)
    metadata = gradient.metadata
    checks = [
        Check("file", None, f"SHA-256 {hashlib.sha256(data).hexdigest()}, {len(data)} bytes"),
        Check(
            "contents",
            True,
            f"{summary.nodes} operators of {len(summary.operators)} kinds, all known, "
            f"{summary.weights / 1e6:.2f} MB of weights, nothing outside the file",
        ),
        _graph(hashlib.sha256(summary.graph).hexdigest(), metadata),
        _metadata(digest(summary.metadata), summary.metadata.get(DIGEST_KEY)),
        Check(
            "opset",
            summary.opset == metadata.opset,
            f"{summary.opset} in the graph, {metadata.opset} stated",
        ),
        _parity(metadata),
    ]
    _refuse_larger(path, metadata)
    x = _inputs(metadata)
    first = _evaluate(gradient, x)
    checks += [_repeatable(first, _evaluate(gradient, x)), _gradient(gradient, x, *first)]
    return [*checks, _versions(metadata)]


def _refuse_larger(path: Path, metadata: Metadata) -> None:
    """Refuse a file whose smallest input does not fit, before anything of its size is made.

    Raises:
        InputError: the least that the check takes, and what is there.
    """
    size = probe_size(metadata, _VOXELS)
    # The input, its gradient and the network's part of that, in float32 and in float64.
    values = metadata.channels * size.frames * size.height * size.width
    needed = resident_memory() + (4 + 4 + 8 + 8) * values
    refuse_least(needed, f"{path}: its gradient cannot be looked at here: an input of {size}")


def _graph(found: str, metadata: Metadata) -> Check:
    if metadata.graph_sha256 is None:
        return Check("graph", None, f"SHA-256 {found[:16]}..., none stored (an older export)")
    same = found == metadata.graph_sha256
    what = "as it was compared" if same else f"not the one compared, {metadata.graph_sha256[:16]}"
    return Check("graph", same, f"SHA-256 {found[:16]}..., {what} with float64 autograd at export")


def _metadata(found: str, stored: str | None) -> Check:
    """Of all that the file holds beside the graph; against damage, for whoever forges can hash."""
    if stored is None:
        return Check("metadata", None, f"SHA-256 {found[:16]}..., none stored (an older export)")
    what = "as it was exported" if found == stored else f"not what was exported, {stored[:16]}"
    return Check("metadata", found == stored, f"SHA-256 {found[:16]}..., {what}")


def _parity(metadata: Metadata) -> Check:
    if not metadata.parity:
        return Check("parity", None, "not checked at export")
    worst = max(figure.energy_grad_error for figure in metadata.parity)
    limit = {"fp32": 1e-3, "fp16": 1e-1}[metadata.precision]
    sizes = f"{len(metadata.parity)} inputs at export"
    return Check("parity", worst <= limit, f"gradient within {worst:.1e} of float64, {sizes}")


def _inputs(metadata: Metadata) -> Float32:
    size = probe_size(metadata, _VOXELS)
    shape = (1, metadata.channels, size.frames, size.height, size.width)
    return standard_normal(int(np.prod(shape)), seed=1, chain=0, step=0).reshape(shape)


def _evaluate(gradient: OnnxRuntimeCpu, x: Float32) -> tuple[float, Float32]:
    grad = np.empty_like(x)
    gradient.bind(x, grad)
    return float(gradient.run()[0]), grad


def _repeatable(first: tuple[float, Float32], again: tuple[float, Float32]) -> Check:
    same = first[0] == again[0] and np.array_equal(first[1], again[1])
    finite = bool(np.isfinite(first[0]) and np.isfinite(first[1]).all())
    says = "finite, twice the same bits" if same and finite else f"energy {first[0]}, {again[0]}"
    return Check("evaluation", same and finite, says)


def _gradient(gradient: OnnxRuntimeCpu, x: Float32, energy: float, grad: Float32) -> Check:
    """Central differences of the energy along the network's own part of the gradient."""
    metadata = gradient.metadata
    variance = metadata.reference_std**2
    network = grad.astype(np.float64) - x / variance
    size = float(np.linalg.norm(network))
    name = "gradient"
    if not np.isfinite(size) or not np.isfinite(energy):
        return Check(name, False, "not finite")
    if size <= 1e-6 * float(np.linalg.norm(grad)):
        return Check(name, None, "the network is silent at this input: no gradient to hold against")
    direction = network / size
    slope = float((grad * direction).sum())
    scale = max(abs(slope), size)
    errors = []
    for share in _STEPS:
        step = share * float(np.linalg.norm(x))
        ends = [_evaluate(gradient, (x + s * step * direction).astype(np.float32)) for s in (1, -1)]
        errors.append(abs((ends[0][0] - ends[1][0]) / (2 * step) - slope) / scale)
    error, allowed = min(errors), TOLERANCE[metadata.precision]
    shape = "x".join(map(str, x.shape[2:]))
    return Check(
        name,
        error <= allowed,
        f"within {error:.1e} of finite differences of the energy at {shape} (allowed {allowed:g})",
    )


def _versions(metadata: Metadata) -> Check:
    said = []
    for name, made in metadata.versions.items():
        try:
            here = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            here = "not here"
        said.append(f"{name} {made}" + ("" if here == made else f" ({here})"))
    return Check("versions", None, "of the export (here, where other): " + ", ".join(said))
