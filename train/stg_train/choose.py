"""Choose recipe, length and window for clips of which nobody said what they are.

The question is whether a texture looks alike everywhere: then the network may be convolutional in
space, and the model makes videos of any size. What first noise along space and time makes of the
clip answers it, measured as any samples are, beside what noise along time alone makes.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stg_runtime.clip_checks import mean_colours
from stg_runtime.errors import InputError
from stg_runtime.measures import MIN_FRAMES, compare
from stg_runtime.spot import Axes
from stg_runtime.video import count_clips, count_frames, to_pixels
from stg_train.exemplars import MOST_MOMENTS
from stg_train.observed import Observed, read_observed
from stg_train.recipe import Recipe, Scale, load_recipe
from stg_train.select import mean_score

# A network that is free in space is worth this factor in the score of its first noise.
FREE_IN_SPACE = 1.5
# Further than so from the clip, it does not look like it.
FAR = 2.0
DRAWS = 2
SEED = 0
LEAST_WINDOW = 8
# Of `coherence`, from which on a scene's places move as one: neon tubes read .65, the light of a
# candle .46, boiling water .15, fire, smoke, flags, rain and waterfalls less than .07.
AS_ONE = 0.3
COHERENT_FRAMES = 16  # of fewer, nothing is said
# Recipes for one scene and for textures alike everywhere, where a regime is asked for that needs
# its own.
_RECIPES = {"denoising": ("denoising", "denoising-st"), "multi-grid": ("fc-s", "st")}


@dataclass(frozen=True)
class Choice:
    """A recipe for some clips, and what spoke for it.

    Attributes:
        recipe: the recipe, its frames and window fitted to the clips.
        why: one line.
    """

    recipe: Recipe
    why: str


def choose(
    videos: Sequence[str], scale: Scale | None = None, overrides: dict[str, Any] | None = None
) -> Choice:
    """The recipe for clips, by what they are.

    Args:
        videos: files or folders, as `Data.videos`, at least one.
        scale: see `load_recipe`.
        overrides: what was asked for, see `load_recipe`; it is heeded.

    Raises:
        InputError: a clip cannot be read or used; a value is out of range.
    """
    given = {key: value for key, value in (overrides or {}).items() if value is not None}
    if given.get("data.align"):
        return Choice(load_recipe("action", scale=scale, overrides=given), "--align: an action")
    located, free = _RECIPES.get(given.get("learning.regime", ""), ("exemplars", "st"))
    if located == "exemplars" and given.get("data.mask") is not None:
        located = "fc-s"  # what is hidden is no exemplar
    base = load_recipe(located, scale=scale, overrides=_lengthless(given))
    start, most = base.data.start, given.get("data.frames") or base.data.frames
    counts = [
        count_frames(Path(video), clip, at_most=start + most)
        for video in videos
        for clip in range(count_clips(Path(video)))
    ]
    available = min(counts) - start
    if located == "exemplars" and not _exemplary(base, min(available, most), len(counts), given):
        located = "fc-s"
    if available == 1:
        return Choice(load_recipe("texture-2d", scale=scale, overrides=given), "a still image")
    given = _fitted(given, available, base)
    time = load_recipe(located, scale=scale, overrides=given)
    if time.data.mask is not None:
        return Choice(time, "with a mask nothing is measured beforehand")
    if time.data.frames < MIN_FRAMES:
        return Choice(time, f"{time.data.frames} frames are too few to measure")
    cells = given.pop("langevin.noise_cells", None)  # none along space and time
    space = load_recipe(free, scale=scale, overrides=given)
    with _observed(time) as observed:
        along_time, together = _score(observed, "time"), coherence(observed.pixels)
    with _observed(space) as observed:
        everywhere = _score(observed, "space-time")
    if along_time is None or everywhere is None:
        return Choice(time, "the clips are too small to measure, or hardly move")
    figures = (
        f"first noise along space and time is {everywhere:.2g} from the clip, along time alone "
        f"{along_time:.2g}"
    )
    if everywhere <= min(FREE_IN_SPACE * along_time, FAR):
        return Choice(space, f"it looks alike everywhere ({figures})")
    if together < AS_ONE or time.langevin.first_noise != "time" or cells is not None:
        return Choice(time, f"every place has its own behaviour ({figures})")
    time = load_recipe(located, scale=scale, overrides=given | {"langevin.noise_cells": 1})
    return Choice(time, f"its places move as one ({together:.2g} of 1; {figures})")


def coherence(clips: NDArray[np.uint8]) -> float:
    """Share of the movement at one place that goes with that of a place a third of a frame off.

    Squared correlations of brightness over time, weighted by how much the places move, less what
    chance makes of places that have nothing in common: they move slowly, and the clip is short.

    Args:
        clips: (M, T, H, W, C), grey levels.

    Returns:
        At most 1; about 0 for places that have nothing in common, and for a few frames.
    """
    _, frames, height, width, _ = clips.shape
    if frames < COHERENT_FRAMES:
        return 0.0
    found = []
    for clip in clips:
        grey = mean_colours(clip).mean(-1)
        rows, columns = grey.shape[1:]
        y, x = np.divmod(np.arange(rows * columns), columns)
        y, x = y * height / rows, x * width / columns
        apart = np.hypot(y[:, None] - y, x[:, None] - x) * 3 / min(height, width)
        moved = grey.reshape(frames, -1) - grey.reshape(frames, -1).mean(0)
        spread = np.sqrt(np.square(moved).mean(0))
        moved /= np.sqrt(np.square(spread) + 1)  # what hardly moves has no correlation
        weights = np.outer(spread, spread) * ((apart > 0.9) & (apart < 1.3))
        squares = np.square(moved.T @ moved / frames)
        # Of independent places, the sum over lags of the product of their autocorrelations.
        power = np.square(np.abs(np.fft.rfft(moved, 2 * frames, axis=0)))
        own = np.fft.irfft(power, axis=0) / frames
        chance = own.T @ own / frames
        weight = max(float(weights.sum()), 1e-9)
        together, alone = ((weights * of).sum() / weight for of in (squares, chance))
        found.append(float((together - alone) / max(1 - alone, 1e-9)))
    return sum(found) / len(found)


def _exemplary(base: Recipe, frames: int, clips: int, given: dict[str, Any]) -> bool:
    """Have clips of so many frames exemplars, and not too many?"""
    assert base.network.exemplars is not None
    moments = frames * clips * (given.get("data.windows") or 1)
    return frames >= base.network.exemplars.frames and moments <= MOST_MOMENTS


def _lengthless(given: dict[str, Any]) -> dict[str, Any]:
    """Without what cannot be checked before the clips' length is known."""
    return {key: value for key, value in given.items() if key not in ("data.frames", "data.window")}


def _fitted(given: dict[str, Any], available: int, base: Recipe) -> dict[str, Any]:
    """With frames and window that the clips have, where neither was asked for."""
    fitted = dict(given)
    frames = given.get("data.frames")
    if frames is None and 0 < available < base.data.frames:
        frames = fitted["data.frames"] = available
    if frames is not None and "data.window" not in given and base.data.window is not None:
        # A window much shorter than the clip: one as long would be learned as a replay.
        window = max(min(LEAST_WINDOW, frames), 2 * frames // 3)
        fitted["data.window"] = min(base.data.window, window)
    return fitted


@contextmanager
def _observed(recipe: Recipe) -> Iterator[Observed]:
    """The recipe's clips."""
    with tempfile.TemporaryFile() as file, _quiet():
        yield read_observed(recipe.data, recipe.pixels, file)


def _score(observed: Observed, axes: Axes) -> float | None:
    """How far first noise along these axes is from the clips, see `select.mean_score`.

    None where that cannot be measured.
    """
    spot = observed.spot(axes)
    _, T, H, W, C = observed.pixels.shape
    rng = np.random.default_rng(SEED)
    made = []
    for _ in range(DRAWS):
        noise = rng.standard_normal(spot.noise_size((C, T, H, W))).astype(np.float32)
        video = spot.make(noise, (C, T, H, W))
        made.append(to_pixels(video, observed.mean, observed.scale))
    try:
        found = compare(list(observed.pixels), made)
    except InputError:
        return None
    return mean_score(found)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the warnings about clips, which the run itself gives."""
    logger = logging.getLogger("stg_train.observed")
    logger.addFilter(_nothing)
    try:
        yield
    finally:
        logger.removeFilter(_nothing)


def _nothing(_record: logging.LogRecord) -> bool:
    return False
