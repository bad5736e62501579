"""A run ends with the parameters whose fresh samples were the best."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from support import tiny_recipe

from stg_runtime.errors import DivergenceError
from stg_runtime.measures import compare
from stg_train import run as run_module
from stg_train import select
from stg_train.checkpoint import read_checkpoint
from stg_train.run import CHECKPOINT, METRICS, Run
from stg_train.select import sample_score, score


def scores(run: Path) -> dict[int, float | None]:
    lines = [json.loads(line) for line in (run / METRICS).read_text().splitlines()]
    return {line["update"]: line["score"] for line in lines}


def same_energy(run: Path, wanted: dict[str, torch.Tensor]) -> bool:
    tensors = read_checkpoint(run / CHECKPOINT).tensors
    return all(torch.equal(tensors[f"energy.{name}"], value) for name, value in wanted.items())


def test_the_best_parameters_are_kept_and_measured(
    clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = iter([0.9, 0.4, math.inf, 0.7])
    monkeypatch.setattr(run_module, "sample_score", lambda learner: next(told))
    work = Run.start(tmp_path / "run", tiny_recipe(clip, **{"learning.select_every": 2}))
    at: dict[int, dict[str, torch.Tensor]] = {}
    work.learn(lambda metrics: at.update({metrics.update: work.learner.parameters()}))
    assert work.learner.best is not None and work.learner.best.update == 4
    # Of update 4, and not the last one's, which differ.
    assert same_energy(tmp_path / "run", at[4]) and not torch.equal(
        at[4]["descriptor.convs.0.weight"], at[6]["descriptor.convs.0.weight"]
    )
    assert {k: v for k, v in scores(tmp_path / "run").items() if v} == {2: 0.9, 4: 0.4, 8: 0.7}
    # What is exported is what was measured.
    assert np.array_equal(
        read_checkpoint(tmp_path / "run" / CHECKPOINT).tensors["best.descriptor.convs.0.weight"],
        at[4]["descriptor.convs.0.weight"],
    )


def test_of_equals_the_earlier_is_kept(
    clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = iter([0.5, 0.495, 0.48, 0.475])
    monkeypatch.setattr(run_module, "sample_score", lambda learner: next(told))
    work = Run.start(tmp_path / "run", tiny_recipe(clip, **{"learning.select_every": 2}))
    work.learn()
    # 0.495 is within the margin of 0.5 and 0.475 of 0.48; 0.48 is not of 0.5.
    assert work.learner.best is not None and work.learner.best.update == 6
    assert work.learner.best_score == 0.48


def test_a_stop_in_between_changes_nothing(clip: Path, tmp_path: Path) -> None:
    recipe = tiny_recipe(clip, **{"learning.select_every": 3})
    Run.start(tmp_path / "whole", recipe).learn()
    cut = Run.start(tmp_path / "cut", recipe)
    assert not cut.learn(stop=lambda: cut.learner.update_count == 5)
    cut.close()
    assert Run.resume(tmp_path / "cut").learn()
    assert scores(tmp_path / "whole") == scores(tmp_path / "cut")
    left, right = (read_checkpoint(tmp_path / run / CHECKPOINT) for run in ("whole", "cut"))
    assert left.best == right.best and left.best_score == right.best_score
    assert all(torch.equal(value, right.tensors[name]) for name, value in left.tensors.items())


def test_measuring_does_not_disturb_learning(clip: Path, tmp_path: Path) -> None:
    for name, every in (("with", 1), ("without", None)):
        work = Run.start(tmp_path / name, tiny_recipe(clip, **{"learning.select_every": every}))
        work.learn(stop=lambda work=work: work.learner.update_count == 6)
    chains = [
        read_checkpoint(tmp_path / name / CHECKPOINT).tensors["chains"]
        for name in ("with", "without")
    ]
    assert torch.equal(*chains)


def test_a_walk_that_diverges_is_the_worst(
    clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def diverges(*_: object, **__: object) -> None:
        raise DivergenceError("gone")

    learner = Run.start(tmp_path / "run", tiny_recipe(clip)).learner
    monkeypatch.setattr(select, "sample", diverges)
    assert sample_score(learner) == math.inf


def test_the_score_is_0_for_the_clip_but_for_being_a_replay() -> None:
    rng = np.random.default_rng(0)
    video = rng.integers(0, 255, (16, 24, 24, 3)).astype(np.uint8)
    other = rng.integers(0, 255, (16, 24, 24, 3)).astype(np.uint8)
    replay, fresh = compare([video], [video, other]).videos
    assert score(replay) == pytest.approx((1 / select.DIFFERENCE) / 7)
    assert score(fresh) < score(replay)


def test_a_collapse_ends_learning_with_the_best_and_not_the_run(
    clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    told = iter([0.4, 0.9])
    monkeypatch.setattr(run_module, "sample_score", lambda learner: next(told))
    work = Run.start(tmp_path / "run", tiny_recipe(clip, **{"learning.select_every": 2}))
    update, at = work.learner.update, {}

    def collapses() -> object:
        if work.learner.update_count == 5:
            raise DivergenceError("update 6: gone")
        return update()

    monkeypatch.setattr(work.learner, "update", collapses)
    assert work.learn(lambda metrics: at.update({metrics.update: work.learner.parameters()}))
    assert "learning ends early: update 6: gone" in caplog.text
    work.close()
    assert same_energy(tmp_path / "run", at[2])
    # A finished run of five updates, for whoever opens it.
    again = Run.resume(tmp_path / "run")
    assert again.learner.update_count == again.learner.recipe.learning.updates == 5
    again.close()


def test_the_first_update_after_a_resume_may_collapse(
    clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = Run.start(tmp_path / "run", tiny_recipe(clip, **{"learning.select_every": 2}))
    work.learn(stop=lambda: work.learner.update_count == 4)
    work.close()
    again = Run.resume(tmp_path / "run")

    def collapses() -> None:
        raise DivergenceError("update 5: gone")

    monkeypatch.setattr(again.learner, "update", collapses)
    assert again.learn()
    again.close()
    assert read_checkpoint(tmp_path / "run" / CHECKPOINT).recipe.learning.updates == 4


def test_a_collapse_before_anything_was_measured_is_an_error(
    clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = Run.start(tmp_path / "run", tiny_recipe(clip, **{"learning.select_every": 4}))

    def collapses() -> None:
        raise DivergenceError("update 1: gone")

    monkeypatch.setattr(work.learner, "update", collapses)
    with pytest.raises(DivergenceError, match="gone"):
        work.learn()
