"""Bring clips of one action into step: the same figure size, the same place, the same phase.

A network that is full in space and time (recipe `action`) compares clips pixel by pixel and frame
by frame, so they must show a figure of one size, at one place, at one phase of its cycle.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from stg_runtime.errors import InputError
from stg_runtime.video import Frames, iter_frames

Levels = NDArray[np.float32]
Mask = NDArray[np.bool_]

LONG_SIDE = 160  # pixels of the frames that are analysed
MOST_FRAMES = 400  # analysed of a clip
FIGURE_LEVELS = 24  # grey levels, in any colour, by which the figure differs from the background
MARGIN = 0.04  # left free around the figure, share of its size
DEEP = 0.5  # a cycle's frames differ by less than this share of what unrelated frames do
ALIKE = 0.5  # correlation of two clips' outlines over a cycle, at the best phase

_NEEDS = "--align needs one figure that moves in place, on a plain background, in a cycle"


@dataclass(frozen=True)
class Alignment:
    """How one clip is cut so that it is in step with the others.

    Attributes:
        box: (left, top, width, height) around the figure, pixels of the (cropped) source; it may
            reach outside, where the background's colour stands.
        frames: numbers of the source frames taken, one per frame of the prepared clip.
        period: frames of one cycle in the source.
        background: red, green and blue of the background, grey levels.
    """

    box: tuple[float, float, float, float]
    frames: tuple[int, ...]
    period: int
    background: tuple[int, int, int]


@dataclass(frozen=True)
class _Analysed:
    """A clip at a small size: outline masks (T, H, W), and what it was reduced by."""

    path: Path
    masks: Mask
    factor: float  # source pixels per analysed pixel
    period: int
    background: tuple[int, int, int]
    box: tuple[int, int, int, int]  # left, top, right, bottom; analysed pixels


def align(
    videos: Sequence[Path],
    *,
    size: tuple[int, int],
    frames: int,
    start: int = 0,
    crop: tuple[int, int, int, int] | None = None,
) -> list[Alignment]:
    """Find each clip's figure, its cycle, and the phase at which it matches the first clip.

    The figure is what differs from the background, the median colour of the frame's border. The
    cycle is the shortest lag at which frames come back; the common cycle is the clips' median, and
    a clip of another is sampled faster or slower (nearest frame). The phase is where the outlines
    correlate best with the first clip's.

    Args:
        videos: files or folders.
        size: (H, W) of the prepared clips; the box around the figure gets this aspect ratio.
        frames: of the prepared clips.
        start: first frame used.
        crop: (x, y, width, height) cut out first, source pixels.

    Raises:
        InputError: no plain background, no figure, no cycle, a figure that wanders, clips that do
            not show the same movement, or too few frames; each says what is needed.
    """
    analysed = [_analyse(path, start, crop) for path in videos]
    common = int(np.median([clip.period for clip in analysed]))
    reference = _outlines(analysed[0], common)
    found = []
    for clip in analysed:
        phase = _phase(clip, _outlines(clip, common), reference, analysed[0].path)
        first = round(phase * clip.period / common)
        numbers = [first + round(t * clip.period / common) for t in range(frames)]
        available = len(clip.masks)
        if numbers[-1] >= available:
            raise InputError(
                f"{clip.path}: {available} frames from frame {start} on; --align needs "
                f"{numbers[-1] + 1} of them: its cycle of {clip.period} frames meets the first "
                f"clip's at frame {first}, and {frames} frames are asked for; pass a smaller "
                "--frames, or an earlier --start"
            )
        found.append(
            Alignment(
                box=_fit(clip, size),
                frames=tuple(start + number for number in numbers),
                period=clip.period,
                background=clip.background,
            )
        )
    return found


def aligned_frames(
    path: Path,
    alignment: Alignment,
    *,
    size: tuple[int, int],
    crop: tuple[int, int, int, int] | None = None,
) -> Iterator[Frames]:
    """The frames of an aligned clip, uint8, (H, W, 3) each."""
    from PIL import Image

    left, top, width, height = alignment.box
    # Room for a box that reaches outside.
    pad = int(np.ceil(max(0, -left, -top)))
    wanted = set(alignment.frames)
    kept: dict[int, Frames] = {}
    order = iter(alignment.frames)
    due = next(order)
    for number, frame in enumerate(iter_frames(path, crop=crop)):
        if number in wanted:
            right = int(np.ceil(max(0, left + width - frame.shape[1])))
            below = int(np.ceil(max(0, top + height - frame.shape[0])))
            room = np.empty(
                (frame.shape[0] + pad + below, frame.shape[1] + pad + right, 3), np.uint8
            )
            room[:] = alignment.background
            room[pad : pad + frame.shape[0], pad : pad + frame.shape[1]] = frame
            box = (left + pad, top + pad, left + pad + width, top + pad + height)
            kept[number] = np.asarray(
                Image.fromarray(room).resize((size[1], size[0]), Image.Resampling.LANCZOS, box=box)
            )
        while due in kept:
            yield kept[due]
            after = next(order, None)
            if after is None:
                return
            if after != due:
                del kept[due]
            due = after


def _analyse(path: Path, start: int, crop: tuple[int, int, int, int] | None) -> _Analysed:
    from PIL import Image

    small = []
    factor = 1.0
    for number, frame in enumerate(iter_frames(path, crop=crop)):
        if number < start:
            continue
        factor = max(1.0, max(frame.shape[:2]) / LONG_SIDE)
        size = (round(frame.shape[1] / factor), round(frame.shape[0] / factor))
        small.append(np.asarray(Image.fromarray(frame).resize(size, Image.Resampling.BOX)))
        if len(small) == MOST_FRAMES:
            break
    if len(small) < 4:
        raise InputError(
            f"{path}: {len(small)} frames from frame {start} on are no cycle; {_NEEDS}, twice over"
        )
    stack = np.stack(small)
    border = np.concatenate([stack[:, [0, -1]].reshape(-1, 3), stack[:, :, [0, -1]].reshape(-1, 3)])
    background = np.median(border, 0)
    far = np.abs(border - background).max(1) > FIGURE_LEVELS
    if far.mean() > 0.1:
        raise InputError(
            f"{path}: {far.mean():.0%} of its border is not of one colour; {_NEEDS}; pass --crop "
            "to cut away what is around it"
        )
    masks = np.abs(stack.astype(np.int16) - background.astype(np.int16)).max(3) > FIGURE_LEVELS
    share = float(masks.mean())
    if share < 0.005:
        raise InputError(f"{path}: no figure stands out from its background; {_NEEDS}")
    period = _period(path, stack.astype(np.float32).mean(3))
    rows = np.flatnonzero(masks[:period].any((0, 2)))
    columns = np.flatnonzero(masks[:period].any((0, 1)))
    box = (int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1)
    _stays(path, masks, period, box)
    red, green, blue = (int(level) for level in background)
    return _Analysed(path, masks, factor, period, (red, green, blue), box)


def _period(path: Path, grey: Levels) -> int:
    """The shortest lag, in frames, at which the frames, (T, H, W), come back."""
    lags = range(1, len(grey) // 2 + 1)
    apart = np.array([np.sqrt(((grey[lag:] - grey[:-lag]) ** 2).mean()) for lag in lags])
    for i in range(1, len(apart) - 1):
        dip = apart[i] < apart[i - 1] and apart[i] <= apart[i + 1]
        if dip and apart[i] < DEEP * apart.max():
            return lags[i]
    raise InputError(
        f"{path}: its frames do not come back within {len(grey) // 2} frames; {_NEEDS}, at least "
        "twice over; pass another --start or --crop, or leave --align out"
    )


def _stays(path: Path, masks: Mask, period: int, box: tuple[int, int, int, int]) -> None:
    """Refuse a figure that wanders: whole cycles apart it must be at the same place."""
    columns = np.arange(masks.shape[2])
    centre = (masks.sum(1) * columns).sum(1) / np.maximum(masks.sum((1, 2)), 1)
    cycles = len(masks) // period
    per_cycle = centre[: cycles * period].reshape(cycles, period).mean(1)
    drift = float(np.ptp(per_cycle)) / (box[2] - box[0])
    if drift > 0.1:
        raise InputError(
            f"{path}: its figure wanders by {drift:.0%} of its width from cycle to cycle; "
            f"{_NEEDS}: stabilize the video on the figure first"
        )


def _outlines(clip: _Analysed, samples: int) -> Levels:
    """Masks of one cycle in the figure's own box, (samples, 24, 48), zero mean and unit norm."""
    from PIL import Image

    left, top, right, bottom = clip.box
    taken = [
        np.asarray(
            Image.fromarray(
                clip.masks[round(t * clip.period / samples), top:bottom, left:right].astype(
                    np.float32
                )
            ).resize((48, 24), Image.Resampling.BOX)
        )
        for t in range(samples)
    ]
    stack = np.stack(taken).astype(np.float32)
    # What moves, not the body that all frames share.
    stack -= stack.mean(0)
    scaled: Levels = stack / max(float(np.linalg.norm(stack)), 1e-9)
    return scaled


def _phase(clip: _Analysed, outlines: Levels, reference: Levels, first: Path) -> int:
    """The sample of `outlines` at which `reference` begins."""
    likeness = [
        float((np.roll(outlines, -shift, 0) * reference).sum()) for shift in range(len(reference))
    ]
    best = int(np.argmax(likeness))
    if likeness[best] < ALIKE:
        raise InputError(
            f"{clip.path}: its figure does not move as the one of {first} (outlines correlate "
            f"by {likeness[best]:.2f} at best, {ALIKE} is needed); --align needs clips of the same "
            "action, seen from the same side"
        )
    return best


def _fit(clip: _Analysed, size: tuple[int, int]) -> tuple[float, float, float, float]:
    """The figure's box with its margin, widened or heightened to the aspect ratio of `size`."""
    left, top, right, bottom = (value * clip.factor for value in clip.box)
    width, height = (right - left) * (1 + 2 * MARGIN), (bottom - top) * (1 + 2 * MARGIN)
    scale = max(width / size[1], height / size[0])
    width, height = scale * size[1], scale * size[0]
    return (left + right - width) / 2, (top + bottom - height) / 2, width, height
