"""Videos in: decoding, cropping, resizing, and pixels to model units and back."""

from __future__ import annotations

import itertools
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tokenize import TokenError
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from stg_runtime import cdnet
from stg_runtime.errors import InputError
from stg_runtime.files import check_regular

if TYPE_CHECKING:
    from fractions import Fraction

    from av.container import InputContainer
    from av.video.stream import VideoStream
    from PIL.Image import Image

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp")
DEFAULT_FPS = 25.0  # of image folders, arrays, and containers that name no rate
MAX_BYTES = 4 << 30  # of one prepared clip
MAX_PIXELS = 1 << 26  # of one frame, as the header states it: 8192 x 8192

# FFmpeg's names of the containers that are read; none of them refers to another file.
_FORMATS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,asf,flv,mpeg,mpegts,mpegvideo,ogg,gif,apng,mxf,dv,"
    "nut,ivf,y4m,yuv4mpegpipe,h264,hevc,m4v,mjpeg,av1,obu,rm,swf,webp"
)

Frames = NDArray[np.uint8]


@dataclass(frozen=True)
class Clip:
    """A short video in memory.

    Attributes:
        frames: uint8, (T, H, W, 3), grey levels of red, green and blue.
        fps: frames per second.
    """

    frames: Frames
    fps: float


def read_clip(
    path: Path,
    *,
    size: tuple[int, int] | None = None,
    frames: int | None = None,
    start: int = 0,
    crop: tuple[int, int, int, int] | None = None,
    clip: int | None = None,
) -> Clip:
    """Read a video file, an image, a folder of images (in natural order), or a uint8 array file.

    A folder in the layout of CDnet 2014 is the video of its `input/`; see `stg_runtime.cdnet`.

    Decoding stops after the last frame needed, and each frame is reduced as it is decoded.

    Args:
        path: a video that FFmpeg decodes; an image; a folder of images; or an .npy, T x H x W x 3
            or 1 x T x H x W x 3.
        size: (H, W) of the result; a frame of another aspect ratio is cut at its centre first, so
            nothing is squashed. None keeps the size.
        frames: how many to read; None for all.
        start: first frame read.
        crop: (x, y, width, height) cut out before resizing, source pixels.
        clip: which clip of an .npy that holds several, N x T x H x W x 3; see `count_clips`.

    Raises:
        InputError: the path cannot be read as a video, has too few frames, is smaller than the
            crop, or would fill more than `MAX_BYTES`; a value is out of range.
    """
    _check_options(path, size, frames, start, crop)
    if size is not None and frames is not None and 3 * frames * size[0] * size[1] > MAX_BYTES:
        raise InputError(
            f"{path}: {frames} frames of {size[0]}x{size[1]} are more than {MAX_BYTES >> 30} GiB; "
            "pass a smaller --frames or --size"
        )
    source, fps = _open(path, clip)
    kept: list[Frames] = []
    total = 0
    count = 0
    for index, image in enumerate(source):
        count = index + 1
        if index < start:
            continue
        frame = np.asarray(_prepare(image, path, size, crop))
        if kept and frame.shape != kept[0].shape:
            raise InputError(
                f"{path}: frame {index} is {frame.shape[0]}x{frame.shape[1]}, the ones before are "
                f"{kept[0].shape[0]}x{kept[0].shape[1]}; pass --size to bring all to one size"
            )
        total += frame.nbytes
        if total > MAX_BYTES:
            raise InputError(
                f"{path}: more than {MAX_BYTES >> 30} GiB of frames; pass a smaller --frames or "
                "--size"
            )
        kept.append(frame)
        if frames is not None and len(kept) == frames:
            break
    if not count:
        raise no_frames(path)
    if not kept:
        raise InputError(f"{path}: --start {start} is past its end, it has {count} frames")
    if frames is not None and len(kept) < frames:
        raise InputError(
            f"{path}: {len(kept)} frames from frame {start} on, {frames} asked for; pass "
            f"--frames {len(kept)}" + (" or an earlier --start" if start else "")
        )
    return Clip(np.stack(kept), fps)


def no_frames(path: Path) -> InputError:
    """The error that says that a video is empty."""
    return InputError(f"{path}: holds no frames; give a video file or a folder of images")


def _check_options(
    path: Path,
    size: tuple[int, int] | None,
    frames: int | None,
    start: int,
    crop: tuple[int, int, int, int] | None,
) -> None:
    if start < 0:
        raise InputError(f"{path}: --start {start}; frames are counted from 0")
    if frames is not None and frames < 1:
        raise InputError(f"{path}: --frames {frames}; at least 1")
    if size is not None and (min(size) < 1 or size[0] * size[1] > MAX_PIXELS):
        raise InputError(
            f"{path}: --size {size[0]}x{size[1]}; at least 1x1 and at most {MAX_PIXELS} pixels"
        )
    if crop is not None and (min(crop[:2]) < 0 or min(crop[2:]) < 1):
        raise InputError(
            f"{path}: --crop {','.join(map(str, crop))}; X and Y are at least 0, W and H at least 1"
        )


def count_clips(path: Path) -> int:
    """How many clips a path holds: N of an .npy of N x T x H x W x 3, otherwise 1.

    Raises:
        InputError: an .npy that cannot be read, or that holds none.
    """
    if path.suffix.lower() != ".npy" or not path.is_file() or path.stat().st_size == 0:
        return 1  # reading it, which follows, says what is wrong
    array = load_array(path)
    if array.ndim != 5:
        return 1  # or no clip at all, which reading it says
    if not array.shape[0]:
        raise InputError(f"{path}: holds no clips, its shape is {array.shape}")
    return int(array.shape[0])


def iter_frames(
    path: Path,
    *,
    size: tuple[int, int] | None = None,
    crop: tuple[int, int, int, int] | None = None,
    clip: int | None = None,
) -> Iterator[Frames]:
    """The frames of a video one after another, uint8, (H, W, 3) each; see `read_clip`.

    Raises:
        InputError: while iterating, where the path cannot be read as a video.
    """
    _check_options(path, size, None, 0, crop)
    for image in _open(path, clip)[0]:
        yield np.asarray(_prepare(image, path, size, crop))


def frame_rate(path: Path, clip: int | None = None) -> float:
    """Frames per second that `read_clip` gives for a path.

    Raises:
        InputError: no such path, or an empty file.
    """
    return _open(path, clip)[1]


def count_frames(path: Path, clip: int | None = None, *, at_most: int | None = None) -> int:
    """How many frames a path holds; a video file is decoded to its end, or so far, to be sure.

    Raises:
        InputError: the path cannot be read as a video.
    """
    return sum(1 for _ in itertools.islice(_open(path, clip)[0], at_most))


def _open(path: Path, clip: int | None) -> tuple[Iterator[Image], float]:
    if not path.exists():
        raise InputError(f"{path}: no such file or folder")
    if path.is_dir():
        names = cdnet.frame_paths(path) if cdnet.is_cdnet(path) else _image_names(path)
        return _images(names), DEFAULT_FPS
    if path.stat().st_size == 0:
        raise InputError(f"{path}: the file is empty")
    if path.suffix.lower() == ".npy":
        return _array(path, clip), DEFAULT_FPS
    if path.suffix.lower() in IMAGE_SUFFIXES:
        return _images([path]), DEFAULT_FPS
    return _decode(path), _frame_rate(path)


def _image_names(folder: Path) -> list[Path]:
    def natural(path: Path) -> list[tuple[int, str]]:
        # "frame10" comes after "frame9": digits compare as numbers.
        parts = re.split(r"(\d+)", path.name)
        return [(int(part), "") if part.isdigit() else (-1, part) for part in parts]

    names = sorted(
        (
            item
            for item in folder.iterdir()
            if item.suffix.lower() in IMAGE_SUFFIXES and not item.name.startswith(".")
        ),
        key=natural,
    )
    if not names:
        raise InputError(f"{folder}: no images in this folder ({', '.join(IMAGE_SUFFIXES)})")
    return names


def _images(names: Sequence[Path]) -> Iterator[Image]:
    from PIL import Image, ImageOps

    for name in names:
        with open_image(name) as image:
            upright = ImageOps.exif_transpose(image)
            if upright.mode.startswith("I"):  # 16 bits, which Pillow would clip to 8
                levels = np.clip(np.asarray(upright), 0, 65535) >> 8
                upright = Image.fromarray(levels.astype(np.uint8))
            made = upright.convert("RGB")
        yield made


@contextmanager
def open_image(path: Path) -> Iterator[Image]:
    """An image of at most `MAX_PIXELS`, to be decoded in this block.

    Raises:
        InputError: it is larger, or opening or decoding it fails.
    """
    from PIL import Image

    check_regular(path)
    try:
        with warnings.catch_warnings():
            # From a size on that is refused here anyway.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            opened = Image.open(path)
        with opened as image:
            _check_frame(path, image.size)
            yield image
    except InputError:
        raise
    except Exception as error:  # damaged images raise whatever their decoder stumbles over
        raise InputError(f"{path}: not a readable image ({_one_line(error)})") from None


def load_array(path: Path) -> NDArray[np.uint8]:
    """Map an .npy into memory, whatever its type and shape; the caller checks them.

    Raises:
        InputError: not a readable .npy.
    """
    check_regular(path)
    # NumPy reads the header as Python text, so a damaged one can fail in any of these ways.
    faults = (OSError, ValueError, EOFError, OverflowError, SyntaxError, TypeError, TokenError)
    try:
        with np.errstate(over="ignore"):
            array = np.load(path, mmap_mode="r", allow_pickle=False)
    except faults as error:
        raise InputError(f"{path}: not a readable .npy ({_one_line(error)})") from None
    if not isinstance(array, np.ndarray):
        raise InputError(f"{path}: not a readable .npy (an archive of arrays, .npz)")
    return array


def _array(path: Path, clip: int | None) -> Iterator[Image]:
    from PIL import Image

    array = load_array(path)
    if array.ndim == 5 and (array.shape[0] == 1 or clip is not None):
        array = array[clip or 0]
    if array.dtype != np.uint8 or array.ndim != 4 or array.shape[-1] != 3 or 0 in array.shape[1:]:
        raise InputError(
            f"{path}: {array.dtype} of shape {array.shape}; expected uint8 of T x H x W x 3 (or "
            "1 x T x H x W x 3)"
        )
    _check_frame(path, (array.shape[2], array.shape[1]))
    for frame in array:
        yield Image.fromarray(np.array(frame))


def _container(path: Path) -> InputContainer:
    av = _av(path)
    # "file:" and the lists: a file name is never a URL, nor a playlist that opens other files.
    options = {"protocol_whitelist": "file", "format_whitelist": _FORMATS}
    # Titles and comments are nobody's business here, and may hold any bytes.
    container: InputContainer = av.open(f"file:{path}", options=options, metadata_errors="replace")
    return container


def _av(path: Path) -> Any:
    """PyAV, which every file but images and arrays is read with."""
    try:
        import av
    except ImportError as error:
        raise InputError(
            f"{path}: cannot be read, PyAV does not load ({error}); `stg-run doctor` says how to "
            "mend it"
        ) from None
    return av


def _decode(path: Path) -> Iterator[Image]:
    av = _av(path)
    from av.video.reformatter import Interpolation

    # Anything less darkens by one to three grey levels and blurs the colours.
    interpolation = (
        Interpolation.BICUBIC | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT
    )
    count = 0
    try:
        with _container(path) as container:
            if not container.streams.video:
                held = "only other streams" if container.streams else "the file is damaged or none"
                raise InputError(f"{path}: holds no video, {held}")
            stream = container.streams.video[0]
            if stream.codec_context is None:
                raise InputError(
                    f"{path}: its video is in a codec that FFmpeg does not know here; convert it"
                )
            # A frame may be larger than the stream's header says; FFmpeg refuses it before it
            # allocates it. Twice, for it counts what a codec pads.
            stream.codec_context.options = {"max_pixels": str(2 * MAX_PIXELS)}
            stream.thread_type = "SLICE"  # threads per frame lose the errors of the last frames
            _check_frame(path, (stream.width, stream.height))
            end: Fraction | None = None
            frame: Any
            for frame in container.decode(stream):
                if frame.is_corrupt:
                    raise InputError(f"{path}: frame {count} is damaged; cut it out or repair it")
                _check_frame(path, (frame.width, frame.height))
                image = frame.to_image(interpolation=interpolation)
                rotation = round(getattr(frame, "rotation", 0) or 0)
                yield image.rotate(rotation, expand=True) if rotation else image
                count += 1
                if frame.pts is not None and frame.time_base is not None:
                    end = frame.pts * frame.time_base
            _check_whole(path, stream, container.format.name, count, end)
    except av.FFmpegError as error:
        after = f" after frame {count - 1}" if count else ""
        raise InputError(
            f"{path}: not a video that can be decoded{after} ({_one_line(error)}); the file is "
            "damaged, cut short, or no video"
        ) from None


def _check_whole(
    path: Path, stream: VideoStream, form: str, count: int, last: Fraction | None
) -> None:
    """Refuse a file that was cut short, which FFmpeg reads up to the cut without a word.

    Args:
        path: of the file.
        stream: all of whose frames were decoded.
        form: FFmpeg's name of the container.
        count: of those frames.
        last: time of the last one, s.
    """
    # The index of an .mp4 or .mov says where each frame lies.
    size = path.stat().st_size
    cut = any(entry.pos + entry.size > size for entry in stream.index_entries)
    # A .webm or .mkv says how long it lasts.
    stated = re.fullmatch(r"(\d+):(\d+):(\d+\.\d+)", stream.metadata.get("DURATION", ""))
    rate = stream.average_rate
    if stated and last is not None and rate:
        seconds = 3600 * int(stated[1]) + 60 * int(stated[2]) + float(stated[3])
        cut = cut or last + 2 / rate < seconds
    if form == "gif":  # ends with a semicolon; some programs fill their files up
        with path.open("rb") as file:
            file.seek(max(0, size - 512))
            cut = not file.read().rstrip(b"\0\r\n").endswith(b";")
    if cut:
        raise InputError(
            f"{path}: the file is cut short after frame {count - 1}; pass --frames {count} to use "
            "what is there, or copy it again"
        )


def _frame_rate(path: Path) -> float:
    av = _av(path)
    try:
        with _container(path) as container:
            stream = container.streams.video[0]
            return float(stream.average_rate or stream.guessed_rate or DEFAULT_FPS)
    except (av.FFmpegError, IndexError):
        return DEFAULT_FPS  # decoding, which follows, says what is wrong


def _check_frame(path: Path, size: tuple[int, int]) -> None:
    if size[0] * size[1] > MAX_PIXELS:
        raise InputError(
            f"{path}: frames of {size[0]}x{size[1]} pixels; at most {MAX_PIXELS} pixels a frame"
        )


def _prepare(
    image: Image,
    path: Path,
    size: tuple[int, int] | None,
    crop: tuple[int, int, int, int] | None,
) -> Image:
    from PIL import Image

    if crop is not None:
        x, y, width, height = crop
        if x + width > image.width or y + height > image.height:
            raise InputError(
                f"{path}: --crop {x},{y},{width},{height} reaches outside its frames of "
                f"{image.width}x{image.height} (width x height)"
            )
        image = image.crop((x, y, x + width, y + height))
    if size is None or size == (image.height, image.width):
        return image
    height, width = size
    scale = min(image.width / width, image.height / height)
    left, top = (image.width - scale * width) / 2, (image.height - scale * height) / 2
    box = (left, top, image.width - left, image.height - top)
    # Lanczos: antialiased when it shrinks and the sharpest of Pillow's filters.
    return image.resize((width, height), Image.Resampling.LANCZOS, box=box)


def resize_frames(frames: Frames, size: tuple[int, int]) -> Frames:
    """Frames as `read_clip` with `size` would have read them: (T, H, W, 3) to (T, *size, 3)."""
    from PIL import Image

    path = Path("frames")
    return np.stack(
        [np.asarray(_prepare(Image.fromarray(frame), path, size, None)) for frame in frames]
    )


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


def to_model(frames: Frames, mean: NDArray[np.float32], scale: float) -> NDArray[np.float32]:
    """Grey levels to model units.

    Args:
        frames: uint8, (T, H, W, C).
        mean: grey levels, (C, 1, 1), (C, H, W), or one image per frame, (C, T, H, W).
        scale: grey levels per model unit.

    Returns:
        float32, (C, T, H, W), contiguous.
    """
    x = np.empty((frames.shape[3], *frames.shape[:3]), np.float32)
    for t, frame in enumerate(frames):
        image = mean[:, t] if mean.ndim == 4 else mean
        np.subtract(frame.transpose(2, 0, 1), image, out=x[:, t])
        x[:, t] /= np.float32(scale)
    return x


def to_pixels(x: NDArray[np.float32], mean: NDArray[np.float32], scale: float) -> Frames:
    """Model units to grey levels, rounded half to even and clamped to 0..255.

    Args:
        x: (C, T, H, W), model units, finite.
        mean: grey levels, (C, 1, 1), (C, H, W), or one image per frame, (C, T, H, W).
        scale: grey levels per model unit.

    Returns:
        uint8, (T, H, W, C).
    """
    frames = np.empty((*x.shape[1:], x.shape[0]), np.uint8)
    for t in range(x.shape[1]):
        levels = x[:, t] * np.float32(scale) + (mean[:, t] if mean.ndim == 4 else mean)
        np.rint(levels, out=levels)
        np.clip(levels, 0, 255, out=levels)
        frames[t] = levels.transpose(1, 2, 0)
    return frames


def cut_edges(frames: Frames, margin: int) -> Frames:
    """Frames, (T, H, W, C), without `margin` pixels at each edge."""
    if not margin:
        return frames
    return np.ascontiguousarray(frames[:, margin:-margin, margin:-margin])


def tile(stack: Frames, columns: int | None = None) -> Frames:
    """Videos side by side, row by row; free places stay black.

    Args:
        stack: uint8, (N, T, H, W, C).
        columns: videos in a row; None for a nearly square grid.

    Returns:
        uint8, (T, rows * H, columns * W, C).
    """
    count, length, height, width, channels = stack.shape
    columns = columns or int(np.ceil(np.sqrt(count)))
    rows = -(-count // columns)
    grid = np.zeros((length, rows * height, columns * width, channels), np.uint8)
    for i, video in enumerate(stack):
        top, left = i // columns * height, i % columns * width
        grid[:, top : top + height, left : left + width] = video
    return grid
