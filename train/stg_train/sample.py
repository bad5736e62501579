"""Fresh samples of a learned energy: what `stg-run synthesize` will make of its export."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stg_runtime.errors import DivergenceError
from stg_runtime.grids import coarser_seed, refine
from stg_runtime.langevin import standard_normal
from stg_runtime.memory import give_back
from stg_runtime.spot import first_noise
from stg_runtime.video import cut_edges, to_pixels
from stg_train.chains import walk
from stg_train.descriptor import Network
from stg_train.learn import Learner, depth_at
from stg_train.recipe import Recipe

PATH_STOPS = 10
PATH_FRAMES = 4


@dataclass(frozen=True)
class Samples:
    """Videos walked from fresh noise.

    Attributes:
        videos: uint8, (N, T, H, W, C), margins cut.
        path: the first video on its way, uint8, (P, F, H, W, C): F evenly spaced frames after each
            of P numbers of steps.
        path_steps: those numbers, from 0 (noise) to K (done).
    """

    videos: NDArray[np.uint8]
    path: NDArray[np.uint8]
    path_steps: tuple[int, ...]


def lengths(recipe: Recipe, descriptor: Network) -> tuple[int, int]:
    """Frames of a synthesized video, and of the margin that is walked and cut at each end.

    Where the network is full in time the walk has the trained length, margins included.
    """
    margin = recipe.output.margin_frames
    if "T" in descriptor.free_axes:
        return recipe.data.frames, margin
    margin = min(margin, (recipe.data.trained_frames - 1) // 2)
    return recipe.data.trained_frames - 2 * margin, margin


def sample(learner: Learner, *, count: int, seed: int) -> Samples:
    """Walk short-run chains from noise that no training chain has seen.

    As long as the prepared clips, with the recipe's K, step and margins, in float32, whatever
    regime it was learned in. The noise is the runtime's (seed, chain), so that `stg-run synthesize`
    with the same seed makes the same videos from the exported file, up to rounding.

    Args:
        learner: its energy is used as it is; nothing of its state changes.
        count: videos, walked one after the other.
        seed: of the noise, 0 <= seed < 2^64.

    Raises:
        DivergenceError: a chain is not finite.
    """
    give_back()  # an update leaves the heap in pieces
    recipe = learner.recipe
    langevin = recipe.langevin
    frames, margin = lengths(recipe, learner.descriptor)
    stops = _stops(langevin.n_steps)
    scales = learner.scales()
    depths = [scale.descriptor.depth for scale in scales]
    for scale in scales:
        # The layers that the last update made learned with, as `load_energy` takes them.
        scale.descriptor.depth = depth_at(recipe, max(learner.update_count - 1, 0))
        scale.energy.requires_grad_(False)
    videos: list[NDArray[np.uint8]] = []
    path: list[NDArray[np.uint8]] = []
    try:
        for chain in range(count):
            for x in _walk(learner, seed, chain, stops):
                if not bool(torch.isfinite(x).all()):
                    raise DivergenceError(
                        f"a video from fresh noise (seed {seed}, chain {chain}) became non-finite "
                        f"within {langevin.n_steps} steps; lower langevin.step_size (now "
                        f"{langevin.step_size:g})"
                    )
                last = _pixels(learner, x[0])[margin : margin + frames]  # (T, H, W, C)
                last = cut_edges(last, recipe.output.margin_size)
                if chain == 0:
                    times = np.linspace(0, frames - 1, PATH_FRAMES).round().astype(int)
                    path.append(last[times])
            videos.append(last)
    finally:
        for scale, depth in zip(scales, depths, strict=True):
            scale.descriptor.depth = depth
            scale.energy.requires_grad_(True)
    return Samples(np.stack(videos), np.stack(path), tuple(stops))


def _stops(n_steps: int) -> list[int]:
    """0, K, and about `PATH_STOPS` numbers of steps in all between them."""
    return sorted({round(stop) for stop in np.linspace(0, n_steps, PATH_STOPS + 1)})


def _walk(learner: Learner, seed: int, chain: int, stops: list[int]) -> Iterator[Tensor]:
    """The chain, (1, C, T, H, W), model units, after each number of steps in `stops`.

    Of several scales the finest one's; the coarser ones are walked to their end before it.
    """
    recipe, device = learner.recipe, learner.device
    langevin = recipe.langevin
    frames, margin = lengths(recipe, learner.descriptor)
    height, width = (extent + 2 * recipe.output.margin_size for extent in recipe.data.size)
    shape = (1, learner.observed.pixels.shape[-1], frames + 2 * margin, height, width)

    def noise(step: int) -> Tensor:
        values = standard_normal(int(np.prod(shape)), seed=seed, chain=chain, step=step)
        return torch.from_numpy(values).reshape(shape).to(device)

    first = None
    if learner.spot is not None or learner.coarser is None:
        first = first_noise(
            learner.spot,
            (shape[1], shape[2], shape[3], shape[4]),
            seed=seed,
            number=chain,
            init_std=langevin.init_std,
        )[None]
    if learner.coarser is not None:
        (coarse,) = _walk(learner.coarser, coarser_seed(seed), chain, [langevin.n_steps])
        first = refine(first, learner.from_coarser(coarse))
    assert first is not None
    give_back()
    x = torch.from_numpy(first).to(device)
    if stops[0] == 0:
        yield x
    for begin, end in pairwise([0, *(stop for stop in stops if stop)]):
        x, _ = walk(
            learner.energy,
            x,
            n_steps=end - begin,
            step_size=langevin.step_size,
            noise_scale=lambda step, begin=begin: langevin.noise_at(begin + step),  # type: ignore[misc]
            draw=lambda step, _, begin=begin: noise(begin + step),  # type: ignore[misc]
        )
        yield x


def _pixels(learner: Learner, x: Tensor) -> NDArray[np.uint8]:
    observed = learner.observed
    return to_pixels(x.float().cpu().contiguous().numpy(), observed.mean, observed.scale)
