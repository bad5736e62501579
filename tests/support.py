"""What several tests build on."""

import subprocess
import sys
from pathlib import Path

from stg_train.recipe import Recipe, load_recipe

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


def tiny_recipe(clip: Path, **overrides: object) -> Recipe:
    return load_recipe(
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
