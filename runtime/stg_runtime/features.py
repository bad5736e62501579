"""Responses of a fixed bank of space-time filters, and the distance of their statistics.

The bank: complex Gabor filters of 7 x 7 x 7 values, wavelength 4 px and 4 frames, at every second
pixel and frame. Nothing in it is learned or random.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stg_runtime.video import Frames

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]

_TAPS = 7
_SPREAD = 1.5  # standard deviation of their Gaussian, px and frames
_OMEGA = np.pi / 2  # rad per px and per frame
_STRIDE = 2
_LEAST_SCALED = 24  # px and frames; smaller scales have too few places to tell anything
_SCALES = 3


@dataclass(frozen=True)
class Gaussian:
    """Statistics of the features at one scale.

    Attributes:
        mean: (16,).
        covariance: (16, 16).
    """

    mean: Float64
    covariance: Float64


def count_scales(shape: tuple[int, ...]) -> int:
    """How many scales a video of (T, H, W) is looked at: 1 to 3."""
    scales = 1
    while scales < _SCALES and min(shape) >> scales >= _LEAST_SCALED:
        scales += 1
    return scales


def frechet(a: Gaussian, b: Gaussian) -> float:
    """Frechet distance, each feature in units of its standard deviation, per feature.

    Args:
        a: one side; the unit of a feature is the root mean square of both sides' deviations.
        b: the other.

    Returns:
        (|m_a - m_b|^2 + tr(A + B - 2 (A B)^(1/2))) / 16; 0 for equal ones, symmetric.
    """
    variance = (np.diagonal(a.covariance) + np.diagonal(b.covariance)) / 2
    # What hardly varies on either side counts by its difference, not by that over nothing.
    scale = 1 / np.sqrt(np.maximum(variance, 1e-4))
    mean = (a.mean - b.mean) * scale
    cov_a = a.covariance * scale[:, None] * scale
    cov_b = b.covariance * scale[:, None] * scale
    values, vectors = np.linalg.eigh(cov_a)
    root = vectors * np.sqrt(np.maximum(values, 0)) @ vectors.T
    cross = np.sqrt(np.maximum(np.linalg.eigvalsh(root @ cov_b @ root), 0)).sum()
    distance = float(mean @ mean + np.trace(cov_a) + np.trace(cov_b) - 2 * cross) / len(mean)
    return distance if distance > 1e-9 else 0.0  # the square roots round


def _bank() -> tuple[Float32, Float32]:
    """Temporal filters, (3, TAPS): low pass, cosine, sine; and spatial ones, (TAPS^2, 17).

    The spatial columns are the low pass, the cosines of eight directions, and their sines.
    """
    n = np.arange(_TAPS) - _TAPS // 2
    low = np.exp(-(n**2) / (2 * _SPREAD**2))
    low /= low.sum()

    def wave(omega: float) -> NDArray[np.complex128]:
        if abs(omega) < 1e-9:
            return low.astype(np.complex128)
        filter_ = low * np.exp(1j * omega * n)
        return np.asarray(filter_ - filter_.sum() * low)  # blind to what is constant

    in_time = wave(_OMEGA)
    temporal = np.stack([low, in_time.real, in_time.imag])
    angles = np.arange(8) * np.pi / 4
    directions = [
        np.outer(wave(_OMEGA * np.sin(angle)), wave(_OMEGA * np.cos(angle))) for angle in angles
    ]
    kernels = [np.outer(low, low), *(k.real for k in directions), *(k.imag for k in directions)]
    spatial = np.stack([kernel.ravel() for kernel in kernels], axis=1)
    return temporal.astype(np.float32), spatial.astype(np.float32)


def features(videos: Sequence[Frames], lumas: Sequence[Float32], scales: int) -> list[Gaussian]:
    """Statistics of the features at each scale, pooled over videos, places and times.

    Args:
        videos: each uint8, (T, H, W, 3), T, H and W at least 8.
        lumas: their luminance, grey levels, (T, H, W).
        scales: how many; each takes half the size in time and space of the one before.
    """
    temporal, spatial = _bank()
    sums = [(np.zeros(16), np.zeros((16, 16)), 0) for _ in range(scales)]
    for video, luma in zip(videos, lumas, strict=True):
        levels = video.astype(np.float32)
        red, green, blue = (levels[..., channel] for channel in range(3))
        # (3, T, H, W): luminance around a middle grey, and two colour differences
        stack = np.stack([luma - np.float32(128), red - green, green - blue])
        for scale in range(scales):
            if scale:
                stack = _halve(stack)
            total, outer, count = sums[scale]
            for start in range(0, stack.shape[1] - _TAPS + 1, _STRIDE):
                found = _responses(stack[:, start : start + _TAPS], temporal, spatial)
                total = total + found.sum(0)
                outer = outer + found.T @ found
                count += len(found)
            sums[scale] = (total, outer, count)
    gaussians = []
    for total, outer, count in sums:
        mean = total / count
        gaussians.append(Gaussian(mean, outer / count - np.outer(mean, mean)))
    return gaussians


def _responses(block: Float32, temporal: Float32, spatial: Float32) -> Float64:
    """The features of TAPS frames, (places, 16), from (3, TAPS, H, W)."""
    in_time = np.tensordot(temporal, block[0], 1)  # (3, H, W)
    slow = np.tensordot(temporal[0], block[1:], (0, 1))  # (2, H, W)
    low, cosine, sine = (_patches(frame) @ spatial for frame in in_time)  # each (places, 17)
    still = np.hypot(low[:, 1:5], low[:, 9:13])
    # The real and the imaginary part of the response to exp(i (omega t + k x)).
    moving = np.hypot(cosine[:, 1:9] - sine[:, 9:17], cosine[:, 9:17] + sine[:, 1:9])
    flicker = np.hypot(cosine[:, :1], sine[:, :1])
    colours = [_patches(frame) @ spatial[:, :1] for frame in slow]
    oriented = np.log1p(np.concatenate([still, moving, flicker], axis=1))
    return np.concatenate([oriented, low[:, :1], *colours], axis=1).astype(np.float64)


def _patches(frame: Float32) -> Float32:
    """Every second TAPS x TAPS patch of a frame, (places, TAPS^2)."""
    windows = np.lib.stride_tricks.sliding_window_view(frame, (_TAPS, _TAPS))
    return windows[::_STRIDE, ::_STRIDE].reshape(-1, _TAPS * _TAPS)


def _halve(stack: Float32) -> Float32:
    """(C, T, H, W) at half the size in time and space, by means over 2 x 2 x 2."""
    channels, frames, height, width = (extent // 2 for extent in stack.shape)
    channels = stack.shape[0]
    even = stack[:, : 2 * frames, : 2 * height, : 2 * width]
    return np.asarray(even.reshape(channels, frames, 2, height, 2, width, 2).mean((2, 4, 6)))
