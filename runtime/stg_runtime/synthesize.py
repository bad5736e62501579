"""From noise to video: Langevin dynamics on an exported energy gradient."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stg_runtime.artifact import Axis, Metadata, Size, named_faults
from stg_runtime.backends.base import Backend, Chains, HostGradient
from stg_runtime.backends.host import HostChains
from stg_runtime.errors import InputError
from stg_runtime.footage import Footage, begin
from stg_runtime.grids import (
    FACTOR,
    check_scales,
    coarser_seed,
    refine,
    refuse_scales,
    to_finer,
)
from stg_runtime.health import check_levels, check_pixels, not_finite, silent
from stg_runtime.langevin import Float32
from stg_runtime.memory import give_back, plan_windows, start_bytes
from stg_runtime.pyramid import Pyramid
from stg_runtime.spot import Wrap
from stg_runtime.video import cut_edges, to_pixels
from stg_runtime.windows import Windowed, check_period, coarsest

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
        margin_size: pixels cut at each edge.
        periodic: axes that go round.
        context: frames of given video at the beginning and the end of the walk, cut too.
    """

    size: Size
    graph: tuple[int, int, int, int, int]
    n_steps: int
    seed: int
    margin: int
    periodic: tuple[Axis, ...] = ()
    context: tuple[int, int] = (0, 0)
    margin_size: int = 0

    @property
    def wrap(self) -> Wrap:
        """For T, H, W: does the axis go round?"""
        return "T" in self.periodic, "H" in self.periodic, "W" in self.periodic


def plan(
    metadata: Metadata,
    *,
    frames: int | None = None,
    size: tuple[int, int] | None = None,
    n_steps: int | None = None,
    seed: int = 0,
    loop: bool = False,
    tile: bool = False,
    context: tuple[int, int] = (0, 0),
) -> Plan:
    """Check what is asked for against what the model can do; the defaults are the model's.

    Args:
        metadata: of the model.
        frames: of the finished video.
        size: (height, width) of the finished video, pixels.
        n_steps: Langevin steps.
        seed: of the noise, 0 <= seed < 2^64.
        loop: the last frame runs into the first; there are no margins then.
        tile: the right edge runs into the left one, and the lower into the upper.
        context: frames of given video that the walk is held to at its beginning and end; they
            stand in for the margins.

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
    check_scales(metadata.scales, (height, width), "--size")
    if any(context):
        refuse_scales(metadata.scales, "--between")
        if metadata.margin_size:
            raise InputError(
                "--between: not for models that cut a margin in space (output.margin_size of the "
                "recipe): the given clips say nothing of what lies beyond their edges"
            )
    edge = 0 if tile else metadata.margin_size
    want = (frames if frames is not None else metadata.size.frames, height, width)
    periodic: tuple[Axis, ...] = (*(("T",) if loop else ()), *(("H", "W") if tile else ()))
    margin = 0 if loop or any(context) else metadata.margin_frames
    graph = []
    for axis, option, asked, fixed, least, extra in (
        (
            "T",
            "--frames",
            want[0],
            metadata.graph_size.frames,
            metadata.min_size.frames,
            2 * margin + sum(context),
        ),
        (
            "H",
            "--size height",
            want[1],
            metadata.graph_size.height,
            metadata.min_size.height,
            2 * edge,
        ),
        (
            "W",
            "--size width",
            want[2],
            metadata.graph_size.width,
            metadata.min_size.width,
            2 * edge,
        ),
    ):
        if axis in periodic:
            check_period(metadata, axis, asked, "--loop" if axis == "T" else f"--tile, {axis}")
            graph.append(asked)
            continue
        if axis not in metadata.free_axes and asked + extra != fixed:
            raise InputError(
                f"{option} {asked}: this model makes {fixed - extra} only; leave the option out, "
                f"or {_way_out(metadata, axis)}"
            )
        least = max(1, coarsest(metadata, axis) * least - extra)
        if asked < least:
            raise InputError(f"{option} {asked}: at least {least} for this model")
        graph.append(asked + extra)
    with named_faults("--frames or --size"):
        made = Size(frames=want[0], height=want[1], width=want[2])
    return Plan(
        size=made,
        graph=(1, metadata.channels, graph[0], graph[1], graph[2]),
        n_steps=n_steps or metadata.n_steps,
        seed=seed,
        margin=margin,
        periodic=periodic,
        context=context,
        margin_size=edge,
    )


def coarser_plan(metadata: Metadata, job: Plan) -> Plan:
    """The walk of the next coarser scale that a plan's walk starts from.

    Args:
        metadata: of the coarser scale.
        job: of the finer one.

    Raises:
        InputError: see `plan`.
    """
    found = plan(
        metadata,
        frames=job.size.frames,
        size=(job.size.height // FACTOR, job.size.width // FACTOR),
        n_steps=job.n_steps,
        seed=coarser_seed(job.seed),
        loop="T" in job.periodic,
        tile="H" in job.periodic,
    )
    if found.graph[2:] != (job.graph[2], job.graph[3] // FACTOR, job.graph[4] // FACTOR):
        raise InputError(
            f"its scales walk {job.graph[2:]} and {found.graph[2:]} (frames, height, width); "
            "export the run again"
        )
    return found


def _way_out(metadata: Metadata, axis: str) -> str:
    if not metadata.free_axes:
        return "export the run again without --static"
    if axis == "T":
        return "train with that many --frames (its network is full in time)"
    return "train with a recipe that is convolutional in space (recipe st)"


def fitted_chains(
    backend: Backend,
    job: Plan,
    *,
    count: int = 1,
    limit: int | None = None,
    held: float = 0.0,
    pieces: tuple[int, int, int] | None = None,
    hint: str | None = "",
) -> Chains:
    """Room for chains of a plan, in windows where they would not fit otherwise.

    Args:
        backend: that computes the gradient.
        job: from `plan`.
        count: of chains that are walked together.
        limit: bytes this process may hold; None is no limit.
        held: bytes that the caller holds besides, for instance finished videos.
        pieces: how to cut T, H and W, instead of what would fit.
        hint: see `plan_windows`.

    Raises:
        InputError: it does not fit, or the device cannot do what is asked.
    """
    if backend.coarser is not None:
        inner = coarser_plan(backend.coarser.metadata, job)
        coarser = fitted_chains(
            backend.coarser, inner, count=count, limit=limit, held=held, pieces=pieces, hint=None
        )
        # Its chains; what it made in this scale's units, twice while that is computed.
        held += (2 * 4 + 2 * 4) * math.prod(coarser.shape)
        return Pyramid(
            _fitted(backend, job, count=count, limit=limit, held=held, pieces=pieces, hint=hint),
            coarser,
            backend.coarser.metadata,
        )
    return _fitted(backend, job, count=count, limit=limit, held=held, pieces=pieces, hint=hint)


def _fitted(
    backend: Backend,
    job: Plan,
    *,
    count: int,
    limit: int | None,
    held: float,
    pieces: tuple[int, int, int] | None,
    hint: str | None,
) -> Chains:
    """Room for the chains of one scale; see `fitted_chains`."""
    shape = (count, *job.graph[1:])
    if not isinstance(backend, HostGradient):
        assert not job.periodic, "see open_backend's host_only"
        return backend.chains(shape)
    if pieces is None:
        pieces = fitted_windows(backend, job, count=count, limit=limit, held=held, hint=hint)
    if pieces == (1, 1, 1) and not job.periodic:
        return backend.chains(shape)
    return Windowed(backend, pieces=pieces, periodic=job.periodic).chains(shape)


def fitted_windows(
    gradient: HostGradient,
    job: Plan,
    *,
    count: int = 1,
    limit: int | None = None,
    held: float = 0.0,
    hint: str | None = "",
) -> tuple[int, int, int]:
    """How to cut T, H and W of a plan so that it fits; the arguments are `fitted_chains`'.

    Raises:
        InputError: it does not fit.
    """
    start, shortest = (
        start_bytes(
            gradient.metadata, (frames, *job.graph[3:]), chains=count, periodic=job.periodic
        )
        for frames in (job.graph[2], 1)
    )
    per_voxel = (2 * 4 + 1) * job.graph[1]
    if any(job.context):  # what is given, and first noise that goes on from it
        per_voxel += 2 * 4 * job.graph[1]
        spot = gradient.metadata.spot_noise
        start = max(start, 0 if spot is None else spot.between_bytes(job.graph[1:]))
    held += start
    return plan_windows(
        gradient,
        job.graph[2:],
        limit=limit,
        periodic=job.periodic,
        chains=count,
        held=held,
        per_voxel=per_voxel,
        constant=min(start, shortest),
        hint=hint,
    ).pieces


def synthesize(
    chains: Chains,
    metadata: Metadata,
    job: Plan,
    *,
    number: int,
    footage: Footage | None = None,
    progress: Progress | None = None,
) -> NDArray[np.uint8]:
    """Walk one chain from its first noise to a finished video; see `synthesize_together`.

    Args:
        chains: room for one video of the plan's graph size, from `Backend.chains`.
        metadata: of the model.
        job: from `plan`.
        number: of the video; with the seed it fixes every value of the noise, whatever other
            videos are made.
        footage: given video to begin from or to be held to.
        progress: told of each step.

    Returns:
        The video, uint8, (T, H, W, C), margins cut.

    Raises:
        DivergenceError: an energy or the result is not finite, the network fell silent, or the
            video is saturated or of one colour; nothing is replaced or hidden.
    """
    (video,) = synthesize_together(
        chains, metadata, job, numbers=[number], footage=footage, progress=progress
    )
    return video


def synthesize_together(
    chains: Chains,
    metadata: Metadata,
    job: Plan,
    *,
    numbers: Sequence[int],
    footage: Footage | None = None,
    progress: Progress | None = None,
) -> list[NDArray[np.uint8]]:
    """Walk several chains from their first noise to finished videos.

    Args:
        chains: room for as many videos of the plan's graph size.
        metadata: of the model.
        job: from `plan`.
        numbers: of the videos.
        footage: given video to begin from or to be held to.
        progress: told of each step.

    Returns:
        The videos, each uint8, (T, H, W, C), margins and given ends cut.

    Raises:
        DivergenceError: an energy or the result is not finite, the network fell silent, or the
            video is saturated or of one colour; nothing is replaced or hidden.
    """
    assert chains.shape == (len(numbers), *job.graph[1:])
    start(chains, metadata, job, numbers)
    first = 1
    if footage is not None:
        first = begin(chains, metadata, footage, job.n_steps, job.wrap)
    walk(chains, metadata, job, numbers=numbers, first=first, progress=progress)
    x = chains.read()
    kept = slice(job.margin + job.context[0], x.shape[2] - job.margin - job.context[1])
    mean = metadata.mean()
    if mean.ndim == 4:  # one image for each frame of the walk
        mean = mean[:, kept]
    videos = []
    for number, video in zip(numbers, x, strict=True):
        who, doing = f"chain {number} (seed {job.seed})", f"after {job.n_steps} steps"
        check_levels(video[:, kept], mean, metadata.pixel_scale, who, doing)
        pixels = cut_edges(to_pixels(video[:, kept], mean, metadata.pixel_scale), job.margin_size)
        check_pixels(pixels, who, doing)
        videos.append(pixels)
    return videos


def start(chains: Chains, metadata: Metadata, job: Plan, numbers: Sequence[int]) -> None:
    """Bring chains to where their walk starts: first noise, or what the coarser scales made.

    Raises:
        DivergenceError: a coarser scale's energy or result is not finite.
    """
    spot = metadata.spot_noise
    if metadata.scales == 1:
        init_std = metadata.init_std
        chains.start(seed=job.seed, numbers=numbers, init_std=init_std, spot=spot, wrap=job.wrap)
        return
    assert isinstance(chains, Pyramid), "chains of several scales come from `fitted_chains`"
    there = chains.coarser_metadata
    inner = coarser_plan(there, job)
    start(chains.coarser, there, inner, numbers)
    walk(chains.coarser, there, inner, numbers=numbers)
    assert isinstance(chains.coarser, HostChains | Pyramid)
    chains.coarser.release()
    give_back()
    made = to_finer(
        chains.coarser.read(),
        there.mean(),
        there.pixel_scale,
        metadata.mean(),
        metadata.pixel_scale,
    )
    # In the chains' own memory, and a frame at a time: what is made meanwhile is small.
    chains.start(
        seed=job.seed, numbers=numbers, init_std=metadata.init_std, spot=spot, wrap=job.wrap
    )
    x = chains.read()
    for video, coarse in zip(x, made, strict=True):
        for t in range(video.shape[1]):
            first = None if spot is None else video[:, t]
            video[:, t] = refine(first, coarse[:, t], job.wrap)
    chains.write(x)


def walk(
    chains: Chains,
    metadata: Metadata,
    job: Plan,
    *,
    numbers: Sequence[int],
    first: int = 1,
    progress: Progress | None = None,
) -> None:
    """Make the Langevin steps of a plan, from step `first` on, on chains that were started.

    Raises:
        DivergenceError: an energy or the result is not finite, or the network fell silent.
    """
    for step in range(first, job.n_steps + 1):
        noise = metadata.noise_at(step, job.n_steps)
        energy = chains.step(step, step_size=metadata.step_size, noise_scale=noise)
        if energy is not None:
            _check_energies(chains.energies()[-2:], max(first, step - 1), job, metadata, numbers)
        if progress is not None:
            progress(step, math.nan if energy is None else float(energy.mean()))
    energies = chains.energies()
    _check_energies(energies, first, job, metadata, numbers)
    for index, video in enumerate(chains.read()):
        who = f"chain {numbers[index]} (seed {job.seed})"
        last = float(energies[-1, index]) if len(energies) else math.nan
        if not np.isfinite(video.sum(dtype=np.float64)):
            raise not_finite(who, job.n_steps, last, None, metadata)
        if chains.silent[index]:
            raise silent(who, chains.silent[index], job.n_steps, last)


def _check_energies(
    energies: Float32, first: int, job: Plan, metadata: Metadata, numbers: Sequence[int]
) -> None:
    """Raise at the first energy that is not finite; row i of `energies` is of step first + i."""
    bad = np.argwhere(~np.isfinite(energies))
    if not len(bad):
        return
    row, chain = (int(index) for index in bad[0])
    raise not_finite(
        f"chain {numbers[chain]} (seed {job.seed})",
        first + row,
        float(energies[row, chain]),
        float(energies[row - 1, chain]) if row else None,
        metadata,
    )
