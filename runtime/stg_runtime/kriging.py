"""The best linear guess of hidden pixels, from how visible ones go together at every distance.

A texture that looks alike everywhere has one covariance, a function of the distance in time and
space. The visible pixels of an incomplete video tell it, each pair of them once, and given it the
conditional mean of a Gaussian video is the linear estimate of least squared error. It knows, for
instance, how waves travel: where a wave is between two frames, however far it moved.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Float32 = NDArray[np.float32]
Mask = NDArray[np.bool_]

LAGS = (8, 12, 12)
"""Largest distances, frames and pixels, at which pixels count as going together."""
NUGGET = 0.1  # share of the variance that is taken for noise: real videos are not Gaussian
STEPS = 20  # of conjugate gradients; more follow the noise
_FEWEST = 20  # pairs that a distance's covariance is trusted from


def conditional_mean(x: Float32, observed_mask: Mask, mean: Float32) -> Float32:
    """Fill hidden pixels with the conditional mean of a Gaussian video that is alike everywhere.

    Each pixel's deviation from `mean` is divided by how much its surroundings vary. The covariance
    of what is left is taken over all pairs of visible pixels, for all colours together, fades out
    at `LAGS`, and is made a possible one by cutting its negative power.

    Args:
        x: (C, T, H, W).
        observed_mask: (T, H, W).
        mean: (C, H, W).

    Returns:
        A new array; visible values are those of `x`, bit for bit.

    Source: simple kriging, Journel, Huijbregts, Mining Geostatistics, 1978.
    """
    shape = observed_mask.shape
    lags = [min(lag, size - 1) for lag, size in zip(LAGS, shape, strict=True)]
    torus = torus_of(shape, lags)
    known = observed_mask.astype(np.float32)
    z = np.where(observed_mask, x - mean[:, None], np.float32(0)).astype(np.float32)
    variance = np.square(z).sum(1).mean(0) / np.maximum(known.sum(0), 1)
    floor = np.float32(0.05 * variance.mean() + 1e-6)
    deviation = np.sqrt(box_mean(variance.astype(np.float32), 3) + floor)
    z /= deviation

    power = np.zeros(1, np.float32)
    for channel in z:
        power = power + np.square(np.abs(np.fft.rfftn(channel, s=torus, axes=(0, 1, 2))))
    products = np.fft.irfftn(power, s=torus, axes=(0, 1, 2))
    spectrum = np.square(np.abs(np.fft.rfftn(known, s=torus, axes=(0, 1, 2))))
    pairs = np.fft.irfftn(spectrum, s=torus, axes=(0, 1, 2))
    covariance = np.where(pairs > _FEWEST, products / np.maximum(pairs, 1), 0) / len(x)
    spectrum = faded_spectrum(covariance, lags)
    made = np.stack(
        [
            conditional(residual, observed_mask, spectrum, nugget=NUGGET, steps=STEPS)
            for residual in z
        ]
    )
    return np.where(observed_mask, x, made * deviation + mean[:, None])


def faded_spectrum(covariance: NDArray[np.floating], lags: Sequence[int]) -> Float32:
    """The power spectrum of a covariance that fades out: smooth, and without negative power.

    Args:
        covariance: at every distance on a torus, (T, H, W).
        lags: distances along each axis from which on it is 0.
    """
    for axis, (lag, size) in enumerate(zip(lags, covariance.shape, strict=True)):
        distance = np.minimum(np.arange(size), size - np.arange(size))
        fade = np.where(distance <= lag, 0.5 + 0.5 * np.cos(np.pi * distance / (lag + 1)), 0)
        covariance = covariance * fade.reshape([-1 if i == axis else 1 for i in range(3)])
    return np.maximum(np.fft.rfftn(covariance).real, 0).astype(np.float32)


def conditional(
    values: Float32,
    known: Mask,
    spectrum: Float32,
    *,
    nugget: float,
    steps: int,
    is_odd: bool = False,
) -> Float32:
    """The conditional mean of a Gaussian video of mean 0, given some of its values.

    Args:
        values: (T, H, W); read where known.
        known: (T, H, W).
        spectrum: half of its power spectrum, as from `faded_spectrum`, on a torus larger than the
            video by the largest distance at which values go together, or as large where it goes
            round.
        nugget: share of the variance by which known values may be missed: taken for noise.
        steps: of conjugate gradients, at most; the last ones follow the noise.
        is_odd: the torus has an odd width, which the spectrum does not tell.

    Returns:
        (T, H, W), at known values, too.
    """
    shape = values.shape
    torus = (*spectrum.shape[:2], 2 * (spectrum.shape[2] - 1) + is_odd)
    inside = tuple(slice(size) for size in shape)

    def spread(weights: Float32) -> Float32:
        """The covariance times values at the video's pixels."""
        transformed = np.fft.rfftn(weights, s=torus, axes=(0, 1, 2))
        transformed *= spectrum
        whole = np.fft.irfftn(transformed, s=torus, axes=(0, 1, 2))
        return whole[inside].astype(np.float32)

    variance = np.fft.irfftn(spectrum, s=torus, axes=(0, 1, 2))[0, 0, 0]
    noise = np.float32(nugget * variance)
    residual = np.where(known, values, np.float32(0))
    solution = np.zeros_like(residual)
    direction, size = residual.copy(), _dot(residual, residual)
    enough = 1e-6 * size
    for _ in range(steps):
        if size <= enough:
            break
        moved = np.where(known, spread(direction), np.float32(0)) + noise * direction
        step = np.float32(size / _dot(direction, moved))
        solution += step * direction
        residual -= step * moved
        before, size = size, _dot(residual, residual)
        direction = residual + np.float32(size / before) * direction
    return spread(solution)


def torus_of(
    shape: Sequence[int], lags: Sequence[int], wrap: Sequence[bool] = (False, False, False)
) -> tuple[int, int, int]:
    """Sizes beyond the video's by the largest distance, fast to transform, the last one even.

    Along axes that go round, `wrap`, the video's own.
    """
    t, h, w = (size + lag for size, lag in zip(shape, lags, strict=True))
    sizes = smooth_size(t), smooth_size(h), 2 * smooth_size(-(-w // 2))
    own = zip(shape, sizes, wrap, strict=True)
    t, h, w = (size if wraps else larger for size, larger, wraps in own)
    return t, h, w


def _dot(a: Float32, b: Float32) -> float:
    return float((a * b).sum(dtype=np.float64))


def box_mean(image: Float32, radius: int) -> Float32:
    """Mean over the square of 2 `radius` + 1 pixels around each, (..., H, W); edges are held."""
    width = 2 * radius + 1
    for axis in (-2, -1):
        size = image.shape[axis]
        held = image.take(np.clip(np.arange(-radius, size + radius), 0, size - 1), axis)
        shifted = np.moveaxis(held, axis, -1)
        total = shifted[..., :size].copy()
        for begin in range(1, width):
            total += shifted[..., begin : begin + size]
        image = np.moveaxis(total, -1, axis)
    return image / np.float32(width * width)


def smooth_size(size: int) -> int:
    """The next size with no prime factor above 5, which Fourier transforms are fast at."""
    while True:
        rest = size
        for prime in (2, 3, 5):
            while rest % prime == 0:
                rest //= prime
        if rest == 1:
            return size
        size += 1
