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
    grey = x.mean(0)
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
            found = _search(x, grey, (t - before, t, t + after), box)
            where = here[top:bottom, left:right]
            out[:, t, top:bottom, left:right][:, where] = found[:, where]
    return out


def _search(x: Float32, grey: Float32, moments: tuple[int, int, int], box: Box) -> Float32:
    """The fill of a box of a frame, (C, h, w)."""
    first, now, last = moments
    share = (now - first) / (last - first)
    top, bottom, left, right = box
    pad = ((0, 0), (REACH, REACH), (REACH, REACH))
    start, end = (
        np.pad(np.concatenate([x[:, t], grey[None, t]]), pad, mode="edge") for t in (first, last)
    )

    def at(frame: Float32, down: int, across: int) -> Float32:
        rows = slice(REACH + top + down, REACH + bottom + down)
        return frame[:, rows, REACH + left + across : REACH + right + across]

    ends = []
    for down in range(-REACH, REACH + 1):
        for across in range(-REACH, REACH + 1):
            came = round(down * share), round(across * share)
            ends.append((at(start, -came[0], -came[1]), at(end, down - came[0], across - came[1])))
    costs = np.stack([box_mean(np.square(a[-1] - b[-1]), _PATCH) for a, b in ends])
    best = costs.min(0)
    costs -= best
    costs *= -1 / (np.float32(_SHARPNESS) * np.maximum(best, np.float32(_LEAST)))
    weights = np.exp(costs, out=costs)
    made = np.zeros((len(x), *best.shape), np.float32)
    for weight, (a, b) in zip(weights, ends, strict=True):
        made += weight * (a[:-1] + np.float32(share) * (b[:-1] - a[:-1]))
    made /= weights.sum(0)
    return made
