"""Fill what a mask hides of a video, with the known pixels clamped; needs no PyTorch."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from stg_runtime.artifact import Metadata
from stg_runtime.backends.base import Backend, Chains
from stg_runtime.errors import InputError
from stg_runtime.fill import fill, fill_bytes, interpolate_in_time
from stg_runtime.grids import refuse_scales
from stg_runtime.health import check_share, not_finite, silent
from stg_runtime.langevin import Float32
from stg_runtime.mask import Mask, dilate
from stg_runtime.spot import Spot, first_noise
from stg_runtime.video import Frames, to_model, to_pixels

Init = Literal["noise", "interpolate"]
Box = tuple[int, int, int, int]
"""(x, y, width, height), pixels of the video."""

MARGIN = 16  # pixels of known surroundings on each side of the mask that `--crop auto` takes along
NEAR = 8  # pixels from the mask's edge that count as its surroundings

Progress = Callable[[int, float], None]


@dataclass(frozen=True)
class Plan:
    """An inpainting that the model can do; make one with `plan`.

    Attributes:
        box: part of the frame that is walked.
        frames: (first, last + 1) of the frames that are walked; the others hide nothing.
        margin: frames walked beyond each of those ends and thrown away.
        graph: (N, C, T, H, W) of the walk.
        n_steps: Langevin steps.
        seed: of the noise.
        init: what hidden pixels begin at.
    """

    box: Box
    frames: tuple[int, int]
    margin: int
    graph: tuple[int, int, int, int, int]
    n_steps: int
    seed: int
    init: Init


@dataclass(frozen=True)
class Seam:
    """How the picture goes on across the mask's edge, from luminance, grey levels.

    Surroundings are compared along the same axis: waves differ more from row to row than along one,
    and most of a boat's edge lies along them.

    Attributes:
        step: mean absolute difference of two neighbours, one filled and one known.
        step_around: the same of two known neighbours near the edge.
        kink: mean absolute second difference of three in a row that straddle the edge: how much the
            gradient changes across it.
        kink_around: the same of three known ones near the edge.
    """

    step: float
    step_around: float
    kink: float
    kink_around: float

    @property
    def ratio(self) -> float:
        """Gradient discontinuity across the edge over that of the surroundings; 1: no seam."""
        return self.kink / self.kink_around if self.kink_around else math.nan


@dataclass(frozen=True)
class Inpainted:
    """A filled video.

    Attributes:
        frames: uint8, (T, H, W, C); known pixels are those of the input, bit for bit.
        beside: share of the hidden pixels that lie over something else than the model's texture, a
            bank beside the river: no model walked them, they are interpolated in time.
    """

    frames: Frames
    beside: float


def plan(
    metadata: Metadata,
    observed_mask: Mask,
    *,
    crop: Box | Literal["none", "auto"] = "none",
    n_steps: int | None = None,
    seed: int = 0,
    init: Init = "noise",
) -> Plan:
    """Check what is asked for against what the model can do; the defaults are the model's.

    Args:
        metadata: of the model.
        observed_mask: of the whole video, (T, H, W); something is hidden.
        crop: the part of the frame that is walked: the whole, a box, or "auto", the box around the
            mask and `MARGIN` pixels more, of the model's own size where that is fixed.
        n_steps: Langevin steps.
        seed: of the noise, 0 <= seed < 2^64.
        init: see `Plan`.

    Raises:
        InputError: a size that the model cannot walk, or a box that leaves hidden pixels out.
    """
    refuse_scales(metadata.scales, "inpaint")
    length, height, width = observed_mask.shape
    hidden = ~observed_mask
    rows, columns = (_extent(hidden.any(axes)) for axes in ((0, 2), (0, 1)))
    if crop == "none":
        box = (0, 0, width, height)
    elif crop == "auto":
        y, h = _around(rows, height, metadata, "H")
        x, w = _around(columns, width, metadata, "W")
        box = (x, y, w, h)
    else:
        box = crop
    x, y, w, h = box
    if x + w > width or y + h > height:
        raise InputError(
            f"--crop {x},{y},{w},{h} reaches outside the video's frames of {width}x{height} "
            "(width x height)"
        )
    if y > rows[0] or x > columns[0] or y + h < rows[1] or x + w < columns[1]:
        raise InputError(
            f"--crop {x},{y},{w},{h} leaves hidden pixels out; the mask spans "
            f"{columns[0]},{rows[0]},{columns[1] - columns[0]},{rows[1] - rows[0]}; pass a larger "
            "box or --crop auto"
        )
    for axis, name, size, fixed, least in (
        ("H", "height", h, metadata.graph_size.height, metadata.min_size.height),
        ("W", "width", w, metadata.graph_size.width, metadata.min_size.width),
    ):
        if axis not in metadata.free_axes and size != fixed:
            raise InputError(
                f"the model takes a {name} of {fixed} only, got {size}; pass --crop "
                f"X,Y,{metadata.graph_size.width},{metadata.graph_size.height} or --crop auto, or "
                "train with a recipe that is convolutional in space (recipe st)"
            )
        if size < least:
            raise InputError(f"the model takes a {name} of at least {least}, got {size}")
    margin = metadata.margin_frames
    first, last = _extent(hidden.any((1, 2)))
    # Known frames around give the walk its context, as far as the network reaches.
    first, last = max(0, first - 2 * margin), min(length, last + 2 * margin)
    if "T" not in metadata.free_axes:
        first, last = 0, length
        if length + 2 * margin != metadata.graph_size.frames:
            raise InputError(
                f"this model fills videos of {metadata.graph_size.frames - 2 * margin} frames "
                f"only, got {length}; export the run again without --static"
            )
    first = max(0, min(first, last - (metadata.min_size.frames - 2 * margin)))
    return Plan(
        box=box,
        frames=(first, last),
        margin=margin,
        graph=(1, metadata.channels, last - first + 2 * margin, h, w),
        n_steps=n_steps or metadata.n_steps,
        seed=seed,
        init=init,
    )


def _extent(some: NDArray[np.bool_] | np.bool_) -> tuple[int, int]:
    """First True, and one after the last."""
    index = np.flatnonzero(some)
    assert len(index), "nothing is hidden"
    return int(index[0]), int(index[-1]) + 1


def _around(
    span: tuple[int, int], size: int, metadata: Metadata, axis: Literal["H", "W"]
) -> tuple[int, int]:
    """Begin and extent of the box along an axis, around what is hidden."""
    name = "height" if axis == "H" else "width"
    least: int = getattr(metadata.min_size, name)
    if axis in metadata.free_axes:
        want = min(size, max(span[1] - span[0] + 2 * MARGIN, least))
    else:
        want = getattr(metadata.graph_size, name)
        if span[1] - span[0] > want:
            raise InputError(
                f"--crop auto: the mask has a {name} of {span[1] - span[0]}, the model walks "
                f"{want} only; train with a recipe that is convolutional in space (recipe st)"
            )
        if want > size:
            raise InputError(
                f"--crop auto: the video has a {name} of {size}, the model walks {want} only"
            )
    begin = (span[0] + span[1] - want) // 2
    return max(0, min(begin, size - want)), want


def inpaint(
    backend: Backend,
    job: Plan,
    frames: Frames,
    observed_mask: Mask,
    *,
    progress: Progress | None = None,
) -> Inpainted:
    """Fill the hidden pixels of a video.

    The walk begins at noise, as the model was trained to (at spot noise given the known pixels,
    where the model has it), or at a careful interpolation of the known pixels; the known ones are
    clamped at every step. So are hidden pixels over something else than the model's texture, which
    spot noise along space and time tells by what is seen there at other times (`Spot.elsewhere`):
    interpolated in time. A few frames more are walked at each end and thrown away, because zero
    padding in time makes the ends pale.

    Args:
        backend: with the model.
        job: from `plan`.
        frames: uint8, (T, H, W, C); hidden values are not read.
        observed_mask: True where the pixel is given, (T, H, W).
        progress: told of each step and of the energy before it.

    Raises:
        DivergenceError: an energy or the result is not finite, the network fell silent, or what was
            filled in is saturated.
    """
    metadata = backend.metadata
    x, y, w, h = job.box
    first, last = job.frames
    window = (slice(first, last), slice(y, y + h), slice(x, x + w))
    known = observed_mask[window]
    part = np.where(known[..., None], frames[window], np.uint8(0))
    # Beyond the ends: mirrored, as a start, and free to move.
    index = _mirrored(last - first, job.margin)
    pad = ((job.margin, job.margin), (0, 0), (0, 0))
    held = np.pad(known, pad)
    values = to_model(part[index], metadata.mean(), metadata.pixel_scale)
    spot = metadata.spot_noise
    texture = spot.evened() if spot is not None and spot.axes == "space-time" else None
    beside = 0
    if texture is not None:
        elsewhere = texture.elsewhere(values, held)
        beside = int(elsewhere[job.margin :][: len(known)].sum())
        values = np.where(elsewhere, interpolate_in_time(values, held), values)
        held |= elsewhere
    chains = backend.chains(job.graph)
    chains.start(seed=job.seed, numbers=[0], init_std=metadata.init_std)
    start = _start(metadata, job, part, known, values, held, texture)
    if start is not None:
        chains.write(start[None])
    del start, texture
    chains.clamp(values[None], np.broadcast_to(held, job.graph))
    _walk(chains, metadata, job, progress)
    walked = chains.read()[0, :, job.margin : job.margin + last - first]
    beyond = 0
    for t, free in enumerate(~known):
        image = metadata.mean()[:, t] if metadata.mean().ndim == 4 else metadata.mean()
        levels = walked[:, t] * np.float32(metadata.pixel_scale) + image
        beyond += int(np.count_nonzero(((levels < -0.5) | (levels > 255.5)) & free))
    check_share(
        beyond,
        len(walked) * int((~known).sum()),
        f"the walk (seed {job.seed})",
        f"after {job.n_steps} steps",
    )
    made = to_pixels(walked, metadata.mean(), metadata.pixel_scale)
    out = frames.copy()
    out[window] = np.where(known[..., None], frames[window], made)
    return Inpainted(out, beside / np.count_nonzero(~observed_mask))


def _start(
    metadata: Metadata,
    job: Plan,
    part: Frames,
    known: Mask,
    values: Float32,
    held: Mask,
    texture: Spot | None,
) -> Float32 | None:
    """Where the walk begins, (C, T, H, W) with its margins; None leaves white noise.

    Args:
        metadata: of the model.
        job: the plan.
        part: pixels of the box, 0 where hidden, (T, H, W, C).
        known: True where these are given.
        values: the box in model units, with margins.
        held: True where values are given, of the box with margins.
        texture: spot noise along space and time, where the model has it.
    """
    if job.init == "noise" and texture is not None:
        drawn = first_noise(texture, job.graph[1:], seed=job.seed, number=0, init_std=1.0)
        return texture.given(drawn, values, held)
    if job.init == "noise" and metadata.spot_noise is None:
        return None
    levels = fill(part.transpose(3, 0, 1, 2).astype(np.float32), known).x
    if job.init == "noise":
        levels += _missing(metadata, job, known)
    levels -= metadata.mean()[:, None]
    levels /= np.float32(metadata.pixel_scale)
    return np.ascontiguousarray(levels[:, _mirrored(len(known), job.margin)])


def held_bytes(job: Plan) -> int:
    """Bytes that `inpaint` holds besides videos, its chains and their gradient."""
    # Known values and where they are; the box's pixels.
    return (5 * job.graph[1] + 1) * math.prod(job.graph[2:])


def start_bytes(metadata: Metadata, job: Plan, hidden: int) -> int:
    """Bytes that the start of an inpainting takes at its peak, given back before the walk.

    Args:
        metadata: of the model.
        job: the plan.
        hidden: how many pixels are hidden, in all frames.
    """
    spot, one = metadata.spot_noise, 4 * math.prod(job.graph)
    if job.init == "noise" and spot is not None and spot.axes == "space-time":
        shape = job.graph[1:]
        # The gradient's buffer, counted elsewhere, is not touched yet: the draw is there.
        return max(spot.scratch_bytes(shape), spot.given_bytes(shape))
    if job.init == "noise" and spot is None:
        return 0
    pixels = (job.frames[1] - job.frames[0]) * job.box[2] * job.box[3]
    # For noise there are two interpolations, and the first is kept.
    return fill_bytes(pixels, hidden) + (one if job.init == "noise" else 0)


def _missing(metadata: Metadata, job: Plan, known: Mask) -> Float32:
    """What an interpolation of the known pixels lacks, drawn from spot noise, grey levels.

    Noise minus the interpolation of its own values at the known pixels: it vanishes towards them,
    so that no seam is there from the start, and deep in a hole it is the noise itself. If the
    interpolation were the best linear one, the sum would be a draw of the Gaussian video given the
    known pixels.

    Source: conditional simulation by kriging, Journel, Huijbregts, Mining Geostatistics, 1978.
    """
    frames = known.shape[0]
    noise = first_noise(
        metadata.spot_noise,
        (job.graph[1], frames, *job.graph[3:]),
        seed=job.seed,
        number=0,
        init_std=metadata.init_std,
    )
    levels = noise * np.float32(metadata.pixel_scale) + metadata.mean()[:, None]
    lacking: Float32 = levels - fill(np.where(known, levels, 0), known).x
    return lacking


def _mirrored(frames: int, margin: int) -> NDArray[np.intp]:
    """Indices of a video with mirrored ends: 2 1 0 1 2 3 ...; of any length."""
    if frames == 1:
        return np.zeros(1 + 2 * margin, np.intp)
    index = np.arange(-margin, frames + margin) % (2 * frames - 2)
    return np.where(index < frames, index, 2 * frames - 2 - index)


def _walk(chains: Chains, metadata: Metadata, job: Plan, progress: Progress | None) -> None:
    for step in range(1, job.n_steps + 1):
        noise = metadata.noise_at(step, job.n_steps)
        energy: Float32 | None = chains.step(step, step_size=metadata.step_size, noise_scale=noise)
        if energy is not None and not np.isfinite(energy).all():
            break
        if progress is not None:
            progress(step, math.nan if energy is None else float(energy.mean()))
    energies = chains.energies()[:, 0]
    bad = np.flatnonzero(~np.isfinite(energies))
    who = f"the walk (seed {job.seed})"
    if len(bad) or not np.isfinite(chains.read().sum(dtype=np.float64)):
        row = int(bad[0]) if len(bad) else job.n_steps - 1
        before = float(energies[row - 1]) if row and len(bad) else None
        raise not_finite(who, row + 1, float(energies[row]), before, metadata)
    if chains.silent[0]:
        raise silent(who, chains.silent[0], job.n_steps, float(energies[-1]))


def seam(frames: Frames, observed_mask: Mask) -> Seam | None:
    """Compare differences across the mask's edge with those of its known surroundings.

    Args:
        frames: the filled video, uint8, (T, H, W, 3).
        observed_mask: (T, H, W).

    Returns:
        The figures; None where no frame has an edge with known surroundings.
    """
    sums = np.zeros((2, 4, 2))  # axis; step, step around, kink, kink around; total, count
    for frame, known in zip(frames, observed_mask, strict=True):
        if known.all() or not known.any():
            continue
        luma = frame.astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32)
        near = dilate(~known, NEAR)
        for along, (turned, k, close) in zip(
            sums, ((luma, known, near), (luma.T, known.T, near.T)), strict=True
        ):
            step = np.abs(np.diff(turned, axis=0))
            across = k[1:] != k[:-1]
            around = k[1:] & k[:-1] & close[1:] & close[:-1]
            kink = np.abs(np.diff(turned, 2, axis=0))
            straddles = across[1:] | across[:-1]
            plain = around[1:] & around[:-1]
            for i, (value, where) in enumerate(
                ((step, across), (step, around), (kink, straddles), (kink, plain))
            ):
                along[i] += value[where].sum(dtype=np.float64), where.sum()
    total, count = sums[..., 0], sums[..., 1]
    # An axis counts where the edge crosses it, as often as it does.
    weight = count[:, [0, 0, 2, 2]] * (count > 0).all(1, keepdims=True)
    if (weight.sum(0) == 0).any():
        return None
    mean = (weight * total / np.maximum(count, 1)).sum(0) / weight.sum(0)
    return Seam(*(float(value) for value in mean))
