"""Video without end, in constant memory: the walk of an infinitely long video, block by block.

A Langevin step moves a frame by the gradient there, which depends on the frames that the network's
field reaches, on either side. So the step k of a block of frames needs step k - 1 of that block and
of its two neighbours, and nothing else. We keep, for every step, the few blocks at which the walk
of an infinitely long video stands after it; each step stands one block behind the step before:

    step 0  ........................noise
    step 1  .....................
    step 2  ..................
    step K  ...finished|

New frames are thus made given the last ones, which are held, at every step, to what they were at
that step. That is the very walk that the model was trained with: there is no seam to be seen
between blocks, and no drift, since block 10,000 is made as block 10 is. Cut anywhere, it equals the
same frames of one long video walked in one piece with the same noise, to rounding.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from stg_runtime.errors import InputError
from stg_runtime.grids import refuse_scales
from stg_runtime.health import check_levels, is_silent, not_finite, silent
from stg_runtime.langevin import INITIAL, Walker, standard_normal
from stg_runtime.video import Frames, to_pixels
from stg_runtime.windows import locked, reach

if TYPE_CHECKING:
    from stg_runtime.artifact import Metadata
    from stg_runtime.backends.base import HostGradient
    from stg_runtime.langevin import Float32

FIRST_CHAIN = 1 << 32
"""Block b of a stream has the noise of chain FIRST_CHAIN + b, so that no video of `-n` has it."""

GROUP = 4  # blocks that a step moves at once; the two beside them are computed and not used


def block_frames(metadata: Metadata) -> int:
    """Frames of a block: the least multiple of the stride that covers the network's reach.

    Raises:
        InputError: the length of the model is fixed, or the file does not say how far it looks.
    """
    refuse_scales(metadata.scales, "--endless")
    known = reach(metadata, "T")
    if known is None:
        raise InputError(f"--endless: {locked(metadata, 'T')}")
    return known.stride * math.ceil(known.overlap / known.stride)


def stream_voxels(metadata: Metadata, n_steps: int, height: int, width: int) -> int:
    """Voxels that a stream holds in all its steps, at most (each of C float32)."""
    blocks = 2 * (n_steps + 1) + 3 * GROUP  # two of every step, and those on the move
    return blocks * block_frames(metadata) * height * width


class Endless:
    """Blocks of an endless video in order; iterate to get their pixels, (T, H, W, C), uint8.

    Args:
        gradient: of a window of GROUP + 2 blocks; may itself work in pieces or round axes.
        size: (height, width), pixels.
        n_steps: Langevin steps, K.
        seed: of the noise.

    Raises:
        InputError: see `block_frames`.
    """

    def __init__(
        self, gradient: HostGradient, size: tuple[int, int], *, n_steps: int, seed: int
    ) -> None:
        self.metadata = gradient.metadata
        self.block = block_frames(self.metadata)
        self._gradient = gradient
        self._shape = (self.metadata.channels, self.block, *size)
        self._walker = Walker(seed=seed, threads=gradient.threads)
        self._first: Iterator[Float32] | None = None
        if self.metadata.spot_noise is not None:

            def draw(block: int, count: int) -> Float32:
                return standard_normal(count, seed=seed, chain=FIRST_CHAIN + block, step=INITIAL)

            self._first = self.metadata.spot_noise.stream(draw, self._shape)
        # _levels[k][b]: block b after step k; older blocks are dropped when nothing needs them.
        self._levels: list[dict[int, Float32]] = [{} for _ in range(n_steps + 1)]
        self._made = [0] * (n_steps + 1)  # how many blocks each step has moved
        self._spare: list[Float32] = []
        window = (1, self._shape[0], (GROUP + 2) * self.block, *size)
        self._window = np.empty(math.prod(window), np.float32)
        self._grad = np.empty(math.prod(window), np.float32)

    def __iter__(self) -> Iterator[Frames]:
        """Pixels of the next blocks; the first lacks the margin at the video's beginning.

        Raises:
            DivergenceError: a value is not finite, the network is silent, or a block saturated.
        """
        metadata = self.metadata
        cut = metadata.margin_frames
        last = len(self._levels) - 1
        while True:
            begin = self._made[last]
            self._advance()
            for number in range(begin, self._made[last]):
                x = self._levels[last].pop(number)
                skipped = min(cut, self.block)
                cut -= skipped
                if skipped < self.block:
                    who = f"block {number} (seed {self._walker.seed})"
                    levels = (metadata.mean(), metadata.pixel_scale)
                    check_levels(x[:, skipped:], *levels, who, f"after {last} steps")
                    yield to_pixels(x[:, skipped:], metadata.mean(), metadata.pixel_scale)
                self._spare.append(x)

    def _advance(self) -> None:
        """Add GROUP blocks of noise, and let every step follow as far as it can."""
        for _ in range(GROUP):
            number = self._made[0]
            x = self._room()
            self._walker.chain = FIRST_CHAIN + number
            if self._first is None:
                self._walker.start(x, init_std=self.metadata.init_std)
            else:
                np.copyto(x, next(self._first))
            self._levels[0][number] = x
            self._made[0] += 1
        for step in range(1, len(self._levels)):
            ready = self._made[step - 1] - 1  # the right neighbour must be there
            while self._made[step] < ready:
                self._move(step, self._made[step], min(self._made[step] + GROUP, ready))

    def _move(self, step: int, begin: int, end: int) -> None:
        """Make a step of blocks `begin` to `end`, given those beside them."""
        before = self._levels[step - 1]
        first = max(0, begin - 1)  # the beginning of the video is a true end, padded as any
        frames = (end + 1 - first) * self.block
        shape = (1, self._shape[0], frames, *self._shape[2:])
        size = math.prod(shape)
        window, grad = self._window[:size].reshape(shape), self._grad[:size].reshape(shape)
        for index, number in enumerate(range(first, end + 1)):
            window[0, :, index * self.block : (index + 1) * self.block] = before[number]
        self._gradient.bind(window, grad)
        energy = float(self._gradient.run()[0])
        metadata = self.metadata
        who = f"block {begin} (seed {self._walker.seed})"
        n_steps = len(self._levels) - 1
        if step == n_steps and is_silent(window, grad, metadata.reference_std):
            raise silent(who, step, n_steps, energy)
        for number in range(begin, end):
            x, place = self._room(), (number - first) * self.block
            np.copyto(x, before[number])
            own = self._room()
            np.copyto(own, grad[0, :, place : place + self.block])
            self._walker.chain = FIRST_CHAIN + number
            self._walker.step(
                x,
                own,
                step,
                step_size=metadata.step_size,
                noise_scale=metadata.noise_at(step, n_steps),
            )
            self._spare.append(own)
            if not np.isfinite(x.sum(dtype=np.float64)):
                who = f"block {number} (seed {self._walker.seed})"
                raise not_finite(who, step, energy, None, metadata)
            self._levels[step][number] = x
        self._made[step] = end
        for number in [number for number in before if number < end - 1]:
            self._spare.append(before.pop(number))

    def _room(self) -> Float32:
        return self._spare.pop() if self._spare else np.empty(self._shape, np.float32)
