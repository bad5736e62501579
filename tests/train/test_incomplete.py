"""Learning from incomplete video: hidden pixels are never read, visible ones never move."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from support import tiny_recipe

from stg_runtime.errors import InputError
from stg_runtime.inpaint import seam
from stg_runtime.video import to_model
from stg_train.checkpoint import read_checkpoint
from stg_train.incomplete import FIGURES, LEFT, MASK, RECOVERED, TRUTH, read_incomplete
from stg_train.learn import Learner
from stg_train.observed import Observed
from stg_train.recipe import Recipe
from stg_train.run import CHECKPOINT, METRICS, OBSERVED, Run, resolve

PATTERNS = ["region:6", "frames:0.5", "salt-pepper:0.5"]


def incomplete(clip: Path, mask: object = "region:6", **overrides: object) -> Recipe:
    settings = {"output.margin_frames": 2, "incomplete.regime": "persistent"}
    return tiny_recipe(clip, **{"data.mask": str(mask), **settings, **overrides})


def whole_run(folder: Path, recipe: Recipe) -> Run:
    run = Run.start(folder, recipe)
    run.learn()
    run.finish_recovery()
    return run


def same_tensors(a: Path, b: Path) -> bool:
    left, right = read_checkpoint(a / CHECKPOINT), read_checkpoint(b / CHECKPOINT)
    assert left.tensors.keys() == right.tensors.keys()
    return all(torch.equal(value, right.tensors[name]) for name, value in left.tensors.items())


@pytest.fixture
def user_mask(tmp_path: Path) -> Path:
    hidden = np.zeros((12, 16, 16), bool)
    for t in range(12):
        hidden[t, 4:10, t % 8 : t % 8 + 6] = True
    np.save(tmp_path / "user-mask.npy", hidden)
    return tmp_path / "user-mask.npy"


@pytest.mark.parametrize("mask", [*PATTERNS, "user"])
def test_hidden_pixels_are_never_read(
    clip: Path, tmp_path: Path, user_mask: Path, mask: str
) -> None:
    """Other values where hidden: the same parameters, chains and recovery, to the bit."""
    recipe = incomplete(clip, user_mask if mask == "user" else mask, **{"learning.updates": 3})
    whole_run(tmp_path / "a", recipe)
    observed_mask = np.load(tmp_path / "a" / MASK)[0]
    frames = np.load(clip)
    corrupt = np.random.default_rng(5).integers(0, 256, frames.shape, dtype=np.uint8)
    np.save(clip, np.where(observed_mask[..., None], frames, corrupt))
    whole_run(tmp_path / "b", recipe)
    assert same_tensors(tmp_path / "a", tmp_path / "b")
    for name in (OBSERVED, MASK, METRICS, RECOVERED, "recovered.mp4", "recovered-sample.mp4"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name


@pytest.mark.parametrize("mean", ["channel", "image"])
def test_mean_and_scale_are_of_visible_pixels(clip: Path, mean: str) -> None:
    recipe = incomplete(clip, "salt-pepper:0.3", **{"pixels.mean": mean})
    observed, truth = read_incomplete(recipe.data, recipe.pixels, recipe.seed)
    assert observed.observed_mask is not None and truth is not None
    seen = np.where(observed.observed_mask[0][..., None], truth[0], np.nan)
    expected = np.nanmean(seen, axis=0 if mean == "image" else (0, 1, 2))
    expected = np.moveaxis(expected, -1, 0) if mean == "image" else expected[:, None, None]
    np.testing.assert_allclose(observed.mean, expected, atol=2e-3)
    spread = np.nanmean((seen - np.moveaxis(np.broadcast_to(expected, (3, 16, 16)), 0, -1)) ** 2)
    assert observed.scale == pytest.approx(float(np.sqrt(spread)), rel=1e-4)
    assert not observed.pixels[0][~observed.observed_mask[0]].any()


@pytest.mark.parametrize("regime", ["short-run", "persistent"])
def test_visible_values_never_move_and_hidden_ones_do(clip: Path, regime: str) -> None:
    recipe = resolve(incomplete(clip, **{"learning.regime": regime}))
    observed, _ = read_incomplete(recipe.data, recipe.pixels, recipe.seed)
    assert observed.observed_mask is not None
    work = Learner(recipe, observed)
    given = to_model(observed.pixels[0], observed.mean, observed.scale)
    mask = np.broadcast_to(observed.observed_mask[0], given.shape)
    assert work.recovery is not None
    before = work.recovery.x.clone()
    for _ in range(30):
        work.update()
        x = work.recovery.x[0].numpy()
        np.testing.assert_array_equal(x[mask], given[mask])
    moved = (work.recovery.x != before)[0, 0].numpy()
    # Every hidden pixel of the whole clip is walked, those of its first and last frames as well.
    assert (moved == ~observed.observed_mask[0]).all()


def test_windows_are_parts_of_the_recovery_and_their_cut_ends_stay(clip: Path) -> None:
    recipe = resolve(incomplete(clip, "salt-pepper:0.5"))
    observed, _ = read_incomplete(recipe.data, recipe.pixels, recipe.seed)
    work = Learner(recipe, observed)
    recovery = work.recovery
    assert recovery is not None and recovery.border == 2
    for start, still in ((0, [6, 7]), (2, [2, 3, 8, 9]), (4, [4, 5])):
        before = recovery.x.clone()
        window = recovery.walk_windows(work.energy, [0], [start], 8, work._draw)
        assert torch.equal(window[0], recovery.x[0, :, start : start + 8])
        frames = (recovery.x != before)[0].any(0).any(-1).any(-1)
        outside = [t for t in range(12) if not start <= t < start + 8]
        assert frames.tolist() == [t not in (*still, *outside) for t in range(12)]


@pytest.mark.parametrize("pattern", PATTERNS)
def test_resume_is_bit_for_bit(clip: Path, tmp_path: Path, pattern: str) -> None:
    recipe = incomplete(clip, pattern, precision="bf16")
    whole_run(tmp_path / "whole", recipe)
    cut = Run.start(tmp_path / "cut", recipe)
    assert not cut.learn(stop=lambda: cut.learner.update_count == 4)
    clip.unlink()
    resumed = Run.resume(tmp_path / "cut")
    assert resumed.learn()
    resumed.finish_recovery()
    assert same_tensors(tmp_path / "whole", tmp_path / "cut")
    for name in (METRICS, *LEFT):
        a, b = (tmp_path / run / name for run in ("whole", "cut"))
        assert a.read_bytes() == b.read_bytes(), name


def test_restarted_recoveries_begin_at_the_first_values(clip: Path) -> None:
    """With steps too small to move anything, only a persistent recovery keeps what it was given."""
    still = {"langevin.noise_scale": 0.0, "langevin.step_size": 1e-6, "data.window": 12}
    for regime, kept in (("persistent", True), ("restart", False)):
        recipe = resolve(incomplete(clip, **still, **{"incomplete.regime": regime}))
        observed, _ = read_incomplete(recipe.data, recipe.pixels, recipe.seed)
        work = Learner(recipe, observed)
        assert work.recovery is not None
        work.recovery.x.add_(1.0)
        window = work.recovery.walk_windows(work.energy, [0], [0], 12, work._draw)
        expected = work.recovery.first + (1.0 if kept else 0.0)
        assert torch.allclose(window, expected, atol=1e-4)


def test_recovered_video_keeps_visible_pixels_and_its_error_is_the_truth(
    clip: Path, tmp_path: Path
) -> None:
    whole_run(tmp_path / "run", incomplete(clip, "salt-pepper:0.5"))
    recovered = np.load(tmp_path / "run" / RECOVERED)
    mask, truth = np.load(tmp_path / "run" / MASK), np.load(tmp_path / "run" / TRUTH)
    np.testing.assert_array_equal(truth[0], np.load(clip))
    np.testing.assert_array_equal(recovered[mask], truth[mask])
    figures = json.loads((tmp_path / "run" / FIGURES).read_text())
    error = np.abs(recovered[~mask].astype(int) - truth[~mask]).mean()
    assert figures["error"] == pytest.approx(error)
    assert figures["hidden"] == pytest.approx((~mask).mean())


def test_the_truth_is_not_opened_before_the_end(clip: Path, tmp_path: Path) -> None:
    run = Run.start(tmp_path / "run", incomplete(clip))
    (tmp_path / "run" / TRUTH).unlink()
    run.learn()
    assert run.finish_recovery().error is None


def test_a_users_mask_has_no_truth(clip: Path, tmp_path: Path, user_mask: Path) -> None:
    run = Run.start(tmp_path / "run", incomplete(clip, user_mask, **{"learning.updates": 1}))
    run.learn()
    assert not (tmp_path / "run" / TRUTH).exists()
    found = run.finish_recovery()
    assert found.error is None
    recovered, mask = (np.load(tmp_path / "run" / name) for name in (RECOVERED, MASK))
    edge = seam(recovered[0], mask[0])
    assert edge is not None and found.seams == (pytest.approx(edge.ratio),)


def test_another_mask_is_not_resumed_with(clip: Path, tmp_path: Path) -> None:
    run = Run.start(tmp_path / "run", incomplete(clip))
    run.save()
    mask = np.load(tmp_path / "run" / MASK)
    np.save(tmp_path / "run" / MASK, ~mask)
    with pytest.raises(InputError, match="not the mask that the run was started with"):
        Run.resume(tmp_path / "run")


def test_a_complete_run_leaves_nothing_of_an_incomplete_one(clip: Path, tmp_path: Path) -> None:
    whole_run(tmp_path / "run", incomplete(clip, **{"learning.updates": 1}))
    Run.start(tmp_path / "run", tiny_recipe(clip), overwrite=True)
    assert not any((tmp_path / "run" / name).exists() for name in LEFT)


def test_first_noise_is_not_made_from_the_zeros_of_hidden_pixels() -> None:
    """A hole that is dark in the prepared clip is no part of the texture."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(180, 220, (1, 8, 12, 12, 3)).astype(np.uint8)
    mask = np.ones(pixels.shape[:-1], bool)
    mask[:, 2:6, 3:9, 3:9] = False
    pixels[~mask] = 0
    observed = Observed(pixels, 25.0, np.full((3, 1, 1), 200, np.float32), 10.0, mask)
    spot = observed.spot_pixels()
    np.testing.assert_array_equal(spot[mask], pixels[mask])
    assert spot[~mask].min() >= 180
