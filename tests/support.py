"""What several tests build on."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import torch

from stg_runtime.backends.base import HostGradient
from stg_runtime.windows import Windowed
from stg_train.checkpoint import read_checkpoint
from stg_train.recipe import Recipe, load_recipe
from stg_train.run import CHECKPOINT, Run

BIN = Path(sys.executable).parent


def run(*arguments: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run one of our commands."""
    command = [str(BIN / str(arguments[0])), *(str(argument) for argument in arguments[1:])]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, timeout=300)


def refused(result: subprocess.CompletedProcess[str], says: str) -> None:
    """Exit code 2 and one line that names the fault."""
    assert result.returncode == 2, (result.returncode, result.stderr)
    assert len(result.stderr.strip().splitlines()) == 1, result.stderr
    assert says in result.stderr, result.stderr
    assert result.stderr.startswith("error: ")
    assert not result.stdout


def tiny_metadata(**changes: object) -> dict[str, object]:
    """Fields of the metadata of a model of 8 x 8 x 8 pixels."""
    size = {"frames": 8, "height": 8, "width": 8}
    values: dict[str, object] = {
        "recipe": "test", "reference_std": 1.5, "step_size": 0.3, "noise_scale": 1.0, "n_steps": 6,
        "init_std": 1.0, "pixel_mean": (100.0, 110.0, 120.0), "pixel_scale": 20.0,
        "size": {**size, "frames": 6}, "margin_frames": 1, "fps": 25.0, "free_axes": (),
        "graph_size": size, "min_size": size, "clips": (), "precision": "fp32", "opset": 18,
        "lowering": "none", "versions": {}, "parity": (),
    }  # fmt: skip
    return values | changes


def tiny_recipe(clip: Path, **overrides: object) -> Recipe:
    recipe = load_recipe(
        "fc-s",
        overrides={
            "data.videos": [str(clip)],
            "data.size": [16, 16],
            "data.frames": 12,
            "data.window": 8,
            "pixels.mean": "channel",
            "network.layers": [
                {"filters": 8, "kernel": [4, 4, 4], "stride": [2, 2, 2], "padding": [1, 1, 1]},
                {"filters": 8, "kernel": [3, 5, 5], "stride": [1, 1, 1], "padding": [1, 2, 2]},
            ],
            "langevin.first_noise": "white",
            "langevin.reference_std": 0.0158113883,
            "langevin.step_size": 0.01,
            "langevin.n_steps": 5,
            "learning.regime": "short-run",
            "learning.learning_rate": 0.02,
            "learning.updates": 8,
            "output.checkpoint_every": 3,
            "output.sheet_every": 100,
            "device": "cpu",
            **overrides,
        },
    )
    # Measuring takes longer than everything else here.
    every = overrides.get("learning.select_every")
    learning = recipe.learning.model_copy(update={"select_every": every})
    return recipe.model_copy(update={"learning": learning})


def check_resume(recipe: Recipe, clip: Path, folder: Path) -> None:
    """A run that is cut after four updates ends as an uncut one, bit for bit, without its clip."""
    Run.start(folder / "whole", recipe).learn()
    cut = Run.start(folder / "cut", recipe)
    assert not cut.learn(stop=lambda: cut.learner.update_count == 4)
    clip.unlink()  # a resumed run needs only its folder
    assert Run.resume(folder / "cut").learn()
    assert same_state(folder / "whole", folder / "cut")


def check_windows(
    backend: HostGradient, shape: tuple[int, ...], pieces: tuple[int, int, int]
) -> None:
    """The gradient made from pieces is that of the whole, to rounding."""
    x = np.random.default_rng(0).standard_normal(shape, np.float32)
    grads = []
    for gradient in (backend, Windowed(backend, pieces=pieces)):
        grads.append(np.full_like(x, np.nan))
        gradient.bind(x, grads[-1])
        gradient.run()
    limit = 2e-6 * float(np.abs(grads[0]).max())
    np.testing.assert_allclose(grads[1], grads[0], atol=limit, rtol=0)


def same_state(a: Path, b: Path) -> bool:
    """Do two runs' folders hold the same checkpoint?"""
    left, right = read_checkpoint(a / CHECKPOINT), read_checkpoint(b / CHECKPOINT)
    assert left.tensors.keys() == right.tensors.keys()
    return left.update == right.update and all(
        torch.equal(value, right.tensors[name]) for name, value in left.tensors.items()
    )
