"""Masks: patterns, files in every form, and what is refused in one line."""

import math
import time
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from stg_runtime.errors import InputError
from stg_runtime.mask import generate, read_mask, read_masked_clip
from stg_runtime.video import read_clip
from stg_runtime.video_write import write_video

SHAPE = (10, 32, 48)


@pytest.fixture
def video(tmp_path: Path) -> Path:
    frames = np.random.default_rng(0).integers(0, 256, (*SHAPE, 3), dtype=np.uint8)
    np.save(tmp_path / "video.npy", frames)
    return tmp_path / "video.npy"


@pytest.fixture
def hidden() -> NDArray[np.bool_]:
    """A square that moves."""
    mask = np.zeros(SHAPE, bool)
    for t in range(SHAPE[0]):
        mask[t, 8:20, 2 + 3 * t : 14 + 3 * t] = True
    return mask


def save(folder: Path, hidden: NDArray[np.bool_], form: str) -> Path:
    """Write a mask; white where hidden."""
    white = np.repeat(hidden[..., None] * np.uint8(255), 3, -1)
    path = folder / f"mask{form}"
    if form == ".npy":
        np.save(path, hidden)
    elif form == ".png":
        Image.fromarray(white[0]).save(path)
    else:
        write_video(path, white, 25)
    return path


def refused(says: str, video: Path, mask: object, **options: object) -> None:
    with pytest.raises(InputError) as caught:
        read_masked_clip(video, str(mask), **options)  # type: ignore[arg-type]
    message = str(caught.value)
    assert says in message and "\n" not in message and len(message) < 400, message


def test_patterns_hide_what_they_say() -> None:
    moving = ~generate("region:12", SHAPE, 0)
    assert (moving.sum((1, 2)) == 144).all()
    for frame in moving:
        rows, columns = np.flatnonzero(frame.any(1)), np.flatnonzero(frame.any(0))
        assert np.ptp(rows) == np.ptp(columns) == 11
    assert len({frame.tobytes() for frame in moving}) > 5
    fixed = ~generate("fixed-region:12", SHAPE, 0)
    assert len({frame.tobytes() for frame in fixed}) == 1 and fixed[0].sum() == 144
    frames = ~generate("frames:0.3", SHAPE, 0)
    assert frames.all((1, 2)).sum() == 3 and frames.any((1, 2)).sum() == 3
    pepper = ~generate("salt-pepper:0.4", SHAPE, 0)
    assert abs(pepper.mean() - 0.4) < 0.02


def test_a_seed_gives_one_pattern() -> None:
    for pattern in ("region:5", "fixed-region:5", "frames:0.5", "salt-pepper:0.5"):
        same = [generate(pattern, SHAPE, seed).tobytes() for seed in (1, 1, 2)]
        assert same[0] == same[1] != same[2]


@pytest.mark.parametrize("form", [".npy", ".mp4", ".webm", "", ".png"])
def test_masks_in_every_form(
    tmp_path: Path, video: Path, hidden: NDArray[np.bool_], form: str
) -> None:
    clip = read_masked_clip(video, str(save(tmp_path, hidden, form)))
    expected = ~(hidden[:1].repeat(SHAPE[0], 0) if form == ".png" else hidden)
    lossy = form in (".mp4", ".webm")
    assert (clip.observed_mask != expected).mean() < (0.01 if lossy else 1e-9)
    assert not clip.frames[~clip.observed_mask].any()
    whole = read_clip(video).frames
    np.testing.assert_array_equal(clip.frames[clip.observed_mask], whole[clip.observed_mask])
    assert clip.truth is None


@pytest.mark.parametrize("size", [None, (16, 24), (20, 20)])
def test_hidden_pixels_of_the_source_touch_nothing(
    tmp_path: Path, video: Path, hidden: NDArray[np.bool_], size: tuple[int, int] | None
) -> None:
    """Also not through the filter that resizes."""
    mask = save(tmp_path, hidden, ".npy")
    options = {"size": size, "start": 2, "frames": 6, "crop": (1, 2, 46, 30)}
    first = read_masked_clip(video, str(mask), **options)
    frames = np.load(video)
    frames[hidden] = np.random.default_rng(9).integers(0, 256, (hidden.sum(), 3))
    np.save(video, frames)
    second = read_masked_clip(video, str(mask), **options)
    np.testing.assert_array_equal(first.frames, second.frames)
    np.testing.assert_array_equal(first.observed_mask, second.observed_mask)
    part = hidden[2:8, 2:32, 1:47]
    if size is None:
        np.testing.assert_array_equal(first.observed_mask, ~part)


def test_start_and_frames_cut_the_mask_alike(
    tmp_path: Path, video: Path, hidden: NDArray[np.bool_]
) -> None:
    clip = read_masked_clip(video, str(save(tmp_path, hidden, ".npy")), start=3, frames=4)
    np.testing.assert_array_equal(clip.observed_mask, ~hidden[3:7])


def test_a_grown_mask_hides_more_on_every_side(tmp_path: Path, video: Path) -> None:
    mask = np.zeros(SHAPE, bool)
    mask[3, 10:12, 0:4] = True
    np.save(tmp_path / "mask.npy", mask)
    clip = read_masked_clip(video, str(tmp_path / "mask.npy"), mask_grow=3)
    expected = np.zeros(SHAPE, bool)
    expected[3, 7:15, 0:7] = True
    np.testing.assert_array_equal(clip.observed_mask, ~expected)


def test_mask_resize_stretches_space_and_time(tmp_path: Path, video: Path) -> None:
    mask = np.zeros((5, 16, 24), bool)
    mask[1, 4:8, 6:12] = True
    np.save(tmp_path / "mask.npy", mask)
    refused("--mask-resize", video, tmp_path / "mask.npy")
    clip = read_masked_clip(video, str(tmp_path / "mask.npy"), mask_resize=True)
    expected = np.zeros(SHAPE, bool)
    expected[2:4, 8:16, 12:24] = True
    np.testing.assert_array_equal(clip.observed_mask, ~expected)


def test_bad_masks_are_refused(tmp_path: Path, video: Path, hidden: NDArray[np.bool_]) -> None:
    def npy(array: NDArray[np.generic]) -> Path:
        np.save(tmp_path / "bad.npy", array)
        return tmp_path / "bad.npy"

    refused("the mask is 16x48", video, npy(hidden[:, :16]))
    refused("is 32x48 (height x width); pass --mask-resize", video, npy(hidden[:, :16]))
    refused("the mask has 9 frames", video, npy(hidden[:9]))
    refused("has 10; one frame serves for all", video, npy(hidden[:9]))
    refused("nothing is hidden", video, npy(np.zeros(SHAPE, bool)))
    refused("everything is hidden", video, npy(np.ones(SHAPE, bool)))
    refused("nothing is hidden", video, npy(hidden), crop=(0, 0, 10, 5))
    refused("4 different values", video, npy(hidden * 2 + np.eye(32, 48, dtype=int)))
    refused("expected a mask of T x H x W", video, npy(np.zeros(5, bool)))
    refused("no such file or folder, nor one of", video, tmp_path / "none.mp4")
    grey = np.tile(np.linspace(0, 255, 48, dtype=np.uint8)[:, None], (32, 1, 3))
    Image.fromarray(grey).save(tmp_path / "grey.png")
    refused("threshold is 128", video, tmp_path / "grey.png")
    for pattern, says in (
        ("region:0", "give 1 to 32"),
        ("region:33", "give 1 to 32"),
        ("region:half", "expected a side in pixels"),
        ("frames:1.5", "above 0 and below 1"),
        ("frames:0.01", "hides 0 of 10 frames"),
        ("salt-pepper:x", "above 0 and below 1"),
        ("pepper:0.5", "nor one of region:PX"),
    ):
        refused(says, video, pattern)


def test_the_lossy_mask_of_the_boat(clips: Path) -> None:
    clip = read_masked_clip(clips / "moving_boat.mp4", str(clips / "moving_boat_mask.mp4"))
    hidden = ~clip.observed_mask
    assert not hidden[:30].any() and hidden[60:].any((1, 2)).all()
    assert 0.03 < hidden.mean() < 0.05


@pytest.mark.parametrize("shape", [(5, 30_000, 30_000), (1, 30_000, 30_000, 3), (1 << 33, 1, 1)])
def test_a_mask_is_held_to_its_size_before_its_values_are_read(
    tmp_path: Path, shape: tuple[int, ...]
) -> None:
    """Files that are nearly all hole: reading the values would take gigabytes and minutes."""
    with (tmp_path / "m.npy").open("wb") as file:
        header = {"descr": "|u1", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)
        file.truncate(file.tell() + math.prod(shape))
    began = time.perf_counter()
    with pytest.raises(InputError, match=r"a mask of more than 4 GiB|the mask is 30000x30000"):
        read_mask(tmp_path / "m.npy", (3, 16, 16))
    assert time.perf_counter() - began < 2


@pytest.mark.parametrize("option", [{"mask_grow": 2}, {"mask_resize": True}])
def test_a_pattern_is_not_grown_or_resized(tmp_path: Path, option: dict[str, object]) -> None:
    video = tmp_path / "v.npy"
    np.save(video, np.zeros((1, 4, 16, 16, 3), np.uint8))
    refused("a pattern is drawn to fit", video, "region:4", **option)
