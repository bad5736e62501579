import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from stg_runtime.errors import InputError
from stg_runtime.video import read_clip
from stg_runtime.video_write import write_video


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"start": -3}, "--start -3"),
        ({"frames": 0}, "--frames 0"),
        ({"size": (0, 5)}, "--size 0x5"),
        ({"size": (-4, -5)}, "--size -4x-5"),
        ({"size": (100_000, 100_000)}, "--size 100000x100000"),
        ({"crop": (-2, 0, 4, 4)}, "--crop -2,0,4,4"),
        ({"crop": (0, 0, 0, 4)}, "--crop 0,0,0,4"),
    ],
)
def test_values_out_of_range_are_refused(
    tmp_path: Path, options: dict[str, Any], said: str
) -> None:
    np.save(tmp_path / "a.npy", np.zeros((10, 8, 8, 3), np.uint8))
    with pytest.raises(InputError) as caught:
        read_clip(tmp_path / "a.npy", **options)
    assert said in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "header",
    [
        "{'descr': '|u1', 'fortran_order': False, 'shape': (99999999999, 99999, 99999, 3), }",
        "{'descr': '|u1', 'fortran_order': False, 'shape': (10**9,), ",
        "{'descr': [('a',[('b'],3)], 'fortran_order': False, 'shape': (1, 2, 2, 3), }",
        "{'descr': '|u1', 'fortran_order': False, 'shape': (-1, 2, 2, 3), }",
        "{'descr': 'garbage",
    ],
)
def test_a_damaged_npy_header_is_one_line(tmp_path: Path, header: str) -> None:
    text = header.ljust(117).encode() + b"\n"
    (tmp_path / "a.npy").write_bytes(b"\x93NUMPY\x01\x00v\x00" + text + b"0" * 48)
    with pytest.raises(InputError) as caught:
        read_clip(tmp_path / "a.npy")
    assert "a.npy: not a readable .npy" in str(caught.value) and "\n" not in str(caught.value)


def test_16_bit_images_keep_their_upper_bits(tmp_path: Path) -> None:
    levels = np.linspace(0, 65535, 64).reshape(8, 8).astype(np.uint16)
    Image.fromarray(levels).save(tmp_path / "a.png")
    assert np.array_equal(read_clip(tmp_path).frames[0, :, :, 1], levels >> 8)


def test_a_photograph_is_read_upright(tmp_path: Path) -> None:
    image = Image.fromarray(np.zeros((20, 40, 3), np.uint8))
    tags = image.getexif()
    tags[0x112] = 6  # turned by 90 degrees
    image.save(tmp_path / "a.jpg", exif=tags)
    assert read_clip(tmp_path).frames.shape == (1, 40, 20, 3)


@pytest.mark.parametrize("fps", [float("nan"), float("inf"), 0, -5, 1e9])
@pytest.mark.parametrize("suffix", [".mp4", ".webm", ".gif"])
def test_impossible_rates_are_refused(tmp_path: Path, suffix: str, fps: float) -> None:
    with pytest.raises(InputError, match="frames per second"):
        write_video(tmp_path / f"a{suffix}", np.zeros((2, 8, 8, 3), np.uint8), fps)
    assert not list(tmp_path.iterdir())


def test_a_missing_decoder_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_video(tmp_path / "a.mp4", np.zeros((2, 8, 8, 3), np.uint8), 25)
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(InputError, match="stg-run doctor"):
        read_clip(tmp_path / "a.mp4")
    with pytest.raises(InputError, match="stg-run doctor"):
        write_video(tmp_path / "b.mp4", np.zeros((2, 8, 8, 3), np.uint8), 25)
    assert not (tmp_path / "b.mp4").exists()
