"""Cuts, still clips and black borders are found where they are and nowhere else."""

from pathlib import Path

import numpy as np
import pytest

from stg_runtime.clip_checks import (
    Borders,
    bars_in_view,
    black_borders,
    check_cuts,
    check_motion,
    crop_without,
    motion,
    scene_cuts,
)
from stg_runtime.errors import InputError
from stg_runtime.video import read_clip

Video = np.ndarray


def texture(seed: int, frames: int = 40, level: float = 120, size: int = 32) -> Video:
    """A moving texture: large soft blobs that change at random."""
    generator = np.random.default_rng(seed)
    noise = generator.normal(size=(frames + 6, size, size, 3))
    f = np.meshgrid(
        np.fft.fftfreq(frames + 6), np.fft.fftfreq(size), np.fft.fftfreq(size), indexing="ij"
    )
    shape = np.exp(-60 * (f[0] ** 2 + 3 * f[1] ** 2 + 3 * f[2] ** 2))[..., None]
    smooth = np.fft.ifftn(np.fft.fftn(noise, axes=(0, 1, 2)) * shape, axes=(0, 1, 2)).real
    return np.clip(np.rint(level + 25 * smooth[:frames] / smooth.std()), 0, 255).astype(np.uint8)


def scene(seed: int, frames: int = 40) -> Video:
    """A texture before a background of its own."""
    background = np.random.default_rng(100 + seed).integers(-60, 60, (4, 4, 3))
    large = background.repeat(8, 0).repeat(8, 1)
    return np.clip(texture(seed, frames).astype(int) + large, 0, 255).astype(np.uint8)


@pytest.mark.parametrize("cut", [3, 17, 37])
def test_a_cut_is_found_at_its_frame(cut: int) -> None:
    assert scene_cuts(np.concatenate([scene(0)[:cut], scene(1)[cut:]])) == [cut]


def test_every_cut_is_found() -> None:
    shots = [scene(0)[:12], scene(1)[:20], scene(2)[:9]]
    assert scene_cuts(np.concatenate(shots)) == [12, 32]


def test_the_message_names_the_frame_and_the_longest_shot() -> None:
    clip = np.concatenate([scene(0)[:12], scene(1)[:20], scene(2)[:9]])
    with pytest.raises(InputError) as caught:
        check_cuts(clip, "film.mp4", start=100)
    message = str(caught.value)
    assert message.startswith("film.mp4: the scene changes at frames 112, 132 (cuts)")
    assert "--start 112 --frames 20" in message and "--allow-cuts" in message
    check_cuts(clip[12:32], "film.mp4")


def periodic(frames: int = 48, period: int = 12) -> Video:
    t, _, x = np.mgrid[0:frames, 0:32, 0:32]
    level = 120 + 90 * np.sign(np.sin(2 * np.pi * (x / 32 - t / period)))
    return np.repeat(level[..., None], 3, -1).astype(np.uint8)


def flicker(period: int, frames: int = 48) -> Video:
    clip = texture(3, frames).astype(int)
    clip[(np.arange(frames) // period) % 2 == 1] -= 90
    return np.clip(clip, 0, 255).astype(np.uint8)


def flash() -> Video:
    clip = texture(4)
    clip[20:22] = 255
    return clip


def drift() -> Video:
    """The light fades by two levels a frame."""
    clip = texture(5).astype(int) + 80 - 2 * np.arange(40)[:, None, None, None]
    return np.clip(clip, 0, 255).astype(np.uint8)


def pan() -> Video:
    wide = np.random.default_rng(6).integers(0, 255, (4, 40, 3), dtype=np.uint8)
    large = wide.repeat(8, 0).repeat(8, 1)
    return np.stack([large[:, 6 * t : 6 * t + 32] for t in range(40)])


def stutter() -> Video:
    return texture(7, 20).repeat(2, 0)


@pytest.mark.parametrize(
    "clip",
    [
        texture(0),
        scene(0),
        periodic(),
        periodic(48, 40),
        flicker(1),
        flicker(5),
        flicker(11),
        flash(),
        drift(),
        pan(),
        stutter(),
        np.random.default_rng(0).integers(0, 255, (30, 16, 16, 3), dtype=np.uint8),
        texture(0, 5),
        texture(0)[:, :3, :5],
    ],
    ids=[
        *("texture", "scene", "periodic", "slow", "flicker-1", "flicker-5", "flicker-11"),
        *("flash", "drift", "pan", "stutter", "noise", "short", "tiny"),
    ],
)
def test_no_cut_where_there_is_none(clip: Video) -> None:
    assert scene_cuts(clip) == []


def test_a_still_clip_is_refused() -> None:
    still = np.repeat(scene(0)[:1], 20, 0)
    assert motion(still) == 0
    with pytest.raises(InputError, match=r"poster\.png: does not move.*--frames 1"):
        check_motion(still, "poster.png")
    trembling = still.copy()
    trembling[::2, ::3] ^= 1  # one grey level, in a third of the places
    with pytest.raises(InputError, match="does not move"):
        check_motion(trembling, "poster.png")
    check_motion(scene(0), "film.mp4")
    assert motion(scene(0)) == pytest.approx(scene(0).astype(float).std(0).mean(), rel=0.1)


def boxed(left: int, top: int, right: int, bottom: int) -> Video:
    noise = np.random.default_rng(8).normal(6, 4, (8, 60, 80, 3))
    picture = texture(9, 8, size=80)[:, :60]
    noise[:, top : 60 - bottom, left : 80 - right] = picture[
        :, top : 60 - bottom, left : 80 - right
    ]
    return np.clip(noise, 0, 255).astype(np.uint8)


@pytest.mark.parametrize("bars", [(0, 8, 0, 8), (10, 0, 10, 0), (3, 4, 5, 6), (0, 0, 0, 7)])
def test_bars_are_measured(bars: tuple[int, int, int, int]) -> None:
    assert black_borders(boxed(*bars)) == Borders(*bars)


def test_dark_pictures_have_no_bars() -> None:
    assert not black_borders(boxed(0, 0, 0, 0))
    assert not black_borders(np.zeros((8, 60, 80, 3), np.uint8))
    running = np.zeros((8, 60, 80, 3), np.uint8)
    yy, xx = np.mgrid[0:60, 0:80]
    running[:, (yy - 30) ** 2 + (xx - 40) ** 2 < 400] = 180  # something round on black
    assert not black_borders(running)


def test_the_proposed_crop_leaves_the_bars_out() -> None:
    clip = boxed(3, 4, 5, 6)
    x, y, width, height = crop_without(black_borders(clip), (60, 80), None)
    assert (x, y, width, height) == (3, 4, 72, 50)
    assert not black_borders(clip[:, y : y + height, x : x + width])
    assert crop_without(Borders(1, 0, 2, 0), (60, 80), (100, 50, 80, 60)) == (101, 50, 77, 60)


def test_bars_that_are_cut_anyway_do_not_matter() -> None:
    pillars = Borders(10, 0, 10, 0)
    assert not bars_in_view(pillars, (60, 80), (64, 64))  # the centre square begins at 10
    assert bars_in_view(pillars, (60, 80), (60, 80))
    assert bars_in_view(Borders(0, 8, 0, 8), (60, 80), (64, 64))


NAMES = ["fire_pot.avi", "boiling_water.avi", "moving_boat.mp4", "running_cow_1.mp4"]


@pytest.mark.parametrize("name", [*NAMES, *(f"running_cow_{i}.mp4" for i in range(2, 6))])
def test_real_clips_are_one_shot(clips: Path, name: str) -> None:
    whole = read_clip(clips / name, size=(64, 64)).frames
    for begin in range(0, len(whole) - 64, 29):
        assert scene_cuts(whole[begin : begin + 64]) == []
    assert scene_cuts(whole) == []
    assert not black_borders(read_clip(clips / name, frames=8).frames)


@pytest.mark.parametrize(("a", "b"), [(0, 1), (1, 0), (0, 2), (2, 1), (3, 2), (0, 3), (3, 1)])
def test_two_real_clips_in_one_are_two_shots(clips: Path, a: int, b: int) -> None:
    first, second = (read_clip(clips / NAMES[i], size=(64, 64), frames=64).frames for i in (a, b))
    assert scene_cuts(np.concatenate([first[:40], second[:24]])) == [40]
