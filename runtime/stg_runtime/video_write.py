"""Videos out, whole or not at all: .mp4, .webm, .mkv, .gif, .npy, a folder of PNGs. And streams."""

from __future__ import annotations

import fcntl
import importlib
import math
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from fractions import Fraction
from pathlib import Path
from typing import Any, BinaryIO, Self

import numpy as np

from stg_runtime.errors import InputError, StgError
from stg_runtime.files import (
    TEMPORARY_PREFIX,
    atomic_path,
    check_output,
    remove_leftovers,
    write_failed,
)
from stg_runtime.interrupts import signals_wait
from stg_runtime.video import Frames

VIDEO_SUFFIXES = (".mp4", ".webm", ".mkv", ".gif", ".npy", ".png", "")
STREAM_SUFFIXES = (".mp4", ".webm", ".mkv", "")

GIF_MOST_FPS = 50  # browsers play anything faster at 10

_BT709 = 1  # FFmpeg's number of the BT.709 matrix, primaries and transfer
_LIMITED = 1  # ... and of 16..235 levels, which is what players expect of 4:2:0 video

_CODECS: dict[str, tuple[str, dict[str, str], dict[str, str]]] = {
    ".mp4": (
        "libx264",
        # The conversion centres colour on its 2x2 pixels; untold, H.264 means the left ones.
        {"crf": "15", "preset": "medium", "x264-params": "chromaloc=1"},
        {"movflags": "+faststart"},
    ),
    ".mkv": ("libx264", {"crf": "15", "preset": "medium", "x264-params": "chromaloc=1"}, {}),
    ".webm": ("libvpx-vp9", {"crf": "18", "b:v": "0", "cpu-used": "4", "row-mt": "1"}, {}),
}


_LIVE = {".mp4": {"movflags": "+frag_keyframe+empty_moov+default_base_moof"}}


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
        fps: frames per second, 0.1 to 1000; of a .gif at most 50.
        overwrite: replace what is there.

    Raises:
        InputError: see `check_video_output`; the rate is out of range; or several frames are to go
            into one .png.
        StgError: the disk is full or the encoder failed.
    """
    check_video_output(path, overwrite)
    check_rate(path, fps)
    assert frames.dtype == np.uint8
    assert frames.size, "a video without frames"
    assert frames.ndim == 4 or path.suffix.lower() == ".npy"
    suffix = path.suffix.lower()
    check_frames(path, len(frames))
    with atomic_path(path, replace=overwrite) as temporary, _named(path):
        if suffix in _CODECS:
            with Encoder(temporary, suffix, fps) as encoder:
                encoder.write(frames)
        elif suffix == ".gif":
            _write_gif(temporary, frames, fps)
        elif suffix == ".png":
            save_png(temporary, frames[0])
        elif suffix == ".npy":
            with temporary.open("wb") as file:
                np.save(file, frames if frames.ndim == 5 else frames[None])
        else:
            _write_folder(temporary, frames)


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Say in an error of the disk or the encoder which output it is about."""
    import av

    shown = "stdout" if str(path) == "-" else path
    try:
        yield
    except BrokenPipeError:  # the reader has enough: no fault
        raise
    except OSError as error:
        raise write_failed(shown, error) from None
    except av.FFmpegError as error:
        raise StgError(f"{shown}: could not be written: {' '.join(str(error).split())}") from None


class Encoder:
    """A video that is written frame by frame, in constant memory.

    Use it as a context manager: leaving it, for whatever reason, completes the file. Only where
    writing itself failed, on a full disk, the last fragment or cluster may be cut.

    Args:
        target: a path, or a binary stream that cannot seek (a pipe).
        suffix: ".mp4", ".webm" or ".mkv".
        fps: frames per second.
        live: keep the file playable while it grows: an .mp4 in fragments, frames encoded as they
            come.
    """

    def __init__(
        self, target: Path | BinaryIO, suffix: str, fps: float, live: bool = False
    ) -> None:
        import av

        self._codec, options, container_options = _CODECS[suffix]
        self._options = dict(options)
        if live:
            container_options = _LIVE.get(suffix, {})
            if self._codec == "libx264":
                self._options["preset"] = "veryfast"
        self._rate = Fraction(fps).limit_denominator(100_000)
        self._number = 0
        self._stream: Any = None
        self._failed = False
        piped = not isinstance(target, Path)
        self._container = av.open(
            target if piped else f"file:{target}",
            "w",
            format={".mkv": "matroska"}.get(suffix, suffix[1:]) if piped else None,
            options=container_options,
        )

    def __enter__(self) -> Self:
        """Use as a context manager."""
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def write(self, frames: Frames) -> None:
        """Add frames, uint8, (T, H, W, 3), all of one size."""
        import av
        from av.video.reformatter import ColorRange, Colorspace, Interpolation

        odd = [(0, frames.shape[1] % 2), (0, frames.shape[2] % 2), (0, 0)]
        if self._stream is None:
            self._open(frames.shape[1] + odd[0][1], frames.shape[2] + odd[1][1])
        for frame in frames:
            even = np.pad(frame, odd, mode="edge") if odd[0][1] or odd[1][1] else frame
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
            picture.pts, picture.time_base = self._number, 1 / self._rate
            self._number += 1
            self._mux(picture)

    def _mux(self, picture: Any) -> None:
        """Encode a frame, or with None the rest, and write what comes of it."""
        try:
            for packet in self._stream.encode(picture):
                self._container.mux(packet)
        except Exception:
            self._stream = None  # FFmpeg's .mp4 crashes when more comes after a failed write
            self._failed = True
            raise

    def _open(self, height: int, width: int) -> None:
        self._stream = self._container.add_stream(
            self._codec, rate=self._rate, options=self._options
        )
        self._stream.height, self._stream.width = height, width
        self._stream.pix_fmt = "yuv420p"
        context = self._stream.codec_context
        context.colorspace = context.color_primaries = context.color_trc = _BT709
        context.color_range = _LIMITED

    def close(self) -> None:
        """Write what the encoder still holds and the end of the file."""
        import av

        try:
            if self._stream is not None:
                self._mux(None)
        finally:
            self._stream = None
            # What failed before fails again, with an error that says less.
            with suppress(OSError, av.FFmpegError) if self._failed else nullcontext():
                self._container.close()


class RawPipe:
    """Frames as they are, rgb24, to a binary stream."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream

    def __enter__(self) -> Self:
        """Use as a context manager."""
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.flush()

    def write(self, frames: Frames) -> None:
        """Add frames, uint8, (T, H, W, 3)."""
        self._stream.write(np.ascontiguousarray(frames).data)
        self._stream.flush()


class FrameFolder:
    """A folder of PNGs that grows: a frame appears under its name when it is whole.

    Frames that are there already stay until the first new one is.

    Raises:
        InputError: another program writes frames there.
    """

    def __init__(self, folder: Path) -> None:
        self._folder, self._number = folder, 0
        self._is_new = not folder.exists()
        folder.mkdir(exist_ok=True)
        self._lock = os.open(folder, os.O_RDONLY)  # a file for it would be among the frames
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._lock)
            raise InputError(
                f"{folder}: another program writes frames there; wait for it or name another folder"
            ) from None

    def __enter__(self) -> Self:
        """Use as a context manager."""
        return self

    def __exit__(self, *_: object) -> None:
        remove_leftovers(self._folder)
        if self._is_new and not self._number:
            with suppress(OSError):
                self._folder.rmdir()
        os.close(self._lock)

    def write(self, frames: Frames) -> None:
        """Add frames, uint8, (T, H, W, 3)."""
        from PIL import Image

        for frame in frames:
            temporary = self._folder / f"{TEMPORARY_PREFIX}frame.png"
            Image.fromarray(frame).save(temporary)
            final = self._folder / f"{self._number:05d}.png"
            with signals_wait() if self._number == 0 else nullcontext():
                temporary.replace(final)
                if self._number == 0:
                    self._remove_others(final)
            self._number += 1

    def _remove_others(self, first: Path) -> None:
        for item in self._folder.iterdir():  # frames: `check_output` lets nothing else pass
            if item.name != first.name:
                item.unlink()


Writer = Encoder | RawPipe | FrameFolder


@contextmanager
def open_stream(
    path: Path, fps: float, *, form: str | None = None, overwrite: bool = False
) -> Iterator[Writer]:
    """Where an endless video goes: a file or folder that grows under its own name, or stdout.

    What is there already stays until the first frames are written.

    Args:
        path: .mp4 (in fragments), .webm, .mkv, a folder without a suffix, or "-" for stdout.
        fps: frames per second.
        form: on stdout, "raw" for rgb24 frames or "matroska".
        overwrite: replace what is there.

    Raises:
        InputError: another suffix or form, or an output that cannot be written.
        StgError: the disk is full or the encoder failed.
        BrokenPipeError: the reader of stdout left.
    """
    check_rate(path, fps)
    check_stream(path, form, overwrite)
    with _named(path), _writer(path, fps, form) as writer:
        yield writer


def _writer(path: Path, fps: float, form: str | None) -> Writer:
    if str(path) == "-":
        # Not `sys.stdout.buffer`: with PYTHONUNBUFFERED that may take a part of what it is given.
        stdout = os.fdopen(sys.stdout.fileno(), "wb", closefd=False)
        return Encoder(stdout, ".mkv", fps, live=True) if form == "matroska" else RawPipe(stdout)
    if path.suffix == "":
        return FrameFolder(path)
    return Encoder(path, path.suffix.lower(), fps, live=True)


def check_stream(path: Path, form: str | None, overwrite: bool) -> None:
    """Refuse an output that `open_stream` could not open, before the work starts.

    Raises:
        InputError: see `open_stream`.
    """
    if form not in (None, "raw", "matroska"):
        raise InputError(f"--format {form}: expected raw or matroska")
    if str(path) == "-":
        if sys.stdout.isatty():
            raise InputError("-o -: stdout is a terminal; pipe it, for instance into ffplay -")
        return
    if form is not None:
        raise InputError(f"--format {form} is for -o - ; a file's suffix says its own format")
    check_output(path, overwrite, suffixes=STREAM_SUFFIXES)


def check_rate(path: Path, fps: float) -> None:
    """Refuse a rate that an output cannot have, before the work starts.

    Raises:
        InputError: says which it can.
    """
    if not (math.isfinite(fps) and 0.1 <= fps <= 1000):
        raise InputError(f"{path}: {fps:g} frames per second; from 0.1 to 1000 can be written")
    if path.suffix.lower() == ".gif" and fps > GIF_MOST_FPS:
        raise InputError(
            f"{path}: {fps:g} frames per second; a .gif plays at most {GIF_MOST_FPS}, so use "
            "another format or a lower rate"
        )


def _write_gif(path: Path, frames: Frames, fps: float) -> None:
    from PIL import Image

    images = [Image.fromarray(frame).quantize(256) for frame in frames]
    duration_ms = round(100 / fps) * 10
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
