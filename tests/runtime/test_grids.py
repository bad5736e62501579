"""From one scale to the next: sizes, values, units, seeds."""

import numpy as np
import pytest

from stg_runtime.errors import InputError
from stg_runtime.grids import (
    check_scales,
    coarser_seed,
    double,
    halve,
    halve_pixels,
    pack_coarser,
    refine,
    to_finer,
    unpack_coarser,
)
from stg_runtime.spot import NO_WRAP

RANDOM = np.random.default_rng(0)
COARSE = RANDOM.standard_normal((3, 5, 6, 8)).astype(np.float32)
FINE = RANDOM.standard_normal((3, 5, 12, 16)).astype(np.float32)


def test_pixels_are_halved_to_rounded_means() -> None:
    frames = RANDOM.integers(0, 256, (2, 4, 6, 3), dtype=np.uint8)
    expected = frames.astype(float).reshape(2, 2, 2, 3, 2, 3).mean((2, 4))
    assert np.abs(halve_pixels(frames) - expected).max() <= 0.5
    assert (halve_pixels(np.full((1, 2, 2, 3), 255, np.uint8)) == 255).all()


def test_doubling_keeps_planes_and_goes_round_where_told() -> None:
    rows, columns = np.mgrid[0:6, 0:8].astype(np.float32)
    fine_rows, fine_columns = (np.mgrid[0:12, 0:16].astype(np.float32) - 0.5) / 2
    inside = np.s_[1:-1, 1:-1]
    made = double(2 * rows + 3 * columns)
    assert np.allclose(made[inside], (2 * fine_rows + 3 * fine_columns)[inside], atol=1e-5)
    rolled = double(np.roll(COARSE, (2, 3), (2, 3)), (False, True, True))
    assert np.array_equal(rolled, np.roll(double(COARSE, (False, True, True)), (4, 6), (2, 3)))
    assert not np.array_equal(rolled, np.roll(double(COARSE), (4, 6), (2, 3)))


@pytest.mark.parametrize("wrap", [NO_WRAP, (True, True, True)])
@pytest.mark.parametrize("first", [None, FINE])
def test_a_finer_start_has_the_coarser_result_in_it(
    first: np.ndarray | None, wrap: tuple[bool, bool, bool]
) -> None:
    kept = None if first is None else first.copy()
    start = refine(first, COARSE, wrap)
    left = halve(start) - COARSE
    assert np.sqrt((left**2).mean()) < 0.07
    if first is not None:
        assert np.array_equal(first, kept)
        # What is finer than the coarse scale sees stays the first noise's own.
        detail = [x - double(halve(x), wrap) for x in (start, first)]
        assert np.corrcoef(detail[0].ravel(), detail[1].ravel())[0, 1] > 0.85
        assert np.array_equal(refine(first, halve(first)), first)


def test_units_pass_through_grey_levels_of_equal_means() -> None:
    mean = RANDOM.uniform(0, 255, (3, 12, 16)).astype(np.float32)
    x = to_finer(COARSE[None], halve(mean), 20.0, mean, 40.0)
    assert np.allclose(x, COARSE[None] / 2, atol=1e-4)
    shifted = to_finer(COARSE[None], halve(mean) + 8, 20.0, mean, 40.0)
    assert np.allclose(shifted, x + 0.2, atol=1e-4)
    flat = mean.mean((1, 2), keepdims=True)
    assert np.allclose(to_finer(COARSE[None], flat, 20.0, flat, 40.0), x, atol=1e-4)


def test_seeds_of_scales_differ_and_stay_in_range() -> None:
    seeds = {0, 1, 2**64 - 1}
    all_ = seeds | {coarser_seed(s) for s in seeds} | {coarser_seed(coarser_seed(s)) for s in seeds}
    assert len(all_) == 9 and all(0 <= seed < 2**64 for seed in all_)
    assert all(coarser_seed(seed, 63) < 2**63 for seed in all_)


def test_what_cannot_be_is_said() -> None:
    check_scales(3, (64, 96), "--size")
    with pytest.raises(InputError, match=r"--size 64x90: 3 scales.*multiples of 4"):
        check_scales(3, (64, 90), "--size")
    assert unpack_coarser(pack_coarser(b"\x00\xffonnx"), "m") == b"\x00\xffonnx"
    with pytest.raises(InputError, match="m: its metadata names coarser scales"):
        unpack_coarser(None, "m")
    with pytest.raises(InputError, match="m: its coarser scale is damaged"):
        unpack_coarser("%%%", "m")
