"""The prepared training clips: reading, scaling to model units, windows."""

from __future__ import annotations

import bisect
import hashlib
import logging
import math
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stg_runtime.artifact import LARGEST_SPOT, MEAN_STEPS
from stg_runtime.clip_checks import (
    bars_in_view,
    black_borders,
    check_cuts,
    check_motion,
    crop_without,
)
from stg_runtime.errors import InputError
from stg_runtime.fill import interpolate_in_time
from stg_runtime.grids import halve_pixels
from stg_runtime.spot import CELLS, Axes, Spot
from stg_runtime.video import (
    Frames,
    count_clips,
    count_frames,
    frame_rate,
    iter_frames,
    read_clip,
    to_model,
)
from stg_train.align import align, aligned_frames
from stg_train.recipe import Data, Pixels

_FRAMES_FOR_BORDERS = 8

_log = logging.getLogger(__name__)  # warnings reach stderr without any set-up


@dataclass(frozen=True)
class Observed:
    """The training clips, of one size, and how their pixels become model units.

    Attributes:
        pixels: uint8, (M, T, H, W, C), grey levels; of a run, mapped from its observed.npy.
        fps: frames per second of the first video.
        mean: grey levels subtracted, float32, (C, 1, 1), (C, H, W) or (C, T, H, W).
        scale: grey levels per model unit.
        observed_mask: True where a pixel is given, (M, T, H, W); hidden ones are 0 in `pixels`.
            None: all are given.
    """

    pixels: NDArray[np.uint8]
    fps: float
    mean: NDArray[np.float32]
    scale: float
    observed_mask: NDArray[np.bool_] | None = None

    def hashes(self) -> tuple[str, ...]:
        """SHA-256 of each clip's bytes."""
        return self._hashes

    @cached_property
    def _hashes(self) -> tuple[str, ...]:
        # Frame by frame: a mapped clip is never copied as a whole.
        found = []
        for clip in self.pixels:
            digest = hashlib.sha256()
            for frame in clip:
                digest.update(np.ascontiguousarray(frame).data)
            found.append(digest.hexdigest())
        return tuple(found)

    def windows(self, clips: Sequence[int], starts: Sequence[int], frames: int) -> Tensor:
        """Windows of some clips in model units, (len(clips), C, frames, H, W), float32."""
        cut = [
            to_model(self.pixels[m, t : t + frames], self.mean, self.scale)
            for m, t in zip(clips, starts, strict=True)
        ]
        return torch.from_numpy(np.stack(cut))

    def variance(self) -> Tensor:
        """Mean square of what moves at each place, over clips, frames and channels, (H, W).

        Model units; read clip by clip.
        """
        total = np.zeros(self.pixels.shape[2:4])
        for clip in self.pixels:
            for frame in clip:  # a mapped clip is never copied as a whole
                x = to_model(frame[None], self.mean, self.scale)
                total += np.square(x, dtype=np.float64).sum((0, 1))
        count = math.prod(self.pixels.shape[:2]) * self.pixels.shape[-1]
        return torch.from_numpy((total / count).astype(np.float32))

    def halved(self, pixels: Pixels) -> Observed:
        """The clips at half the height and width, with mean and scale of their own.

        Raises:
            InputError: nothing moves there any more.
        """
        assert self.observed_mask is None
        stack = np.stack([halve_pixels(np.asarray(clip)) for clip in self.pixels])
        return scale_observed(stack, self.fps, pixels)

    def spot_pixels(self) -> NDArray[np.uint8]:
        """The clips that first noise is made from: evenly chosen, as many as a model file holds.

        Hidden pixels are interpolated in time: their zeros are no part of the texture.
        """
        frames = self.pixels[:, : max(1, LARGEST_SPOT // self.pixels[0, 0].nbytes)]
        count = min(len(frames), max(1, LARGEST_SPOT // frames[0].nbytes))
        index = np.linspace(0, len(frames) - 1, count).round().astype(int)
        chosen: NDArray[np.uint8] = frames[index]
        if self.observed_mask is None:
            return chosen
        masks = self.observed_mask[index, : frames.shape[1]]
        return np.stack([_interpolated(*pair) for pair in zip(chosen, masks, strict=True)])

    def spot(self, axes: Axes, cells: int = CELLS) -> Spot:
        """Makes first noise with the clips' covariance and power spectra, see `Spot`."""
        clips = [to_model(clip, self.mean, self.scale) for clip in self.spot_pixels()]
        return Spot.fitted(np.stack(clips), axes, self.scale, cells)


def _interpolated(frames: NDArray[np.uint8], mask: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """A clip (T, H, W, C) with its hidden pixels on the line between visible moments."""
    if not mask.any():  # only a clip whose visible frames come later
        return frames
    levels = interpolate_in_time(frames.transpose(3, 0, 1, 2).astype(np.float32), mask)
    return np.clip(np.rint(levels), 0, 255).astype(np.uint8).transpose(1, 2, 3, 0)


def read_observed(data: Data, pixels: Pixels, file: BinaryIO | None = None) -> Observed:
    """Decode, crop, resize and cut every video of a recipe; warn of black borders.

    The clips go frame by frame into a file and are mapped from there, so that memory does not grow
    with their number.

    Args:
        data: which videos, and how they are cut.
        pixels: how they become model units.
        file: where to, an .npy open for writing and reading; None for a file that goes away with
            the result.

    Raises:
        InputError: a video that cannot be read, is too short, does not move at all, or holds a cut
            (unless `data.allow_cuts`); videos of different sizes, or that cannot be aligned.
    """
    if file is None:
        with tempfile.TemporaryFile() as own:
            return read_observed(data, pixels, cast(BinaryIO, own))
    fps, origins = prepare_clips(data, file)
    file.seek(0)
    np.lib.format.read_magic(file)
    shape, _, _ = np.lib.format.read_array_header_1_0(file)
    stack = np.memmap(file, np.uint8, "r", file.tell(), shape)
    observed = scale_observed(stack, fps, pixels)
    # One frame is a still texture on purpose.
    for clip, (video, start) in zip(stack, origins, strict=True) if data.frames > 1 else ():
        check_motion(clip, video)
        if not data.allow_cuts:
            check_cuts(clip, video, start)
    for video in data.videos:
        _warn_of_borders(data, video)
    return observed


def prepare_clips(data: Data, file: BinaryIO) -> tuple[float, list[tuple[str, int]]]:
    """Write a recipe's clips as an .npy, uint8, (M, T, H, W, 3), one frame in memory at a time.

    Returns:
        Frames per second of the first video; of each clip its video and its first frame there.

    Raises:
        InputError: see `read_observed`; the disk is full.
    """
    sources = [
        (Path(video), clip) for video in data.videos for clip in range(count_clips(Path(video)))
    ]
    check_sizes(data)
    shape = (len(sources) * (data.windows or 1), data.frames, *data.size, 3)
    header = {"descr": "|u1", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)
    begin, frame_bytes = file.tell(), 3 * data.size[0] * data.size[1]

    def put(clip: int, t: int, frame: Frames) -> None:
        file.seek(begin + (clip * data.frames + t) * frame_bytes)
        file.write(np.ascontiguousarray(frame).data)

    paths = [path for path, _ in sources]
    origins = [(str(path), data.start) for path in paths]
    rates = [frame_rate(path, clip) for path, clip in sources]
    if data.align:
        several = [path for path, clip in sources if clip > 0]
        if several:
            raise InputError(f"{several[0]}: --align takes videos, not an .npy of several clips")
        found = align(paths, size=data.size, frames=data.frames, start=data.start, crop=data.crop)
        origins = [(str(path), item.frames[0]) for path, item in zip(paths, found, strict=True)]
        for number, (path, alignment) in enumerate(zip(paths, found, strict=True)):
            cut = aligned_frames(path, alignment, size=data.size, crop=data.crop)
            for t, frame in enumerate(cut):
                put(number, t, frame)
    elif data.windows is not None:
        origins = []
        for number, (path, clip) in enumerate(sources):
            starts = _cut_windows(data, path, clip, number * data.windows, put)
            origins += [(str(path), start) for start in starts]
    else:
        for number, (path, clip) in enumerate(sources):
            whole = read_clip(
                path,
                size=data.size,
                frames=data.frames,
                start=data.start,
                crop=data.crop,
                clip=clip,
            )
            for t, frame in enumerate(whole.frames):
                put(number, t, frame)
    file.flush()
    if len(set(rates)) > 1:
        _log.warning(
            "warning: the clips play at %s frames/s; all are taken frame by frame, and the model "
            "keeps the first one's, %g",
            ", ".join(f"{rate:g}" for rate in sorted(set(rates))),
            rates[0],
        )
    return rates[0], origins


def check_sizes(data: Data) -> None:
    """Refuse videos of different sizes: brought to one, each would be stretched in its own way.

    A crop cuts the same box out of each, and aligning the figure's.

    Raises:
        InputError: two sizes, both named.
    """
    if data.crop is not None or data.align or len(data.videos) < 2:
        return
    first: tuple[int, ...] | None = None
    for video in data.videos:
        path = Path(video)
        frame = next(iter_frames(path, clip=0), None)
        if frame is None:
            continue  # reading it, which follows, says what is wrong
        size = frame.shape[:2]
        first = first or size
        if size != first:
            raise InputError(
                f"{path}: {size[0]}x{size[1]}, {data.videos[0]} is {first[0]}x{first[1]} (height x "
                "width); clips of one run have one size: pass --crop X,Y,W,H to cut the same box "
                "out of each, or bring them to one size first"
            )


def _warn_of_borders(data: Data, video: str) -> None:
    """Look at the first frames as they are in the file, before they are brought to size."""
    frames = read_clip(
        Path(video),
        frames=min(data.frames, _FRAMES_FOR_BORDERS),
        start=data.start,
        crop=data.crop,
        clip=0,
    ).frames
    size = (frames.shape[1], frames.shape[2])
    borders = black_borders(frames)
    if borders and bars_in_view(borders, size, data.size):
        crop = ",".join(str(value) for value in crop_without(borders, size, data.crop))
        _log.warning(
            "warning: %s has black borders (%s px), which are learned as a part of the picture; "
            "pass --crop %s to leave them out",
            video,
            borders,
            crop,
        )


def window_starts(total: int, count: int, frames: int) -> list[int]:
    """First frames of `count` windows of `frames`, evenly spaced over `total` frames."""
    last = total - frames
    return [round(i * last / max(count - 1, 1)) for i in range(count)]


def _cut_windows(
    data: Data, path: Path, clip: int, first: int, put: Callable[[int, int, Frames], None]
) -> list[int]:
    """Cut `data.windows` clips out of one video, in one pass over it; their first frames."""
    assert data.windows is not None
    total = count_frames(path, clip) - data.start
    needed = data.frames + data.windows - 1
    if total < needed:
        raise InputError(
            f"{path}: {max(total, 0)} frames from frame {data.start} on; --windows {data.windows} "
            f"of {data.frames} frames need at least {needed}; pass fewer --windows or --frames"
        )
    starts = window_starts(total, data.windows, data.frames)
    for number, frame in enumerate(iter_frames(path, size=data.size, crop=data.crop, clip=clip)):
        here = number - data.start
        # Windows may overlap: a frame belongs to each that it lies in.
        low = bisect.bisect_left(starts, here - data.frames + 1)
        for i in range(low, bisect.bisect_right(starts, here)):
            put(first + i, here - starts[i], frame)
    return [data.start + start for start in starts]


def scale_observed(stack: NDArray[np.uint8], fps: float, pixels: Pixels) -> Observed:
    """Choose mean and scale for prepared clips, uint8 (M, T, H, W, C).

    Raises:
        InputError: nothing in the clips differs from their mean.
    """
    # (H, W, C), or for a mean video (T, H, W, C); float64: exact for any number of clips.
    shape = stack.shape[1:] if pixels.mean == "video" else stack.shape[2:]
    total, squares = np.zeros(shape), np.zeros(shape)
    for clip in stack:
        for t, frame in enumerate(clip):
            values = frame.astype(np.float64)
            at = t if pixels.mean == "video" else ...
            total[at] += values
            squares[at] += values * values
    count = stack.shape[0] * (1 if pixels.mean == "video" else stack.shape[1])
    mean = total / count
    if pixels.mean == "channel":
        mean = mean.mean((0, 1), keepdims=True)
    # The model file stores the mean in 1/256 grey levels; training uses that very value.
    mean = np.rint(mean * MEAN_STEPS) / MEAN_STEPS
    variance = float((squares / count - 2 * mean * (total / count) + mean**2).mean())
    if variance < 0.25:
        what = {"channel": "are one flat colour", "image": "do not move", "video": "are all alike"}
        moving = "give a video in which something moves, or another --start or --crop"
        mend = {
            "channel": moving,
            "image": f"{moving}; of a still texture, one frame: --frames 1",
            "video": "give several videos that differ",
        }
        raise InputError(
            f"the training clips {what[pixels.mean]} (standard deviation "
            f"{max(variance, 0) ** 0.5:.2f} grey levels); {mend[pixels.mean]}"
        )
    scale = variance**0.5 if pixels.scale == "std" else pixels.scale
    return Observed(stack, fps, np.moveaxis(mean, -1, 0).astype(np.float32), scale)
