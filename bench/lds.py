"""The classical baseline: a dynamic texture as a linear dynamical system.

x[t + 1] = A x[t] + B v[t],  y[t] = mean + C x[t],  v ~ N(0, 1)

C is the first principal components of the frames, A the least-squares fit of their coefficients
from one frame to the next, B a square root of the covariance of what A misses.

Source: Doretto, Chiuso, Wu, Soatto, "Dynamic Textures", IJCV 51(2), 2003, closed-form solution.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Float64 = NDArray[np.float64]


@dataclass(frozen=True)
class LinearSystem:
    """A learned system; D values per frame, n states.

    Attributes:
        shape: (H, W, 3) of a frame.
        mean: (D,), grey levels.
        observe: C, (D, n).
        move: A, (n, n), its eigenvalues inside the unit circle.
        drive: B, (n, n).
        states: x of the clip, (T, n).
    """

    shape: tuple[int, ...]
    mean: Float64
    observe: Float64
    move: Float64
    drive: Float64
    states: Float64


def learn(clip: NDArray[np.uint8], states: int) -> LinearSystem:
    """Fit a system to a clip, uint8 (T, H, W, 3), with at most T - 2 states."""
    flat = clip.reshape(len(clip), -1).astype(np.float64)
    mean = flat.mean(0)
    left, values, right = np.linalg.svd(flat - mean, full_matrices=False)
    n = min(states, len(clip) - 2)
    x = left[:, :n] * values[:n]  # (T, n)
    move = np.linalg.lstsq(x[:-1], x[1:], rcond=None)[0].T
    # A fit to a short clip can grow without bound; the usual remedy pulls it inside the circle.
    radius = np.abs(np.linalg.eigvals(move)).max()
    if radius > 0.999:
        move *= 0.999 / radius
    missed = x[1:] - x[:-1] @ move.T
    size, axes = np.linalg.eigh(missed.T @ missed / len(missed))
    drive = axes * np.sqrt(np.maximum(size, 0))
    return LinearSystem(clip.shape[1:], mean, right[:n].T, move, drive, x)


def sample(system: LinearSystem, frames: int, seed: int, warm_up: int = 200) -> NDArray[np.uint8]:
    """New video, uint8 (T, H, W, 3): the system driven from rest, `warm_up` frames dropped."""
    generator = np.random.default_rng(seed)
    x = np.zeros(len(system.move))
    video = np.empty((frames, *system.shape), np.uint8)
    for t in range(-warm_up, frames):
        x = system.move @ x + system.drive @ generator.standard_normal(len(x))
        if t >= 0:
            level = system.mean + system.observe @ x
            video[t] = np.clip(np.rint(level), 0, 255).reshape(system.shape)
    return video
