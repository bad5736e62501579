"""What is wrong with a training clip before it is learned from: no motion, cuts, black borders."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from stg_runtime.errors import InputError
from stg_runtime.video import Frames

STILL = 0.5  # grey levels: rounding and nothing else moves less

_GRID = 16  # frames are compared as 16 x 16 mean colours: shots differ there, textures hardly
_WINDOW = 8  # frames before and after a cut that say how far frames of one shot lie apart
_SHORTEST_SHOT = 3  # frames
_LEAST_CHANGE = 4.0  # grey levels, rms over the grid

_DARK = 32  # grey levels: nothing in a bar is lighter
_LIGHT = 48  # ... and beside it half of the row or column is, at one time or another


def motion(frames: Frames) -> float:
    """Root mean square deviation of a clip from its mean over time, grey levels.

    Args:
        frames: uint8, (T, H, W, C).
    """
    total = 0.0
    for row in range(frames.shape[1]):  # bounded memory
        levels = frames[:, row].astype(np.float64)
        total += float(((levels - levels.mean(0)) ** 2).sum())
    return float(np.sqrt(total / frames.size))


def check_motion(frames: Frames, name: str) -> None:
    """Refuse a still clip.

    Args:
        frames: uint8, (T, H, W, C).
        name: of the clip, for the message.

    Raises:
        InputError: it moves by less than `STILL`.
    """
    moved = motion(frames)
    if moved < STILL:
        raise InputError(
            f"{name}: does not move (its {len(frames)} frames lie {moved:.2f} grey levels around "
            "their mean), and motion is what is learned; give a video in which something moves, "
            "or another --start, --frames or --crop; of a still texture, one frame: --frames 1"
        )


def scene_cuts(frames: Frames) -> list[int]:
    """The frames at which another shot begins.

    A cut lies where every frame before differs from every frame after by more than the frames of
    the eight before, or of the eight after, differ among each other. Fire, water, flicker, flashes
    and periodic motion return to where they were, or move as far within eight frames, and are not
    cuts; nor is a clip that comes back to its first shot. Shots that look alike, and fades, are not
    found.

    Args:
        frames: uint8, (T, H, W, C).

    Returns:
        Rising frame numbers, from 3 to T - 3, counted from the first frame given.
    """
    count = len(frames)
    apart = _distances(mean_colours(frames).reshape(len(frames), -1))
    # nearest[i, j]: the least distance of a frame up to i from one from j on.
    nearest = np.minimum.accumulate(apart, axis=0)
    nearest = np.minimum.accumulate(nearest[:, ::-1], axis=1)[:, ::-1]
    cuts = []
    for cut in range(_SHORTEST_SHOT, count - _SHORTEST_SHOT + 1):
        before = slice(max(0, cut - _WINDOW), cut)
        after = slice(cut, cut + _WINDOW)
        within = max(apart[before, before].max(), apart[after, after].max())
        if nearest[cut - 1, cut] > max(within, _LEAST_CHANGE):
            cuts.append(cut)
    return cuts


def check_cuts(frames: Frames, name: str, start: int = 0) -> None:
    """Refuse a clip of several shots.

    Args:
        frames: uint8, (T, H, W, C).
        name: of the clip, for the message.
        start: number of its first frame in the file.

    Raises:
        InputError: there is a cut; the message names its frame and proposes the longest shot.
    """
    cuts = scene_cuts(frames)
    if not cuts:
        return
    ends = [0, *cuts, len(frames)]
    length, first = max((end - begin, -begin) for begin, end in pairwise(ends))
    named = ", ".join(str(start + cut) for cut in cuts)
    what = f"frame {named} (a cut)" if len(cuts) == 1 else f"frames {named} (cuts)"
    raise InputError(
        f"{name}: the scene changes at {what}, and what is learned would be a mixture of the "
        f"shots; pass --start {start - first} --frames {length} for the longest of them, or "
        "--allow-cuts to learn from all"
    )


def mean_colours(frames: Frames) -> NDArray[np.float64]:
    """Mean colours of 16 x 16 parts of frames, of each pixel of smaller ones: (T, 16, 16, C)."""
    height, width = frames.shape[1:3]
    rows = np.linspace(0, height, min(_GRID, height) + 1).astype(int)
    columns = np.linspace(0, width, min(_GRID, width) + 1).astype(int)
    area = np.diff(rows)[:, None] * np.diff(columns)
    small = []
    for frame in frames:
        sums = np.add.reduceat(frame.astype(np.float64), rows[:-1], axis=0)
        small.append(np.add.reduceat(sums, columns[:-1], axis=1) / area[..., None])
    return np.stack(small)


def _distances(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Root mean square difference of each row from each other, (T, T)."""
    squares = (values**2).mean(1)
    product = values @ values.T / values.shape[1]
    return np.asarray(np.sqrt(np.maximum(squares[:, None] + squares - 2 * product, 0)))


@dataclass(frozen=True)
class Borders:
    """Widths of the black bars around a picture, px."""

    left: int
    top: int
    right: int
    bottom: int

    def __bool__(self) -> bool:
        return any((self.left, self.top, self.right, self.bottom))

    def __str__(self) -> str:
        sides = ("left", "top", "right", "bottom")
        return ", ".join(f"{side} {getattr(self, side)}" for side in sides if getattr(self, side))


def black_borders(frames: Frames) -> Borders:
    """Letterbox and pillarbox bars: black in every frame, with a straight edge to the picture.

    A dark background is no bar: beside a bar, half of the picture's first row or column is light.

    Args:
        frames: uint8, (T, H, W, C), a few are enough.
    """
    # Noise and the ringing of the encoding leave single lighter pixels in a bar.
    by_row = np.percentile(frames, 99, axis=(0, 2, 3))
    by_column = np.percentile(frames, 99, axis=(0, 1, 3))
    lightest = frames.max((0, 3))  # (H, W)
    rows = (lightest > _LIGHT).mean(1)  # share of a row that is light
    columns = (lightest > _LIGHT).mean(0)
    top, bottom = _bar(by_row, rows), _bar(by_row[::-1], rows[::-1])
    left, right = _bar(by_column, columns), _bar(by_column[::-1], columns[::-1])
    return Borders(left, top, right, bottom)


def _bar(levels: NDArray[np.float64], light: NDArray[np.float64]) -> int:
    """Lines of a bar at the begin of an axis; 0 for none."""
    inside = np.flatnonzero(levels > _DARK)
    if not len(inside):
        return 0
    bar = int(inside[0])
    # The edge may be soft over a pixel or two; cut those too.
    edge = light[bar : bar + 3]
    if bar < max(2, len(levels) // 100) or edge.max() < 0.5:
        return 0
    return bar + int(np.argmax(edge >= 0.5))


def crop_without(
    borders: Borders, size: tuple[int, int], crop: tuple[int, int, int, int] | None
) -> tuple[int, int, int, int]:
    """The crop, (x, y, width, height) in pixels of the file, that leaves the bars out.

    Args:
        borders: of the picture after `crop`.
        size: (H, W) of that picture.
        crop: (x, y, width, height) in force, pixels of the file.
    """
    x, y = crop[:2] if crop else (0, 0)
    width = size[1] - borders.left - borders.right
    height = size[0] - borders.top - borders.bottom
    return x + borders.left, y + borders.top, width, height


def bars_in_view(borders: Borders, size: tuple[int, int], target: tuple[int, int]) -> bool:
    """Whether bars remain where `read_clip` cuts a picture at its centre to another aspect ratio.

    Args:
        borders: of the picture.
        size: (H, W) of the picture.
        target: (H, W) that it is brought to.
    """
    scale = min(size[1] / target[1], size[0] / target[0])
    left, top = (size[1] - scale * target[1]) / 2, (size[0] - scale * target[0]) / 2
    return max(borders.left, borders.right) > left or max(borders.top, borders.bottom) > top
