"""How much memory a walk takes, before it starts: a budget, a measurement, and windows that fit."""

from __future__ import annotations

import bisect
import ctypes
import math
import os
import re
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from stg_runtime.artifact import Axis, Metadata, Size
from stg_runtime.errors import InputError
from stg_runtime.windows import AXES, Reach, cover, reach

if TYPE_CHECKING:
    from stg_runtime.backends.base import HostGradient

MIB = 1 << 20
_UNITS = {"": 1, "K": 1 << 10, "M": MIB, "G": 1 << 30, "T": 1 << 40}
_SHARE = 0.85  # of the free memory that a run takes when nothing is said: others want some too
_UNMEASURED = 4096.0  # bytes per voxel that no network of ours has come near
_WRITER = 20 * MIB  # the libraries and buffers of an encoder, WebM's the largest
_WRITER_PER_PIXEL = 200  # bytes; it looks ahead some forty frames
# Above what is measured: pieces of several shapes do not fill the memory that each other left.
_SPARE = 1.05
# A figure that is told is enough for another run, too, which measures a little differently.
_TOLD = 1.03
# Of an axis. The video itself must fit, which one of more pieces than this does nowhere, and a
# length from a stranger's file must not keep us counting.
MOST_PIECES = 4096
_SMALLEST_PROBE, _LARGEST_PROBE = 1 << 15, 1 << 19  # voxels: half a second on one core


def parse_memory(text: str, option: str = "--max-memory") -> int:
    """Bytes of "2G", "500M", "1.5GiB"; units of 1024.

    Raises:
        InputError: not such a text, or nothing.
    """
    found = re.fullmatch(r"(\d+(?:\.\d*)?)\s*([KMGT]?)(?:i?B)?", text.strip(), re.IGNORECASE)
    value = float(found[1]) * _UNITS[found[2].upper()] if found else 0.0
    if not 1 <= value < math.inf:
        raise InputError(f"{option} {text}: expected a size such as 2G or 500M")
    return int(value)


def show_memory(count: float) -> str:
    """A number of bytes as `--max-memory` takes it, rounded up: "1.3G", "180M"."""
    if count >= 10 << 30:
        return f"{math.ceil(count / (1 << 30))}G"
    return f"{math.ceil(count / MIB)}M"


def resident_memory() -> int:
    """Bytes of main memory that this process holds now; 0 where the system does not say."""
    return _status("VmRSS")


def free_memory() -> int | None:
    """Bytes that this process may still take: of the machine, and of its container.

    None where the system does not say.
    """
    found = []
    try:
        text = Path("/proc/meminfo").read_text()
        found.append(int(re.findall(r"MemAvailable:\s+(\d+) kB", text)[0]) << 10)
    except (OSError, IndexError):
        if hasattr(os, "sysconf") and "SC_AVPHYS_PAGES" in os.sysconf_names:
            found.append(os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    try:
        folder = Path("/sys/fs/cgroup")
        limit = int((folder / "memory.max").read_text())
        found.append(max(0, limit - int((folder / "memory.current").read_text())))
    except (OSError, ValueError):  # no container, or "max"
        pass
    return min(found) if found else None


def give_back() -> None:
    """Have the C library return freed memory to the system.

    It keeps what loading a model took, some 15 MiB; a small gradient fits into that, and would seem
    to take nothing.
    """
    with suppress(OSError, AttributeError):  # another C library than GNU's has no such call
        ctypes.CDLL(None).malloc_trim(0)


def budget(max_memory: str | None) -> int | None:
    """Bytes this process may hold in all: as the user says, or most of what is free.

    None: nobody knows, and nothing is bounded.
    """
    if max_memory is not None:
        return parse_memory(max_memory)
    free = free_memory()
    return None if free is None else resident_memory() + int(_SHARE * free)


def _status(field: str) -> int:
    try:
        found = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    except OSError:
        return 0
    return int(found[1]) << 10 if found else 0


def _peak(reset: bool = False) -> int:
    """Largest memory this process held, bytes: since the last reset where Linux allows one."""
    if reset:
        with suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")
    found = _status("VmHWM")
    if found or sys.platform == "win32":
        return found
    import resource

    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return used if sys.platform == "darwin" else used << 10


@dataclass(frozen=True)
class Cost:
    """Memory that a gradient takes: `fixed` + `per_voxel` x voxels of all chains, bytes.

    A voxel is one pixel of one frame, whatever its colours. Input and output are not counted.
    """

    fixed: float
    per_voxel: float

    def of(self, voxels: float) -> float:
        """Bytes for a gradient of that many voxels."""
        return self.fixed + self.per_voxel * voxels


def measure(gradient: HostGradient, room: float = math.inf) -> Cost:
    """Run two small gradients and see what they take.

    The first also takes what stays and does not grow, code and tables of its library; the second
    tells what a voxel takes. Both give back their memory, so that the walk finds it in one piece.

    Args:
        gradient: to be measured.
        room: bytes that the measurement itself should stay below.
    """
    metadata = gradient.metadata
    fixed = 0
    points: list[tuple[int, float]] = []
    probe = float(_SMALLEST_PROBE)
    for _ in range(2):
        size = probe_size(metadata, probe)
        shape = (1, metadata.channels, size.frames, size.height, size.width)
        voxels = math.prod(shape[2:])
        if points and voxels <= points[0][0]:
            break
        give_back()
        base = resident_memory()
        x, grad = np.full(shape, 0, np.float32), np.ones(shape, np.float32)
        _peak(reset=True)
        gradient.bind(x, grad)
        gradient.run(release=True)
        points.append((voxels, _peak() - base - 2 * x.nbytes))
        if points[-1][1] <= 0:
            return Cost(0, _UNMEASURED)
        if len(points) == 1:
            del x, grad
            give_back()
            fixed = max(0, resident_memory() - base)
        probe = min(_LARGEST_PROBE, max(0.0, room) / 2 / (points[0][1] / points[0][0]))
    voxels, taken = points[-1]
    return Cost(fixed, _SPARE * taken / voxels)


def start_bytes(
    metadata: Metadata, lengths: Sequence[int], *, chains: int = 1, periodic: Sequence[Axis] = ()
) -> int:
    """Bytes that making the first noise of chains takes besides the chains' own buffers.

    Loads what the noise is made from, so that it counts as held from now on.

    Args:
        metadata: of the model.
        lengths: (T, H, W) of the walk.
        chains: walked together; their gradient's buffers serve meanwhile.
        periodic: axes that go round.
    """
    spot = metadata.spot_noise
    if spot is None:
        return 0
    t, h, w = lengths
    shape = (metadata.channels, t, h, w)
    wrap = ("T" in periodic, "H" in periodic, "W" in periodic)
    return spot.scratch_bytes(shape, wrap=wrap, room=4 * chains * math.prod(shape))


def probe_size(metadata: Metadata, voxels: float) -> Size:
    """The model's own size, made smaller along its free axes to about so many voxels."""
    whole, least = metadata.graph_size, metadata.min_size
    free = [axis in metadata.free_axes for axis in AXES]
    share = min(1.0, voxels / (whole.frames * whole.height * whole.width))
    share = share ** (1 / max(1, sum(free)))
    frames, height, width = (
        max(low, round(n * share)) if is_free else n
        for n, low, is_free in zip(
            (whole.frames, whole.height, whole.width),
            (least.frames, least.height, least.width),
            free,
            strict=True,
        )
    )
    extents = [frames, height, width]
    # Sides as unequal as 1 : 1000000 stop at their least size; the longest makes up for it.
    for axis in sorted(range(3), key=lambda axis: -extents[axis]):
        if free[axis]:
            rest = math.prod(extents) // extents[axis]
            low = (least.frames, least.height, least.width)[axis]
            extents[axis] = max(low, min(extents[axis], int(2 * voxels / rest)))
    return Size(frames=extents[0], height=extents[1], width=extents[2])


@dataclass(frozen=True)
class Windows:
    """How a video is cut.

    Attributes:
        pieces: of each axis, (T, H, W).
        largest: voxels of the largest piece.
        work: voxels that all pieces have together, over the video's own.
    """

    pieces: tuple[int, int, int]
    largest: int
    work: float


def choose_windows(
    metadata: Metadata,
    lengths: Sequence[int],
    largest: float,
    periodic: Sequence[Axis] = (),
) -> Windows | None:
    """The cut with the least work whose pieces have at most `largest` voxels; None: none has.

    Args:
        metadata: of the model.
        lengths: (T, H, W) of the whole video.
        largest: voxels of a piece.
        periodic: axes that go round.

    Raises:
        InputError: the video must be cut, and the file does not say how (see `reach`).
    """
    tables = []
    if math.prod(lengths) <= largest and not periodic:
        return Windows((1, 1, 1), math.prod(lengths), 1.0)
    for axis, length in zip(AXES, lengths, strict=True):
        known = reach(metadata, axis)
        tables.append(_cuts(length, known, axis in periodic))
    best: Windows | None = None
    for h_pieces, h_largest, h_work in tables[1]:
        for w_pieces, w_largest, w_work in tables[2]:
            # The lengths of T's pieces fall with their number: the first that fits is the best.
            longest = largest / (h_largest * w_largest)
            place = bisect.bisect_left(tables[0], -longest, key=_minus_longest)
            if place == len(tables[0]):
                continue
            pieces, t_largest, t_work = tables[0][place]
            work = t_work * h_work * w_work / math.prod(lengths)
            if best is None or work < best.work:
                volume = t_largest * h_largest * w_largest
                best = Windows((pieces, h_pieces, w_pieces), volume, work)
    return best


def _minus_longest(cut: tuple[int, int, int]) -> int:
    return -cut[1]


def _cuts(length: int, known: Reach | None, periodic: bool) -> list[tuple[int, int, int]]:
    """Ways to cut an axis: number of pieces, longest piece, length of all pieces."""
    most = 1 if known is None else min(MOST_PIECES, max(1, math.ceil(length / known.stride)))
    counts = [*range(1, min(most, 64) + 1)]
    while counts[-1] < most:
        counts.append(min(most, math.ceil(counts[-1] * 1.25)))
    cuts: list[tuple[int, int, int]] = []
    for count in counts:
        pieces = cover(length, known, pieces=count, periodic=periodic)
        longest = max(item.length for item in pieces)
        if not cuts or longest < cuts[-1][1]:
            cuts.append((count, longest, sum(item.length for item in pieces)))
    return cuts


def plan_windows(
    gradient: HostGradient,
    lengths: Sequence[int],
    *,
    limit: int | None,
    periodic: Sequence[Axis] = (),
    chains: int = 1,
    held: float = 0.0,
    per_voxel: float | None = None,
    constant: float = 0.0,
    hint: str | None = "",
    is_stream: bool = False,
) -> Windows:
    """Choose windows so that the whole process stays within its memory.

    Args:
        gradient: that will compute the pieces; measured when the video is not clearly small.
        lengths: (T, H, W) of the walk, margins included.
        limit: bytes this process may hold in all; None is no limit.
        periodic: axes that go round.
        chains: walked together.
        held: bytes that the caller will hold besides.
        per_voxel: bytes that the caller holds for each voxel of each chain; None for what a walk
            of chains takes and their finished pixels.
        constant: how much of `held` a shorter video would take, too.
        hint: what else the user could do where the video is too long, for the message; None: no
            length that would fit is told.
        is_stream: the walk goes on for ever, so a shorter video would not take less.

    Raises:
        InputError: it does not fit: the message has the figure and the most that would fit.
    """
    metadata = gradient.metadata
    channels = metadata.channels
    voxels = chains * math.prod(lengths)
    if per_voxel is None:
        per_voxel = (2 * 4 + 1) * channels
    whole = choose_windows(metadata, lengths, math.inf, periodic)
    assert whole is not None
    room = 2 * 4 * metadata.channels  # a piece's own copy of video and gradient
    give_back()
    fixed = resident_memory() + _writer(lengths) + held
    if limit is None:
        return whole
    if fixed + voxels * per_voxel + chains * whole.largest * (_UNMEASURED + room) <= limit:
        return whole
    cost = measure(gradient, limit - fixed - voxels * per_voxel)
    left = limit - fixed - voxels * per_voxel - cost.fixed
    most = left / (chains * (cost.per_voxel + room))
    uncut = left / (chains * cost.per_voxel)
    if not periodic and whole.largest <= uncut:
        return whole
    found = choose_windows(metadata, lengths, most, periodic) if most > 0 else None
    if found is not None:
        return found
    smallest = _smallest_piece(metadata, lengths, periodic)
    window = cost.fixed + chains * smallest * (cost.per_voxel + room)
    # A window has a copy of its part; in one piece there is none, unless an axis goes round.
    whole_window = cost.fixed + chains * whole.largest * (cost.per_voxel + bool(periodic) * room)
    video, program = voxels * per_voxel + held, fixed - held
    least = min(window, whole_window)
    message = (
        f"this run needs at least {show_memory(_TOLD * (program + video + least))} "
        f"({show_memory(video)} for the video, {show_memory(least)} for its "
        f"{'smallest window' if window < whole_window else 'gradient'}, "
        f"{show_memory(program)} for the program), and may take {show_memory(limit)} "
        "(--max-memory, or most of what is free)"
    )
    if window < whole_window:
        in_one = _TOLD * (program + video + whole_window)
        message += f"; in one piece it takes {show_memory(in_one)}"
    # What is held besides is as long as the video, too: its first noise, what it begins from.
    longest = _longest(
        metadata, lengths, limit / _TOLD - program - least - constant, video - constant, periodic
    )
    if is_stream:
        message += "; a smaller --size or fewer --steps take less"
    elif longest is not None and hint is not None:
        message += f"; --frames {longest} would fit" + (f"; {hint}" if hint else "")
    raise InputError(message)


def _longest(
    metadata: Metadata,
    lengths: Sequence[int],
    left: float,
    taken: float,
    periodic: Sequence[Axis],
) -> int | None:
    """Frames of a finished video that would fit into `left` bytes where this one takes `taken`.

    None: fewer than the model can make.
    """
    known = reach(metadata, "T") if "T" in metadata.free_axes else None
    if known is None:
        return None
    longest = int(left / taken * lengths[0])
    if "T" in periodic:
        longest = longest // known.stride * known.stride
        return longest if 0 < longest < lengths[0] else None
    if not 2 * metadata.margin_frames + metadata.min_size.frames < longest < lengths[0]:
        return None
    return longest - 2 * metadata.margin_frames


def _smallest_piece(metadata: Metadata, lengths: Sequence[int], periodic: Sequence[Axis]) -> int:
    volume = 1
    for axis, length in zip(AXES, lengths, strict=True):
        volume *= _cuts(length, reach(metadata, axis), axis in periodic)[-1][1]
    return volume


def foresee(
    gradient: HostGradient,
    lengths: Sequence[int],
    *,
    chains: int = 1,
    finished: Sequence[int] | None = None,
    start: float | None = None,
) -> int:
    """Bytes that this process will hold at most, walking videos in one piece and writing them.

    Up to 15 % more than is used, of exemplars 49 %, see `bench/memory.py`. The modules that write
    the file are loaded already (`check_video_output` does that).

    Args:
        gradient: that will be walked; it is measured, see `measure`.
        lengths: (T, H, W) of the walk, margins included.
        chains: walked together.
        finished: (T, H, W) of a finished video; that of the walk by default.
        start: bytes that making the walk's start takes; `start_bytes` by default.
    """
    if start is None:
        start = start_bytes(gradient.metadata, lengths, chains=chains)
    base = resident_memory()
    cost = measure(gradient)
    channels = gradient.metadata.channels
    return _whole(base, channels, lengths, chains, finished or lengths, cost, start)


def refuse_least(needed: int, doing: str, hint: str = "") -> None:
    """Refuse work that takes more than there is, by the least that it takes.

    Args:
        needed: bytes that this process would hold at least.
        doing: what takes them, before the figures in the message.
        hint: what the user could do, after them.

    Raises:
        InputError: it does not fit.
    """
    limit = budget(None)
    if limit is not None and needed > limit:
        raise InputError(
            f"{doing} takes at least {show_memory(needed)}, {show_memory(limit)} are there{hint}"
        )


def refuse_larger(
    gradient: HostGradient,
    lengths: Sequence[int],
    *,
    held: float,
    start: float,
    finished: Sequence[int],
    limit: int | None,
    hint: str,
) -> None:
    """Refuse a walk in one piece that does not fit, before it starts.

    Args:
        gradient: that will be walked; measured when the walk is not clearly small.
        lengths: (T, H, W) of the walk.
        held: bytes that the caller will hold besides.
        start: bytes that making the walk's start takes.
        finished: (T, H, W) of the finished video.
        limit: bytes this process may hold in all; None is no limit.
        hint: what the user could do.

    Raises:
        InputError: the figure, and the longest walk that would fit.
    """
    voxels, channels = math.prod(lengths), gradient.metadata.channels
    fixed = _writer(finished) + channels * math.prod(finished) + held
    base = resident_memory()
    surely = base + fixed + start + voxels * (9 * channels + _UNMEASURED)
    if limit is None or surely <= limit:
        return
    needed = foresee(gradient, lengths, start=start, finished=finished) + held
    if needed <= limit:
        return
    fixed += base
    longest = int((limit - fixed) / (needed - fixed) * lengths[0])
    fits = f"; about {longest} frames would fit" if longest > 0 else ""
    raise InputError(
        f"a walk of {'x'.join(map(str, lengths))} needs about {show_memory(needed)}, "
        f"{show_memory(limit)} are there{fits}; {hint}"
    )


def _whole(
    base: int,
    channels: int,
    lengths: Sequence[int],
    chains: int,
    finished: Sequence[int],
    cost: Cost,
    start: float = 0.0,
) -> int:
    voxels = chains * math.prod(lengths)
    # The start gives its memory back before the gradient takes its own; pixels and file come last.
    later = cost.of(voxels) + channels * voxels + _writer(finished) + channels * math.prod(finished)
    return int(base + 2 * 4 * channels * voxels + max(start, later))


def _writer(lengths: Sequence[int]) -> int:
    """Bytes that writing a video of (T, H, W) takes."""
    return _WRITER + _WRITER_PER_PIXEL * lengths[1] * lengths[2]
