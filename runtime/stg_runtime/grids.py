"""Coarse to fine: a model of several scales, each with an energy of its own in one file.

A model of the regime "multi-grid" is made of several models of the same clip at sizes that halve in
space; time has its full rate at every scale, because speed is what a coarse scale is to settle. The
coarsest walks from noise. Each finer one starts from the result of the coarser one, brought to
twice its size, and adds what was too small to be seen before.

The file is that of the finest scale, as any other model. The coarser ones are in its metadata under
`COARSER_KEY`: a whole .onnx file, base64, which holds the next coarser one in the same way.

Source: R. Gao, Y. Lu, J. Zhou, S.-C. Zhu, Y. N. Wu, "Learning Generative ConvNets via Multi-grid
Modeling and Sampling", CVPR 2018 (there of images, with a factor of 4).
"""

from __future__ import annotations

import base64
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from stg_runtime.errors import InputError
from stg_runtime.langevin import Float32
from stg_runtime.spot import NO_WRAP, Wrap

COARSER_KEY = "stg.coarser"
FACTOR = 2  # in height and width, from one scale to the next

_GOLDEN = 0x9E3779B97F4A7C15  # 2^64 over the golden ratio: neighbouring seeds stay apart
_CORRECTIONS = 6  # leave about 5 % of a white difference; see `refine`


def coarser_seed(seed: int, bits: int = 64) -> int:
    """The seed of the noise one scale coarser, as if it were another video's: below 2^bits."""
    return (seed + _GOLDEN) % (1 << bits)


def check_scales(scales: int, size: Sequence[int], option: str) -> None:
    """Refuse a size that cannot be halved so often.

    Args:
        scales: how many there are.
        size: (height, width) of the finest, pixels.
        option: the user's, for the message.

    Raises:
        InputError: names the multiple that is needed.
    """
    multiple = FACTOR ** (scales - 1)
    if any(extent % multiple for extent in size):
        raise InputError(
            f"{option} {'x'.join(map(str, size))}: {scales} scales halve height and width "
            f"{scales - 1} times; both must be multiples of {multiple}"
        )


def halve_pixels(frames: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Mean of every 2x2 pixels, rounded; (..., H, W, C), H and W even."""
    *lead, height, width, channels = frames.shape
    blocks = frames.reshape(*lead, height // 2, 2, width // 2, 2, channels)
    total = blocks.sum((-4, -2), dtype=np.uint16)
    return np.asarray((total + 2) // 4, np.uint8)


def halve(x: Float32) -> Float32:
    """Mean of every 2x2 values; (..., H, W), H and W even."""
    *lead, height, width = x.shape
    mean = x.reshape(*lead, height // 2, 2, width // 2, 2).mean((-3, -1), dtype=np.float32)
    return np.asarray(mean, np.float32)


def double(x: Float32, wrap: Wrap = NO_WRAP) -> Float32:
    """Bilinear, twice the size; (..., H, W) to (..., 2 H, 2 W). `wrap`: for T, H, W."""
    for axis, periodic in ((x.ndim - 2, wrap[1]), (x.ndim - 1, wrap[2])):
        before, after = (np.roll(x, shift, axis) for shift in (1, -1))
        if not periodic:
            first, last = ([slice(None)] * x.ndim for _ in range(2))
            first[axis], last[axis] = slice(0, 1), slice(-1, None)
            before[tuple(first)], after[tuple(last)] = x[tuple(first)], x[tuple(last)]
        near = np.float32(0.75) * x
        pair = (near + np.float32(0.25) * before, near + np.float32(0.25) * after)
        shape = [*x.shape]
        shape[axis] *= 2
        x = np.stack(pair, axis + 1).reshape(shape)
    return x


def refine(first: Float32 | None, coarse: Float32, wrap: Wrap = NO_WRAP) -> Float32:
    """Where the walk of a scale starts: `first` noise whose coarse part is `coarse`.

    The result halves to `coarse` (a few rounds of back-projection; interpolation alone blurs it),
    and has the fine detail of `first`, or none without it, as in the paper.

    Args:
        first: this scale's own first noise, (..., H, W), or None.
        coarse: what the coarser scale made, (..., H / 2, W / 2), in this scale's units.
        wrap: for T, H, W: does the axis go round?

    Returns:
        (..., H, W), a new array.
    """
    x = double(coarse, wrap) if first is None else first.copy()
    for _ in range(_CORRECTIONS):
        x += double(coarse - halve(x), wrap)
    return x


def to_finer(
    coarse: Float32,
    mean: NDArray[np.float32],
    scale: float,
    finer_mean: NDArray[np.float32],
    finer_scale: float,
) -> Float32:
    """A coarser scale's values in the units of the next finer one.

    Args:
        coarse: (N, C, T, H, W), model units of the coarser scale.
        mean: grey levels that it subtracts, (C, 1, 1), (C, H, W) or (C, T, H, W).
        scale: grey levels per unit there.
        finer_mean: what the finer scale subtracts.
        finer_scale: grey levels per unit there.
    """
    seen = finer_mean if finer_mean.shape[-2:] == (1, 1) else halve(finer_mean)
    shift = mean - seen
    if shift.ndim == 3:
        shift = shift[:, None]
    x = coarse * np.float32(scale) + shift
    x /= np.float32(finer_scale)
    return np.asarray(x, np.float32)


def pack_coarser(model: bytes) -> str:
    """A whole .onnx file as the text under `COARSER_KEY`."""
    return base64.b64encode(model).decode()


def unpack_coarser(text: str | None, source: str) -> bytes:
    """The inverse of `pack_coarser`.

    Raises:
        InputError: there is none, or it is not base64.
    """
    if text is None:
        raise InputError(
            f"{source}: its metadata names coarser scales, but it holds none; export it again"
        )
    try:
        return base64.b64decode(text, validate=True)
    except ValueError as error:
        raise InputError(
            f"{source}: its coarser scale is damaged ({error}); export it again"
        ) from None


def refuse_scales(scales: int, what: str) -> None:
    """Refuse a multi-grid model where only models of one scale will do.

    Args:
        scales: of the model.
        what: the option or command, for the message.

    Raises:
        InputError: there are several.
    """
    if scales > 1:
        raise InputError(
            f"{what}: not for models of several scales (this one has {scales}, learned with "
            "--regime multi-grid); train with another regime"
        )
