"""The Langevin step and its counter-based noise.

x <- x - (delta^2 / 2) dE/dx + delta s z,  z ~ N(0, 1)

Source: the Langevin equation of Xie, Zhu, Wu, CVPR 2017.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

Float32 = NDArray[np.float32]

INITIAL = (
    0  # the step number that the chain's first noise is counted by; Langevin steps are 1, 2, ...
)

# Values per block of noise: a block and its scratch stay in a core's second-level cache, and the
# block is also what threads share out. A multiple of PER_COUNTER, so that a block starts a counter.
BLOCK = 1 << 16
PER_COUNTER = 8  # one Philox-4x64 counter gives 4 x 64 bits: eight 24-bit uniforms, eight normals

_TWO_PI = np.float32(2 * np.pi)


class _Array(Protocol):
    def __add__(self, other: Self, /) -> Self: ...
    def __sub__(self, other: Self, /) -> Self: ...
    def __mul__(self, other: float, /) -> Self: ...


A = TypeVar("A", bound=_Array)


def langevin_step(
    x: A, energy_grad: A, noise: A, *, step_size: float, noise_scale: float = 1.0
) -> A:
    """Move every chain by one step of unadjusted Langevin dynamics.

    Uses only + - *, so NumPy arrays and torch tensors both work. The runtime's loop computes the
    same formula in place (`Walker`); a test holds the two together.

    Args:
        x: chains, (N, C, T, H, W), model units.
        energy_grad: dE/dx at x, same shape.
        noise: standard normal draws, same shape; the caller owns the generator.
        step_size: delta, model units. Below 2 * reference_std, or the reference term alone
            diverges.
        noise_scale: s; 1 samples, 0 is gradient descent.

    Returns:
        The moved chains, a new array.

    Source: "Synthesizing Dynamic Patterns by Spatial-Temporal Generative ConvNet", CVPR 2017,
    Langevin equation.
    """
    return x - energy_grad * (step_size**2 / 2) + noise * (step_size * noise_scale)


def noise_at(step: int, n_steps: int, *, noise_scale: float, noise_end: float) -> float:
    """The factor on the noise of a step of a walk: constant, or falling geometrically (annealed).

    Args:
        step: 1 to `n_steps`.
        n_steps: K, of this walk.
        noise_scale: the factor at the first step.
        noise_end: share of it that is left at the last step; 1 keeps it constant.

    Source: Song, Ermon, "Generative Modeling by Estimating Gradients of the Data Distribution",
    NeurIPS 2019, annealed Langevin dynamics.
    """
    if noise_end == 1 or n_steps == 1:
        return noise_scale
    return float(noise_scale * noise_end ** ((step - 1) / (n_steps - 1)))


class _Scratch:
    """What one thread needs to make a block of noise."""

    def __init__(self) -> None:
        self.uniform = np.empty(BLOCK, np.float32)
        self.angle = np.empty(BLOCK // 2, np.float32)
        self.radius = np.empty(BLOCK // 2, np.float32)
        self.normal = np.empty(BLOCK, np.float32)


def _fill_normal(scratch: _Scratch, seed: int, chain: int, step: int, start: int) -> Float32:
    """Standard normal values `start` to `start + BLOCK` of one chain's step, into the scratch.

    Philox-4x64-10 keyed by (seed, chain). NumPy advances the counter before it draws, so value
    8 i to 8 i + 7 come from counter (i + 1, step, 0, 0): its four 64-bit words give eight 32-bit
    words, low half first, whose upper 24 bits are uniforms u0..u7 in [0, 1); Box-Muller turns
    (u0, u1) into values 0 and 1, (r cos 2 pi u1, r sin 2 pi u1) with r = sqrt(-2 ln(1 - u0)).
    """
    # As uint64: NumPy would take a list with a word of 2^63 or more through float64.
    counter = np.array([start // PER_COUNTER, step, 0, 0], np.uint64)
    philox = np.random.Philox(counter=counter, key=np.array([seed, chain], np.uint64))
    np.random.Generator(philox).random(out=scratch.uniform, dtype=np.float32)
    pairs = scratch.uniform.reshape(-1, 2)
    radius, angle, normal = scratch.radius, scratch.angle, scratch.normal.reshape(-1, 2)
    np.subtract(np.float32(1), pairs[:, 0], out=radius)
    np.log(radius, out=radius)
    np.multiply(radius, np.float32(-2), out=radius)
    np.sqrt(radius, out=radius)
    np.multiply(pairs[:, 1], _TWO_PI, out=angle)
    cosine = np.cos(angle, out=scratch.uniform[: BLOCK // 2])
    np.multiply(radius, cosine, out=normal[:, 0])
    sine = np.sin(angle, out=angle)
    np.multiply(radius, sine, out=normal[:, 1])
    return scratch.normal


def standard_normal(
    size: int, *, seed: int, chain: int, step: int, out: Float32 | None = None
) -> Float32:
    """The noise of one chain at one step, as a flat array; the definition that backends reproduce.

    Args:
        size: number of values.
        seed: first key word, 0 <= seed < 2^64.
        chain: second key word.
        step: `INITIAL` for the first noise, then 1, 2, ...
        out: where they go, (size,); a new array if not given.
    """
    if out is None:
        out = np.empty(size, np.float32)
    scratch = _Scratch()
    for start in range(0, size, BLOCK):
        stop = min(start + BLOCK, size)
        out[start:stop] = _fill_normal(scratch, seed, chain, step, start)[: stop - start]
    return out


class Walker:
    """Draws the noise and makes the update of one chain in place, block by block on all threads.

    Nothing is allocated per step: each thread owns the scratch of one block, and a block is drawn,
    scaled and added while it is in cache.

    Attributes:
        seed: of the noise; may be set at any time, as `chain` may.
        chain: number of the chain; two chains of one seed are independent.

    Args:
        seed: see the attribute.
        chain: see the attribute.
        threads: worker threads.
    """

    def __init__(self, *, seed: int = 0, chain: int = 0, threads: int) -> None:
        self.seed, self.chain = seed, chain
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="stg-langevin")
        self._threads = threads
        self._scratch = [_Scratch() for _ in range(threads)]

    def __enter__(self) -> Self:
        """Use as a context manager: the threads end with it."""
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown()

    def start(self, x: Float32, *, init_std: float) -> None:
        """Fill `x` (contiguous, any shape) with the chain's first noise, N(0, init_std^2)."""
        flat = x.reshape(-1)

        def work(thread: int) -> None:
            for part, noise in self._blocks(thread, INITIAL, flat.size):
                np.multiply(noise, np.float32(init_std), out=flat[part])

        self._run(work)

    def step(
        self,
        x: Float32,
        energy_grad: Float32,
        step: int,
        *,
        step_size: float,
        noise_scale: float = 1.0,
    ) -> None:
        """`langevin_step` in place.

        Args:
            x: the chain, contiguous, model units; overwritten.
            energy_grad: dE/dx at x, contiguous, same shape; overwritten (it serves as scratch).
            step: 1, 2, ...; with the seed and the chain it fixes the noise.
            step_size: delta, model units.
            noise_scale: s; at 0 no noise is drawn.
        """
        flat, grad = x.reshape(-1), energy_grad.reshape(-1)
        drift, spread = np.float32(step_size**2 / 2), np.float32(step_size * noise_scale)

        def work(thread: int) -> None:
            if noise_scale == 0:
                for start in range(thread * BLOCK, flat.size, self._threads * BLOCK):
                    self._descend(flat[start : start + BLOCK], grad[start : start + BLOCK], drift)
                return
            for part, noise in self._blocks(thread, step, flat.size):
                self._descend(flat[part], grad[part], drift)
                np.multiply(noise, spread, out=noise)
                np.add(flat[part], noise, out=flat[part])

        self._run(work)

    @staticmethod
    def _descend(x: Float32, grad: Float32, drift: np.float32) -> None:
        np.multiply(grad, drift, out=grad)
        np.subtract(x, grad, out=x)

    def _blocks(self, thread: int, step: int, size: int) -> Iterator[tuple[slice, Float32]]:
        for start in range(thread * BLOCK, size, self._threads * BLOCK):
            stop = min(start + BLOCK, size)
            noise = _fill_normal(self._scratch[thread], self.seed, self.chain, step, start)
            yield slice(start, stop), noise[: stop - start]

    def _run(self, work: object) -> None:
        assert callable(work)
        if self._threads == 1:
            work(0)
            return
        # list() re-raises what a thread raised.
        list(self._pool.map(work, range(self._threads)))
