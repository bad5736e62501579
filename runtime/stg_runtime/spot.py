"""First noise that already has the training clip's covariance: spot noise.

White noise convolved with a clip has the clip's covariance and none of its phases, so that every
draw is new. A chain that starts there has the right spectrum, contrast and speed before its first
Langevin step, and the energy is left with what is not Gaussian: edges, shapes, colours that occur
together. Convolved along time alone, for scenes in which every place has its own behaviour, or
along space and time, for textures that look alike everywhere.

Along time, every place is then given the colours that the clip has there, rank for rank, and an
`Equalizer` takes away the power at high frequencies that this adds.

Source: van Wijk, "Spot noise: texture synthesis for data visualization", SIGGRAPH 1991; Galerne,
Gousseau, Morel, "Random phase textures: theory and synthesis", IEEE TIP 2011 (there of one image).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from stg_runtime.equalizer import Equalizer, fit
from stg_runtime.fill import interpolate_in_time, pull_push
from stg_runtime.kriging import (
    LAGS,
    Mask,
    box_mean,
    conditional,
    faded_spectrum,
    smooth_size,
    torus_of,
)
from stg_runtime.langevin import BLOCK as NOISE_BLOCK
from stg_runtime.langevin import INITIAL, Float32, standard_normal

Axes = Literal["time", "space-time"]
Shape = tuple[int, int, int, int]
Wrap = tuple[bool, bool, bool]
NO_WRAP: Wrap = (False, False, False)
Complex64 = NDArray[np.complex64]

# The ends of the clip fade, or their jump would put its flat spectrum on top of the clip's.
FADE_FRAMES = 6
FADE_PIXELS = 12
# Along time alone, one noise for the whole frame would weigh every frequency the same everywhere in
# one draw: each of CELLS x CELLS overlapping cells has its own, unless a clip's places move as one.
CELLS, MOST_CELLS = 5, 8
# `Spot.given`: share of the variance by which known values may be missed, and most steps there.
GIVEN_NUGGET = 0.1
GIVEN_STEPS = 40
# Radius of the squares that the level of known values is taken over.
LEVEL_PIXELS = 8
# `Spot.between`: the same share where the ends' motion is to be met rather than every detail, then
# for what is left, and the frames within which the ends tell something.
MOTION_NUGGET = 5e-2
LED_NUGGET = 1e-3
LED_FRAMES = 24
# Mahalanobis distance of colours from which on known values are of something else.
FOREIGN = 5.0
# Below this a place counts as still: its noise has no rank.
LEAST_DEVIATION = np.float32(1e-6)
# Pixels of the frames that are coloured and filtered at once: what is made meanwhile, a few times
# as much, stays small against a video.
BLOCK = 1 << 17
# Draws that an equalizer is fitted to, most clips they are compared with, and the seed of both.
FITTED_DRAWS = 6
FITTED_CLIPS = 8
FITTED_SEED = 0


class Spot:
    """Makes first noise from training clips.

    Args:
        clips: (M, C, T, H, W), model units; each draw follows one of them, taken at random.
        axes: that the noise is convolved along.
        equalizer: see `fitted`; None leaves the spectra as they come.
        cells: along time, how many cells a row and a column have that a noise of their own moves.
    """

    def __init__(
        self,
        clips: Float32,
        axes: Axes,
        equalizer: Equalizer | None = None,
        cells: int = CELLS,
    ) -> None:
        assert clips.ndim == 5
        self.axes = axes
        self.cells = cells
        self.equalizer = equalizer
        over = (2,) if axes == "time" else (2, 3, 4)
        self._mean: Float32 = clips.mean(over, keepdims=True)
        faded = clips - self._mean
        for axis in over:
            fade = _fade(clips.shape[axis], FADE_FRAMES if axis == 2 else FADE_PIXELS)
            faded *= fade.reshape([-1 if i == axis else 1 for i in range(5)])
        self._plain = clips
        self._palette: tuple[int, Float32] | None = None  # see `colours`
        self._clips = faded / np.float32(math.sqrt(math.prod(clips.shape[axis] for axis in over)))
        if equalizer is not None and axes == "space-time":
            # Linear all the way: the spot itself is filtered, once.
            for clip in self._clips:
                clip[:] = equalizer.over_space(equalizer.along_time(clip, "constant"), "constant")

    @classmethod
    def fitted(cls, clips: Float32, axes: Axes, levels: float, cells: int = CELLS) -> Spot:
        """With the equalizer that brings the spectra of its draws to the clips'.

        Args:
            clips: see the class.
            axes: see the class.
            levels: grey levels per model unit.
            cells: see the class.
        """
        plain = cls(clips, axes, cells=cells)
        chosen = np.linspace(0, len(clips) - 1, min(len(clips), FITTED_CLIPS)).round().astype(int)
        shape = (clips.shape[1], clips.shape[2], clips.shape[3], clips.shape[4])
        rng = np.random.default_rng(FITTED_SEED)
        made = []
        for _ in range(FITTED_DRAWS):
            noise = rng.standard_normal(plain.noise_size(shape)).astype(np.float32)
            clip = int(np.argmax(noise[: plain.count]))
            made.append(luminance(plain.make(noise, shape) - plain._mean[clip]))
        observed = [luminance(clips[i] - plain._mean[i]) for i in chosen]
        return cls(clips, axes, fit(observed, made, levels), cells)

    def evened(self) -> Spot:
        """Noise of the clips without what stands still in them, for `given`.

        One part of a clip is always lighter, or has higher waves, than another. Noise knows no
        places and would make patches of it, in colours of their own; so each place is brought to
        the clip's mean and to its contrast first.
        """
        assert self.axes == "space-time"
        even = np.empty_like(self._plain)
        for clip, mean, made in zip(self._plain, self._mean, even, strict=True):
            everywhere = np.ones(clip.shape[1:], bool)
            made[:] = clip - mean
            for _ in range(2):  # once more what a mean around a place leaves of hills and hollows
                made -= _level(made, everywhere)[:, None]
            size = _contrast(made, everywhere)
            made *= np.sqrt(np.square(size).mean((1, 2), keepdims=True)[:, None]) / size[:, None]
            made += mean
        return Spot(even, self.axes, self.equalizer)

    @property
    def count(self) -> int:
        """How many clips it draws from; the first so many values of the noise choose one."""
        return len(self._clips)

    def clip(self, index: int) -> tuple[Float32, Float32]:
        """A clip's mean and its spot, both (C, T, H, W), with extent 1 where the mean is taken."""
        return self._mean[index], self._clips[index]

    def noise_size(self, shape: Shape, *, wrap: Wrap = NO_WRAP) -> int:
        """How many standard normal values `make` takes for a video of `shape`, (C, T, H, W)."""
        extra = len(self._clips)
        if self.axes == "space-time":
            return extra + math.prod(self.torus(shape, wrap))
        length = shape[1] if wrap[0] else shape[1] + self._clips.shape[2] - 1
        return extra + self.cells**2 * length

    def make(
        self,
        noise: Float32,
        shape: Shape,
        *,
        wrap: Wrap = NO_WRAP,
        out: Float32 | None = None,
        room: Float32 | None = None,
    ) -> Float32:
        """Turn white noise into first noise.

        See `gaussian` for the arguments, and, along time alone, the module's text on colours.
        """
        clip = int(np.argmax(noise[: len(self._clips)]))
        made = self.gaussian(noise, shape, wrap=wrap, out=out, room=room)
        if self.axes == "space-time":
            return made
        for part in _blocks(shape):
            made[:, part] = self._coloured(made[:, part], clip)
        if self.equalizer is not None:
            made -= self._mean[clip]
            self._equalize(made, wrap[0])
            made += self._mean[clip]
        return made

    def _equalize(self, x: Float32, wrap: bool) -> None:
        """Filter (C, T, H, W) along time and over space in place, a few frames at a time."""
        assert self.equalizer is not None
        reach, frames = self.equalizer.reach, x.shape[1]
        around = np.arange(-reach, frames + reach)
        around = around % frames if wrap else np.clip(around, 0, frames - 1)
        # What later blocks read of frames that are overwritten by then: those before them, and
        # beyond the end.
        before, beyond = x[:, around[:reach]], x[:, around[frames + reach :]]
        for part in _blocks(x.shape):
            size = part.stop - part.start
            read = np.concatenate([before, x[:, part.start : part.stop + reach], beyond], 1)
            read = read[:, : size + 2 * reach]
            before = read[:, size : size + reach].copy()
            x[:, part] = self.equalizer.over_space(self.equalizer.inner_frames(read))

    def scratch_bytes(self, shape: Shape, *, wrap: Wrap = NO_WRAP, room: int = 0) -> int:
        """Bytes that `first_noise` takes at its peak besides its result.

        Args:
            shape: (C, T, H, W) of the video.
            wrap: see `make`.
            room: bytes of the memory that is free meanwhile.
        """
        if self.axes == "space-time":
            torus = self.torus(shape, wrap)
            spectrum = 8 * torus[0] * torus[1] * (torus[2] // 2 + 1)
            noise = 4 * self.noise_size(shape, wrap=wrap)
            taken = noise if noise > 4 * math.prod(shape) else 0
            taken += (2 - min(2, room // spectrum)) * spectrum
            clip: int = math.prod(self._clips.shape[2:])
            return taken + 12 * max(clip, NOISE_BLOCK)  # the one is drawn, then the other folded
        return self._along_time_bytes(shape, min(shape[1], _block_frames(*shape[2:])))

    def stream_bytes(self, shape: Shape) -> int:
        """Bytes that `stream` takes at its peak, for blocks of (C, T, H, W)."""
        if self.axes == "space-time":
            clip: int = math.prod(self._clips.shape[2:])
            _, height, width = self.torus(shape, NO_WRAP)
            frames = smooth_size(shape[1] + self._clips.shape[2] - 1)
            # Four times the noise, and two half spectra.
            return frames * height * (16 * width + 16 * (width // 2 + 1)) + 12 * clip
        return self._along_time_bytes(shape, shape[1])

    def _along_time_bytes(self, shape: Shape, frames: int) -> int:
        """Bytes that spot noise along time alone takes, so many frames of (C, T, H, W) at once."""
        C, _, H, W = shape
        clip: int = math.prod(self._clips.shape[2:])
        reach = 0 if self.equalizer is None else self.equalizer.reach
        # The palette, while it is sorted; what is made of the frames.
        return (4 * C + 12) * clip + 4 * C * H * W * (8 * frames + 6 * reach)

    def between_bytes(self, shape: Shape) -> int:
        """Bytes that `between` takes at its peak besides what it is given."""
        # The results, the clips' covariance, and the equations of a row.
        taken: int = 12 * math.prod(shape) + 2 * self._clips.nbytes + 40_000 * shape[3]
        if self.axes == "space-time":
            sizes = [max(pair) for pair in zip(shape[1:], self._clips.shape[2:], strict=True)]
            taken += 56 * math.prod(torus_of(sizes, LAGS))  # transforms, conjugate gradients
        return taken

    def given_bytes(self, shape: Shape) -> int:
        """Bytes that `given` takes at its peak besides what it is given."""
        lags = [min(lag, n - 1) for lag, n in zip(LAGS, self._clips.shape[2:], strict=True)]
        # As measured: nineteen arrays of the video's size, of three colours or of one, and what is
        # transformed.
        return 76 * math.prod(shape[1:]) + 40 * math.prod(torus_of(shape[1:], lags))

    def gaussian(
        self,
        noise: Float32,
        shape: Shape,
        *,
        wrap: Wrap = NO_WRAP,
        out: Float32 | None = None,
        room: Float32 | None = None,
    ) -> Float32:
        """Turn white noise into Gaussian noise with the mean and the covariance of a clip.

        Args:
            noise: standard normal, (`noise_size`,); the first M choose the clip.
            shape: (C, T, H, W) of the video. Along time alone H and W are the clips' own.
            wrap: for T, H, W: the end runs into the beginning.
            out: where the result goes. Along space and time the noise may lie in it.
            room: memory that is free meanwhile; it need not be enough.

        Returns:
            (C, T, H, W), model units.
        """
        count = len(self._clips)
        clip = int(np.argmax(noise[:count]))
        mean, spot, rest = self._mean[clip], self._clips[clip], noise[count:]
        made = np.empty(shape, np.float32) if out is None else out
        if self.axes == "space-time":
            torus = self.torus(shape, wrap)
            _convolve(spot, rest.reshape(torus), made, room=room)
        else:
            assert shape[2:] == spot.shape[2:]
            self._along_time(spot, rest.reshape(self.cells**2, -1), made, wrap[0])
        made += mean
        return made

    def given(self, x: Float32, values: Float32, known: NDArray[np.bool_]) -> Float32:
        """Make first noise along space and time agree with known values: a conditional draw.

        x + K_.k (K_kk + e)^-1 (values - x)_k, for each principal colour of the clip by itself, with
        values brought from the level and the contrast that they have around a place (`_level`,
        `_contrast`) to the clip's, and the result back: light changes from the clip to the video,
        and waves are lower at the far side of a river. `evened` gives the noise for it. K is the
        clip's covariance, faded out at `kriging.LAGS`: as it is, a single clip's covariance (its
        raw power spectrum, one phase for all colours) fits that clip only, and given other values
        the draw runs away. Known values that the texture does not have, a bank beside the river,
        take no part (`_of_texture`).

        Args:
            x: from `make`, (C, T, H, W).
            values: model units, (C, T, H, W); read where known.
            known: (T, H, W).

        Source: conditional simulation by kriging, Journel, Huijbregts, Mining Geostatistics, 1978.
        """
        part = known & self._of_texture(values, known)
        if not part.any():
            return np.where(known, values, x)
        mean = self._mean[0]
        level = _level(values - mean, part)[:, None] + mean
        own = np.sqrt(np.square(self._plain[0] - mean).mean((1, 2, 3), keepdims=True))
        contrast = _contrast(values - level, part)[:, None] / own
        made = self._agreeing(x - mean, (values - level) / contrast, part, GIVEN_NUGGET)
        return np.where(known, values, made * contrast + level)

    def _agreeing(
        self, x: Float32, values: Float32, part: Mask, nugget: float, wrap: Wrap = NO_WRAP
    ) -> Float32:
        """`given` without the level, by the known values in `part` alone."""
        assert self.axes == "space-time"
        spot, shape = self._clips[0], x.shape[1:]
        flat = spot.reshape(len(spot), -1)
        colours = np.linalg.eigh(flat @ flat.T)[1].astype(np.float32)  # in columns
        lags = [min(lag, size - 1) for lag, size in zip(LAGS, spot.shape[1:], strict=True)]
        for axis, (size, wraps) in enumerate(zip(shape, wrap, strict=True)):
            if wraps:  # no place is further away than half of the period
                lags[axis] = min(lags[axis], size // 2)
        torus = torus_of(shape, lags, wrap)
        large = torus_of([max(pair) for pair in zip(shape, spot.shape[1:], strict=True)], lags)
        missed = np.where(part, values - x, np.float32(0))
        made = x.copy()
        for colour in colours.T:
            projected = np.tensordot(colour, spot, 1)
            power = np.square(np.abs(np.fft.rfftn(projected, s=large, axes=(0, 1, 2))))
            covariance = np.fft.irfftn(power, s=large, axes=(0, 1, 2))
            for axis, size in enumerate(torus):
                # The same distances on the smaller torus; beyond `lags` all are faded out.
                distance = np.arange(size)
                distance = np.where(distance <= size // 2, distance, distance - size)
                covariance = covariance.take(distance, axis, mode="wrap")
            spectrum = faded_spectrum(covariance, lags)
            change = conditional(
                np.tensordot(colour, missed, 1),
                part,
                spectrum,
                nugget=nugget,
                steps=GIVEN_STEPS,
                is_odd=bool(torus[2] % 2),
            )
            made += colour[:, None, None, None] * change
        return made

    def between(self, x: Float32, before: Float32, after: Float32, wrap: Wrap = NO_WRAP) -> Float32:
        """Make first noise go on from given frames and lead to others: a conditional draw.

        Along space and time `given` finds how the waves travel on. What that leaves, and all of it
        along time alone, is met at every place by itself, with the clip's covariance along time
        there: exactly, since the frames that follow would show any difference as a jump.

        Args:
            x: from `make`, (C, T, H, W).
            before: frames that the beginning of `x` becomes, (C, T, H, W).
            after: the same of its end.
            wrap: see `make`; along space and time alone, and not along time.
        """
        first, last = before.shape[1], x.shape[1] - after.shape[1]
        values = np.zeros_like(x)
        values[:, :first], values[:, last:] = before, after
        given = np.r_[0:first, last : x.shape[1]]
        if self.axes == "space-time":
            known = np.zeros(x.shape[1:], bool)
            known[given] = True
            part = known & self._of_texture(values, known)
            x = self._agreeing(x, values, part, MOTION_NUGGET, wrap)
        made = self._led(x, values, given)
        made[:, given] = values[:, given]
        return made

    def _led(self, x: Float32, values: Float32, given: NDArray[np.intp]) -> Float32:
        """Add K_.g (K_gg + e)^-1 (values - x)_g, place by place; g are the given frames."""
        spots = self._clips
        lags = min(LED_FRAMES, spots.shape[2])
        covariance = np.stack(  # (lags, H, W)
            [
                (spots[:, :, lag:] * spots[:, :, : spots.shape[2] - lag]).sum((0, 1, 2))
                for lag in range(lags)
            ]
        )
        if self.axes == "space-time":
            covariance = covariance.mean((1, 2), keepdims=True)
        else:
            covariance = box_mean(covariance, 2)
        fade = 0.5 + 0.5 * np.cos(np.pi * np.arange(lags) / lags)
        # Beyond the last lag: 0.
        covariance = np.pad(covariance * fade[:, None, None], [(0, 1), (0, 0), (0, 0)])
        covariance = np.broadcast_to(covariance, (lags + 1, *x.shape[2:]))
        distance = np.minimum(np.abs(np.arange(x.shape[1])[:, None] - given), lags)
        near = np.flatnonzero(distance.min(1) < lags)
        made = x.copy()
        for row in range(x.shape[2]):
            at = covariance[:, row].T.astype(np.float64)  # (W, lags + 1)
            noise = LED_NUGGET * at[:, :1, None] + 1e-12
            among = at[:, distance[given]] + noise * np.eye(len(given))
            missed = (values[:, given, row] - x[:, given, row]).transpose(2, 1, 0)
            weights = np.linalg.solve(among, missed.astype(np.float64))  # (W, given, C)
            made[:, near, row] += (at[:, distance[near]] @ weights).transpose(2, 1, 0)
        return made

    def elsewhere(self, values: Float32, known: Mask) -> Mask:
        """Hidden pixels that lie over something else than the texture, (T, H, W): a bank beside it.

        Something else is seen there in most moments in which the place is known, and in the last
        one before and the first one after. A place that is never known counts as the texture's.
        See `given` for the arguments.
        """
        foreign = known & ~self._of_texture(values, known)
        mostly = 2 * foreign.sum(0) > known.sum(0)
        around = interpolate_in_time(foreign[None].astype(np.float32), known)[0]
        return np.asarray(~known & mostly & (around > 0.999))

    def _of_texture(self, values: Float32, known: Mask) -> Mask:
        """Where the mean colour around a known pixel is one that the clip could have, (T, H, W).

        Its Mahalanobis distance, among the mean colours of as large squares of the clip, is below
        `FOREIGN`.
        """
        weight = box_mean(known.astype(np.float32), 2)
        near = box_mean(np.where(known, values - self._mean[0], np.float32(0)), 2)
        near /= np.maximum(weight, np.float32(1e-3))
        own = box_mean(self._plain[0] - self._mean[0], 2).reshape(len(near), -1).astype(np.float64)
        spread = own @ own.T / own.shape[1]
        spread[np.diag_indices_from(spread)] += 1e-3 * np.trace(spread) + 1e-12
        distance = np.einsum("cthw,cd,dthw->thw", near, np.linalg.inv(spread), near, optimize=True)
        return np.asarray(distance < FOREIGN**2)

    def stream(self, draw: Callable[[int, int], Float32], shape: Shape) -> Iterator[Float32]:
        """First noise of a video without end, block by block.

        Before its beginning the equalizer finds the first frame again, as in `make`.

        Args:
            draw: draw(b, size) gives the standard normal values of block b.
            shape: (C, T, H, W) of a block.

        Yields:
            (C, T, H, W), model units: blocks that follow each other without a seam.
        """
        blocks = self._stream(draw, shape)
        if self.equalizer is None or self.axes == "space-time":
            for made, mean in blocks:
                yield made + mean
            return
        reach, frames = self.equalizer.reach, shape[1]
        made, mean = next(blocks)
        held = np.concatenate([np.repeat(made[:, :1], reach, 1), made], 1)
        while True:
            while held.shape[1] < frames + 2 * reach:
                held = np.concatenate([held, next(blocks)[0]], 1)
            inner = self.equalizer.inner_frames(held[:, : frames + 2 * reach])
            yield self.equalizer.over_space(inner) + mean
            held = held[:, frames:]

    def _stream(
        self, draw: Callable[[int, int], Float32], shape: Shape
    ) -> Iterator[tuple[Float32, Float32]]:
        """Blocks before the equalizer, without their mean, and that mean."""
        count, before = len(self._clips), self._clips.shape[2] - 1
        # Noise of one frame: a value for each cell, or for each place of a torus of H and W.
        frame: tuple[int, ...] = (self.cells**2,)
        if self.axes == "space-time":
            frame = self.torus(shape, NO_WRAP)[1:]
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
            made = np.empty(shape, np.float32)
            if self.axes == "space-time":
                torus = np.zeros((smooth_size(len(noise)), *frame), np.float32)
                torus[: len(noise)] = noise
                _convolve(spot, torus, made, first=before)
            else:
                self._along_time(spot, noise.T, made, loop=False)
            made += mean
            yield self._coloured(made, clip) - mean, mean

    def _coloured(self, x: Float32, clip: int) -> Float32:
        """The colour that the clip has at each place at the rank of the value there."""
        if self.axes == "space-time":
            return x
        if self._palette is None or self._palette[0] != clip:
            self._palette = clip, self.colours(clip)
        colours = self._palette[1]
        frames = colours.shape[1]
        if frames == 1:
            return np.ascontiguousarray(np.broadcast_to(colours, x.shape))
        level = luminance(x - self._mean[clip])
        level /= np.maximum(self.deviation(clip), LEAST_DEVIATION)
        rank = _normal_cdf(level) * np.float32(frames) - np.float32(0.5)
        np.clip(rank, 0, frames - 1, out=rank)
        below = np.minimum(rank.astype(np.intp), frames - 2)
        share = rank - below.astype(np.float32)
        low = np.take_along_axis(colours, below[None], 1)
        high = np.take_along_axis(colours, below[None] + 1, 1)
        coloured: Float32 = low + (high - low) * share
        return coloured

    def colours(self, clip: int) -> Float32:
        """The colours of a clip at each place, from the darkest to the brightest, (C, T, H, W)."""
        order = np.argsort(luminance(self._plain[clip]), 0, kind="stable")
        return np.ascontiguousarray(
            np.take_along_axis(self._plain[clip], order[None], 1), np.float32
        )

    def deviation(self, clip: int) -> Float32:
        """Standard deviation of the luminance that noise along time has at each place, (H, W)."""
        own = luminance(self._clips[clip])
        return np.asarray(np.sqrt((own * own).sum(0)), np.float32)

    def _along_time(self, spot: Float32, noise: Float32, out: Float32, loop: bool) -> None:
        (_, T, H, W), frames = out.shape, spot.shape[1]
        if loop:
            noise = np.resize(noise.T, (T + frames - 1, len(noise))).T
        out[:] = 0
        rows, columns = cell_weights(H, self.cells), cell_weights(W, self.cells)
        for cell, values in enumerate(noise):
            down, across = rows[cell // self.cells], columns[cell % self.cells]
            ys, xs = np.flatnonzero(down), np.flatnonzero(across)
            if not len(ys) or not len(xs):
                continue  # a frame of fewer pixels than cells
            place = np.s_[:, :, ys[0] : ys[-1] + 1, xs[0] : xs[-1] + 1]
            own = spot[place].transpose(1, 0, 2, 3)  # (frames, C, h, w)
            # (T, frames): frame t is the sum over s of noise[t - s] * spot[s].
            weights = np.lib.stride_tricks.sliding_window_view(values, frames)[:, ::-1]
            window = down[ys[0] : ys[-1] + 1, None] * across[None, xs[0] : xs[-1] + 1]
            for part in _blocks(out.shape):
                drawn = np.tensordot(weights[part], own, 1)  # (T, C, h, w)
                drawn *= window
                out[:, part][place] += drawn.transpose(1, 0, 2, 3)

    def torus(self, shape: Shape, wrap: Wrap) -> tuple[int, int, int]:
        """(T, H, W) that the convolution wraps at; where not asked to, no less than the clip's."""
        sizes = [
            size if wraps else smooth_size(max(size, own))
            for size, own, wraps in zip(shape[1:], self._clips.shape[2:], wrap, strict=True)
        ]
        return sizes[0], sizes[1], sizes[2]


def _level(x: Float32, known: Mask) -> Float32:
    """Mean of known values, (C, T, H, W), at a place and around it, (C, H, W)."""
    return _around(np.where(known, x, np.float32(0)).sum(1), known)


def _contrast(x: Float32, known: Mask) -> Float32:
    """Root mean square of known values, (C, T, H, W), at a place and around it, (C, H, W)."""
    square = _around(np.square(np.where(known, x, np.float32(0))).sum(1), known)
    return np.asarray(np.sqrt(square + np.float32(1e-6)), np.float32)


def _around(total: Float32, known: Mask) -> Float32:
    """Mean around each place of values of which `total`, (C, H, W), is the sum over time."""
    count = known.sum(0).astype(np.float32)
    for _ in range(2):  # twice: no edges of the boxes in it
        total, count = box_mean(total, LEVEL_PIXELS), box_mean(count, LEVEL_PIXELS)
    seen = count > 1e-3
    total /= np.where(seen, count, np.float32(1))
    return box_mean(pull_push(total, seen), LEVEL_PIXELS)


def luminance_weights(channels: int) -> Float32:
    """What each channel adds; equal where these are not red, green and blue."""
    weights = (0.299, 0.587, 0.114) if channels == 3 else (1 / channels,) * channels
    return np.array(weights, np.float32)


def luminance(x: Float32) -> Float32:
    """(C, ...) to (...); see `luminance_weights`."""
    return np.asarray(np.tensordot(luminance_weights(len(x)), x, 1), np.float32)


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


def cell_weights(size: int, cells: int) -> NDArray[np.float32]:
    """Weights of overlapping cells of a row, (cells, size); their squares sum to 1."""
    place = np.linspace(0, cells - 1, size) if size > 1 else np.zeros(1)
    distance = np.abs(place - np.arange(cells)[:, None])
    return np.where(distance < 1, np.cos(np.pi / 2 * distance), 0).astype(np.float32)


def _block_frames(height: int, width: int) -> int:
    return max(1, BLOCK // (height * width))


def _blocks(shape: tuple[int, ...]) -> list[slice]:
    """Runs of frames of a (C, T, H, W), about BLOCK pixels each."""
    frames, size = shape[1], _block_frames(*shape[2:])
    return [slice(first, min(first + size, frames)) for first in range(0, frames, size)]


def _convolve(
    spot: Float32,
    noise: Float32,
    out: Float32,
    *,
    first: int = 0,
    room: Float32 | None = None,
) -> None:
    """Spot (C, T, H, W) and noise (T, H, W) around the noise's torus; a part of the result.

    One channel after the other, and a frame after the other: besides what it is given it takes two
    half spectra.

    Args:
        spot: see above.
        noise: see above; may lie in `out`.
        out: takes frames `first` on, and the first rows and columns, (C, T, H, W).
        first: see `out`.
        room: for the spectra; they are allocated where it is too small.
    """
    (_, T, H, W), torus = out.shape, noise.shape
    half = (torus[0], torus[1], torus[2] // 2 + 1)
    spectrum, own = (_half_spectrum(room, index, half) for index in (0, 1))
    _transform(noise, spectrum, torus)
    for channel, made in zip(spot, out, strict=True):
        around = folded(
            channel[None], [min(pair) for pair in zip(torus, channel.shape, strict=True)]
        )
        _transform(around[0], own, torus)
        own *= spectrum
        _along_frames(np.fft.ifft, own)
        for t in range(T):
            made[t] = np.fft.irfft2(own[first + t], s=torus[1:])[:H, :W]


def _half_spectrum(room: Float32 | None, index: int, shape: tuple[int, ...]) -> Complex64:
    """The index-th place of that shape in the room, or a new array where it is too small."""
    size = 2 * math.prod(shape)
    if room is None or room.size < (index + 1) * size:
        return np.empty(shape, np.complex64)
    return room.reshape(-1)[index * size :][:size].view(np.complex64).reshape(shape)


def _transform(x: Float32, out: Complex64, torus: tuple[int, ...]) -> None:
    """Half the Fourier transform of (T, H, W), which zeros extend to the torus."""
    out[len(x) :] = 0
    for frame, transformed in zip(x, out, strict=False):
        transformed[:] = np.fft.rfft2(frame, s=torus[1:])
    _along_frames(np.fft.fft, out)


def _along_frames(transform: Callable[..., NDArray[np.complexfloating]], x: Complex64) -> None:
    for row in range(x.shape[1]):
        x[:, row] = transform(x[:, row], axis=0)


def folded(spot: Float32, torus: Sequence[int]) -> Float32:
    """The spot, (C, T, H, W), wrapped around a torus, of any size."""
    for axis, size in enumerate(torus, start=1):
        lacking = -spot.shape[axis] % size
        spot = np.pad(spot, [(0, lacking if i == axis else 0) for i in range(4)])
        turns = spot.shape[axis] // size
        spot = spot.reshape(*spot.shape[:axis], turns, size, *spot.shape[axis + 1 :]).sum(axis)
    return spot


def first_noise(
    spot: Spot | None,
    shape: Shape,
    *,
    seed: int,
    number: int,
    init_std: float,
    wrap: Wrap = NO_WRAP,
    out: Float32 | None = None,
    room: Float32 | None = None,
) -> Float32:
    """The first noise of a chain, from the same counted stream on every device.

    Args:
        spot: None for white noise.
        shape: (C, T, H, W).
        seed: of the noise.
        number: of the chain.
        init_std: standard deviation of white noise, model units.
        wrap: see `Spot.make`.
        out: where spot noise goes, contiguous.
        room: memory that is free meanwhile; see `Spot.gaussian`.

    Returns:
        (C, T, H, W), model units.
    """
    size = math.prod(shape) if spot is None else spot.noise_size(shape, wrap=wrap)
    if spot is None:
        noise = standard_normal(size, seed=seed, chain=number, step=INITIAL)
        return noise.reshape(shape) * np.float32(init_std)
    made = np.empty(shape, np.float32) if out is None else out
    there = made.reshape(-1)[:size] if spot.axes == "space-time" and size <= made.size else None
    noise = standard_normal(size, seed=seed, chain=number, step=INITIAL, out=there)
    return spot.make(noise, shape, wrap=wrap, out=made, room=room)
