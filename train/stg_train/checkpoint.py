"""Checkpoints: everything a run needs to go on bit for bit, in one safetensors file."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from stg_runtime.errors import InputError
from stg_runtime.files import atomic_write_bytes
from stg_train.learn import Kept, Learner
from stg_train.recipe import Recipe, parse_recipe

SCHEMA_VERSION = 1
_KEY = "stg_checkpoint"
_COARSER = "coarser."  # of the names of a coarser scale's tensors, once for each finer scale


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint file holds.

    Attributes:
        tensors: parameters ("energy.*"), those that the guard keeps ("kept.*"), Adam's moments
            ("adam.*"), chains, mean, the state of the choice of windows, and the recovery of
            incomplete clips ("recovery.*").
        recipe: resolved recipe of the run.
        update: parameter updates made.
        norm_mean: running mean of the gradient norm.
        response_mean: running mean of the observed response.
        kept: update and returns of the parameters that the guard keeps ("kept.*"), or None.
        best: the same of those with the best samples ("best.*"), or None.
        best_score: of these samples; None for none, or none that stayed finite.
        returns: how often the guard has gone back.
        fps: of the clips.
        mean: grey levels subtracted, float32, (C, 1, 1), (C, H, W) or (C, T, H, W).
        scale: grey levels per model unit.
        clips: SHA-256 of each prepared clip.
        versions: of stg and torch.
        coarser: the same of the next coarser scale in multi-grid learning, or None.
    """

    tensors: dict[str, Tensor]
    recipe: Recipe
    update: int
    norm_mean: float
    response_mean: float
    kept: dict[str, int] | None
    best: dict[str, int] | None
    best_score: float | None
    returns: int
    fps: float
    mean: NDArray[np.float32]
    scale: float
    clips: tuple[str, ...]
    versions: dict[str, str]
    coarser: Checkpoint | None = None


def save_checkpoint(path: Path, learner: Learner, versions: dict[str, str]) -> None:
    """Write the state of a run, whole or not at all; rank 0 writes, all processes call it."""
    chains = [scale.all_chains() for scale in learner.scales()]
    if learner.world.first:
        atomic_write_bytes(path, checkpoint_bytes(learner, chains, versions))


def checkpoint_bytes(learner: Learner, chains: Sequence[Tensor], versions: dict[str, str]) -> bytes:
    """The state of a run with its chains, as a checkpoint's file holds it.

    Args:
        learner: of the run.
        chains: of all processes, of each of `Learner.scales`; see `Learner.all_chains`.
        versions: of stg and torch.
    """
    header, tensors = _state(learner, chains, versions)
    plain = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    return save(plain, {_KEY: json.dumps(header)})


def _state(
    learner: Learner, chains: Sequence[Tensor], versions: dict[str, str]
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    tensors = {f"energy.{name}": value for name, value in learner.energy.state_dict().items()}
    for index, state in learner.optimizer.state_dict()["state"].items():
        for name, value in state.items():
            tensors[f"adam.{index}.{name}"] = value
    for prefix, kept in (("kept", learner.kept), ("best", learner.best)):
        if kept is not None:
            for name, value in kept.parameters.items():
                tensors[f"{prefix}.{name}"] = value
    tensors["chains"] = chains[0]
    tensors["random.choice"] = learner.choice.get_state()
    if learner.recovery is not None:
        tensors["recovery.x"] = learner.recovery.x
        tensors["recovery.first"] = learner.recovery.first
    observed = learner.observed
    header = {
        "schema_version": SCHEMA_VERSION,
        "recipe": learner.recipe.model_dump(mode="json", exclude_none=True),
        "update": learner.update_count,
        "kept": learner.kept and {"update": learner.kept.update, "returns": learner.kept.returns},
        "best": learner.best and {"update": learner.best.update, "returns": learner.best.returns},
        "best_score": learner.best_score if math.isfinite(learner.best_score) else None,
        "returns": learner.returns,
        "norm_mean": learner.norm_mean,
        "response_mean": learner.response_mean,
        "fps": observed.fps,
        "scale": observed.scale,
        "clips": observed.hashes(),
        "versions": versions,
    }
    tensors["mean"] = torch.from_numpy(observed.mean)
    if learner.coarser is not None:
        header["coarser"], coarser = _state(learner.coarser, chains[1:], versions)
        tensors |= {f"{_COARSER}{name}": value for name, value in coarser.items()}
    return header, tensors


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint file.

    Raises:
        InputError: missing, truncated, not ours, or of another schema version.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such checkpoint; give the folder that stg-train -o wrote")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if _KEY not in metadata:
                raise InputError(f"{path}: a safetensors file, but not a checkpoint of stg-train")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path}: not a readable checkpoint ({error})") from None
    with _damage_named(path):
        header = json.loads(metadata[_KEY])
        return _parse(path, header, tensors)


@contextmanager
def _damage_named(path: Path) -> Iterator[None]:
    """Whatever goes wrong on the way through a file's contents is the file's fault."""
    try:
        yield
    except (
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        RuntimeError,
        ArithmeticError,
    ) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"{path}: a damaged checkpoint, or of another stg ({type(error).__name__}: {reason})"
        ) from None


def _parse(path: Path, header: dict[str, Any], tensors: dict[str, Tensor]) -> Checkpoint:
    if header.get("schema_version") != SCHEMA_VERSION:
        raise InputError(
            f"{path}: checkpoint schema {header.get('schema_version')}, this stg reads schema "
            f"{SCHEMA_VERSION}; train again, or use the stg that wrote it "
            f"({header.get('versions', {}).get('stg', 'unknown')})"
        )
    coarser = None
    if "coarser" in header:
        inner = {
            name.removeprefix(_COARSER): value
            for name, value in tensors.items()
            if name.startswith(_COARSER)
        }
        coarser = _parse(path, header["coarser"], inner)
    kept = header["kept"]
    best, best_score = header.get("best"), header.get("best_score")  # not in older files
    recipe = parse_recipe(header["recipe"], str(path))
    if (recipe.scales > 1) != (coarser is not None):
        raise ValueError("its recipe and its state are of different numbers of scales")
    if not all(bool(torch.isfinite(t).all()) for t in tensors.values() if t.is_floating_point()):
        raise ValueError("a tensor holds values that are not finite")
    mean = tensors["mean"]
    size = recipe.data.size
    pixels = {"channel": (1, 1), "image": size, "video": (recipe.data.trained_frames, *size)}
    shape = (len(mean), *pixels[recipe.pixels.mean])
    if mean.dtype != torch.float32 or mean.shape != shape or not 1 <= len(mean) <= 4:
        raise ValueError(f"mean is {mean.dtype} of shape {tuple(mean.shape)}, expected {shape}")
    if mean.min() < 0 or mean.max() > 255:
        raise ValueError("mean holds no grey levels, from 0 to 255")
    return Checkpoint(
        coarser=coarser,
        tensors={k: value for k, value in tensors.items() if not k.startswith(_COARSER)},
        recipe=recipe,
        update=_count(header, "update"),
        norm_mean=_number(header, "norm_mean"),
        response_mean=_number(header, "response_mean"),
        kept=None if kept is None else {name: _count(kept, name) for name in ("update", "returns")},
        best=None if best is None else {name: _count(best, name) for name in ("update", "returns")},
        best_score=None if best_score is None else _number(header, "best_score"),
        returns=_count(header, "returns"),
        fps=_number(header, "fps", 1e-3, 1e6),
        mean=mean.numpy(),
        scale=_number(header, "scale", 1e-12, 1e12),
        clips=tuple(str(clip) for clip in header["clips"]),
        versions={str(name): str(value) for name, value in header["versions"].items()},
    )


def _count(header: dict[str, Any], name: str) -> int:
    value = header[name]
    if type(value) is not int or not 0 <= value < 2**53:
        raise ValueError(f"{name} is {value!r:.60}, no count")
    return value


def _number(header: dict[str, Any], name: str, least: float = -1e300, most: float = 1e300) -> float:
    value = header[name]
    if type(value) not in (int, float) or not least <= value <= most:
        raise ValueError(f"{name} is {value!r:.60}, out of range")
    return float(value)


def energy_state(checkpoint: Checkpoint, prefix: str = "energy.") -> dict[str, Tensor]:
    """The parameters, as `Energy.load_state_dict` takes them."""
    return {
        name.removeprefix(prefix): value
        for name, value in checkpoint.tensors.items()
        if name.startswith(prefix)
    }


def load_parameters(energy: nn.Module, checkpoint: Checkpoint, path: Path) -> None:
    """Give an energy the checkpoint's parameters.

    Raises:
        InputError: they do not fit the network of the checkpoint's recipe.
    """
    with _damage_named(path):
        energy.load_state_dict(energy_state(checkpoint))


def restore(learner: Learner, checkpoint: Checkpoint, path: Path) -> None:
    """Put a learner of the same recipe and clips back where the checkpoint was taken.

    The number of processes may be another: noise belongs to chain and update. Another kind of
    device draws other noise.

    Raises:
        InputError: the checkpoint does not fit its own recipe.
    """
    with _damage_named(path):
        _restore(learner, checkpoint)


def _check_tensors(learner: Learner, checkpoint: Checkpoint) -> None:
    """Refuse tensors that are missing, too many or of another shape than the learner's.

    Raises:
        ValueError: the first such one.
    """
    found = {name: tuple(value.shape) for name, value in checkpoint.tensors.items()}
    energy = {name: tuple(value.shape) for name, value in learner.energy.state_dict().items()}
    here = (len(learner.observed.mean), learner.observed.pixels.shape[-1])
    if here[0] != here[1]:
        raise ValueError(f"mean of {here[0]} channels, the clips have {here[1]}")
    expected = {
        "chains": (learner.recipe.langevin.chains, *learner.chains.shape[1:]),
        "random.choice": tuple(learner.choice.get_state().shape),
        "mean": learner.observed.mean.shape,
    }
    kept = {"energy": True, "kept": checkpoint.kept, "best": checkpoint.best}
    for prefix, there in kept.items():
        if there is not None:
            expected |= {f"{prefix}.{name}": shape for name, shape in energy.items()}
    groups = learner.optimizer.param_groups
    for index, value in enumerate(value for group in groups for value in group["params"]):
        moments = {"step": (), "exp_avg": tuple(value.shape), "exp_avg_sq": tuple(value.shape)}
        names = {f"adam.{index}.{name}": shape for name, shape in moments.items()}
        if names.keys() & found.keys():  # none before the first update, or above the depth
            expected |= names
            step = checkpoint.tensors.get(f"adam.{index}.step", torch.zeros(()))
            if bool((step < 0).any()):
                raise ValueError(f"adam.{index}.step is below 0")
    if learner.recovery is not None:  # which checks their shapes
        expected |= {name: found.get(name, ()) for name in ("recovery.x", "recovery.first")}
    for name in sorted(expected.keys() | found.keys()):
        if expected.get(name) != found.get(name):
            raise ValueError(
                f"{name} is of shape {found.get(name, 'none')}, expected "
                f"{expected.get(name, 'no such tensor')}"
            )


def _restore(learner: Learner, checkpoint: Checkpoint) -> None:
    _check_tensors(learner, checkpoint)
    learner.energy.load_state_dict(energy_state(checkpoint))
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in checkpoint.tensors.items():
        if name.startswith("adam."):
            _, index, field = name.split(".")
            state.setdefault(int(index), {})[field] = value
    groups = learner.optimizer.state_dict()["param_groups"]
    learner.optimizer.load_state_dict({"state": state, "param_groups": groups})
    chains = checkpoint.tensors["chains"][learner.numbers]
    learner.chains = torch.empty_like(learner.chains).copy_(chains)
    learner.choice.set_state(checkpoint.tensors["random.choice"])
    learner.update_count = checkpoint.update
    learner.norm_mean = checkpoint.norm_mean
    learner.response_mean = checkpoint.response_mean
    learner.returns = checkpoint.returns
    if learner.recovery is not None:
        learner.recovery.restore(
            checkpoint.tensors["recovery.x"], checkpoint.tensors["recovery.first"]
        )
    if learner.coarser is not None and checkpoint.coarser is not None:
        _restore(learner.coarser, checkpoint.coarser)
    learner.kept = _kept(learner, checkpoint, "kept.", checkpoint.kept)
    learner.best = _kept(learner, checkpoint, "best.", checkpoint.best)
    if checkpoint.best_score is not None:
        learner.best_score = checkpoint.best_score


def _kept(
    learner: Learner, checkpoint: Checkpoint, prefix: str, stored: dict[str, int] | None
) -> Kept | None:
    if stored is None:
        return None
    parameters = energy_state(checkpoint, prefix)
    on_device = {name: value.to(learner.device) for name, value in parameters.items()}
    return Kept(**stored, parameters=on_device)
