"""Clips of one action are brought into step, and what cannot be is refused in one line."""

from pathlib import Path

import numpy as np
import pytest
from support import tiny_recipe

from stg_runtime.errors import InputError
from stg_runtime.video import to_pixels
from stg_train.align import align, aligned_frames
from stg_train.observed import read_observed, scale_observed
from stg_train.recipe import Pixels, load_recipe

PERIOD, T, H, W = 12, 40, 60, 100


def walker(
    *,
    phase: int = 0,
    period: int = PERIOD,
    left: float = 30,
    scale: float = 1.0,
    drift: float = 0.0,
    backward: bool = False,
    level: int = 200,
    frames: int = T,
) -> np.ndarray:
    """A body with one swinging leg and a nodding head, on black; phase in frames."""
    y, x = np.mgrid[0:H, 0:W]
    video = np.zeros((frames, H, W, 3), np.uint8)
    for t in range(frames):
        turn = 2 * np.pi * (t + phase) / period
        at = left + drift * t
        body = (np.abs(x - at - 18 * scale) < 16 * scale) & (np.abs(y - 25) < 7 * scale)
        foot = 16 * scale * np.sin(turn)
        leg = (np.abs(x - at - 18 * scale - foot * (y - 25) / (22 * scale)) < 2.5 * scale) & (
            np.abs(y - 25 - 11 * scale) < 11 * scale
        )
        side = -1 if backward else 1
        head = (np.abs(x - at - (2 if side > 0 else 34) * scale) < 4 * scale) & (
            np.abs(y - 14 - 4 * scale * np.cos(turn)) < 4 * scale
        )
        video[t][body | leg | head] = level
    return video


def save(folder: Path, **clips: np.ndarray) -> list[Path]:
    paths = []
    for name, video in clips.items():
        np.save(folder / f"{name}.npy", video)
        paths.append(folder / f"{name}.npy")
    return paths


def test_phases_places_and_sizes_are_found(tmp_path: Path) -> None:
    paths = save(
        tmp_path,
        a=walker(),
        b=walker(phase=5, left=40),
        c=walker(phase=9, left=22, scale=0.8, level=90),
    )
    found = align(paths, size=(30, 40), frames=PERIOD)
    assert [a.period for a in found] == [PERIOD] * 3
    assert [a.frames[0] for a in found] == [0, PERIOD - 5, PERIOD - 9]
    lefts = [a.box[0] for a in found]
    assert lefts[1] - lefts[0] == pytest.approx(10, abs=2)
    assert 0.75 < found[2].box[2] / found[0].box[2] < 0.9
    clips = [
        np.stack(list(aligned_frames(path, a, size=(30, 40)))).astype(float)
        for path, a in zip(paths, found, strict=True)
    ]
    assert all(clip.shape == (PERIOD, 30, 40, 3) for clip in clips)
    # In step: the same frame is nearer than any other.
    apart = [[np.abs(clips[0][t] - clips[1][s]).mean() for s in range(PERIOD)] for t in (0, 3, 7)]
    assert [int(np.argmin(row)) for row in apart] == [0, 3, 7]


def test_another_cycle_is_sampled_at_the_common_one(tmp_path: Path) -> None:
    paths = save(tmp_path, a=walker(), b=walker(), slow=walker(period=16, frames=60))
    found = align(paths, size=(30, 40), frames=PERIOD)
    assert found[2].period == 16
    assert found[2].frames[-1] - found[2].frames[0] == round((PERIOD - 1) * 16 / PERIOD)


def test_a_box_that_reaches_outside_is_filled_with_the_background(tmp_path: Path) -> None:
    video = np.full((T, H, W, 3), (10, 60, 30), np.uint8)
    figure = walker(left=2)
    video[figure[..., 0] > 0] = 220
    [path] = save(tmp_path, a=video)
    [found] = align([path], size=(20, 60), frames=PERIOD)
    assert found.background == (10, 60, 30)
    assert found.box[0] < 0
    clip = np.stack(list(aligned_frames(path, found, size=(20, 60))))
    assert np.abs(clip[:, :, 0].astype(int) - (10, 60, 30)).max() <= 1


def test_a_run_reads_aligned_clips(tmp_path: Path) -> None:
    paths = save(tmp_path, a=walker(), b=walker(phase=5, left=40))
    recipe = tiny_recipe(
        paths[0],
        **{
            "data.videos": [str(path) for path in paths],
            "data.align": True,
            "data.size": [16, 24],
        },
    )
    observed = read_observed(recipe.data, recipe.pixels)
    assert observed.pixels.shape == (2, 12, 16, 24, 3)
    same = np.abs(observed.pixels[0].astype(int) - observed.pixels[1]).mean()
    other = np.abs(observed.pixels[0].astype(int) - np.roll(observed.pixels[1], 5, 0)).mean()
    assert same < other / 3


@pytest.mark.parametrize(
    ("clip", "frames", "says"),
    [
        (np.zeros((T, H, W, 3), np.uint8), PERIOD, "no figure stands out"),
        (walker(frames=3), 2, "3 frames from frame 0 on are no cycle"),
        (walker(period=37), PERIOD, "do not come back within 20 frames"),
        (walker(drift=0.8, left=5), PERIOD, "wanders|do not come back"),
        (walker(frames=30), 31, "30 frames from frame 0 on; --align needs 31"),
    ],
)
def test_what_cannot_be_aligned_is_refused(
    tmp_path: Path, clip: np.ndarray, frames: int, says: str
) -> None:
    [path] = save(tmp_path, clip=clip)
    with pytest.raises(InputError, match=says) as caught:
        align([path], size=(30, 40), frames=frames)
    assert "clip.npy" in str(caught.value) and "\n" not in str(caught.value)


def test_a_busy_border_is_refused(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (T, H, W, 3)).astype(np.uint8)
    [path] = save(tmp_path, clip=noise)
    with pytest.raises(InputError, match=r"border is not of one colour.*--crop"):
        align([path], size=(30, 40), frames=PERIOD)


def test_another_action_is_refused(tmp_path: Path) -> None:
    jumper = np.zeros((T, H, W, 3), np.uint8)
    for t in range(T):
        top = 10 + round(6 * np.sin(2 * np.pi * t / PERIOD * 2))
        jumper[t, top : top + 30, 20:60] = 200
    paths = save(tmp_path, a=walker(), jump=jumper)
    with pytest.raises(InputError, match=r"jump.npy: its figure does not move as the one of .*a"):
        align(paths, size=(30, 40), frames=PERIOD)


def test_a_mean_video_is_the_clips_mean_at_every_frame(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    stack = generator.integers(0, 256, (4, 6, 8, 10, 3)).astype(np.uint8)
    observed = scale_observed(stack, 25, Pixels(mean="video"))
    exact = stack.astype(np.float64).mean(0).transpose(3, 0, 1, 2)
    assert observed.mean.shape == (3, 6, 8, 10)
    assert np.abs(observed.mean - exact).max() <= 0.5 / 256 + 1e-4
    x = observed.windows([0, 1, 2, 3], [0] * 4, 6)
    assert float(x.mean(0).abs().max()) < 1e-3
    assert float(x.square().mean()) == pytest.approx(1, rel=1e-4)
    # There and back.
    for video, clip in zip(x.numpy(), stack, strict=True):
        assert np.array_equal(to_pixels(video, observed.mean, observed.scale), clip)


def test_a_mean_video_needs_several_clips_and_a_locked_network(tmp_path: Path) -> None:
    one = np.random.default_rng(0).integers(0, 256, (1, 6, 8, 10, 3)).astype(np.uint8)
    with pytest.raises(InputError, match=r"all alike.*several videos"):
        scale_observed(one, 25, Pixels(mean="video"))
    with pytest.raises(InputError, match="full in time"):
        load_recipe("fc-s", overrides={"pixels.mean": "video"})
