"""First noise that already has the training clip's covariance: spot noise.

White noise convolved with a clip has the clip's covariance and none of its phases, so that every
draw is new. A chain that starts there has the right spectrum, contrast and speed before its first
Langevin step, and the energy is left with what is not Gaussian: edges, shapes, colours that occur
together. Convolved along time alone, for scenes in which every place has its own behaviour, or
along space and time, for textures that look alike everywhere.

Source: van Wijk, "Spot noise: texture synthesis for data visualization", SIGGRAPH 1991; Galerne,
Gousseau, Morel, "Random phase textures: theory and synthesis", IEEE TIP 2011 (there of one image).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from stg_runtime.langevin import INITIAL, Float32, standard_normal

Axes = Literal["time", "space-time"]
Shape = tuple[int, int, int, int]
Wrap = tuple[bool, bool, bool]
NO_WRAP: Wrap = (False, False, False)

# The ends of the clip fade, or their jump would put its flat spectrum on top of the clip's.
FADE_FRAMES = 6
FADE_PIXELS = 12
# Along time alone, one noise for the whole frame would weigh every frequency the same everywhere in
# one draw: each of GRID x GRID overlapping cells has its own.
GRID = 5
# `Spot.given`: share of the variance by which known values may be missed, and most steps there.
GIVEN_NUGGET = 1e-3
GIVEN_STEPS = 60


class Spot:
    """Makes first noise from training clips.

    Args:
        clips: (M, C, T, H, W), model units; each draw follows one of them, taken at random.
        axes: that the noise is convolved along.
    """

    def __init__(self, clips: Float32, axes: Axes) -> None:
        assert clips.ndim == 5
        self.axes = axes
        over = (2,) if axes == "time" else (2, 3, 4)
        self._mean: Float32 = clips.mean(over, keepdims=True)
        faded = clips - self._mean
        for axis in over:
            fade = _fade(clips.shape[axis], FADE_FRAMES if axis == 2 else FADE_PIXELS)
            faded *= fade.reshape([-1 if i == axis else 1 for i in range(5)])
        self._plain = clips
        self._palette: tuple[int, Float32] | None = None  # of the clip used last
        self._clips = faded / np.float32(math.sqrt(math.prod(clips.shape[axis] for axis in over)))

    def noise_size(self, shape: Shape, *, wrap: Wrap = NO_WRAP) -> int:
        """How many standard normal values `make` takes for a video of `shape`, (C, T, H, W)."""
        extra = len(self._clips)
        if self.axes == "space-time":
            return extra + math.prod(self._torus(shape, wrap))
        length = shape[1] if wrap[0] else shape[1] + self._clips.shape[2] - 1
        return extra + GRID * GRID * length

    def make(self, noise: Float32, shape: Shape, *, wrap: Wrap = NO_WRAP) -> Float32:
        """Turn white noise into first noise.

        See `gaussian`, and, along time alone, the module's text on colours.
        """
        clip = int(np.argmax(noise[: len(self._clips)]))
        return self._coloured(self.gaussian(noise, shape, wrap=wrap), clip)

    def gaussian(self, noise: Float32, shape: Shape, *, wrap: Wrap = NO_WRAP) -> Float32:
        """Turn white noise into Gaussian noise with the mean and the covariance of a clip.

        Args:
            noise: standard normal, (`noise_size`,); the first M choose the clip.
            shape: (C, T, H, W) of the video. Along time alone H and W are the clips' own.
            wrap: for T, H, W: the end runs into the beginning.

        Returns:
            (C, T, H, W), model units.
        """
        count = len(self._clips)
        clip = int(np.argmax(noise[:count]))
        mean, spot, rest = self._mean[clip], self._clips[clip], noise[count:]
        if self.axes == "space-time":
            torus = self._torus(shape, wrap)
            made = _convolved(spot, rest.reshape(torus), (slice(shape[1]), *shape[2:]))
        else:
            assert shape[2:] == spot.shape[2:]
            made = self._along_time(spot, rest.reshape(GRID * GRID, -1), shape, wrap[0])
        made += mean
        return made

    def given(self, x: Float32, values: Float32, known: NDArray[np.bool_]) -> Float32:
        """Make first noise along space and time agree with known values: a conditional draw.

        x + K_.k (K_kk + e)^-1 (values - x)_k, K the clip's covariance: of a draw of the Gaussian
        video it makes one of the Gaussian video given its known values, to the accuracy of
        `GIVEN_STEPS` conjugate gradient steps.

        Args:
            x: from `make`, (C, T, H, W).
            values: model units, (C, T, H, W); read where known.
            known: (T, H, W).

        Source: conditional simulation by kriging, Journel, Huijbregts, Mining Geostatistics, 1978.
        """
        assert self.axes == "space-time"
        spot = self._clips[0]
        # Room beyond the video: the torus must not tie its ends together.
        torus = tuple(
            _smooth(size + own - 1) for size, own in zip(x.shape[1:], spot.shape[1:], strict=True)
        )
        spectrum = np.fft.rfftn(_folded(spot, torus), axes=(1, 2, 3))
        inside = tuple(slice(size) for size in x.shape[1:])
        nugget = GIVEN_NUGGET * float((spot * spot).sum()) / len(spot)

        def covariance(r: Float32) -> Float32:
            whole = np.zeros((len(spot), *torus), np.float32)
            whole[(slice(None), *inside)] = r
            transformed = np.fft.rfftn(whole, axes=(1, 2, 3))
            along = (spectrum.conj() * transformed).sum(0)
            spread = np.fft.irfftn(spectrum * along, s=torus, axes=(1, 2, 3))
            return np.asarray(spread[(slice(None), *inside)], np.float32)

        residual = np.where(known, values - x, np.float32(0))
        solution = np.zeros_like(residual)
        direction, size = residual.copy(), float((residual * residual).sum(dtype=np.float64))
        start = size
        for _ in range(GIVEN_STEPS):
            if size <= 1e-6 * start:
                break
            moved = np.where(known, covariance(direction), np.float32(0)) + nugget * direction
            step = size / float((direction * moved).sum(dtype=np.float64))
            solution += np.float32(step) * direction
            residual -= np.float32(step) * moved
            before, size = size, float((residual * residual).sum(dtype=np.float64))
            direction = residual + np.float32(size / before) * direction
        return np.where(known, values, x + covariance(solution)).astype(np.float32)

    def stream(self, draw: Callable[[int, int], Float32], shape: Shape) -> Iterator[Float32]:
        """First noise of a video without end, block by block.

        Args:
            draw: draw(b, size) gives the standard normal values of block b.
            shape: (C, T, H, W) of a block.

        Yields:
            (C, T, H, W), model units: blocks that follow each other without a seam.
        """
        count, before = len(self._clips), self._clips.shape[2] - 1
        # Noise of one frame: a value for each cell, or for each place of a torus of H and W.
        frame: tuple[int, ...] = (GRID * GRID,)
        if self.axes == "space-time":
            frame = self._torus(shape, NO_WRAP)[1:]
        values = math.prod(frame)
        # The frames before the beginning have noise, too; blocks may be shorter than these.
        lead = -(-before // shape[1])
        held = np.concatenate([draw(b, shape[1] * values) for b in range(lead)] or [draw(0, 0)])
        tail = held[held.size - before * values :].reshape(-1, *frame)
        clip = int(np.argmax(draw(lead, count)))
        mean, spot = self._mean[clip], self._clips[clip]
        for b in itertools.count(lead):
            new = draw(b, count + shape[1] * values)[count:].reshape(-1, *frame)
            noise = np.concatenate([tail, new])
            tail = noise[len(noise) - before :]
            if self.axes == "space-time":
                torus = np.zeros((_smooth(len(noise)), *frame), np.float32)
                torus[: len(noise)] = noise
                made = _convolved(spot, torus, (slice(before, before + shape[1]), *shape[2:]))
            else:
                made = self._along_time(spot, noise.T, shape, loop=False)
            made += mean
            yield self._coloured(made, clip)

    def _coloured(self, x: Float32, clip: int) -> Float32:
        """The colour that the clip has at each place at the rank of the value there."""
        if self.axes == "space-time":
            return x
        if self._palette is None or self._palette[0] != clip:
            order = np.argsort(_luminance(self._plain[clip]), 0, kind="stable")
            colours = np.take_along_axis(self._plain[clip], order[None], 1)
            self._palette = clip, np.ascontiguousarray(colours, np.float32)
        colours = self._palette[1]
        frames = colours.shape[1]
        if frames == 1:
            return np.ascontiguousarray(np.broadcast_to(colours, x.shape))
        own = _luminance(self._clips[clip])
        deviation = np.sqrt((own * own).sum(0))
        level = _luminance(x - self._mean[clip]) / np.maximum(deviation, np.float32(1e-6))
        rank = _normal_cdf(level) * np.float32(frames) - np.float32(0.5)
        np.clip(rank, 0, frames - 1, out=rank)
        below = np.minimum(rank.astype(np.intp), frames - 2)
        share = rank - below.astype(np.float32)
        low = np.take_along_axis(colours, below[None], 1)
        high = np.take_along_axis(colours, below[None] + 1, 1)
        coloured: Float32 = low + (high - low) * share
        return coloured

    @staticmethod
    def _along_time(spot: Float32, noise: Float32, shape: Shape, loop: bool) -> Float32:
        T, frames = shape[1], spot.shape[1]
        if loop:
            noise = np.resize(noise.T, (T + frames - 1, len(noise))).T
        made = np.zeros(shape, np.float32)
        rows, columns = _cells(shape[2]), _cells(shape[3])
        for cell, values in enumerate(noise):
            down, across = rows[cell // GRID], columns[cell % GRID]
            ys, xs = np.flatnonzero(down), np.flatnonzero(across)
            if not len(ys) or not len(xs):
                continue  # a frame of fewer pixels than cells
            place = np.s_[:, :, ys[0] : ys[-1] + 1, xs[0] : xs[-1] + 1]
            # (T, frames): frame t is the sum over s of noise[t - s] * spot[s].
            weights = np.lib.stride_tricks.sliding_window_view(values, frames)[:, ::-1]
            drawn = np.tensordot(weights, spot[place], (1, 1))  # (T, C, h, w)
            window = down[ys[0] : ys[-1] + 1, None] * across[None, xs[0] : xs[-1] + 1]
            made[place] += drawn.transpose(1, 0, 2, 3) * window
        return made

    def _torus(self, shape: Shape, wrap: Wrap) -> tuple[int, int, int]:
        """(T, H, W) that the convolution wraps at; where not asked to, no less than the clip's."""
        sizes = [
            size if wraps else _smooth(max(size, own))
            for size, own, wraps in zip(shape[1:], self._clips.shape[2:], wrap, strict=True)
        ]
        return sizes[0], sizes[1], sizes[2]


def _luminance(x: Float32) -> Float32:
    """(C, ...) to (...); the mean over channels where these are not red, green and blue."""
    weights = (0.299, 0.587, 0.114) if len(x) == 3 else (1 / len(x),) * len(x)
    return np.asarray(np.tensordot(np.array(weights, np.float32), x, 1), np.float32)


def _normal_cdf(x: Float32) -> Float32:
    """Share of a standard normal below x, to 2e-7.

    Source: Abramowitz, Stegun, Handbook of Mathematical Functions, 7.1.26.
    """
    z = np.abs(x) * np.float32(math.sqrt(0.5))
    t = 1 / (1 + np.float32(0.3275911) * z)
    tail = np.zeros_like(t)
    for factor in (1.061405429, -1.453152027, 1.421413741, -0.284496736, 0.254829592):
        tail = (tail + np.float32(factor)) * t
    tail *= np.exp(-z * z)
    return np.where(x > 0, 1 - tail / 2, tail / 2).astype(np.float32)


def _fade(size: int, length: int) -> Float32:
    """1, falling to 0 over `length` values (at most a fifth) at both ends; mean square 1."""
    length = max(1, min(length, size // 5))
    rise = np.sin((np.arange(length) + 0.5) / length * np.pi / 2) ** 2
    fade = np.ones(size)
    if size >= 5:
        fade[:length], fade[-length:] = rise, rise[::-1]
    return np.asarray(fade / np.sqrt((fade**2).mean()), np.float32)


def _cells(size: int) -> NDArray[np.float32]:
    """Weights of GRID overlapping cells of a row, (GRID, size); their squares sum to 1."""
    place = np.linspace(0, GRID - 1, size) if size > 1 else np.zeros(1)
    distance = np.abs(place - np.arange(GRID)[:, None])
    return np.where(distance < 1, np.cos(np.pi / 2 * distance), 0).astype(np.float32)


def _convolved(spot: Float32, noise: Float32, kept: tuple[slice, int, int]) -> Float32:
    """Spot (C, T, H, W) and noise (T, H, W) around the noise's torus; a part of the result.

    One channel after the other: a whole video's transforms would not fit where the video does.
    """
    spectrum = np.fft.rfftn(noise)
    made = np.empty(
        (len(spot), len(range(*kept[0].indices(noise.shape[0]))), *kept[1:]), np.float32
    )
    for index, channel in enumerate(spot):
        own = np.fft.rfftn(_folded(channel[None], noise.shape)[0])
        own *= spectrum
        whole = np.fft.irfftn(own, s=noise.shape, axes=(0, 1, 2))
        made[index] = whole[kept[0], : kept[1], : kept[2]]
    return made


def _folded(spot: Float32, torus: tuple[int, ...]) -> Float32:
    """The spot, (C, T, H, W), wrapped around a torus, of any size."""
    for axis, size in enumerate(torus, start=1):
        lacking = -spot.shape[axis] % size
        spot = np.pad(spot, [(0, lacking if i == axis else 0) for i in range(4)])
        turns = spot.shape[axis] // size
        spot = spot.reshape(*spot.shape[:axis], turns, size, *spot.shape[axis + 1 :]).sum(axis)
    return spot


def _smooth(size: int) -> int:
    """The next size with no prime factor above 5, which Fourier transforms are fast at."""
    while True:
        rest = size
        for prime in (2, 3, 5):
            while rest % prime == 0:
                rest //= prime
        if rest == 1:
            return size
        size += 1


def first_noise(
    spot: Spot | None,
    shape: Shape,
    *,
    seed: int,
    number: int,
    init_std: float,
    wrap: Wrap = NO_WRAP,
) -> Float32:
    """The first noise of a chain, from the same counted stream on every device.

    Args:
        spot: None for white noise.
        shape: (C, T, H, W).
        seed: of the noise.
        number: of the chain.
        init_std: standard deviation of white noise, model units.
        wrap: see `Spot.make`.

    Returns:
        (C, T, H, W), model units.
    """
    size = math.prod(shape) if spot is None else spot.noise_size(shape, wrap=wrap)
    noise = standard_normal(size, seed=seed, chain=number, step=INITIAL)
    if spot is None:
        return noise.reshape(shape) * np.float32(init_std)
    return spot.make(noise, shape, wrap=wrap)
