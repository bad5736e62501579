"""The gradient of a video too large for memory, or without ends, from pieces of it.

A network of convolutions sums top units, each of which reads a bounded field of the video. So the
units are shared out: each piece of the video owns a range of them along every axis, spans what they
read, and gives the sum of its own units' responses. Over the pieces this is the sum of all units,
so that energy and gradient are those of the whole, without a look into the network. At its cut ends
a piece has units that are not its own, some of which read the zeros that the network pads with;
they weigh nothing (`UNIT_WEIGHTS`, an input of the exported graph). At a true end of the video the
piece ends too and is padded as the whole would be. A periodic axis has no end: its pieces go round.

The Gaussian reference |x|^2 / (2 sigma^2), a sum over voxels, is counted once for each piece that a
voxel lies in; the whole begins with what that is too much. Neighbouring pieces overlap by what a
unit reads beyond the next one's beginning; that is all the work there is besides the whole's.

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
from numpy.typing import NDArray

from stg_runtime.artifact import Axis, Metadata
from stg_runtime.backends.host import HostChains
from stg_runtime.errors import InputError
from stg_runtime.grids import FACTOR

if TYPE_CHECKING:
    from stg_runtime.backends.base import HostGradient, Shape
    from stg_runtime.langevin import Float32

Float64 = NDArray[np.float64]
AXES: tuple[Axis, Axis, Axis] = ("T", "H", "W")


@dataclass(frozen=True)
class Reach:
    """How a network looks along one axis; lengths are frames or pixels.

    Unit j reads voxels j * stride - padding to j * stride - padding + field - 1.

    Attributes:
        stride: between neighbouring top units; pieces and periods are multiples of it.
        field: that a top unit reads.
        padding: voxels before the video that the first unit reads.
        least: the shortest piece that the network takes.
    """

    stride: int
    field: int
    padding: int = 0
    least: int = 1

    @property
    def overlap(self) -> int:
        """How far beyond a multiple of the stride units look that read voxels before it.

        What is further away from these voxels has no part in their gradient.
        """
        last = (math.ceil(self.padding / self.stride) - 1) * self.stride - self.padding
        return max(last + self.field, self.least, 1)

    def units(self, length: int) -> int:
        """Top units of a video of that length."""
        return (length + 2 * self.padding - self.field) // self.stride + 1


def reach(metadata: Metadata, axis: Axis) -> Reach | None:
    """How the model's network looks along an axis; None on a locked axis.

    Raises:
        InputError: the axis is free, but the file does not say (an older export).
    """
    if axis not in metadata.free_axes:
        return None
    if metadata.stride is None or metadata.receptive_field is None or metadata.padding is None:
        raise InputError(_too_old(metadata))
    index = AXES.index(axis)
    least = (metadata.min_size.frames, metadata.min_size.height, metadata.min_size.width)[index]
    return Reach(
        metadata.stride[index], metadata.receptive_field[index], metadata.padding[index], least
    )


def _too_old(metadata: Metadata) -> str:
    return (
        f"the model ({metadata.recipe}) does not say how far its network looks, which loops, "
        "windows and endless video need; export the run again with this stg-export"
    )


@dataclass(frozen=True)
class Interval:
    """A piece along one axis, from `start` to `stop`; beyond the ends of a period it goes round.

    Attributes:
        start, stop: voxels.
        units: top units that a video of this length has.
        first, last: of these the piece's own are first <= j < last.
    """

    start: int
    stop: int
    units: int = 1
    first: int = 0
    last: int = 1

    @property
    def length(self) -> int:
        """Frames or pixels."""
        return self.stop - self.start


def cover(
    length: int, reach: Reach | None, *, pieces: int = 1, periodic: bool = False
) -> list[Interval]:
    """Share the top units of an axis out to pieces of nearly equal length.

    Args:
        length: of the axis; of one period.
        reach: see `reach`; None allows one piece only.
        pieces: how many are wanted; there are fewer where the axis is too short.
        periodic: the axis goes round; `length` is then a multiple of the stride.

    Returns:
        Intervals that own every unit once; not of equal length where the ends are padded.
    """
    if reach is None:
        assert pieces == 1 and not periodic
        return [Interval(0, length)]
    stride, before = reach.stride, math.ceil(reach.padding / reach.stride)
    assert not periodic or length % stride == 0
    count = length // stride if periodic else reach.units(length)
    if not periodic and pieces == 1:
        return [Interval(0, length, count, 0, count)]
    result = []
    for own in _shares(count, reach, length, pieces, periodic):
        start = (own[0] - before) * stride
        stop = (own[1] - 1) * stride - reach.padding + reach.field
        if not periodic:
            start, stop = max(0, start), length if own[1] == count else min(stop, length)
        if stop - start < reach.least:  # the network takes no less
            stop = start + reach.least
            if not periodic and stop > length:
                stop = length
                start = max(0, (length - reach.least) // stride * stride)
        first = own[0] - start // stride
        units = reach.units(stop - start)
        result.append(Interval(start, stop, units, first, first + own[1] - own[0]))
    return result


def _shares(
    count: int, reach: Reach, length: int, pieces: int, periodic: bool
) -> list[tuple[int, int]]:
    """Ranges of units, at most `pieces`, so that what they span is of nearly one length."""
    if periodic:
        pitch = math.ceil(count / min(pieces, count))
        return [(first, min(first + pitch, count)) for first in range(0, count, pitch)]
    before = math.ceil(reach.padding / reach.stride)
    overlap = before * reach.stride - reach.padding + reach.field - reach.stride
    longest = (length + (pieces - 1) * overlap) // pieces
    while True:
        result: list[tuple[int, int]] = []
        first = 0
        while first < count and len(result) < pieces:
            stop = max(0, (first - before) * reach.stride) + longest
            last = (stop - reach.field + reach.padding) // reach.stride + 1
            last = count if stop >= length else min(count, max(first + 1, last))
            result.append((first, last))
            first = last
        if first == count:
            return result
        longest += 1


class Windowed:
    """A `HostGradient` of a whole video, from pieces of it; energy and gradient are exact.

    Args:
        gradient: computes the pieces; its own binding is taken over at every `run`.
        pieces: how many to cut each axis, (T, H, W), into.
        periodic: axes that go round: their end runs into their beginning.

    Raises:
        InputError: an axis that cannot be cut or go round (see `reach`), or a file of an older
            stg-export.
    """

    weighs_units = False

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
        # All free axes, so that every piece knows its units; a fixed one has no unit to share.
        self._reach = tuple(reach(self.metadata, axis) for axis in AXES)
        for axis, known in zip(AXES, self._reach, strict=True):
            if axis in periodic and known is None:
                raise InputError(locked(self.metadata, axis))
        if not gradient.weighs_units:
            raise InputError(_too_old(self.metadata))
        self._room = np.empty(0, np.float32)
        self._room_grad = np.empty(0, np.float32)

    def chains(self, shape: Shape) -> HostChains:
        """Room for chains of this shape, as `Backend.chains`."""
        return HostChains(self, shape)

    def bind(self, x: Float32, energy_grad: Float32, unit_weights: Float32 | None = None) -> None:
        """See `HostGradient.bind`; the units' weights are this class's own to give."""
        assert unit_weights is None
        self._x, self._grad = x, energy_grad
        self._cover = covers(x.shape[2:], self._reach, self._pieces, self._periodic)
        largest = math.prod(max(item.length for item in axis) for axis in self._cover)
        largest *= math.prod(x.shape[:2])
        if self._room.size < largest:
            self._room = np.empty(largest, np.float32)
            self._room_grad = np.empty(largest, np.float32)

    def run(self, *, release: bool = False) -> Float32:
        """See `HostGradient.run`."""
        x, whole = self._x, self._grad
        energy = self._begin()
        # Larger pieces first: memory is asked for in its largest size at once.
        boxes = sorted(
            itertools.product(*self._cover),
            key=lambda box: -math.prod(item.length for item in box),
        )
        for box in boxes:
            last = box is boxes[-1]
            shape = (*x.shape[:2], *(item.length for item in box))
            size = math.prod(shape)
            piece = self._room[:size].reshape(shape)
            grad = self._room_grad[:size].reshape(shape)
            places = list(_places(box, x.shape[2:]))
            for there, here in places:
                piece[here] = x[there]
            self._gradient.bind(piece, grad, _weights(box))
            energy += self._gradient.run(release=release and last)
            for there, here in places:  # a period shorter than its piece is met more than once
                whole[there] += grad[here]
        return energy.astype(np.float32)

    def _begin(self) -> Float64:
        """Set the gradient to minus the references that the pieces have too much; their energy."""
        x, whole = self._x, self._grad
        times = []
        for length, axis in zip(x.shape[2:], self._cover, strict=True):
            counted = np.zeros(length)
            for item in axis:
                np.add.at(counted, np.arange(item.start, item.stop) % length, 1)
            times.append(counted)
        energy = np.zeros(len(x))
        for frame, t in enumerate(times[0]):
            extra = (1 - t * times[1][:, None] * times[2]) / self.metadata.reference_std**2
            np.multiply(x[:, :, frame], extra.astype(np.float32), out=whole[:, :, frame])
            if extra.any():
                for chain in range(len(x)):
                    pair = x[chain, :, frame].reshape(-1), whole[chain, :, frame].reshape(-1)
                    energy[chain] += float(np.dot(*pair)) / 2
        return energy


def _weights(box: Sequence[Interval]) -> Float32 | None:
    """1 for a piece's own top units, 0 for others, (1, 1, T', H', W'); None where all are own."""
    if all(item.first == 0 and item.last == item.units for item in box):
        return None
    weights = np.zeros((1, 1, *(item.units for item in box)), np.float32)
    t, h, w = (slice(item.first, item.last) for item in box)
    weights[:, :, t, h, w] = 1
    return weights


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
    if not metadata.free_axes:
        way = "export the run again without --static"
    elif axis == "T":
        way = "train with a recipe that is convolutional in time (recipe st or fc-s)"
    else:
        way = "train with a recipe that is convolutional in space (recipe st)"
    return f"the {name} of this model ({metadata.recipe}) is fixed; {way}"


def coarsest(metadata: Metadata, axis: str) -> int:
    """Voxels of a model's finest scale to one of its coarsest: a network looks alike at each."""
    return 1 if axis == "T" else FACTOR ** (metadata.scales - 1)


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
    stride = known.stride * coarsest(metadata, axis)
    if period % stride:
        below, above = period // stride * stride, -(-period // stride) * stride
        near = f"nearest are {below} and {above}" if below else f"nearest is {above}"
        raise InputError(
            f"{option} with {period} {'frames' if axis == 'T' else 'pixels'}: the network has a "
            f"stride of {stride} there, so a period is a multiple of it; the {near}"
        )
