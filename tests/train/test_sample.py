"""What a run makes at its end: fresh samples, their measures, the report."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from support import tiny_recipe

from stg_runtime.errors import DivergenceError
from stg_runtime.langevin import INITIAL, standard_normal
from stg_runtime.measures import compare
from stg_runtime.record import read_record
from stg_runtime.video import to_pixels
from stg_train.recipe import Recipe
from stg_train.run import FINISHED, Run
from stg_train.sample import sample


@pytest.fixture
def finished(clip: Path, tmp_path: Path) -> Run:
    run = Run.start(tmp_path / "run", tiny_recipe(clip, **{"output.margin_frames": 2}))
    run.learn()
    return run


@pytest.mark.parametrize("regime", ["short-run", "persistent"])
def test_a_finished_run_is_measured_and_shown(clip: Path, tmp_path: Path, regime: str) -> None:
    run = Run.start(tmp_path / "run", tiny_recipe(clip, **{"learning.regime": regime}))
    run.learn()
    record = run.finish()
    folder = tmp_path / "run"
    assert {item.name for item in folder.iterdir()} >= set(FINISHED)
    observed, videos = np.load(folder / "observed.npy"), np.load(folder / "synthesized.npy")
    assert videos.dtype == np.uint8 and videos.shape == (2, 12, 16, 16, 3)
    assert not np.array_equal(videos[0], videos[1])
    assert record.measures == compare(list(observed), list(videos))
    assert read_record(folder / "measures.json") == record
    path = np.load(folder / "path.npy")
    assert record.path_steps == (0, 1, 2, 3, 4, 5) and path.shape == (6, 4, 16, 16, 3)
    assert np.array_equal(path[-1][[0, -1]], videos[0][[0, -1]])
    assert "fc-s" in (folder / "report.html").read_text()


def test_samples_start_at_the_runtimes_noise_and_lose_their_margins(finished: Run) -> None:
    learner = finished.learner
    samples = sample(learner, count=1, seed=11)
    noise = standard_normal(3 * 16 * 16 * 16, seed=11, chain=0, step=INITIAL)
    first = noise.reshape(3, 16, 16, 16)[:, 2:-2]  # (C, T, H, W), two frames cut at each end
    pixels = to_pixels(np.ascontiguousarray(first), learner.observed.mean, learner.observed.scale)
    assert np.array_equal(samples.path[0], pixels[[0, 4, 7, 11]])


def test_sampling_changes_nothing_and_repeats(finished: Run) -> None:
    before = {name: value.clone() for name, value in finished.learner.energy.state_dict().items()}
    noise, chains = finished.learner.noise.chances(), finished.learner.chains.clone()
    one, two = (sample(finished.learner, count=2, seed=3) for _ in range(2))
    assert np.array_equal(one.videos, two.videos) and np.array_equal(one.path, two.path)
    other = sample(finished.learner, count=1, seed=4)
    assert not np.array_equal(other.videos[0], one.videos[0])
    for name, value in finished.learner.energy.state_dict().items():
        assert torch.equal(value, before[name])
    assert finished.learner.noise.chances() == noise
    assert torch.equal(finished.learner.chains, chains)
    assert all(parameter.requires_grad for parameter in finished.learner.energy.parameters())


def test_learning_on_removes_what_it_makes_untrue(finished: Run) -> None:
    finished.finish()
    folder = finished.folder
    longer = Run.resume(folder, updates=10)
    assert (folder / "measures.json").exists()
    longer.learn(stop=lambda: longer.learner.update_count == 9)
    assert not [name for name in FINISHED if (folder / name).exists()]
    assert Run.resume(folder).learn()
    assert Run.resume(folder).finish().update == 10


def test_a_finished_run_can_be_resumed_and_overwritten(finished: Run, tiny: Recipe) -> None:
    record = finished.finish()
    folder = finished.folder
    again = Run.resume(folder)
    assert again.learn() and (folder / "report.html").exists()
    assert again.finish() == record
    Run.start(folder, tiny, overwrite=True)
    assert not [name for name in FINISHED if (folder / name).exists()]


def test_samples_that_are_not_finite_are_said_and_leave_nothing(finished: Run) -> None:
    with torch.no_grad():
        finished.learner.descriptor.convs[0].weight.fill_(torch.nan)
    with pytest.raises(DivergenceError, match="non-finite"):
        finished.finish()
    assert not [name for name in FINISHED if (finished.folder / name).exists()]


def test_a_clip_too_small_to_measure_still_gets_its_report(clip: Path, tmp_path: Path) -> None:
    recipe = tiny_recipe(clip, **{"data.frames": 6, "data.window": 6})
    run = Run.start(tmp_path / "run", recipe)
    run.learn()
    record = run.finish()
    assert record.measures is None and "at least 8 frames" in record.why_none
    assert "at least 8 frames" in (tmp_path / "run" / "report.html").read_text()
    assert json.loads((tmp_path / "run" / "measures.json").read_text())["measures"] is None
