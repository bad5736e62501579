"""Several processes are one run: the same figures and parameters, up to rounding."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from support import tiny_recipe

from stg_runtime.errors import InputError
from stg_train.checkpoint import energy_state, read_checkpoint
from stg_train.learn import Learner
from stg_train.observed import read_observed
from stg_train.parallel import World
from stg_train.run import CHECKPOINT, METRICS, Run


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def together(
    processes: int, *arguments: object, updates: int | None = None
) -> list[subprocess.CompletedProcess[str]]:
    """stg-train in several gloo processes, as torchrun starts them."""
    port = str(free_port())
    command = [sys.executable, "-m", "stg_cli.train", *(str(item) for item in arguments)]
    started = []
    for rank in range(processes):
        world = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes}
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": 1}
        environment = os.environ | {key: str(value) for key, value in (world | place).items()}
        started.append(
            subprocess.Popen(
                command,
                env=environment,
                text=True,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
            )
        )
    done = []
    for process in started:
        stdout, stderr = process.communicate(timeout=240)
        done.append(subprocess.CompletedProcess(command, process.returncode, stdout, stderr))
    return done


def recipe_file(clip: Path, folder: Path, regime: str = "short-run") -> Path:
    # Three chains and three clips on two processes: unequal shares.
    several = folder / "several.npy"
    frames = np.load(clip)
    np.save(several, np.stack([frames, frames[:, ::-1], frames[:, :, ::-1]]))
    recipe = tiny_recipe(
        several,
        precision="fp32",
        threads=1,
        **{"langevin.chains": 3, "data.batch": 3, "learning.updates": 6, "learning.regime": regime},
    )
    recipe.save(folder / "recipe.toml")
    return folder / "recipe.toml"


def records(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / METRICS).read_text().splitlines()]


def same_up_to_rounding(one: Path, other: Path) -> None:
    left, right = records(one), records(other)
    assert [record["update"] for record in left] == [record["update"] for record in right]
    # The first update differs by the order of sums only; what follows grows out of that.
    assert left[0]["grad_norm"] == pytest.approx(right[0]["grad_norm"], rel=1e-5)
    for a, b in zip(left, right, strict=True):
        for key in ("response_observed", "response_synthesized", "grad_norm", "chain_std"):
            assert a[key] == pytest.approx(b[key], rel=1e-3), (a["update"], key)
    first, second = read_checkpoint(one / CHECKPOINT), read_checkpoint(other / CHECKPOINT)
    for name, value in energy_state(first).items():
        change = float((value - energy_state(second)[name]).norm() / value.norm())
        assert change < 5e-3, (name, change)  # Adam amplifies rounding where gradients are small
    assert first.tensors["chains"].shape == second.tensors["chains"].shape
    difference = (first.tensors["chains"] - second.tensors["chains"]).std()
    # Chains of other noise would differ by about as much as they vary.
    assert float(difference / first.tensors["chains"].std()) < 5e-2


@pytest.mark.parametrize("regime", ["short-run", "persistent"])
def test_two_processes_are_one_and_resume_at_another_number(
    clip: Path, tmp_path: Path, regime: str
) -> None:
    recipe = recipe_file(clip, tmp_path, regime)
    alone = together(1, "--recipe", recipe, "-o", tmp_path / "one")[0]
    assert alone.returncode == 0, alone.stderr
    both = together(2, "--recipe", recipe, "-o", tmp_path / "two")
    assert [process.returncode for process in both] == [0, 0], both[0].stderr + both[1].stderr
    assert "2 processes" in both[0].stderr
    assert both[1].stdout == "" and "update" not in both[1].stderr
    same_up_to_rounding(tmp_path / "one", tmp_path / "two")
    # Go on with one process where two stopped, and the other way.
    for folder, processes in (("two", 1), ("one", 2)):
        after = together(processes, "-o", tmp_path / folder, "--resume", "--updates", 9)
        assert [process.returncode for process in after] == [0] * processes, after[0].stderr
    same_up_to_rounding(tmp_path / "one", tmp_path / "two")
    assert [record["update"] for record in records(tmp_path / "two")] == list(range(1, 10))


def test_a_fault_of_the_input_ends_all_processes(clip: Path, tmp_path: Path) -> None:
    recipe = recipe_file(clip, tmp_path)
    both = together(2, tmp_path / "none.mp4", "--recipe", recipe, "-o", tmp_path / "run")
    assert [process.returncode for process in both] == [2, 2]
    assert "no such file" in both[0].stderr and both[1].stderr == ""
    assert not (tmp_path / "run").exists()


def test_more_processes_than_chains_are_refused(clip: Path) -> None:
    recipe = tiny_recipe(clip)
    observed = read_observed(recipe.data, recipe.pixels)
    with pytest.raises(InputError, match="--chains 4"):
        Learner(recipe, observed, World(rank=1, size=4))


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_shares_cover_everything_once(size: int) -> None:
    shares = [World(rank, size).share(7) for rank in range(size)]
    assert sorted(number for share in shares for number in share) == list(range(7))


def test_noise_belongs_to_chain_and_update_not_to_process(clip: Path) -> None:
    from stg_train.chains import ChainNoise

    cpu, x = torch.device("cpu"), torch.empty(3, 2, 4, 5, 5)
    every, some = ChainNoise(7, [0, 1, 2], cpu), ChainNoise(7, [2, 0], cpu)
    every.begin(4)
    every.like(x)
    every.begin(5)
    whole = every.like(x)
    some.begin(5)
    part = some.like(x[:2])
    assert torch.equal(part[0], whole[2]) and torch.equal(part[1], whole[0])
    assert not torch.equal(whole[0], whole[1])
    assert not torch.equal(every.like(x), whole), "the next draw is another"
    assert abs(float(whole.mean())) < 0.15 and abs(float(whole.std()) - 1) < 0.1


def test_compiled_energy_learns_the_same(clip: Path, tmp_path: Path) -> None:
    base = {"precision": "fp32", "learning.updates": 2, "langevin.chains": 2}
    eager = Run.start(tmp_path / "eager", tiny_recipe(clip, **base))
    compiled = Run.start(tmp_path / "compiled", tiny_recipe(clip, compile=True, **base))
    for _ in range(2):
        a, b = eager.learner.update(), compiled.learner.update()
    assert a.grad_norm == pytest.approx(b.grad_norm, rel=1e-3)
    assert a.chain_std == pytest.approx(b.chain_std, rel=1e-4)
    assert torch.allclose(eager.learner.chains, compiled.learner.chains, atol=1e-3)


def test_one_process_decides_for_all() -> None:
    """What rank 0 chose is what the others take; they do not choose themselves."""
    messages: list[object] = []

    class First(World):
        def _exchange(self, value: object) -> list[object]:
            messages.append(value)
            return [value, None]

    class Other(World):
        def _exchange(self, value: object) -> list[object]:
            assert value is None
            return [messages.pop(0), None]

    assert World().from_first(lambda: "alone") == "alone"
    assert First(rank=0, size=2).from_first(lambda: "chosen") == "chosen"
    assert Other(rank=1, size=2).from_first(lambda: pytest.fail("chose itself")) == "chosen"
    messages.append(2)  # rank 0 refused
    with pytest.raises(SystemExit, match="2"):
        Other(rank=1, size=2).from_first(lambda: "chosen")
