import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from stg_runtime import video as video_module
from stg_runtime.errors import InputError, StgError
from stg_runtime.video import read_clip, tile, to_model, to_pixels
from stg_runtime.video_write import check_video_output, write_video

LOSSY = [".mp4", ".webm", ".gif"]
FORMATS = [*LOSSY, ".npy", ""]


def soft_clip(frames: int, height: int, width: int) -> np.ndarray:
    """Coloured waves that move, like what the codecs are made for; uint8, (T, H, W, 3)."""
    t, y, x = np.meshgrid(np.arange(frames), np.arange(height), np.arange(width), indexing="ij")
    phases = [x / 5 - t / 3, y / 6 + t / 4, (x + y) / 7 - t / 5]
    levels = [120 + 70 * np.sin(phase) for phase in phases]
    return np.rint(np.stack(levels, -1)).astype(np.uint8)


def noise_clip(frames: int, height: int, width: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (frames, height, width, 3), dtype=np.uint8)


def psnr(got: np.ndarray, expected: np.ndarray) -> float:
    error = np.mean((got.astype(float) - expected) ** 2)
    return float(10 * np.log10(255**2 / error))


def tree(folder: Path) -> list[tuple[str, bytes | None]]:
    """Everything in a folder, hidden files too, with its bytes."""
    items = sorted(folder.rglob("*"))
    return [
        (str(item.relative_to(folder)), item.read_bytes() if item.is_file() else None)
        for item in items
    ]


def refused(path: Path, **options: object) -> str:
    """The message of the InputError that reading gives; one line that names the file."""
    with pytest.raises(InputError) as caught:
        read_clip(path, **options)  # type: ignore[arg-type]
    message = str(caught.value)
    assert "\n" not in message and path.name in message and len(message) < 400
    return message


# Writing, then reading


@pytest.mark.parametrize("suffix", [".npy", ""])
def test_lossless_outputs_keep_every_bit(tmp_path: Path, suffix: str) -> None:
    clip = noise_clip(12, 21, 33)
    write_video(tmp_path / f"clip{suffix}", clip, 10)
    assert np.array_equal(read_clip(tmp_path / f"clip{suffix}").frames, clip)


@pytest.mark.parametrize("size", [(48, 64), (47, 64), (48, 63), (33, 21), (2, 2), (1, 1)])
@pytest.mark.parametrize(("suffix", "least"), [(".mp4", 38.5), (".webm", 38.5), (".gif", 30.0)])
def test_lossy_outputs_keep_what_is_seen(
    tmp_path: Path, suffix: str, least: float, size: tuple[int, int]
) -> None:
    clip = soft_clip(9, *size)
    write_video(tmp_path / f"clip{suffix}", clip, 12.5)
    back = read_clip(tmp_path / f"clip{suffix}")
    height, width = size
    assert back.fps == pytest.approx(12.5)
    if suffix == ".gif":
        assert back.frames.shape == clip.shape
    else:  # 4:2:0 needs even sizes; the added row or column repeats the last
        assert back.frames.shape == (9, height + height % 2, width + width % 2, 3)
    if min(size) > 8:
        assert psnr(back.frames[:, :height, :width], clip) > least
        if height % 2 and suffix != ".gif":
            assert psnr(back.frames[:, -1, :width], clip[:, -1]) > least - 8


@pytest.mark.parametrize("fps", [1, 10, 23.976, 24, 25, 29.97, 30000 / 1001, 50, 60, 120])
def test_frames_per_second_survive(tmp_path: Path, fps: float) -> None:
    for suffix in (".mp4", ".webm"):
        write_video(tmp_path / f"a{suffix}", soft_clip(7, 32, 32), fps)
        back = read_clip(tmp_path / f"a{suffix}")
        assert back.fps == pytest.approx(fps, rel=1e-4), suffix
        assert len(back.frames) == 7


@pytest.mark.parametrize("suffix", FORMATS)
def test_one_frame_and_still_frames_are_all_kept(tmp_path: Path, suffix: str) -> None:
    for name, frames in (("one", 1), ("still", 6)):
        clip = np.repeat(soft_clip(1, 32, 48), frames, axis=0)
        write_video(tmp_path / f"{name}{suffix}", clip, 25)
        if suffix == ".gif":  # equal frames in a row become one that lasts as long
            with Image.open(tmp_path / f"{name}{suffix}") as image:
                assert image.n_frames == 1 and image.info["duration"] == frames * 40
        else:
            assert read_clip(tmp_path / f"{name}{suffix}").frames.shape == clip.shape, name


@pytest.mark.parametrize("suffix", [".mp4", ".webm"])
def test_players_find_what_they_expect(tmp_path: Path, suffix: str) -> None:
    write_video(tmp_path / f"a{suffix}", soft_clip(8, 32, 48), 30)
    with av.open(str(tmp_path / f"a{suffix}")) as container:
        stream = container.streams.video[0]
        context = stream.codec_context
        assert context.name == {".mp4": "h264", ".webm": "vp9"}[suffix].replace("vp9", context.name)
        assert context.codec.canonical_name == {".mp4": "h264", ".webm": "vp9"}[suffix]
        assert context.pix_fmt == "yuv420p"
        assert (context.width, context.height) == (48, 32)
        assert context.colorspace == 1 and context.color_range == 1  # BT.709, limited
        assert float(stream.average_rate) == 30
    data = (tmp_path / f"a{suffix}").read_bytes()
    if suffix == ".mp4":  # playback starts before the whole file is there
        assert data.index(b"moov") < data.index(b"mdat")


COLOURS = [
    (0, 0, 0), (255, 255, 255), (128, 128, 128), (1, 2, 3), (16, 235, 128), (64, 114, 128),
    (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0), (0, 255, 255), (255, 0, 255),
    (200, 30, 90), (30, 60, 220),
]  # fmt: skip


@pytest.mark.parametrize("suffix", LOSSY)
def test_flat_colours_are_kept_to_2_grey_levels(tmp_path: Path, suffix: str) -> None:
    for number, colour in enumerate(COLOURS):
        clip = np.empty((4, 32, 48, 3), np.uint8)
        clip[:] = colour
        write_video(tmp_path / f"{number}{suffix}", clip, 25)
        back = read_clip(tmp_path / f"{number}{suffix}").frames.astype(int)
        assert np.abs(back - clip).max() <= 2, (colour, back[0, 16, 24])


@pytest.mark.parametrize("suffix", [".mp4", ".webm"])
def test_colours_are_not_shifted_on_the_average(tmp_path: Path, suffix: str) -> None:
    # What a model learns as the mean: a shift of one level in each round would add up. A wrong
    # range or matrix gives 1 or more; the encoder's own losses differ by machine (to 0.29 seen).
    clip = soft_clip(12, 64, 64)
    write_video(tmp_path / f"a{suffix}", clip, 25)
    shift = (read_clip(tmp_path / f"a{suffix}").frames.astype(float) - clip).mean((0, 1, 2))
    assert np.abs(shift).max() < 0.5


def test_gif_loops_for_ever_at_the_nearest_hundredth(tmp_path: Path) -> None:
    for fps, duration_ms in ((10, 100), (25, 40), (30, 30), (50, 20)):
        write_video(tmp_path / "a.gif", soft_clip(5, 24, 32), fps, overwrite=True)
        with Image.open(tmp_path / "a.gif") as image:
            assert image.info["loop"] == 0 and image.n_frames == 5
            for frame in range(5):
                image.seek(frame)
                assert image.info["duration"] == duration_ms, fps
    with pytest.raises(InputError, match=r"a \.gif plays at most 50"):
        write_video(tmp_path / "fast.gif", soft_clip(5, 24, 32), 100)


def test_npy_holds_several_videos_but_reads_as_one(tmp_path: Path) -> None:
    clips = np.stack([noise_clip(3, 8, 10, seed) for seed in (0, 1)])
    write_video(tmp_path / "two.npy", clips, 25)
    assert np.array_equal(np.load(tmp_path / "two.npy", allow_pickle=False), clips)
    assert "(2, 3, 8, 10, 3)" in refused(tmp_path / "two.npy")
    write_video(tmp_path / "one.npy", clips[0], 25)
    assert np.load(tmp_path / "one.npy").shape == (1, 3, 8, 10, 3)
    np.save(tmp_path / "plain.npy", clips[1])
    assert np.array_equal(read_clip(tmp_path / "plain.npy").frames, clips[1])


@pytest.mark.parametrize(
    "name",
    ["two words", "it's \"so\"", "-y", "--help", "a:b", "12:30", "file:x", "http:", "δ σ 海 é",
     "50% %03d", "a#b?c", "[x]{y}", "semi;colon|pipe", "new\nline"],
)  # fmt: skip
@pytest.mark.parametrize("suffix", [".mp4", ".gif", ".npy", ""])
def test_any_name_is_a_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, suffix: str
) -> None:
    monkeypatch.chdir(tmp_path)
    path = Path(name + suffix)
    write_video(path, soft_clip(2, 16, 16), 25)
    assert [item.name for item in tmp_path.iterdir()] == [path.name]
    assert read_clip(path).frames.shape == (2, 16, 16, 3)
    assert read_clip(tmp_path / path).frames.shape == (2, 16, 16, 3)


# Outputs, whole or not at all


@pytest.mark.parametrize("suffix", FORMATS)
def test_an_existing_output_is_refused_or_replaced(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"clip{suffix}"
    write_video(path, soft_clip(5, 16, 16), 25)
    before = tree(tmp_path)
    with pytest.raises(InputError, match="--overwrite"):
        write_video(path, soft_clip(3, 20, 16), 25)
    assert tree(tmp_path) == before
    write_video(path, soft_clip(3, 20, 16), 25, overwrite=True)
    assert read_clip(path).frames.shape == (3, 20, 16, 3)
    assert [item.name for item in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("suffix", FORMATS)
def test_an_exception_in_the_middle_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str, overwrite: bool
) -> None:
    path = tmp_path / f"clip{suffix}"
    if overwrite:
        write_video(path, soft_clip(3, 16, 16), 25)
    before = tree(tmp_path)
    failures = 0

    def fail(*_: object, **__: object) -> None:
        nonlocal failures
        failures += 1
        assert suffix == ".gif" or tree(tmp_path) != before, "nothing had been written yet"
        raise KeyboardInterrupt

    if suffix == ".npy":

        def half(file: object, array: np.ndarray) -> None:
            file.write(b"half")  # type: ignore[attr-defined]
            fail()

        monkeypatch.setattr(np, "save", half)
    elif suffix in (".gif", ""):
        real, calls = Image.fromarray, 0

        def second(array: np.ndarray) -> Image.Image:
            nonlocal calls
            calls += 1
            return fail() if calls == 2 else real(array)  # type: ignore[return-value]

        monkeypatch.setattr(Image, "fromarray", second)
    else:
        left = 58  # the encoder holds some tens of frames back before it writes any

        def late(array: np.ndarray) -> np.ndarray:
            nonlocal left
            left -= 1
            return fail() if left == 0 else array  # type: ignore[return-value]

        monkeypatch.setattr(np, "ascontiguousarray", late)
    with pytest.raises(KeyboardInterrupt):
        write_video(path, soft_clip(60, 16, 16), 25, overwrite=overwrite)
    assert failures == 1
    assert tree(tmp_path) == before


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_full_disk_is_one_line_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    target = {".npy": (np, "save"), ".mp4": (av, "open"), ".webm": (av, "open")}
    monkeypatch.setattr(*target.get(suffix, (Image.Image, "save")), full)
    with pytest.raises(StgError, match="No space left on device") as caught:
        write_video(tmp_path / f"clip{suffix}", soft_clip(4, 16, 16), 25)
    assert "\n" not in str(caught.value) and f"clip{suffix}" in str(caught.value)
    assert not isinstance(caught.value, InputError)
    assert tree(tmp_path) == []


def test_an_unknown_suffix_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"\.avi.*\.mp4"):
        check_video_output(tmp_path / "a.avi", overwrite=False)


# Bad inputs: one line, nothing left behind


@pytest.fixture(scope="module")
def bad(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of inputs that cannot be read."""
    tmp_path = tmp_path_factory.mktemp("bad")
    write_video(tmp_path / "good.mp4", noise_clip(20, 32, 32), 25)
    data = (tmp_path / "good.mp4").read_bytes()
    (tmp_path / "half.mp4").write_bytes(data[: len(data) // 2])
    with av.open(str(tmp_path / "good.mp4")) as container:
        entry = container.streams.video[0].index_entries[10]
    (tmp_path / "boundary.mp4").write_bytes(data[: entry.pos])
    (tmp_path / "most.mp4").write_bytes(data[:-1])
    write_video(tmp_path / "good.webm", noise_clip(20, 32, 32), 25)
    webm = (tmp_path / "good.webm").read_bytes()
    (tmp_path / "half.webm").write_bytes(webm[: len(webm) // 2])
    (tmp_path / "head.mp4").write_bytes(data[:100])
    (tmp_path / "garbled.mp4").write_bytes(data[:2000] + bytes(len(data) - 2000))
    (tmp_path / "text.mp4").write_text("not a video\n" * 50)
    (tmp_path / "playlist.mp4").write_text("#EXTM3U\n#EXTINF:1,\ngood.mp4\n#EXT-X-ENDLIST\n")
    (tmp_path / "concat.mp4").write_text("ffconcat version 1.0\nfile good.mp4\n")
    for name in ("empty.mp4", "empty.npy"):
        (tmp_path / name).touch()
    for name in ("nothing", "texts", "sizes", "fake"):
        (tmp_path / name).mkdir()
    (tmp_path / "texts" / "a.txt").write_text("a")
    Image.new("RGB", (8, 8)).save(tmp_path / "sizes" / "0.png")
    Image.new("RGB", (8, 9)).save(tmp_path / "sizes" / "1.png")
    (tmp_path / "fake" / "0.png").write_text("not an image")
    np.save(tmp_path / "float.npy", np.zeros((2, 4, 4, 3), np.float32))
    np.save(tmp_path / "int8.npy", np.zeros((2, 4, 4, 3), np.int8))
    np.save(tmp_path / "grey.npy", np.zeros((2, 4, 4), np.uint8))
    np.save(tmp_path / "first.npy", np.zeros((3, 2, 4, 4), np.uint8))
    np.save(tmp_path / "none.npy", np.zeros((0, 4, 4, 3), np.uint8))
    np.save(tmp_path / "flat.npy", np.zeros((2, 0, 4, 3), np.uint8))
    np.save(tmp_path / "scalar.npy", np.uint8(3))
    np.save(tmp_path / "pickle.npy", np.array([{"a": 1}], object), allow_pickle=True)
    np.savez(tmp_path / "zip.npz", np.zeros((2, 4, 4, 3), np.uint8))
    (tmp_path / "zip.npz").rename(tmp_path / "zip.npy")
    data = (tmp_path / "float.npy").read_bytes()
    (tmp_path / "short.npy").write_bytes(data[:150])
    (tmp_path / "short-head.npy").write_bytes(data[:20])
    (tmp_path / "text.npy").write_text("1 2 3\n")
    sound(tmp_path / "sound.mp4")
    return tmp_path


def sound(path: Path) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        frame.sample_rate = 16000
        for packet in [*stream.encode(frame), *stream.encode()]:
            container.mux(packet)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("missing.mp4", "no such file"),
        ("good.mp4/more.mp4", "no such file"),
        ("empty.mp4", "is empty"),
        ("empty.npy", "is empty"),
        ("text.mp4", "not a video"),
        ("half.mp4", ""),
        ("head.mp4", "no video, the file is damaged"),
        ("most.mp4", "cut short"),
        ("boundary.mp4", "cut short after frame"),
        ("half.webm", "cut short after frame"),
        ("garbled.mp4", ""),
        ("playlist.mp4", "not a video"),
        ("concat.mp4", "not a video"),
        ("sound.mp4", "holds no video"),
        ("nothing", "no images"),
        ("texts", "no images"),
        ("sizes", "--size"),
        ("fake", "not a readable image"),
        ("float.npy", "float32"),
        ("int8.npy", "int8"),
        ("grey.npy", "expected uint8"),
        ("first.npy", "expected uint8"),
        ("none.npy", "no frames"),
        ("flat.npy", "(2, 0, 4, 3)"),
        ("scalar.npy", "shape ()"),
        ("pickle.npy", "not a readable .npy"),
        ("zip.npy", "not a readable .npy"),
        ("short.npy", "not a readable .npy"),
        ("short-head.npy", "not a readable .npy"),
        ("text.npy", "not a readable .npy"),
    ],
)
def test_bad_inputs_are_refused_in_one_line(bad: Path, name: str, said: str) -> None:
    before = tree(bad)
    assert said in refused(bad / name)
    assert tree(bad) == before


@pytest.mark.parametrize("name", ["clip.npy", "clip", "clip.mp4"])
@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"frames": 7}, "pass --frames 6"),
        ({"frames": 4, "start": 3}, "pass --frames 3 or an earlier --start"),
        ({"start": 6}, "--start 6 is past its end, it has 6 frames"),
        ({"start": 600, "frames": 2}, "past its end"),
        ({"crop": (20, 0, 13, 4)}, "reaches outside its frames of 32x24"),
        ({"crop": (0, 20, 4, 5)}, "--crop 0,20,4,5"),
    ],
)
def test_asking_for_more_than_there_is_is_refused(
    tmp_path: Path, name: str, options: dict[str, object], said: str
) -> None:
    write_video(tmp_path / name, soft_clip(6, 24, 32), 25)
    before = tree(tmp_path)
    assert said in refused(tmp_path / name, **options)
    assert tree(tmp_path) == before


def test_reading_stops_at_the_memory_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_video(tmp_path / "a.npy", soft_clip(6, 8, 8), 25)
    monkeypatch.setattr(video_module, "MAX_BYTES", 3 * 8 * 8 * 3)
    assert "--frames" in refused(tmp_path / "a.npy")
    assert len(read_clip(tmp_path / "a.npy", frames=3).frames) == 3


@pytest.mark.parametrize("name", ["a.npy", "a.mp4", "a.gif", "a"])
def test_enormous_frames_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    write_video(tmp_path / name, soft_clip(2, 32, 32), 25)
    monkeypatch.setattr(video_module, "MAX_PIXELS", 1023)
    assert "32x32" in refused(tmp_path / name)


# What is read


@pytest.mark.parametrize("name", ["clip.npy", "clip"])
@pytest.mark.parametrize("frames", [None, 1, 5])
@pytest.mark.parametrize("start", [0, 4])
@pytest.mark.parametrize("crop", [None, (0, 0, 33, 21), (3, 5, 7, 11), (32, 20, 1, 1)])
def test_start_frames_and_crop_are_slices(
    tmp_path: Path,
    name: str,
    frames: int | None,
    start: int,
    crop: tuple[int, int, int, int] | None,
) -> None:
    clip = noise_clip(11, 21, 33)
    write_video(tmp_path / name, clip, 25)
    x, y, width, height = crop or (0, 0, 33, 21)
    stop = None if frames is None else start + frames
    expected = clip[start:stop, y : y + height, x : x + width]
    got = read_clip(tmp_path / name, frames=frames, start=start, crop=crop).frames
    assert np.array_equal(got, expected)
    same_size = read_clip(
        tmp_path / name, frames=frames, start=start, crop=crop, size=(height, width)
    )
    assert np.array_equal(same_size.frames, expected)


@pytest.mark.parametrize("suffix", LOSSY)
def test_start_and_frames_are_slices_of_a_decoded_video(tmp_path: Path, suffix: str) -> None:
    write_video(tmp_path / f"a{suffix}", soft_clip(14, 32, 32), 25)
    whole = read_clip(tmp_path / f"a{suffix}").frames
    assert len(whole) == 14
    part = read_clip(tmp_path / f"a{suffix}", start=5, frames=4, crop=(2, 4, 10, 20)).frames
    assert np.array_equal(part, whole[5:9, 4:24, 2:12])


def test_resizing_cuts_the_centre_and_squashes_nothing(tmp_path: Path) -> None:
    clip = np.zeros((1, 20, 60, 3), np.uint8)
    clip[:, :, 20:40] = 200  # the middle third
    write_video(tmp_path / "wide.npy", clip, 25)
    write_video(tmp_path / "tall.npy", clip.swapaxes(1, 2), 25)
    for name in ("wide.npy", "tall.npy"):
        got = read_clip(tmp_path / name, size=(10, 10)).frames
        assert got.shape == (1, 10, 10, 3)
        # Lanczos looks 3 result pixels across the cut.
        assert (got[:, 3:-3, 3:-3] == 200).all() and got.min() > 180
    # The crop comes first, in source pixels.
    got = read_clip(tmp_path / "wide.npy", size=(5, 5), crop=(0, 0, 20, 20)).frames
    assert got.shape == (1, 5, 5, 3) and (got == 0).all()


@pytest.mark.parametrize("size", [(8, 8), (9, 24), (24, 10), (48, 64), (1, 1)])
def test_resizing_keeps_flat_colours_and_means(tmp_path: Path, size: tuple[int, int]) -> None:
    flat = np.empty((2, 24, 32, 3), np.uint8)
    flat[:] = (7, 130, 251)
    write_video(tmp_path / "flat.npy", flat, 25)
    got = read_clip(tmp_path / "flat.npy", size=size).frames
    assert got.shape == (2, *size, 3) and (got == (7, 130, 251)).all()


def test_shrinking_does_not_alias(tmp_path: Path) -> None:
    lines = np.zeros((1, 64, 64, 3), np.uint8)
    lines[:, :, ::2] = 200
    write_video(tmp_path / "lines.npy", lines, 25)
    got = read_clip(tmp_path / "lines.npy", size=(16, 16)).frames[:, 2:-2, 2:-2]
    assert np.abs(got.astype(int) - 100).max() <= 4


def test_resizing_brings_images_to_one_size(tmp_path: Path) -> None:
    for number, size in enumerate([(8, 8), (10, 16)]):
        Image.new("RGB", size, (9, 8, 7)).save(tmp_path / f"{number}.png")
    assert read_clip(tmp_path, size=(4, 4)).frames.shape == (2, 4, 4, 3)


def test_images_are_read_in_natural_order_and_as_rgb(tmp_path: Path) -> None:
    for number in (10, 9, 100, 1):
        Image.new("L", (4, 4), number).save(tmp_path / f"f{number}.png")
    Image.new("RGBA", (4, 4), (200, 200, 200, 255)).save(tmp_path / "f101.PNG")
    (tmp_path / "notes.txt").write_text("not a frame")
    (tmp_path / ".f0.png").write_text("hidden")
    frames = read_clip(tmp_path).frames
    assert frames[:, 0, 0].tolist() == [[n] * 3 for n in (1, 9, 10, 100, 200)]


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".PNG"])
def test_one_image_is_one_frame(tmp_path: Path, suffix: str) -> None:
    clip = noise_clip(1, 6, 7)
    Image.fromarray(clip[0]).save(tmp_path / f"a%02d{suffix}")
    assert np.array_equal(read_clip(tmp_path / f"a%02d{suffix}").frames, clip)
    (tmp_path / f"text{suffix}").write_text("not an image")
    assert "not a readable image" in refused(tmp_path / f"text{suffix}")


def test_a_turned_video_is_read_upright(tmp_path: Path) -> None:
    # Telephones film sideways and store the angle.
    clip = np.zeros((3, 32, 64, 3), np.uint8)
    clip[:, :, :32] = 255  # left half white
    write_video(tmp_path / "a.mp4", clip, 25)
    data = bytearray((tmp_path / "a.mp4").read_bytes())
    track = data.index(b"tkhd")
    at = track + 4 + 40  # the matrix follows version, times, ids, duration, layer, volume
    one = (1 << 16).to_bytes(4, "big")
    assert data[at : at + 4] == one
    quarter = [0, 1 << 16, 0, -(1 << 16), 0, 0, 0, 0, 1 << 30]  # 90 degrees clockwise
    data[at : at + 36] = b"".join(value.to_bytes(4, "big", signed=True) for value in quarter)
    (tmp_path / "a.mp4").write_bytes(data)
    frames = read_clip(tmp_path / "a.mp4").frames
    assert frames.shape == (3, 64, 32, 3)
    assert frames[:, :30].min() > 240 and frames[:, -30:].max() < 15


# Model units


@pytest.mark.parametrize("scale", [1.0, 37.25, 255.0, 0.1])
@pytest.mark.parametrize("image", [False, True])
def test_model_units_and_back_keep_every_bit(image: bool, scale: float) -> None:
    frames = noise_clip(5, 9, 13)
    frames[0, 0] = 0
    frames[1, 0] = 255
    rng = np.random.default_rng(1)
    shape = (3, 9, 13) if image else (3, 1, 1)
    mean = rng.uniform(0, 255, shape).astype(np.float32)
    x = to_model(frames, mean, scale)
    assert x.dtype == np.float32 and x.shape == (3, 5, 9, 13) and x.flags.c_contiguous
    expected = (frames.transpose(3, 0, 1, 2) - mean[:, None].astype(float)) / scale
    np.testing.assert_allclose(x, expected, rtol=1e-5, atol=1e-5 / scale)
    assert np.array_equal(to_pixels(x, mean, scale), frames)


def test_pixels_are_rounded_half_to_even_and_clamped() -> None:
    x = np.array([-3, -0.4, 0.5, 1.5, 254.6, 255.4, 1e9, -1e9], np.float32).reshape(1, 1, 1, -1)
    got = to_pixels(x, np.zeros((1, 1, 1), np.float32), 1.0)
    assert got.dtype == np.uint8 and got.shape == (1, 1, 8, 1)
    assert got.ravel().tolist() == [0, 0, 0, 2, 255, 255, 255, 0]


@pytest.mark.parametrize(
    ("count", "columns", "grid"),
    [(1, None, (1, 1)), (3, None, (2, 2)), (5, 5, (1, 5)), (5, 2, (3, 2))],
)
def test_tiles_lie_row_by_row(count: int, columns: int | None, grid: tuple[int, int]) -> None:
    stack = np.stack([noise_clip(2, 4, 6, seed) for seed in range(count)])
    sheet = tile(stack, columns)
    assert sheet.shape == (2, grid[0] * 4, grid[1] * 6, 3)
    for i in range(grid[0] * grid[1]):
        top, left = i // grid[1] * 4, i % grid[1] * 6
        cell = sheet[:, top : top + 4, left : left + 6]
        assert np.array_equal(cell, stack[i]) if i < count else not cell.any()


def test_importing_loads_no_codec() -> None:
    code = (
        "import sys, stg_runtime.video, stg_runtime.video_write; "
        "print(*({'av', 'PIL', 'onnxruntime', 'torch', 'onnx'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
