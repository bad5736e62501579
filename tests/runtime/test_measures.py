"""The laws of the measures: what equal, shifted, swapped, blurred, still and noisy videos read."""

import numpy as np
import pytest

from stg_runtime.errors import InputError
from stg_runtime.measures import (
    MEASURES,
    Measures,
    compare,
    distant_difference,
    diversity,
    feature_distance,
    independent_difference,
    measure,
    spatial_power,
    table,
    temporal_power,
)

Video = np.ndarray


def texture(seed: int = 0, frames: int = 48, size: int = 32, contrast: float = 30.0) -> Video:
    """A moving texture: coloured noise, smooth in space and time, stationary in both."""
    noise = np.random.default_rng(seed).normal(size=(frames + 8, size, size, 3))
    spectrum = np.fft.fftn(noise, axes=(0, 1, 2))
    f = np.meshgrid(
        np.fft.fftfreq(frames + 8), np.fft.fftfreq(size), np.fft.fftfreq(size), indexing="ij"
    )
    spectrum *= np.exp(-40 * (2 * f[0] ** 2 + f[1] ** 2 + f[2] ** 2))[..., None]
    smooth = np.fft.ifftn(spectrum, axes=(0, 1, 2)).real[:frames]
    return np.clip(np.rint(120 + contrast * smooth / smooth.std()), 0, 255).astype(np.uint8)


def noise(frames: int = 48, size: int = 32) -> Video:
    return np.random.default_rng(9).integers(0, 256, (frames, size, size, 3), dtype=np.uint8)


CLIP = texture()
OTHER = texture(1)


def test_a_clip_against_itself_is_perfect_and_a_replay() -> None:
    same = measure(CLIP, CLIP.copy())
    for item in MEASURES:
        if item.best is not None and item.key not in ("difference", "replay"):
            assert getattr(same, item.key) == item.best, item.key
    assert same.difference == same.replay == same.nearest_frame == 0
    assert same.replay_shift == 0
    assert same.saturated == same.saturated_observed


def test_new_material_of_the_same_kind_is_near_and_new() -> None:
    new = measure(CLIP, OTHER)
    assert new.spatial_db < 1.5 and new.temporal_db < 2.0
    for ratio in (new.motion, new.sharpness, new.contrast, new.moving_contrast):
        assert 0.8 < ratio < 1.25
    assert new.feature_distance < 0.1
    assert 0.8 < new.difference < 1.3 and new.replay > 0.7 and new.nearest_frame > 0.7


def test_noise_and_the_mean_frame_are_far() -> None:
    near = measure(CLIP, OTHER)
    far = measure(CLIP, noise())
    for key in ("colour_distance", "spatial_db", "temporal_db", "feature_distance"):
        assert getattr(far, key) > 4 * getattr(near, key), key
    assert far.motion > 3 and far.sharpness > 3
    mean = np.repeat(np.rint(CLIP.mean(0))[None].astype(np.uint8), len(CLIP), 0)
    still = measure(CLIP, mean)
    assert still.motion == still.moving_contrast == 0
    assert still.temporal_db > 10 and np.isfinite(still.temporal_db)
    assert still.mean_image < 0.05 < near.mean_image
    assert still.feature_distance > 10 * near.feature_distance


@pytest.mark.parametrize("shift", [-11, 3, 20])
def test_a_shifted_replay_shows(shift: int) -> None:
    long = texture(frames=80)
    clip, replay = long[25:65], long[25 + shift : 65 + shift]
    found = measure(clip, replay)
    assert (found.replay, found.replay_shift) == (0, shift)
    assert found.difference > 0.5
    assert found.nearest_frame < 0.6 < measure(clip, OTHER[:40]).nearest_frame


def test_a_replay_backwards_shows_in_the_nearest_frame() -> None:
    back = measure(CLIP, CLIP[::-1])
    assert back.nearest_frame == 0 and back.difference > 0.5


def test_a_noisy_replay_is_near_nothing_new() -> None:
    shaken = CLIP.astype(float) + np.random.default_rng(2).normal(0, 3, CLIP.shape)
    found = measure(CLIP, np.clip(np.rint(shaken), 0, 255).astype(np.uint8))
    assert found.difference < 0.15 and found.nearest_frame < 0.15


def test_distances_are_symmetric() -> None:
    there, back = measure(CLIP, OTHER[:30]), measure(OTHER[:30], CLIP)
    for key in ("colour_mean", "colour_distance", "spatial_db", "temporal_db", "feature_distance"):
        assert getattr(there, key) == pytest.approx(getattr(back, key), rel=1e-6), key
    for key in ("motion", "sharpness", "contrast", "moving_contrast"):
        assert getattr(there, key) == pytest.approx(1 / getattr(back, key)), key


def test_a_constant_added_moves_the_colour_and_nothing_else() -> None:
    brighter = measure(CLIP, CLIP + np.uint8(7))
    assert brighter.colour_mean == pytest.approx(7)
    # R, G, B each move by 7, their differences do not
    assert brighter.colour_distance == pytest.approx(7 * 3 / 5)
    assert brighter.spatial_db == pytest.approx(0, abs=1e-3)
    assert brighter.temporal_db == pytest.approx(0, abs=1e-3)
    assert brighter.motion == pytest.approx(1) and brighter.sharpness == pytest.approx(1)


def test_colour_that_only_moves_between_channels_shows() -> None:
    """Each channel keeps its distribution, but they no longer belong together."""
    grey = np.repeat(CLIP[..., :1], 3, axis=-1)
    mixed = np.stack([grey[..., 0], grey[::-1, ..., 1], grey[:, ::-1, :, 2]], axis=-1)
    found = measure(grey, mixed)
    assert found.colour_mean < 1e-9 < 5 < found.colour_distance


def test_double_contrast_is_six_decibels() -> None:
    half = (CLIP.astype(int) - 120) // 2 + 120
    found = measure(half.astype(np.uint8), ((half - 120) * 2 + 120).astype(np.uint8))
    assert found.contrast == pytest.approx(2, abs=1e-4)
    assert found.motion == pytest.approx(2, abs=1e-4)
    low = 10 * np.log10(
        spatial_power([((half - 120) * 2 + 120).astype(np.uint8)])
        / spatial_power([half.astype(np.uint8)])
    )
    assert low[:3] == pytest.approx(20 * np.log10(2), abs=0.05)


def test_blur_costs_sharpness_and_features() -> None:
    blurred = CLIP.astype(float)
    for axis in (1, 2):
        blurred = (np.roll(blurred, 1, axis) + 2 * blurred + np.roll(blurred, -1, axis)) / 4
    found = measure(CLIP, np.rint(blurred).astype(np.uint8))
    assert found.sharpness < 0.97 and found.spatial_db > 0.5
    assert found.feature_distance > 1e-3


def test_a_wave_is_found_where_it_is() -> None:
    t, _, x = np.mgrid[0:32, 0:32, 0:32]
    level = 128 + 60 * np.cos(2 * np.pi * (5 * x / 32 + 8 * t / 32))
    wave = np.repeat(np.rint(level)[..., None], 3, -1).astype(np.uint8)
    assert spatial_power([wave]).argmax() + 1 == 5
    assert temporal_power([wave], 32).argmax() + 1 == 8
    assert temporal_power([wave], 16).argmax() + 1 == 4  # cycles per segment


def test_time_running_backwards_shows_in_the_features() -> None:
    """Spectra cannot tell the direction of motion; the filters can."""
    t, _, x = np.mgrid[0:48, 0:32, 0:32]
    level = 128 + 50 * np.cos(2 * np.pi * (x / 4 - t / 4)) + 20 * np.cos(2 * np.pi * x / 16)
    level += np.random.default_rng(0).normal(0, 6, level.shape)
    right = np.repeat(np.rint(level)[..., None], 3, -1).astype(np.uint8)
    left = right[::-1].copy()
    found = measure(right, left)
    assert found.spatial_db < 1e-9 and found.temporal_db < 1e-3
    assert found.feature_distance > 0.5


def test_lengths_may_differ() -> None:
    for frames in (9, 25, 47):
        found = measure(CLIP, OTHER[:frames])
        assert all(np.isfinite(value) for value in found.as_dict().values())
        assert found.temporal_db < 4
    many = compare([CLIP, OTHER[:20]], [texture(2, 30)])
    assert many.videos[0].spatial_db < 2


def test_several_clips_are_pooled() -> None:
    pooled = compare([CLIP, OTHER], [OTHER]).videos[0]
    assert pooled.difference == pooled.replay == pooled.nearest_frame == 0
    assert 0 < pooled.spatial_db < measure(CLIP, OTHER).spatial_db


def test_diversity_is_that_of_the_most_similar_pair() -> None:
    third = texture(2)
    assert diversity([CLIP], [OTHER]) is None
    assert diversity([CLIP], [OTHER, third, OTHER]) == 0
    assert 0.8 < (diversity([CLIP], [OTHER, third]) or 0) < 1.3


def test_distant_frames_give_the_unit() -> None:
    independent = noise()
    assert distant_difference([independent]) == pytest.approx(255 / np.sqrt(6), rel=0.01)


def test_an_independent_video_reads_what_is_said_of_the_clip() -> None:
    generator = np.random.default_rng(3)
    # Frames drawn at random have the mean and variance of the clip at every place.
    slow = texture(4, 24)
    read = [measure(slow, slow[generator.integers(24, size=24)]).difference for _ in range(60)]
    said = independent_difference([slow])
    assert np.sqrt(np.mean(np.square(read))) == pytest.approx(said, rel=0.02)
    assert said < 0.95 < independent_difference([noise()]) <= 1
    assert compare([slow], [OTHER]).independent == said
    # Of two clips the one that varies more counts more, not the one that lies elsewhere.
    still = np.repeat(CLIP[:1], 24, 0)
    assert independent_difference([slow, still]) == pytest.approx(said)


def test_halves_are_given_where_they_are_long_enough() -> None:
    halves = compare([CLIP], [OTHER]).halves
    assert halves == measure(CLIP[:24], CLIP[24:])
    assert compare([CLIP[:15]], [OTHER]).halves is None


def test_saturation_is_counted() -> None:
    white = CLIP.copy()
    white[:12] = 255
    found = measure(CLIP, white)
    assert found.saturated == pytest.approx(0.25, abs=0.01)
    assert found.saturated_observed < 0.01


def test_every_figure_is_described_and_stays_where_it_was() -> None:
    keys = {item.key for item in MEASURES} | {"replay_shift"}
    assert keys == set(Measures.__dataclass_fields__)
    assert feature_distance([CLIP], [OTHER]) == measure(CLIP, OTHER).feature_distance


def test_the_table_has_a_row_for_each() -> None:
    rows = table(compare([CLIP], [OTHER, noise()]), ["a", "b"])
    assert rows[0] == ["", "a", "b", "best", "clip's halves"]
    assert len(rows) == len(MEASURES) + 3
    assert {len(row) for row in rows} == {5}


def test_what_cannot_be_measured_is_one_clear_line() -> None:
    with pytest.raises(InputError, match=r"16x32, the observed one 32x32"):
        measure(CLIP, CLIP[:, :16])
    with pytest.raises(InputError, match="at least 8 frames"):
        measure(CLIP, CLIP[:7])
    with pytest.raises(InputError, match="the observed video is 48 frames of 8x8"):
        measure(CLIP[:, :8, :8], CLIP[:, :8, :8])
    with pytest.raises(InputError, match="does not move"):
        measure(np.repeat(CLIP[:1], 20, 0), CLIP)
