"""The gradient of a video too large for memory, or without ends, from pieces of it.

A network of convolutions sums top units, each of which reads a bounded field of the video. A piece
has the units of the whole video that lie in it, and at its two ends some that the whole has not,
because they read the zeros that the network pads with. Two pieces that overlap by at least the
field have these units twice: at the right end of the first and of the overlap, and at the left end
of the second and of the overlap. So, over any cover of the video by overlapping pieces,

    g(video) = sum of g(pieces) - sum of g(overlaps)

holds exactly, for the responses g and therefore for the energy and its gradient, without a look
into the network; along several axes the signs multiply. At a true end of the video the piece ends
too and is padded as the whole would be. A periodic axis has no end: its pieces go round and the
last overlaps the first. The Gaussian reference, a sum over voxels, follows the same rule.

This needs the network to be the same at every place, so it works along free axes only, and pieces
must begin at a multiple of the total stride, where the whole has a unit too.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from stg_runtime.artifact import Axis, Metadata
from stg_runtime.backends.host import HostChains
from stg_runtime.errors import InputError

if TYPE_CHECKING:
    from stg_runtime.backends.base import HostGradient, Shape
    from stg_runtime.langevin import Float32

AXES: tuple[Axis, Axis, Axis] = ("T", "H", "W")


@dataclass(frozen=True)
class Reach:
    """How a network looks along one axis; lengths are frames or pixels.

    Attributes:
        stride: between neighbouring top units; pieces and periods are multiples of it.
        overlap: of neighbouring pieces, the least that leaves no unit out.
    """

    stride: int
    overlap: int


def reach(metadata: Metadata, axis: Axis) -> Reach | None:
    """How the model's network looks along an axis; None on a locked axis.

    Raises:
        InputError: the axis is free, but the file does not say (an older export).
    """
    if axis not in metadata.free_axes:
        return None
    if metadata.stride is None or metadata.receptive_field is None or metadata.padding is None:
        raise InputError(
            f"the model ({metadata.recipe}) does not say how far its network looks, which loops, "
            "windows and endless video need; export the run again with this stg-export"
        )
    index = AXES.index(axis)
    stride, padding = metadata.stride[index], metadata.padding[index]
    # The last unit that reads padding before the piece begins at the last multiple of the stride
    # below zero; the next piece must have begun where it ends.
    last = (math.ceil(padding / stride) - 1) * stride - padding
    needed = last + metadata.receptive_field[index]
    least = (metadata.min_size.frames, metadata.min_size.height, metadata.min_size.width)[index]
    return Reach(stride, max(needed, least, 1))


@dataclass(frozen=True)
class Interval:
    """A piece along one axis, from `start` to `stop` (behind a period's end it goes round).

    `sign` is 1 for a piece, -1 for the overlap of two.
    """

    start: int
    stop: int
    sign: int

    @property
    def length(self) -> int:
        """Frames or pixels."""
        return self.stop - self.start


def cover(
    length: int, reach: Reach | None, *, pieces: int = 1, periodic: bool = False
) -> list[Interval]:
    """Cover an axis with pieces of nearly equal length, and the overlaps of neighbours.

    Args:
        length: of the axis; of one period.
        reach: see `reach`; None allows one piece only.
        pieces: how many are wanted; there are fewer where the axis is too short.
        periodic: the axis goes round; `length` is then a multiple of the stride.

    Returns:
        Intervals whose signed sum is the whole axis.
    """
    if reach is None or (pieces == 1 and not periodic):
        assert not periodic
        return [Interval(0, length, 1)]
    assert not periodic or length % reach.stride == 0
    body = length if periodic else max(1, length - reach.overlap)
    pitch = math.ceil(math.ceil(body / pieces) / reach.stride) * reach.stride
    starts = range(0, body, pitch)
    result = [
        Interval(start, min(start + pitch, body) + reach.overlap, 1)
        if periodic or len(starts) > 1
        else Interval(0, length, 1)
        for start in starts
    ]
    result += [
        Interval(start, start + reach.overlap, -1) for start in (starts if periodic else starts[1:])
    ]
    return result


class Windowed:
    """A `HostGradient` of a whole video, from pieces of it; energy and gradient are exact.

    Args:
        gradient: computes the pieces; its own binding is taken over at every `run`.
        pieces: how many to cut each axis, (T, H, W), into.
        periodic: axes that go round: their end runs into their beginning.

    Raises:
        InputError: an axis that cannot be cut or go round (see `reach`).
    """

    def __init__(
        self,
        gradient: HostGradient,
        *,
        pieces: tuple[int, int, int] = (1, 1, 1),
        periodic: Sequence[Axis] = (),
    ) -> None:
        self.metadata = gradient.metadata
        self.description = gradient.description
        self.threads = gradient.threads
        self._gradient = gradient
        self._pieces = pieces
        self._periodic = tuple(axis in periodic for axis in AXES)
        self._reach = tuple(
            reach(self.metadata, axis) if count > 1 or axis in periodic else None
            for axis, count in zip(AXES, pieces, strict=True)
        )
        for axis, known in zip(AXES, self._reach, strict=True):
            if axis in periodic and known is None:
                raise InputError(locked(self.metadata, axis))
        self._room = np.empty(0, np.float32)
        self._room_grad = np.empty(0, np.float32)

    def chains(self, shape: Shape) -> HostChains:
        """Room for chains of this shape, as `Backend.chains`."""
        return HostChains(self, shape)

    def bind(self, x: Float32, energy_grad: Float32) -> None:
        """See `HostGradient.bind`."""
        self._x, self._grad = x, energy_grad
        self._cover = covers(x.shape[2:], self._reach, self._pieces, self._periodic)
        largest = math.prod(max(item.length for item in axis) for axis in self._cover)
        largest *= math.prod(x.shape[:2])
        if self._room.size < largest:
            self._room = np.empty(largest, np.float32)
            self._room_grad = np.empty(largest, np.float32)

    def run(self) -> Float32:
        """See `HostGradient.run`."""
        x, whole = self._x, self._grad
        energy = np.zeros(x.shape[0])
        whole[...] = 0
        # Whole pieces first: memory is asked for in its largest size at once.
        for box in itertools.product(*self._cover):
            shape = (*x.shape[:2], *(item.length for item in box))
            size = math.prod(shape)
            piece = self._room[:size].reshape(shape)
            grad = self._room_grad[:size].reshape(shape)
            places = list(_places(box, x.shape[2:]))
            for there, here in places:
                piece[here] = x[there]
            self._gradient.bind(piece, grad)
            found = self._gradient.run()
            sign = math.prod(item.sign for item in box)
            energy += sign * found.astype(np.float64)
            for there, here in places:  # a period shorter than its piece is met more than once
                if sign > 0:
                    whole[there] += grad[here]
                else:
                    whole[there] -= grad[here]
        return energy.astype(np.float32)


def covers(
    lengths: Sequence[int],
    reaches: Sequence[Reach | None],
    pieces: Sequence[int],
    periodic: Sequence[bool],
) -> list[list[Interval]]:
    """`cover` for each of the axes T, H, W."""
    return [
        cover(length, known, pieces=count, periodic=round_)
        for length, known, count, round_ in zip(lengths, reaches, pieces, periodic, strict=True)
    ]


_Slices = tuple[slice, ...]


def _places(box: Sequence[Interval], lengths: Sequence[int]) -> Iterator[tuple[_Slices, _Slices]]:
    """Where a piece's voxels lie in the whole: pairs of slices of (N, C, T, H, W), there and here.

    One pair, or one for every stretch of a piece that goes round.
    """
    stretches = []
    for item, length in zip(box, lengths, strict=True):
        runs, at = [], item.start
        while at < item.stop:
            begin = at % length
            count = min(length - begin, item.stop - at)
            here = slice(at - item.start, at - item.start + count)
            runs.append((slice(begin, begin + count), here))
            at += count
        stretches.append(runs)
    all_ = (slice(None), slice(None))
    for parts in itertools.product(*stretches):
        yield (*all_, *(there for there, _ in parts)), (*all_, *(here for _, here in parts))


def locked(metadata: Metadata, axis: Axis) -> str:
    """Why an axis cannot go round or be cut, and which network could; for a message."""
    name = {"T": "length", "H": "height", "W": "width"}[axis]
    if axis == "T" or "T" not in metadata.free_axes:
        way = "export the run again without --static"
    else:
        way = "train with a recipe that is convolutional in space (recipe st)"
    return f"the {name} of this model ({metadata.recipe}) is fixed; {way}"


def check_period(metadata: Metadata, axis: Axis, period: int, option: str) -> None:
    """Refuse a period that the network cannot repeat with.

    Args:
        metadata: of the model.
        axis: that goes round.
        period: its length, frames or pixels.
        option: the user's, for the message.

    Raises:
        InputError: the axis is fixed, or the period no multiple of the total stride; the message
            names the nearest possible ones.
    """
    known = reach(metadata, axis)
    if known is None:
        raise InputError(f"{option}: {locked(metadata, axis)}")
    if period % known.stride:
        below, above = period // known.stride * known.stride, -(-period // known.stride)
        near = [below] if below else []
        near.append(above * known.stride)
        raise InputError(
            f"{option} with {period} {'frames' if axis == 'T' else 'pixels'}: the network has a "
            f"stride of {known.stride} there, so a period is a multiple of it; the nearest are "
            f"{' and '.join(map(str, near))}"
        )
