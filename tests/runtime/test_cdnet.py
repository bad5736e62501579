"""CDnet's layout as a video and as a mask, on a scene that is built here."""

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from stg_runtime.cdnet import (
    MOVING,
    OUTSIDE,
    SHADOW,
    UNKNOWN,
    hidden_mask,
    is_cdnet,
    labelled_frames,
    unlabelled_mask,
)
from stg_runtime.errors import InputError
from stg_runtime.mask import read_masked_clip
from stg_runtime.video import read_clip

N, H, W = 6, 12, 20


@pytest.fixture
def scene(tmp_path: Path) -> Path:
    """A square that crosses a scene, its edge unknown, a shadow below; frames 3 to 5 labelled."""
    folder = tmp_path / "highway"
    (folder / "input").mkdir(parents=True)
    (folder / "groundtruth").mkdir()
    for t in range(N):
        frame = np.full((H, W, 3), 40 + 20 * t, np.uint8)
        Image.fromarray(frame).save(folder / "input" / f"in{t + 1:06d}.jpg", quality=95)
        label = np.zeros((H, W), np.uint8)
        label[2:6, t : t + 4] = UNKNOWN
        label[3:5, t + 1 : t + 3] = MOVING
        label[6, t : t + 4] = SHADOW
        label[-2:] = OUTSIDE
        Image.fromarray(label).save(folder / "groundtruth" / f"gt{t + 1:06d}.png")
    region = np.full((H, W), 255, np.uint8)
    region[-2:] = 0
    region[0, 0] = 0
    Image.fromarray(region).save(folder / "ROI.bmp")
    (folder / "temporalROI.txt").write_text("3 5")
    return folder


def test_the_folder_is_a_video(scene: Path) -> None:
    clip = read_clip(scene)
    assert clip.frames.shape == (N, H, W, 3)
    assert [round(float(frame.mean())) for frame in clip.frames] == [40 + 20 * t for t in range(N)]
    assert read_clip(scene, start=2, frames=3, size=(6, 10)).frames.shape == (3, 6, 10, 3)


def test_masks_follow_the_frames(scene: Path) -> None:
    assert labelled_frames(scene) == range(2, 5)
    hidden = hidden_mask(scene, start=2, frames=3)
    assert hidden.dtype == np.bool_ and hidden.shape == (3, H, W)
    for row, t in enumerate(range(2, 5)):
        expected = np.zeros((H, W), bool)
        expected[2:6, t : t + 4] = True  # moving and unknown
        assert np.array_equal(hidden[row], expected)
    assert np.array_equal(hidden_mask(scene, start=2), hidden)
    more = hidden_mask(scene, start=2, shadows=True) & ~hidden
    assert more.sum() == 3 * 4 and more[:, 6].sum() == 3 * 4
    outside = unlabelled_mask(scene, start=2)
    assert outside[:, -2:].all() and outside[:, 0, 0].all()
    assert outside.sum() == 3 * (2 * W + 1)
    assert not (outside & hidden).any()


def test_without_a_temporal_region_all_frames_are_labelled(scene: Path) -> None:
    (scene / "temporalROI.txt").unlink()
    assert hidden_mask(scene).shape == (N, H, W)


@pytest.mark.parametrize(
    ("start", "frames"),
    [(0, 3), (2, 4), (5, 1), (99, 1)],
)
def test_frames_without_labels_are_refused(scene: Path, start: int, frames: int) -> None:
    with pytest.raises(InputError, match=r"2 to 4 are labelled.*--start 2"):
        hidden_mask(scene, start=start, frames=frames)


def test_damage_is_named(scene: Path) -> None:
    label = scene / "groundtruth" / "gt000004.png"
    good = label.read_bytes()
    Image.fromarray(np.full((H, W), 7, np.uint8)).save(label)
    with pytest.raises(InputError, match=r"gt000004.png: holds the level 7"):
        hidden_mask(scene, start=2)
    Image.fromarray(np.zeros((H, W + 1), np.uint8)).save(label)
    with pytest.raises(InputError, match="12x21, the ones before are 12x20"):
        hidden_mask(scene, start=2)
    label.write_bytes(good[:20])
    with pytest.raises(InputError, match=r"gt000004.png: not a readable image"):
        hidden_mask(scene, start=2)
    # Pillow says ValueError of a header that is too short.
    label.write_bytes(
        good[:8] + struct.pack(">I4s5sI", 5, b"IHDR", bytes(5), zlib.crc32(b"IHDR" + bytes(5)))
    )
    with pytest.raises(InputError, match=r"gt000004.png: not a readable image"):
        hidden_mask(scene, start=2)
    Image.new("1", (13_000, 13_000)).save(label)
    with pytest.raises(InputError, match=r"gt000004.png: frames of 13000x13000 pixels; at most"):
        hidden_mask(scene, start=2)
    label.write_bytes(good)
    (scene / "temporalROI.txt").write_text("five")
    with pytest.raises(InputError, match=r"temporalROI.txt: expected two frame numbers"):
        hidden_mask(scene, start=2)
    (scene / "temporalROI.txt").write_text("3 5")
    (scene / "input" / "in000002.jpg").unlink()
    with pytest.raises(InputError, match="in000002 is missing"):
        read_clip(scene)


def test_an_ordinary_folder_of_images_is_none(tmp_path: Path) -> None:
    (tmp_path / "input").mkdir()
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(tmp_path / "a.png")
    assert not is_cdnet(tmp_path)
    assert read_clip(tmp_path).frames.shape == (1, 4, 4, 3)


@pytest.mark.parametrize("by", ["name", "folder"])
def test_the_labels_are_a_mask(scene: Path, by: str) -> None:
    clip = read_masked_clip(scene, "cdnet" if by == "name" else str(scene), start=2, frames=3)
    expected = hidden_mask(scene, start=2, frames=3)
    np.testing.assert_array_equal(clip.observed_mask, ~expected)
    assert not clip.frames[expected].any() and clip.truth is None
    grown = read_masked_clip(scene, "cdnet", start=2, frames=3, mask_grow=1, crop=(2, 0, 12, 8))
    assert grown.frames.shape == (3, 8, 12, 3)
    assert (~grown.observed_mask).sum() > expected.sum()


def test_labels_that_cannot_serve_as_a_mask_are_refused(scene: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"2 to 4 are labelled .*pass --start 2"):
        read_masked_clip(scene, "cdnet")
    plain = tmp_path / "plain.npy"
    np.save(plain, np.zeros((4, 8, 8, 3), np.uint8))
    with pytest.raises(InputError, match="is no scene in CDnet's layout"):
        read_masked_clip(plain, "cdnet")
    with pytest.raises(InputError, match=r"are 12x20, .* is 8x8"):
        read_masked_clip(plain, str(scene), start=2, frames=2)
