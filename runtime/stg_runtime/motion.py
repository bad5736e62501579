"""Filling hidden pixels along the motion between their nearest visible moments."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from stg_runtime.kriging import box_mean

Float32 = NDArray[np.float32]
Mask = NDArray[np.bool_]
Box = tuple[int, int, int, int]
"""(top, bottom, left, right), pixels."""

REACH = 5
"""Largest motion along each axis, pixels, from the moment before a gap to the one after."""
_PATCH = 2  # radius of the squares that are compared
_FEWEST = 8  # pixels of a gap that are worth a search
_SHARPNESS = 0.5  # temperature of the choice among motions, of the best one's squared difference
_LEAST = 4.0  # squared difference, grey levels, that counts as none


def along_motion(
    x: Float32, observed_mask: Mask, back: NDArray[np.int32], ahead: NDArray[np.int32]
) -> Float32:
    """Fill hidden pixels with what moves there from the frame before the gap to the one after.

    For every motion of whole pixels up to `REACH`, the squares around where a pixel would come from
    and where it would go to are compared. The fill is the mean over all motions of the line between
    the two, those that fit best counting most. Pixels that are hidden at either moment are taken as
    they are in `x`, which therefore is a first fill.

    Args:
        x: grey levels, (C, T, H, W), of a simple fill.
        observed_mask: (T, H, W).
        back: frames to the nearest visible moment before each pixel, (T, H, W).
        ahead: the same, after.

    Returns:
        A new array; visible values, and those before the first or after the last visible moment,
        are those of `x`.
    """
    out = x.copy()
    frames, height, width = observed_mask.shape
    pad = ((0, 0), (0, 0), (REACH, REACH), (REACH, REACH))
    padded = np.pad(np.concatenate([x, x.mean(0, keepdims=True)]), pad, mode="edge")
    for t in range(frames):
        hidden = ~observed_mask[t] & (back[t] <= t) & (ahead[t] < frames - t)
        gaps = np.unique(np.stack([back[t][hidden], ahead[t][hidden]], 1), axis=0)
        for before, after in gaps.tolist():
            here = hidden & (back[t] == before) & (ahead[t] == after)
            if here.sum() < _FEWEST:
                continue
            rows, columns = np.flatnonzero(here.any(1)), np.flatnonzero(here.any(0))
            top, bottom = max(0, rows[0] - _PATCH), min(height, rows[-1] + _PATCH + 1)
            left, right = max(0, columns[0] - _PATCH), min(width, columns[-1] + _PATCH + 1)
            box = int(top), int(bottom), int(left), int(right)
            found = _search(padded, (t - before, t, t + after), box)
            where = here[top:bottom, left:right]
            out[:, t, top:bottom, left:right][:, where] = found[:, where]
    return out


def _search(padded: Float32, moments: tuple[int, int, int], box: Box) -> Float32:
    """The fill of a box of a frame, (C, h, w); `padded` has its colours and its grey last."""
    first, now, last = moments
    share = (now - first) / (last - first)
    top, bottom, left, right = box
    start, end = padded[:, first], padded[:, last]

    def at(frame: Float32, down: int, across: int) -> Float32:
        rows = slice(REACH + top + down, REACH + bottom + down)
        return frame[..., rows, REACH + left + across : REACH + right + across]

    ways, costs = [], []
    for down in range(-REACH, REACH + 1):
        across = range(-REACH, REACH + 1)
        came = [(round(down * share), round(step * share)) for step in across]
        row = [((-y, -x), (down - y, step - x)) for (y, x), step in zip(came, across, strict=True)]
        ways += row
        off = np.stack([at(start[-1], *origin) - at(end[-1], *goal) for origin, goal in row])
        costs.append(box_mean(np.square(off, out=off), _PATCH))
    weights = np.concatenate(costs)
    best = weights.min(0)
    weights -= best
    weights *= -1 / (np.float32(_SHARPNESS) * np.maximum(best, np.float32(_LEAST)))
    np.exp(weights, out=weights)
    weights /= weights.sum(0)
    made = np.zeros((len(padded) - 1, *best.shape), np.float32)
    for weight, (origin, goal) in zip(weights, ways, strict=True):
        came_from, goes_to = at(start[:-1], *origin), at(end[:-1], *goal)
        made += weight * (came_from + np.float32(share) * (goes_to - came_from))
    return made
