"""A sea whose statistics are known: a random wave surface filmed by a linear camera.

The surface is a sum of independent plane waves with Gaussian amplitudes, periodic in space, which
obey the dispersion relation of deep water. The camera sees its slope. Everything is linear in the
amplitudes, so the expected power spectrum of the clip is known exactly (`Sea.spectrum`), and what a
model synthesizes can be held against the truth instead of against one more sample.

    python -m stg_train.sea sea.mp4 --frames 96 --size 64x64 --seed 0
"""

from __future__ import annotations

import argparse
import math
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from stg_runtime.errors import InputError, StgError
from stg_runtime.video import Frames
from stg_runtime.video_write import check_video_output, write_video

Float64 = NDArray[np.float64]

GRAVITY = 9.81  # m/s^2
CAPILLARITY = 7.3e-5  # m^3/s^2: surface tension over density of sea water

MEAN_COLOUR = np.array([64.0, 114.0, 128.0])  # red, green, blue; grey levels
COLOUR_DIRECTION = np.array([0.50, 0.66, 0.56])  # from deep blue-green to pale
COLOUR_DIRECTION /= np.linalg.norm(COLOUR_DIRECTION)

QUANTIZATION = 1 / 12
"""Variance that rounding to grey levels adds to `luminance`; white, so also its power per bin.

This holds as the colour direction's parts differ: equal ones would round together.
"""


@dataclass(frozen=True)
class Sea:
    """A patch of wind sea, seen from above at an angle; space wraps around at its edges.

    Luminance is the projection of (colour - `MEAN_COLOUR`) on `COLOUR_DIRECTION`, grey levels.

    Attributes:
        height: of the frame, px.
        width: of the frame, px.
        fps: frames per second.
        seed: of the wave amplitudes; fixes every bit of the clip.
        metres_per_px: along a row. More shows more and smaller waves, which seem to move slower.
        foreshortening: metres per px along a column are this times those along a row; 1 looks
            straight down, more looks towards the horizon.
        wind_speed: m/s, 10 m above the water. More makes longer and faster waves.
        fetch: metres of water that the wind has blown over. More makes longer and faster waves.
        direction: degrees on the water where the waves go to; 0 is right, 90 is down in the frame.
        spreading: s of the directional distribution cos^(2 s)(angle / 2). More makes longer crests.
        light: degrees on the water; slopes that rise in this direction are dark.
        blur: standard deviation of the camera's Gaussian point spread, px.
        contrast: expected standard deviation of luminance, grey levels.
    """

    height: int = 64
    width: int = 64
    fps: float = 25.0
    seed: int = 0
    metres_per_px: float = 0.04
    foreshortening: float = 2.0
    wind_speed: float = 5.0
    fetch: float = 400.0
    direction: float = 65.0
    spreading: float = 10.0
    light: float = 90.0
    blur: float = 0.8
    contrast: float = 38.0

    def __post_init__(self) -> None:
        for name in ("height", "width"):
            if getattr(self, name) < 4:
                raise InputError(f"sea: {name} {getattr(self, name)} px; at least 4")
        for name in ("fps", "metres_per_px", "foreshortening", "wind_speed", "fetch", "contrast"):
            value = getattr(self, name)
            if not 0 < value < math.inf:
                raise InputError(f"sea: {name} {value}; a positive number is needed")
        if self.seed < 0:
            raise InputError(f"sea: seed {self.seed}; at least 0")

    @cached_property
    def angular_frequency(self) -> Float64:
        """Omega of each wave, rad/s, (H, W) on the FFT grid of space: omega^2 = g k + tau k^3."""
        k = np.hypot(*self._wavenumber())
        return np.asarray(np.sqrt(GRAVITY * k + CAPILLARITY * k**3))

    @cached_property
    def wave_power(self) -> Float64:
        """Expected contribution of each wave to the variance of luminance, (H, W), FFT grid.

        Wave k is cos(k . x - omega t + phase), so k and -k are two waves of opposite travel. The
        sum is contrast^2.

        Source: the JONSWAP spectrum, Hasselmann et al. 1973; cos^(2 s), Longuet-Higgins 1963.
        """
        kx, ky = self._wavenumber()
        k, angle = np.hypot(kx, ky), np.arctan2(ky, kx)
        omega = self.angular_frequency
        k[0, 0] = omega[0, 0] = 1.0  # no wave; set to zero below
        peak = 22 * (GRAVITY**2 / (self.wind_speed * self.fetch)) ** (1 / 3)
        width = np.where(omega <= peak, 0.07, 0.09)
        enhancement = 3.3 ** np.exp(-(((omega - peak) / (width * peak)) ** 2) / 2)
        of_omega = omega**-5.0 * np.exp(-1.25 * (peak / omega) ** 4) * enhancement
        group_speed = (GRAVITY + 3 * CAPILLARITY * k**2) / (2 * omega)
        half = (angle - math.radians(self.direction)) / 2
        elevation = of_omega * group_speed / k * np.cos(half) ** (2 * self.spreading)
        light = math.radians(self.light)
        slope = elevation * (kx * math.cos(light) + ky * math.sin(light)) ** 2
        x, y = np.meshgrid(np.fft.fftfreq(self.width), np.fft.fftfreq(self.height))
        power = slope * np.exp(-((2 * np.pi * self.blur) ** 2) * (x**2 + y**2))
        power[0, 0] = 0
        # A wave at the Nyquist frequency of an even axis would go both ways at once.
        power[(y == -0.5) | (x == -0.5)] = 0
        return np.asarray(power * (self.contrast**2 / power.sum()))

    def _wavenumber(self) -> tuple[Float64, Float64]:
        """(kx, ky), each (H, W), rad/m on the water, FFT grid."""
        x = 2 * np.pi * np.fft.fftfreq(self.width, self.metres_per_px)
        y = 2 * np.pi * np.fft.fftfreq(self.height, self.metres_per_px * self.foreshortening)
        kx, ky = np.meshgrid(x, y)
        return kx, ky

    def render(self, frames: int) -> Frames:
        """Film the sea.

        Args:
            frames: how many; more frames begin with the same ones.

        Returns:
            uint8, (T, H, W, 3). Levels beyond 0..255, rare at the default contrast, are clipped.
        """
        if frames < 1:
            raise InputError(f"sea: {frames} frames; at least 1")
        draws = np.random.default_rng(self.seed).standard_normal((2, self.height, self.width))
        # E |amplitude|^2 = 2 * wave_power, as a cosine of amplitude a has the variance a^2 / 2.
        amplitude = (draws[0] + 1j * draws[1]) * np.sqrt(self.wave_power)
        video = np.empty((frames, self.height, self.width, 3), np.uint8)
        for t in range(frames):
            phase = np.exp(-1j * self.angular_frequency * (t / self.fps))
            level = np.fft.ifft2(amplitude * phase, norm="forward").real  # (H, W)
            colour = MEAN_COLOUR + level[..., None] * COLOUR_DIRECTION  # (H, W, 3)
            video[t] = np.clip(np.rint(colour), 0, 255)
        return video

    def spectrum(self, frames: int) -> Float64:
        """The expected power spectrum of `luminance(self.render(frames))`, in closed form.

        That is E |fftn(luminance)|^2 / (T H W), grey levels^2, (T, H, W) on NumPy's FFT grid; its
        mean is contrast^2. Time does not wrap around, so each wave leaks along the frequency axis
        by the Fejer kernel, which is included. Rounding adds `QUANTIZATION` everywhere; that and
        clipping are not included.

        Args:
            frames: length of the video, T.
        """
        # The FFT's kernel is exp(-i (w t + k . x)): wave k is seen at (-omega, k) and (omega, -k).
        omega = self.angular_frequency / self.fps
        w = 2 * np.pi * np.fft.fftfreq(frames)[:, None, None]
        one_side = self.wave_power * _fejer(w + omega, frames)  # (T, H, W)
        other = one_side
        for axis in range(3):  # the value at -(w, k)
            other = np.roll(np.flip(other, axis), 1, axis)
        # A cosine's variance is shared by its two lines, and each fills H W bins' worth of space.
        return np.asarray((one_side + other) / 2 * (self.height * self.width))


def _fejer(w: Float64, frames: int) -> Float64:
    """|sum_t exp(-i w t)|^2 / T over t = 0 .. T - 1; w in rad per frame."""
    half = w / 2
    sine = np.sin(half)
    safe = np.abs(sine) > 1e-9
    ratio = np.where(safe, np.sin(frames * half) / np.where(safe, sine, 1), frames)
    return np.asarray(ratio**2 / frames)


def luminance(frames: Frames) -> Float64:
    """The luminance of a filmed or synthesized sea, grey levels.

    Args:
        frames: uint8, (..., 3).

    Returns:
        float64, (...), without the colour axis; its mean over a long clip is 0.
    """
    return np.asarray((frames - MEAN_COLOUR) @ COLOUR_DIRECTION)


def main(arguments: Sequence[str] | None = None) -> int:
    """Write a clip; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m stg_train.sea",
        description="Film a generated sea, whose power spectrum is known in closed form.",
    )
    parser.add_argument("out", type=Path, help=".mp4, .webm, .gif, .npy, or a folder of PNGs")
    parser.add_argument("--frames", type=int, default=96, help="length [default: 96]")
    parser.add_argument("--size", default="64x64", metavar="HxW", help="px [default: 64x64]")
    parser.add_argument("--fps", type=float, default=25.0, help="frames per second [default: 25]")
    parser.add_argument("--seed", type=int, default=0, help="of the waves [default: 0]")
    parser.add_argument("--overwrite", action="store_true", help="replace what is there")
    options = parser.parse_args(arguments)
    try:
        check_video_output(options.out, options.overwrite)
        size = re.fullmatch(r"(\d{1,5})x(\d{1,5})", options.size)
        if size is None:
            raise InputError(f"--size {options.size}: expected HxW, for instance 64x64")
        sea = Sea(int(size[1]), int(size[2]), fps=options.fps, seed=options.seed)
        write_video(options.out, sea.render(options.frames), sea.fps, overwrite=options.overwrite)
    except StgError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    print(options.out)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
