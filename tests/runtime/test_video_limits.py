import io
import sys
import warnings
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from stg_runtime.errors import InputError
from stg_runtime.video import count_clips, read_clip
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


def test_an_array_of_no_clips_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros((0, 2, 4, 4, 3), np.uint8))
    with pytest.raises(InputError, match=r"a.npy: holds no clips"):
        count_clips(tmp_path / "a.npy")


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


def test_a_frame_that_grows_inside_a_stream_is_refused(tmp_path: Path) -> None:
    """The header tells of 64 x 64 pixels; the bound holds for what is decoded."""
    av = pytest.importorskip("av")
    with av.open(str(tmp_path / "a.mkv"), "w") as container:
        stream = container.add_stream("mjpeg", rate=25)
        stream.width = stream.height = 64
        stream.pix_fmt = "yuvj420p"
        for number, side in enumerate((64, 9000)):
            picture = io.BytesIO()
            Image.new("L", (side, side)).save(picture, "JPEG", quality=5)
            packet = av.Packet(picture.getvalue())
            packet.pts = packet.dts = number
            packet.time_base, packet.stream = Fraction(1, 25), stream
            container.mux(packet)
    assert len(read_clip(tmp_path / "a.mkv", frames=1).frames) == 1
    with pytest.raises(InputError, match="frames of 9000x9000 pixels; at most 67108864"):
        read_clip(tmp_path / "a.mkv")


def test_a_gif_that_was_cut_short_is_refused(tmp_path: Path) -> None:
    frames = np.random.default_rng(0).integers(0, 255, (8, 16, 16, 3), dtype=np.uint8)
    write_video(tmp_path / "a.gif", frames, 25)
    data = (tmp_path / "a.gif").read_bytes()
    (tmp_path / "a.gif").write_bytes(data + bytes(3))
    assert len(read_clip(tmp_path / "a.gif").frames) == 8
    for part in (30, 60, 95):
        (tmp_path / "a.gif").write_bytes(data[: len(data) * part // 100].rstrip(b";"))
        with pytest.raises(InputError, match=r"cut short|damaged"):
            read_clip(tmp_path / "a.gif")


def test_a_picture_beyond_the_bound_is_one_line(tmp_path: Path) -> None:
    """Pillow would warn of it, in two lines of its own."""
    Image.new("1", (13_000, 13_000)).save(tmp_path / "a.png")
    with warnings.catch_warnings(), pytest.raises(InputError, match="13000x13000 pixels; at most"):
        warnings.simplefilter("error")
        read_clip(tmp_path / "a.png")
