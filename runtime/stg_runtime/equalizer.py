"""Bring the power spectra of made videos to their clip's: two fixed filters, one after the other.

Giving every place the colours of its clip (`stg_runtime.spot`) is not linear: it breaks slow
changes into steps and smooth edges into speckle, so the result has more power at high frequencies
than the clip. A filter along time and one over space, fitted once to some draws, take that away
again. It is the amplitude adjustment of surrogate data, with the mean of many draws in place of
each draw's own spectrum, so that chance stays; the geometric mean, as one draw's power at one
frequency is mostly below the mean and now and then far above.

Source: Schreiber, Schmitz, "Improved surrogate data for nonlinearity tests", PRL 77, 1996.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, cast

import numpy as np
from numpy.typing import NDArray

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]

# Most taps on either side of the middle one.
REACH_FRAMES = 10
REACH_PIXELS = 5
# What a frequency may be multiplied by. Far more would raise what chance left out of a few draws.
LEAST_GAIN, MOST_GAIN = 0.1, 2.0
# How often both filters are fitted, each to what the other leaves.
ROUNDS = 3
# Power below rounding to grey levels, one twelfth of a squared level, is not compared.
ROUNDING = 1 / 12


@dataclass(frozen=True)
class Equalizer:
    """A filter along time and one over space; both symmetric, of odd extent.

    Attributes:
        time: taps, (2 a + 1,).
        space: taps, (2 b + 1, 2 b + 1).
    """

    time: Float32
    space: Float32

    @property
    def reach(self) -> int:
        """Frames before and after that a frame depends on."""
        return len(self.time) // 2

    def along_time(self, x: Float32, ends: Literal["edge", "wrap", "constant"] = "edge") -> Float32:
        """Filter (C, T, H, W) along time; beyond its ends comes what `numpy.pad` says of `ends`."""
        reach = self.reach
        padded = np.pad(x, ((0, 0), (reach, reach), (0, 0), (0, 0)), mode=ends)
        return self.inner_frames(padded)

    def inner_frames(self, x: Float32) -> Float32:
        """Filter (C, T + 2 reach, H, W) along time to (C, T, H, W): no ends are made up."""
        frames = x.shape[1] - 2 * self.reach
        made = self.time[0] * x[:, :frames]
        for step, tap in enumerate(self.time[1:], start=1):
            made += tap * x[:, step : step + frames]
        return np.asarray(made, np.float32)

    def over_space(self, x: Float32, ends: Literal["edge", "constant"] = "edge") -> Float32:
        """Filter every frame of (C, T, H, W); beyond its border comes what `ends` says."""
        reach = len(self.space) // 2
        H, W = x.shape[2:]
        size = (H + 2 * reach, W + 2 * reach)
        # Circular over the padded frame: what goes round stays in the border that is cut away.
        kernel = np.zeros(size, np.float32)
        kernel[: 2 * reach + 1, : 2 * reach + 1] = self.space
        spectrum = np.fft.rfft2(np.roll(kernel, (-reach, -reach), (0, 1)))
        made = np.empty_like(x)
        for c in range(x.shape[0]):
            for t in range(x.shape[1]):  # a whole video's transforms would take its memory fourfold
                frame = np.pad(x[c, t], reach, mode=ends)
                filtered = np.fft.irfft2(np.fft.rfft2(frame) * spectrum, s=size)
                made[c, t] = filtered[reach : reach + H, reach : reach + W]
        return made


def fit(clips: Sequence[Float32], made: Sequence[Float32], levels: float) -> Equalizer:
    """The filters that bring the power spectra of made videos to those of clips, in the mean.

    Each filter also takes power from the other's spectrum, so both are fitted in turn, a few times.

    Args:
        clips: (T, H, W) each, deviations of the luminance from its mean, any unit.
        made: the same of made videos, of the clips' size.
        levels: grey levels per unit.
    """
    floor = ROUNDING / levels**2
    frames, H, W = clips[0].shape
    over_time = np.hanning(frames + 2)[1:-1]
    over_space = np.outer(np.hanning(H + 2)[1:-1], np.hanning(W + 2)[1:-1])
    wanted_time = _power_along_time(clips, over_time, floor)
    wanted_space = _power_over_space(clips, over_space, floor)
    gain_time, gain_space = np.ones_like(wanted_time), np.ones_like(wanted_space)
    for _ in range(ROUNDS):
        filtered = _apply(_taps(gain_time, gain_space, frames), made)
        found = _power_over_space(filtered, over_space, floor)
        gain_space = np.clip(gain_space * np.sqrt(wanted_space / found), LEAST_GAIN, MOST_GAIN)
        # Last: the level is then that of all pixels, and not of those inside the other window.
        filtered = _apply(_taps(gain_time, gain_space, frames), made)
        found = _power_along_time(filtered, over_time, floor)
        gain_time = np.clip(gain_time * np.sqrt(wanted_time / found), LEAST_GAIN, MOST_GAIN)
    return _taps(gain_time, gain_space, frames)


def _taps(gain_time: Float64, gain_space: Float64, frames: int) -> Equalizer:
    """Filters with about these gains: (frames // 2 + 1,) along time, (H, W) over space."""
    reach = min(REACH_FRAMES, (frames - 1) // 2)
    taps = np.roll(np.fft.irfft(gain_time, frames), reach)[: 2 * reach + 1]
    time = taps * np.hanning(2 * reach + 3)[1:-1]
    reach = min(REACH_PIXELS, (min(gain_space.shape) - 1) // 2)
    plane = np.roll(np.fft.ifft2(gain_space).real, (reach, reach), (0, 1))
    around = np.hanning(2 * reach + 3)[1:-1]
    space = plane[: 2 * reach + 1, : 2 * reach + 1] * np.outer(around, around)
    return Equalizer(time.astype(np.float32), space.astype(np.float32))


def _apply(equalizer: Equalizer, videos: Sequence[Float32]) -> list[Float32]:
    return [equalizer.over_space(equalizer.along_time(video[None]))[0] for video in videos]


def _power_along_time(videos: Sequence[Float32], window: Float64, floor: float) -> Float64:
    """Mean over pixels; over videos the geometric mean, (T // 2 + 1,)."""
    logs = np.zeros(len(window) // 2 + 1)
    for video in videos:
        windowed = (video - video.mean(0)) * window[:, None, None]
        power = (np.abs(np.fft.rfft(windowed, axis=0)) ** 2).mean((1, 2))
        logs += np.log(power + floor * (window**2).sum())
    return cast(Float64, np.exp(logs / len(videos)))


def _power_over_space(videos: Sequence[Float32], window: Float64, floor: float) -> Float64:
    """Mean over frames and rings of equal frequency; over videos the geometric mean, (H, W)."""
    logs = np.zeros(window.shape)
    for video in videos:
        power = _rings((np.abs(np.fft.fft2(video * window)) ** 2).mean(0))
        logs += np.log(power + floor * (window**2).sum())
    return cast(Float64, np.exp(logs / len(videos)))


def _rings(power: Float64) -> Float64:
    """Every value replaced by the mean of its ring of equal frequency, (H, W)."""
    down, across = (np.fft.fftfreq(size) for size in power.shape)
    ring = np.rint(np.hypot(down[:, None], across) * min(power.shape)).astype(int)
    mean = np.bincount(ring.ravel(), power.ravel()) / np.bincount(ring.ravel())
    return cast(Float64, mean[ring])
