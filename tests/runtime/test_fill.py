"""First values of hidden pixels: what is visible stays, what is hidden is never read."""

import tracemalloc

import numpy as np
import pytest
from numpy.typing import NDArray

from stg_runtime.fill import (
    fill,
    fill_bytes,
    gaps,
    harmonic_fill,
    held_out,
    interpolate_in_time,
    mean_image,
    pull_push,
)
from stg_runtime.kriging import conditional_mean
from stg_runtime.mask import generate
from stg_runtime.motion import along_motion

SHAPE = (12, 18, 21)
PATTERNS = ["region:8", "fixed-region:8", "frames:0.5", "salt-pepper:0.5"]


def waves(seed: int = 0) -> NDArray[np.float32]:
    """Travelling waves with noise, (3, T, H, W), grey levels."""
    t, y, x = np.mgrid[: SHAPE[0], : SHAPE[1], : SHAPE[2]]
    rng = np.random.default_rng(seed)
    smooth = 120 + 60 * np.sin(0.7 * x - 0.8 * t + 0.2 * y)
    return np.rint(smooth + rng.normal(0, 5, (3, *SHAPE))).astype(np.float32)


METHODS = {
    "time": interpolate_in_time,
    "harmonic": harmonic_fill,
    "covariance": lambda x, mask: conditional_mean(x, mask, mean_image(x, mask)),
    "motion": lambda x, mask: along_motion(interpolate_in_time(x, mask), mask, *gaps(mask)),
    "learned": lambda x, mask: fill(x, mask).x,
}


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("method", METHODS)
def test_hidden_values_are_never_read_and_visible_ones_stay(method: str, pattern: str) -> None:
    x, mask = waves(), generate(pattern, SHAPE, 3)
    first = METHODS[method](x, mask)
    other = np.where(mask, x, np.float32(np.nan))
    np.testing.assert_array_equal(METHODS[method](other, mask), first)
    np.testing.assert_array_equal(first[:, mask], x[:, mask])
    assert np.isfinite(first).all()


def test_interpolation_is_exact_for_straight_lines_in_time() -> None:
    t = np.arange(9, dtype=np.float32)
    slopes = np.random.default_rng(0).normal(size=(2, 1, 4, 5)).astype(np.float32)
    x = slopes * t[:, None, None] + 3
    mask = np.ones((9, 4, 5), bool)
    mask[[1, 2, 5]] = False
    np.testing.assert_allclose(interpolate_in_time(x, mask), x, rtol=1e-5, atol=1e-5)


def test_interpolation_holds_the_ends() -> None:
    x = np.arange(5, dtype=np.float32).reshape(1, 5, 1, 1) * np.ones((1, 1, 2, 2), np.float32)
    mask = np.ones((5, 2, 2), bool)
    mask[[0, 4]] = False
    assert interpolate_in_time(x, mask)[0, :, 0, 0].tolist() == [1, 1, 2, 3, 3]


def test_harmonic_fill_is_exact_for_linear_pictures() -> None:
    """The minimum of squared differences with values given all around is the linear picture."""
    t, y, x = np.mgrid[:7, :9, :8].astype(np.float32)
    volume = (2 * x - 3 * y + t)[None]
    mask = np.ones((7, 9, 8), bool)
    mask[2:5, 3:6, 2:6] = False
    filled = harmonic_fill(volume, mask, tolerance=1e-6)
    np.testing.assert_allclose(filled, volume, atol=1e-3)


def test_harmonic_fill_is_the_least() -> None:
    """Moving any hidden value changes the sum of squared differences upwards."""
    x, mask = waves(), generate("region:6", SHAPE, 1)
    filled = harmonic_fill(x, mask, tolerance=1e-7, iterations=500).astype(np.float64)

    def roughness(v: NDArray[np.float64]) -> float:
        return sum(float((np.diff(v, axis=axis) ** 2).sum()) for axis in (1, 2, 3))

    least = roughness(filled)
    rng = np.random.default_rng(0)
    for at in np.argwhere(~mask)[rng.integers((~mask).sum(), size=20)]:
        for step in (-1.0, 1.0):
            moved = filled.copy()
            moved[(0, *at)] += step
            assert roughness(moved) > least


def test_pull_push_keeps_a_flat_picture_flat() -> None:
    mask = np.random.default_rng(0).random((13, 17)) < 0.1
    image = np.where(mask, np.float32(77), np.float32(0))[None]
    np.testing.assert_allclose(pull_push(image, mask), 77, rtol=1e-5)


def test_mean_image_is_of_visible_moments() -> None:
    x, mask = waves(), generate("salt-pepper:0.5", SHAPE, 0)
    expected = np.nanmean(np.where(mask, x, np.nan), axis=1)
    seen = mask.any(0)
    np.testing.assert_allclose(mean_image(x, mask)[:, seen], expected[:, seen], rtol=1e-5)


@pytest.mark.parametrize("pattern", ["region:8", "salt-pepper:0.5"])
def test_what_the_video_teaches_beats_interpolation(pattern: str) -> None:
    """Waves that travel: a predictor that learns the motion errs less than a line in time."""
    x, mask = waves(), generate(pattern, SHAPE, 5)
    hidden = ~mask

    def error(guess: NDArray[np.float32]) -> float:
        return float(np.abs(guess - x)[:, hidden].mean())

    assert error(fill(x, mask).x) < 0.8 * error(interpolate_in_time(x, mask))


def test_whole_missing_frames_are_told_by_how_waves_travel() -> None:
    """Where a line in time is as wrong as the mean, the covariance knows the wave's place."""
    t, y, x = np.mgrid[:24, :20, :28]
    clip = (120 + 50 * np.sin(0.8 * x + 0.3 * y - 1.2 * t))[None].astype(np.float32)
    mask = generate("frames:0.4", clip.shape[1:], 2)

    def error(guess: NDArray[np.float32]) -> float:
        return float(np.abs(guess - clip)[:, ~mask].mean())

    line = error(interpolate_in_time(clip, mask))
    assert error(METHODS["covariance"](clip, mask)) < 0.6 * line
    assert error(fill(clip, mask).x) < 0.6 * line


def test_what_moves_is_found_between_two_frames() -> None:
    """A picture that moves by two pixels down and four to the left over a gap of two frames."""
    picture = np.random.default_rng(4).uniform(0, 255, (3, 40, 60)).astype(np.float32)
    clip = np.stack([picture[:, 10 - t : 30 - t, 10 + 2 * t : 40 + 2 * t] for t in range(3)], 1)
    mask = np.ones(clip.shape[1:], bool)
    mask[1] = False
    found = METHODS["motion"](clip, mask)
    inner = np.s_[:, 1, 6:-6, 6:-6]
    assert np.abs(found - clip)[inner].mean() < 1
    assert np.abs(interpolate_in_time(clip, mask) - clip)[inner].mean() > 30


@pytest.mark.parametrize("pattern", PATTERNS)
def test_what_is_held_out_was_visible_and_some_is_left(pattern: str) -> None:
    mask = generate(pattern, SHAPE, 0)
    rng = np.random.default_rng(0)
    for _ in range(20):
        held = held_out(mask, rng)
        assert not (held & ~mask).any()
        assert (mask & ~held).any()


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 5, 1), (2, 2, 2)])
def test_tiny_videos_are_filled(shape: tuple[int, int, int]) -> None:
    mask = np.ones(shape, bool)
    mask[0, 0, 0] = False
    filled = fill(np.full((3, *shape), 50, np.float32), mask)
    np.testing.assert_allclose(filled.x, 50, atol=1e-3)


def test_no_more_memory_is_taken_than_is_foreseen() -> None:
    shape = (40, 64, 64)
    x = np.random.default_rng(0).normal(120, 30, (3, *shape)).astype(np.float32)
    mask = generate("region:20", shape, 3)
    tracemalloc.start()
    fill(x, mask)
    taken = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    foreseen = fill_bytes(mask.size, int((~mask).sum()))
    assert 0.7 * foreseen < taken < 1.05 * foreseen, taken / foreseen
