import errno
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from stg_runtime.contact_sheet import contact_sheet, save_image
from stg_runtime.errors import InputError, StgError
from stg_runtime.video import MAX_PIXELS


def ramp(frames: int, height: int = 10, width: int = 12) -> np.ndarray:
    """Every frame flat, its red its number times 10."""
    video = np.full((frames, height, width, 3), 100, np.uint8)
    video[..., 0] = (np.arange(frames) * 10)[:, None, None]
    return video


def cells(sheet: np.ndarray, row: int, height: int, width: int, columns: int) -> np.ndarray:
    """The frames of a row, (columns, height, width, 3)."""
    top = row * (16 + height + 4) + 16
    left = [4 + column * (width + 4) for column in range(columns)]
    return np.stack([sheet[top : top + height, x : x + width] for x in left])


def test_frames_are_evenly_spaced_from_first_to_last() -> None:
    sheet = contact_sheet([("a", ramp(9)), ("b", ramp(25))], columns=5, width=84)
    assert sheet.dtype == np.uint8 and sheet.shape == (2 * 30, 5 * 16 + 4, 3)
    for row, spacing in ((0, 20), (1, 60)):
        got = cells(sheet, row, 10, 12, 5)
        assert (got[..., 0] == (np.arange(5) * spacing)[:, None, None]).all()
        assert (got[..., 1] == 100).all()


def test_a_short_video_gets_as_many_columns_as_frames() -> None:
    sheet = contact_sheet([("a", ramp(3))], columns=8, width=52)
    assert sheet.shape == (30, 3 * 16 + 4, 3)
    assert cells(sheet, 0, 10, 12, 3)[:, 5, 5, 0].tolist() == [0, 10, 20]
    assert contact_sheet([("one", ramp(1))], width=20).shape == (30, 20, 3)


@pytest.mark.parametrize("width", [70, 300, 1280])
def test_small_frames_are_enlarged_by_a_whole_factor(width: int) -> None:
    sheet = contact_sheet([("a", ramp(4))], columns=4, width=width)
    factor = (sheet.shape[0] - 20) // 10
    assert sheet.shape == (20 + 10 * factor, 4 * (12 * factor + 4) + 4, 3)
    assert sheet.shape[1] <= width < 4 * (12 * (factor + 1) + 4) + 4
    got = cells(sheet, 0, 10 * factor, 12 * factor, 4)
    assert got[:, :, :, 0].max((1, 2)).tolist() == [0, 10, 20, 30]


def test_labels_are_drawn_above_their_row() -> None:
    rows = [("first", ramp(4)), ("", ramp(4))]
    sheet = contact_sheet(rows, columns=4, width=68)
    assert sheet[:16].max() > 150  # light letters
    assert sheet[30:46].max() < 50  # an empty label


def test_an_image_is_written_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sheet = contact_sheet([("a", ramp(4))], columns=4)
    save_image(tmp_path / "sheet.png", sheet)
    with Image.open(tmp_path / "sheet.png") as image:
        assert np.array_equal(np.asarray(image), sheet)
    before = (tmp_path / "sheet.png").read_bytes()

    def half(self: Image.Image, path: Path) -> None:
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(Image.Image, "save", half)
    with pytest.raises(KeyboardInterrupt):
        save_image(tmp_path / "sheet.png", sheet)
    assert [item.name for item in tmp_path.iterdir()] == ["sheet.png"]
    assert (tmp_path / "sheet.png").read_bytes() == before


def test_a_sheet_of_many_tiny_videos_stays_within_the_bound() -> None:
    """Enlarged to the whole width, these would be 480 million pixels."""
    video = np.zeros((1, 1, 1, 3), np.uint8)
    sheet = contact_sheet([(str(i), video) for i in range(300)])
    assert sheet.shape[0] * sheet.shape[1] <= MAX_PIXELS and sheet.shape[1] > 200


def test_a_sheet_that_no_picture_holds_is_refused(tmp_path: Path) -> None:
    tall = np.zeros((1, 65_536, 1, 3), np.uint8)
    with pytest.raises(InputError, match=r"a.jpg: a picture of .*; write .png"):
        save_image(tmp_path / "a.jpg", contact_sheet([("tall", tall)]))
    with pytest.raises(InputError, match=r"300 rows of 1 frames of 65536x1 would be"):
        contact_sheet([("tall", tall)] * 300)


def test_a_sheet_that_a_full_disk_does_not_take_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Image.Image, path: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(StgError, match=r"a.png: could not be written: No space left on device"):
        save_image(tmp_path / "a.png", np.zeros((2, 2, 3), np.uint8))
