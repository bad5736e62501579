"""From noise to video: Langevin dynamics on an exported energy gradient."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stg_runtime.artifact import Metadata, Size
from stg_runtime.backends.base import Chains
from stg_runtime.errors import DivergenceError, InputError
from stg_runtime.langevin import Float32
from stg_runtime.spot import first_noise
from stg_runtime.video import to_pixels

Progress = Callable[[int, float], None]
"""Called after each Langevin step with its number, from 1, and the mean energy before it (NaN on a
device that is not waited for)."""


@dataclass(frozen=True)
class Plan:
    """A synthesis that the model can do; make one with `plan`.

    Attributes:
        size: of the finished video.
        graph: (N, C, T, H, W) of the walk, margins included.
        n_steps: Langevin steps.
        seed: of the noise.
        margin: frames cut at each end.
    """

    size: Size
    graph: tuple[int, int, int, int, int]
    n_steps: int
    seed: int
    margin: int


def plan(
    metadata: Metadata,
    *,
    frames: int | None = None,
    size: tuple[int, int] | None = None,
    n_steps: int | None = None,
    seed: int = 0,
) -> Plan:
    """Check what is asked for against what the model can do; the defaults are the model's.

    Args:
        metadata: of the model.
        frames: of the finished video.
        size: (height, width) of the finished video, pixels.
        n_steps: Langevin steps.
        seed: of the noise, 0 <= seed < 2^64.

    Raises:
        InputError: a size the model cannot make, or an option out of range.
    """
    if n_steps is not None and n_steps < 1:
        raise InputError(
            f"--steps {n_steps}: at least 1 (the model was trained with {metadata.n_steps})"
        )
    if not 0 <= seed < 2**64:
        raise InputError(f"--seed {seed}: from 0 to {2**64 - 1}")
    height, width = size or (metadata.size.height, metadata.size.width)
    want = (frames if frames is not None else metadata.size.frames, height, width)
    graph = []
    for axis, option, asked, fixed, least, extra in (
        (
            "T",
            "--frames",
            want[0],
            metadata.graph_size.frames,
            metadata.min_size.frames,
            2 * metadata.margin_frames,
        ),
        ("H", "--size height", want[1], metadata.graph_size.height, metadata.min_size.height, 0),
        ("W", "--size width", want[2], metadata.graph_size.width, metadata.min_size.width, 0),
    ):
        if axis not in metadata.free_axes and asked + extra != fixed:
            raise InputError(
                f"{option} {asked}: this model makes {fixed - extra} only; leave the option out, "
                f"or {_way_out(metadata, axis)}"
            )
        if asked < max(1, least - extra):
            raise InputError(f"{option} {asked}: at least {max(1, least - extra)} for this model")
        graph.append(asked + extra)
    return Plan(
        size=Size(frames=want[0], height=want[1], width=want[2]),
        graph=(1, metadata.channels, graph[0], graph[1], graph[2]),
        n_steps=n_steps or metadata.n_steps,
        seed=seed,
        margin=metadata.margin_frames,
    )


def _way_out(metadata: Metadata, axis: str) -> str:
    if not metadata.free_axes:
        return "export the run again without --static"
    if axis == "T":
        return "train with that many --frames (its network is full in time)"
    return "train with a recipe that is convolutional in space (recipe st)"


def synthesize(
    chains: Chains,
    metadata: Metadata,
    job: Plan,
    *,
    number: int,
    progress: Progress | None = None,
) -> NDArray[np.uint8]:
    """Walk one chain from its first noise to a finished video.

    Args:
        chains: room for one video of the plan's graph size, from `Backend.chains`.
        metadata: of the model.
        job: from `plan`.
        number: of the video; with the seed it fixes every value of the noise, whatever other
            videos are made.
        progress: told of each step.

    Returns:
        The video, uint8, (T, H, W, C), margins cut.

    Raises:
        DivergenceError: an energy or the result is not finite; nothing is replaced or hidden.
    """
    assert chains.shape == job.graph
    chains.start(seed=job.seed, numbers=[number], init_std=metadata.init_std)
    if metadata.spot_noise is not None:
        first = first_noise(
            metadata.spot_noise,
            job.graph[1:],
            seed=job.seed,
            number=number,
            init_std=metadata.init_std,
        )
        chains.write(first[None])
    walk(chains, metadata, job, numbers=[number], progress=progress)
    x = chains.read()
    kept = x[0, :, job.margin : x.shape[2] - job.margin]
    mean = metadata.mean()
    if mean.ndim == 4:  # one image for each frame of the walk
        mean = mean[:, job.margin : x.shape[2] - job.margin]
    return to_pixels(kept, mean, metadata.pixel_scale)


def walk(
    chains: Chains,
    metadata: Metadata,
    job: Plan,
    *,
    numbers: Sequence[int],
    progress: Progress | None = None,
) -> None:
    """Make the Langevin steps of a plan on chains that were started.

    Raises:
        DivergenceError: an energy or the result is not finite.
    """
    for step in range(1, job.n_steps + 1):
        energy = chains.step(step, step_size=metadata.step_size, noise_scale=metadata.noise_scale)
        if energy is not None:
            _check_energies(chains.energies()[-2:], step - 1, job, metadata, numbers)
        if progress is not None:
            progress(step, math.nan if energy is None else float(energy.mean()))
    _check_energies(chains.energies(), 1, job, metadata, numbers)
    for number, video in zip(numbers, chains.read(), strict=True):
        if not np.isfinite(video.sum(dtype=np.float64)):
            raise DivergenceError(
                f"chain {number} (seed {job.seed}) became non-finite at its last step, "
                f"{job.n_steps}"
            )


def _check_energies(
    energies: Float32, first: int, job: Plan, metadata: Metadata, numbers: Sequence[int]
) -> None:
    """Raise at the first energy that is not finite; row i of `energies` is of step first + i."""
    bad = np.argwhere(~np.isfinite(energies))
    if not len(bad):
        return
    row, chain = (int(index) for index in bad[0])
    before = f", the one before {energies[row - 1, chain]:.4g}" if row else ""
    raise DivergenceError(
        f"chain {numbers[chain]} (seed {job.seed}) became non-finite at step {max(first, 1) + row} "
        f"(energy {energies[row, chain]}{before}); the model was trained for {metadata.n_steps} "
        f"steps of size {metadata.step_size:g}"
    )
