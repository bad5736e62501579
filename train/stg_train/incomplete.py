"""Learning from incomplete video: hidden pixels are recovered while the model is learned.

Before each update the hidden pixels of the windows that it learns from are themselves sampled with
Langevin dynamics, the visible ones clamped, from first values (`stg_runtime.fill.fill`) or on from
where the last walk ended (`Incomplete.regime`). Hidden values of the source are never read: the
prepared clips hold zeros there.

RUN/mask.npy               True where a pixel is given, N x T x H x W
RUN/truth.npy              what a generated pattern hid; read by `finish` alone
RUN/recovered.npy, .mp4    the estimate of least error, uint8, N x T x H x W x 3
RUN/recovered-sample.mp4   the chain as it was left: a sample; its error is larger
RUN/recovery.json          figures

Source: Xie, Zhu, Wu, CVPR 2017, section on learning from incomplete data (Algorithm 2); the
estimate, and its start, are ours.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from stg_runtime.artifact import MEAN_STEPS
from stg_runtime.errors import DivergenceError, InputError
from stg_runtime.files import atomic_save_array, atomic_write_text
from stg_runtime.fill import Filled, best_shares, fill, mean_image
from stg_runtime.inpaint import seam
from stg_runtime.mask import read_masked_clip
from stg_runtime.video import count_clips, load_array, tile, to_model, to_pixels
from stg_runtime.video_write import write_video
from stg_train.chains import Draw, walk
from stg_train.observed import Observed, check_sizes
from stg_train.recipe import Data, Pixels, Recipe

if TYPE_CHECKING:
    from stg_train.learn import Learner

MASK = "mask.npy"
TRUTH = "truth.npy"
RECOVERED = "recovered.npy"
FIGURES = "recovery.json"
LEFT = (MASK, TRUTH, RECOVERED, "recovered.mp4", "recovered-sample.mp4", FIGURES)
"""Files that an incomplete run leaves besides every run's."""


SHARES = (0.0, 0.02, 0.05, 0.1, 0.2, 0.35, 0.5, 0.75, 1.0)
"""Of the descent's correction, to choose from; small ones as a young model knows little."""


def read_incomplete(
    data: Data, pixels: Pixels, seed: int
) -> tuple[Observed, NDArray[np.uint8] | None]:
    """Decode and prepare every video of a recipe with its mask.

    Args:
        data: with a mask.
        pixels: how grey levels become model units; only visible pixels take part.
        seed: of a pattern; each clip has a mask of its own.

    Returns:
        The clips, zero where hidden, and what a pattern hid, (M, T, H, W, 3), or None.

    Raises:
        InputError: see `read_masked_clip` and `read_observed`.
    """
    assert data.mask is not None
    check_sizes(data)
    clips = [
        read_masked_clip(
            Path(video),
            data.mask,
            size=data.size,
            frames=data.frames,
            start=data.start,
            crop=data.crop,
            clip=clip if count > 1 else None,
            mask_resize=data.mask_resize,
            mask_grow=data.mask_grow,
            seed=seed + number,
        )
        for number, (video, clip, count) in enumerate(
            (video, clip, count)
            for video in data.videos
            for count in [count_clips(Path(video))]
            for clip in range(count)
        )
    ]
    stack = np.stack([clip.frames for clip in clips])
    mask = np.stack([clip.observed_mask for clip in clips])
    truths = [clip.truth for clip in clips if clip.truth is not None]
    truth = np.stack(truths) if truths else None
    return scale_visible(stack, mask, clips[0].fps, pixels), truth


def scale_visible(
    stack: NDArray[np.uint8], observed_mask: NDArray[np.bool_], fps: float, pixels: Pixels
) -> Observed:
    """Choose mean and scale from the visible pixels alone; see `scale_observed`.

    Args:
        stack: uint8, (M, T, H, W, C).
        observed_mask: (M, T, H, W).
        fps: frames per second.
        pixels: what mean and what scale.

    Raises:
        InputError: nothing visible differs from the mean.
    """
    # All clips as one video: (C, M T, H, W).
    levels = stack.reshape(-1, *stack.shape[2:]).transpose(3, 0, 1, 2).astype(np.float32)
    seen = observed_mask.reshape(-1, *observed_mask.shape[2:])
    if pixels.mean == "image":
        mean = mean_image(levels, seen).astype(np.float64)
    else:
        mean = np.array([value[seen].mean(dtype=np.float64) for value in levels])[:, None, None]
    mean = np.rint(mean * MEAN_STEPS) / MEAN_STEPS
    spread = sum(
        float(np.square(value - m)[seen].sum(dtype=np.float64))
        for value, m in zip(levels, mean, strict=True)
    )
    variance = spread / (len(levels) * int(seen.sum()))
    if variance < 0.25:
        what = "do not move" if pixels.mean == "image" else "are one flat colour"
        raise InputError(
            f"the visible parts of the training clips {what} (standard deviation "
            f"{variance**0.5:.2f} grey levels); give a video in which something moves, or another "
            "--start, --crop or --mask"
        )
    scale = variance**0.5 if pixels.scale == "std" else pixels.scale
    return Observed(stack, fps, mean.astype(np.float32), scale, observed_mask)


def read_run_mask(path: Path, pixels: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """The mask that a run was started with.

    Raises:
        InputError: missing, or not of the run's clips.
    """
    mask = load_array(path)
    fits = mask.dtype == bool and mask.shape == pixels.shape[:-1]
    if not fits or pixels[~mask].any():
        raise InputError(f"{path}: not the mask that the run was started with")
    return np.asarray(mask)


class Recovery:
    """The recovery chains of incomplete clips, in model units on the learner's device.

    Attributes:
        border: frames at a cut end of a window that do not move, because the network pads there.

    Args:
        recipe: with `device` resolved.
        observed: clips with a mask.
    """

    def __init__(self, recipe: Recipe, observed: Observed) -> None:
        assert observed.observed_mask is not None
        self.recipe = recipe
        self.border = min(recipe.output.margin_frames, recipe.data.trained_frames // 4)
        self._observed = observed
        self._device = torch.device(recipe.device)
        mask = torch.from_numpy(observed.observed_mask)[:, None]
        self._visible = mask.to(self._device)  # (M, 1, T, H, W)
        self._first: Tensor | None = None
        self._x: Tensor | None = None

    @property
    def first(self) -> Tensor:
        """The first values, (M, C, T, H, W); made when they are first asked for."""
        if self._first is None:
            filled = [self.to_units(m, found.x) for m, found in enumerate(self.fills())]
            self._first = torch.from_numpy(np.stack(filled)).to(self._device)
        return self._first

    @property
    def x(self) -> Tensor:
        """The chains as they are now, (M, C, T, H, W)."""
        if self._x is None:
            self._x = self.first.clone()
        return self._x

    def restore(self, x: Tensor, first: Tensor) -> None:
        """Take the state of a checkpoint."""
        expected = (len(self._visible), self._observed.pixels.shape[-1], *self._visible.shape[2:])
        if x.shape != expected or first.shape != expected:
            raise ValueError(f"recovery of shape {tuple(x.shape)}, expected {expected}")
        self._x, self._first = x.to(self._device).clone(), first.to(self._device)

    def restart(self) -> None:
        """Begin again from the first values."""
        self._x = None

    def fills(self) -> list[Filled]:
        """The first values of each clip in grey levels, with how they were found."""
        assert self._observed.observed_mask is not None
        return [
            fill(clip.transpose(3, 0, 1, 2).astype(np.float32), mask, seed=self.recipe.seed + m)
            for m, (clip, mask) in enumerate(
                zip(self._observed.pixels, self._observed.observed_mask, strict=True)
            )
        ]

    def to_units(
        self, m: int, levels: NDArray[np.float32], observed_mask: NDArray[np.bool_] | None = None
    ) -> NDArray[np.float32]:
        """Grey levels of clip `m` to model units, (C, T, H, W).

        Args:
            m: number of the clip.
            levels: (C, T, H, W).
            observed_mask: where values are taken from the clip itself, exactly as in training;
                None for all that are visible.
        """
        observed = self._observed
        assert observed.observed_mask is not None
        mask = observed.observed_mask[m] if observed_mask is None else observed_mask
        scaled = (levels - observed.mean[:, None]) / np.float32(observed.scale)
        visible = to_model(observed.pixels[m], observed.mean, observed.scale)
        return np.where(mask, visible, scaled)

    def walk_windows(
        self,
        energy: nn.Module,
        clips: Sequence[int],
        starts: Sequence[int],
        frames: int,
        draw: Draw,
    ) -> Tensor:
        """Move the hidden pixels of some windows by a few Langevin steps, and keep them.

        Pixels within `border` of an end of the window that is no end of the clip stay, and give
        the rest its surroundings.

        Returns:
            The windows, (len(clips), C, frames, H, W), model units; visible values as given.

        Raises:
            DivergenceError: a value is not finite; the chains keep their state.
        """
        length = self.x.shape[2]
        persistent = self.recipe.incomplete.regime == "persistent"
        begin = self.x if persistent else self.first
        before = torch.stack(
            [begin[m, :, t : t + frames] for m, t in zip(clips, starts, strict=True)]
        )
        held = torch.stack(
            [self._visible[m, :, t : t + frames] for m, t in zip(clips, starts, strict=True)]
        )
        for clamped, t in zip(held, starts, strict=True):
            if t > 0:
                clamped[:, : self.border] = True
            if t + frames < length and self.border:
                clamped[:, -self.border :] = True
        after = self._clamped_walk(energy, before, held, self.recipe.incomplete.n_steps, draw)
        if not torch.isfinite(after).all():
            raise DivergenceError(
                "a recovered pixel became non-finite; lower langevin.step_size (now "
                f"{self.recipe.langevin.step_size:g}) or learning.learning_rate (now "
                f"{self.recipe.learning.learning_rate:g})"
            )
        for m, t, window in zip(clips, starts, after, strict=True):
            self.x[m, :, t : t + frames] = window
        return after

    def _clamped_walk(
        self,
        energy: nn.Module,
        x: Tensor,
        held: Tensor,
        n_steps: int,
        draw: Draw | None,
    ) -> Tensor:
        """Langevin steps of the values that are not `held`; without `draw`, noise-free."""
        langevin = self.recipe.langevin
        given = x
        for step in range(1, n_steps + 1):
            x, _energies = walk(
                energy,
                x,
                n_steps=1,
                step_size=langevin.step_size,
                noise_scale=langevin.noise_at(step, n_steps) if draw else 0.0,
                draw=draw or (lambda _step, like: like),
                precision=self.recipe.precision,
            )
            x = torch.where(held, given, x)
        return x

    def descents(
        self, energy: nn.Module, x: NDArray[np.float32], observed_mask: NDArray[np.bool_]
    ) -> list[NDArray[np.float32]]:
        """Noise-free descents of hidden values, after 1, 2, 5, 10, ... steps.

        Args:
            energy: the learned one.
            x: (C, T, H, W), model units.
            observed_mask: (T, H, W).
        """
        held = torch.from_numpy(observed_mask)[None, None].to(self._device)
        now = torch.from_numpy(x)[None].to(self._device)
        made, results = 0, []
        for steps in self.descent_steps():
            now = self._clamped_walk(energy, now, held, steps - made, None)
            made = steps
            results.append(now[0].cpu().numpy())
        return results

    def descent_steps(self) -> list[int]:
        """The lengths of the descents that are tried."""
        most = self.recipe.incomplete.finish_steps
        return [steps for steps in (1, 2, 5, 10, 20, 50, 100) if steps <= most]


@dataclass(frozen=True)
class Recovered:
    """Figures of a recovery; errors are mean absolute ones over hidden pixels, grey levels 0..255.

    Attributes:
        hidden: share of the pixels that was hidden.
        error: of the estimate, where the truth is known (a generated pattern), else None.
        error_first: of the first values, before anything was learned by the network.
        error_sample: of the chain.
        steps: descent steps of the estimate, one number per clip.
        shares: how much of the descent's correction the estimate takes, for each clip and each
            class of pixels of `stg_runtime.fill`; chosen on held-out visible pixels.
        seams: gradient discontinuity of each clip's estimate across the mask's edge over that
            around it, see `stg_runtime.inpaint.seam`; None where there is no such edge.
    """

    hidden: float
    error: float | None
    error_first: float | None
    error_sample: float | None
    steps: tuple[int, ...]
    shares: tuple[tuple[float, ...], ...]
    seams: tuple[float | None, ...]


def finish(learner: Learner, folder: Path) -> Recovered:
    """Write the recovery of a run, and its error where the truth is known.

    The estimate begins at the first values and goes down the energy without noise. How far, and
    how much of the way is taken in each class of pixels, perhaps nothing, is what recovers visible
    pixels best that were held out for it; so it is never much worse than the first values, and
    better where the model knows more than they do. Visible pixels are those of the prepared clip,
    bit for bit. The truth is opened last, after everything is decided.

    Args:
        learner: of an incomplete run.
        folder: of the run; see the module's head for what is written.
    """
    recovery, observed = learner.recovery, learner.observed
    assert recovery is not None and observed.observed_mask is not None
    learner.energy.requires_grad_(False)
    estimates, firsts, steps, shares = [], [], [], []
    for m, found in enumerate(recovery.fills()):
        mask = observed.observed_mask[m]
        x = recovery.to_units(m, found.x)
        firsts.append(x)
        step, share, guess = _estimate(learner, recovery, m, found, x, mask)
        estimates.append(guess)
        steps.append(step)
        shares.append(share)
    sample = recovery.x.cpu().numpy()

    def pixels(videos: Sequence[NDArray[np.float32]]) -> NDArray[np.uint8]:
        made = np.stack([to_pixels(video, observed.mean, observed.scale) for video in videos])
        assert observed.observed_mask is not None
        return np.where(observed.observed_mask[..., None], observed.pixels, made)

    recovered, first, chain = pixels(estimates), pixels(firsts), pixels(list(sample))
    atomic_save_array(folder / RECOVERED, recovered)
    for name, stack in (("recovered.mp4", recovered), ("recovered-sample.mp4", chain)):
        video = tile(stack) if len(stack) > 1 else stack[0]
        write_video(folder / name, video, observed.fps, overwrite=True)
    hidden = ~observed.observed_mask
    errors: list[float | None] = [None, None, None]
    if (folder / TRUTH).exists():
        truth = np.load(folder / TRUTH, allow_pickle=False)[hidden].astype(np.int16)
        errors = [float(np.abs(v[hidden] - truth).mean()) for v in (recovered, first, chain)]
    result = Recovered(
        hidden=float(hidden.mean()),
        error=errors[0],
        error_first=errors[1],
        error_sample=errors[2],
        steps=tuple(steps),
        shares=tuple(shares),
        seams=tuple(map(_seam, recovered, observed.observed_mask)),
    )
    atomic_write_text(folder / FIGURES, json.dumps(asdict(result), indent=2) + "\n")
    return result


def _seam(video: NDArray[np.uint8], mask: NDArray[np.bool_]) -> float | None:
    found = seam(video, mask)
    return None if found is None or not math.isfinite(found.ratio) else found.ratio


def _estimate(
    learner: Learner,
    recovery: Recovery,
    m: int,
    found: Filled,
    x: NDArray[np.float32],
    mask: NDArray[np.bool_],
) -> tuple[int, tuple[float, ...], NDArray[np.float32]]:
    """Steps, shares and the estimate of one clip, (C, T, H, W), model units."""
    if not found.lessons:
        return 0, (), x
    for lesson in found.lessons:
        lesson.x = recovery.to_units(m, lesson.x, lesson.observed_mask)
    # Only visible values are looked at as truth, and they are those of `x`.
    descended = [
        recovery.descents(learner.energy, lesson.x, lesson.observed_mask)
        for lesson in found.lessons
    ]
    best: tuple[float, int, NDArray[np.float32]] | None = None
    for i in range(len(recovery.descent_steps())):
        corrected = [ways[i] for ways in descended]
        share = best_shares(x, found.lessons, corrected, SHARES)
        error = 0.0
        for lesson, moved in zip(found.lessons, corrected, strict=True):
            at = (slice(None), *lesson.held.T)
            weight = share[lesson.kind[tuple(lesson.held.T)]]
            guess = lesson.x[at] + weight * (moved[at] - lesson.x[at])
            error += float(np.abs(guess - x[at]).sum(dtype=np.float64))
        if best is None or error < best[0]:
            best = error, i, share
    assert best is not None
    _, i, share = best
    kind = found.kind
    moved = recovery.descents(learner.energy, x, mask)[i]
    estimate = x + share[kind] * (moved - x)
    return recovery.descent_steps()[i], tuple(float(s) for s in share), estimate
