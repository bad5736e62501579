"""Videos out: .mp4, .webm, .gif, .npy, or a folder of PNGs, whole or not at all."""

from __future__ import annotations

import importlib
import math
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from stg_runtime.errors import InputError, StgError
from stg_runtime.files import atomic_path, check_output
from stg_runtime.video import Frames

VIDEO_SUFFIXES = (".mp4", ".webm", ".gif", ".npy", ".png", "")

_BT709 = 1  # FFmpeg's number of the BT.709 matrix, primaries and transfer
_LIMITED = 1  # ... and of 16..235 levels, which is what players expect of 4:2:0 video

_CODECS: dict[str, tuple[str, dict[str, str], dict[str, str]]] = {
    ".mp4": (
        "libx264",
        # The conversion centres colour on its 2x2 pixels; untold, H.264 means the left ones.
        {"crf": "15", "preset": "medium", "x264-params": "chromaloc=1"},
        {"movflags": "+faststart"},
    ),
    ".webm": ("libvpx-vp9", {"crf": "18", "b:v": "0", "cpu-used": "4", "row-mt": "1"}, {}),
}


def check_video_output(path: Path, overwrite: bool) -> None:
    """Refuse an output that could not be written, before the work starts.

    Raises:
        InputError: unknown suffix, missing or unwritable folder, or existing and not `overwrite`.
    """
    check_output(path, overwrite, suffixes=VIDEO_SUFFIXES)
    suffix = path.suffix.lower()
    needed = "av" if suffix in _CODECS else "PIL" if suffix != ".npy" else "numpy"
    try:
        importlib.import_module(needed)
    except ImportError as error:
        raise InputError(
            f"{path}: cannot be written, {needed} does not load ({error}); `stg-run doctor` says "
            "how to mend it"
        ) from None


def check_frames(path: Path, frames: int) -> None:
    """Refuse to put several frames into one .png.

    Raises:
        InputError: says which outputs take them.
    """
    if path.suffix.lower() == ".png" and frames != 1:
        raise InputError(
            f"{path}: a .png holds one frame, and the video has {frames}; give an .mp4, .webm, "
            ".gif or .npy, or a name without a suffix (a folder of PNGs)"
        )


def write_video(path: Path, frames: Frames, fps: float, *, overwrite: bool = False) -> None:
    """Write a video; nothing appears under `path` until all of it is there.

    .mp4 is H.264, yuv420p, BT.709, playable in browsers; .webm is VP9. Both need even sizes: an odd
    one is made even by repeating the last row or column. .gif has a palette per frame, loops for
    ever, rounds the frame time to 1/100 s and makes one longer frame of equal ones in a row. A path
    without a suffix is a folder of PNGs; .png is one image, for a video of one frame.

    Args:
        path: where to.
        frames: uint8, (T, H, W, 3); for .npy also (N, T, H, W, 3), the layout of the file.
        fps: frames per second, 0.1 to 1000.
        overwrite: replace what is there.

    Raises:
        InputError: see `check_video_output`; the rate is out of range; or several frames are to go
            into one .png.
        StgError: the disk is full or the encoder failed.
    """
    check_video_output(path, overwrite)
    if not (math.isfinite(fps) and 0.1 <= fps <= 1000):
        raise InputError(f"{path}: {fps:g} frames per second; from 0.1 to 1000 can be written")
    assert frames.dtype == np.uint8
    assert frames.size, "a video without frames"
    assert frames.ndim == 4 or path.suffix.lower() == ".npy"
    import av

    suffix = path.suffix.lower()
    check_frames(path, len(frames))
    with atomic_path(path) as temporary:
        try:
            if suffix in _CODECS:
                _encode(temporary, frames, fps, suffix)
            elif suffix == ".gif":
                _write_gif(temporary, frames, fps)
            elif suffix == ".png":
                save_png(temporary, frames[0])
            elif suffix == ".npy":
                with temporary.open("wb") as file:
                    np.save(file, frames if frames.ndim == 5 else frames[None])
            else:
                _write_folder(temporary, frames)
        except (OSError, av.FFmpegError) as error:
            raise StgError(
                f"{path}: could not be written: {' '.join(str(error).split())}"
            ) from None


def _encode(path: Path, frames: Frames, fps: float, suffix: str) -> None:
    import av
    from av.video.reformatter import ColorRange, Colorspace, Interpolation

    codec, options, container_options = _CODECS[suffix]
    odd = [(0, 0), (0, frames.shape[1] % 2), (0, frames.shape[2] % 2), (0, 0)]
    with av.open(f"file:{path}", "w", options=container_options) as container:
        rate = Fraction(fps).limit_denominator(100_000)
        stream: Any = container.add_stream(codec, rate=rate, options=options)
        stream.height, stream.width = frames.shape[1] + odd[1][1], frames.shape[2] + odd[2][1]
        stream.pix_fmt = "yuv420p"
        context = stream.codec_context
        context.colorspace = context.color_primaries = context.color_trc = _BT709
        context.color_range = _LIMITED
        for number, frame in enumerate(frames):
            even = np.pad(frame, odd[1:], mode="edge") if odd[1][1] or odd[2][1] else frame
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(even), format="rgb24")
            # The most exact of the conversions that swscale offers.
            picture = picture.reformat(
                format="yuv420p",
                dst_colorspace=Colorspace.ITU709,
                dst_color_range=ColorRange.MPEG,
                interpolation=Interpolation.BICUBIC
                | Interpolation.ACCURATE_RND
                | Interpolation.FULL_CHR_H_INP,
            )
            # The encoder spends bits by duration; without time stamps it guesses, and not always
            # the same.
            picture.pts, picture.time_base = number, 1 / rate
            for packet in stream.encode(picture):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)


def _write_gif(path: Path, frames: Frames, fps: float) -> None:
    from PIL import Image

    images = [Image.fromarray(frame).quantize(256) for frame in frames]
    # Browsers play anything faster than 1/50 s at 1/10 s.
    duration_ms = max(2, round(100 / fps)) * 10
    images[0].save(
        path, save_all=True, append_images=images[1:], duration=duration_ms, loop=0, optimize=False
    )


def _write_folder(folder: Path, frames: Frames) -> None:
    folder.mkdir()
    for t, frame in enumerate(frames):
        save_png(folder / f"{t:05d}.png", frame)


def save_png(path: Path, frame: Frames) -> None:
    """Write one frame, uint8, (H, W, 3), where nothing is yet."""
    from PIL import Image

    Image.fromarray(frame).save(path)
