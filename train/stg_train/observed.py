"""The prepared training clips: reading, scaling to model units, windows."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stg_runtime.artifact import MEAN_STEPS
from stg_runtime.errors import InputError
from stg_runtime.video import count_clips, read_clip, to_model
from stg_train.recipe import Data, Pixels

_log = logging.getLogger(__name__)  # warnings reach stderr without any set-up


@dataclass(frozen=True)
class Observed:
    """The training clips, of one size, and how their pixels become model units.

    Attributes:
        pixels: uint8, (M, T, H, W, C), grey levels.
        fps: frames per second of the first video.
        mean: grey levels subtracted, float32, (C, 1, 1) or (C, H, W).
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
        return tuple(hashlib.sha256(clip.tobytes()).hexdigest() for clip in self.pixels)

    def windows(self, clips: Sequence[int], starts: Sequence[int], frames: int) -> Tensor:
        """Windows of some clips in model units, (len(clips), C, frames, H, W), float32."""
        cut = [
            to_model(self.pixels[m, t : t + frames], self.mean, self.scale)
            for m, t in zip(clips, starts, strict=True)
        ]
        return torch.from_numpy(np.stack(cut))


def read_observed(data: Data, pixels: Pixels) -> Observed:
    """Decode, crop, resize and cut every video of a recipe; one without a mask.

    Raises:
        InputError: a video that cannot be read, is too short, or does not move at all.
    """
    clips = [
        read_clip(
            Path(video),
            size=data.size,
            frames=data.frames,
            start=data.start,
            crop=data.crop,
            clip=clip,
        )
        for video in data.videos
        for clip in range(count_clips(Path(video)))
    ]
    rates = sorted({clip.fps for clip in clips})
    if len(rates) > 1:
        _log.warning(
            "warning: the clips play at %s frames/s; all are taken frame by frame, and the model "
            "keeps the first one's, %g",
            ", ".join(f"{rate:g}" for rate in rates),
            clips[0].fps,
        )
    return scale_observed(np.stack([clip.frames for clip in clips]), clips[0].fps, pixels)


def scale_observed(stack: NDArray[np.uint8], fps: float, pixels: Pixels) -> Observed:
    """Choose mean and scale for prepared clips, uint8 (M, T, H, W, C).

    Raises:
        InputError: nothing in the clips differs from their mean.
    """
    total = np.zeros(stack.shape[2:])  # (H, W, C), float64: exact for any clip that fits in memory
    squares = np.zeros(stack.shape[2:])
    for clip in stack:
        for frame in clip:
            values = frame.astype(np.float64)
            total += values
            squares += values * values
    count = stack.shape[0] * stack.shape[1]
    over = () if pixels.mean == "image" else (0, 1)
    mean = (total / count).mean(over, keepdims=True) if over else total / count
    # The model file stores the mean in 1/256 grey levels; training uses that very value.
    mean = np.rint(mean * MEAN_STEPS) / MEAN_STEPS
    variance = float((squares / count - 2 * mean * (total / count) + mean**2).mean())
    if variance < 0.25:
        what = "do not move" if pixels.mean == "image" else "are one flat colour"
        raise InputError(
            f"the training clips {what} (standard deviation {max(variance, 0) ** 0.5:.2f} grey "
            "levels); give a video in which something moves, or another --start or --crop"
        )
    scale = variance**0.5 if pixels.scale == "std" else pixels.scale
    return Observed(stack, fps, mean.transpose(2, 0, 1).astype(np.float32), scale)
