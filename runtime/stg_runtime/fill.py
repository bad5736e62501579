"""First values for hidden pixels, from the visible ones alone: the start of every recovery.

Everything here works on float arrays (C, T, H, W) in any unit, with one `observed_mask`,
(T, H, W), for all colours, and never reads a hidden value.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stg_runtime.kriging import conditional_mean
from stg_runtime.motion import along_motion

Float32 = NDArray[np.float32]
Mask = NDArray[np.bool_]


def interpolate_in_time(x: Float32, observed_mask: Mask) -> Float32:
    """Fill each hidden pixel on the line between its nearest visible moments.

    Before the first and after the last visible moment the value is held; a pixel that is never
    visible is filled from its neighbours in space (`pull_push` of the visible pixels' means).

    Args:
        x: (C, T, H, W).
        observed_mask: True where the value is given, (T, H, W).

    Returns:
        A new array; visible values are those of `x`, bit for bit.
    """
    frames = observed_mask.shape[0]
    number = np.arange(frames, dtype=np.int32)[:, None, None]
    before = np.maximum.accumulate(np.where(observed_mask, number, -1), axis=0)
    after = np.minimum.accumulate(np.where(observed_mask, number, frames)[::-1], axis=0)[::-1]
    never = ~observed_mask.any(0)
    left = np.where(before >= 0, before, after)
    right = np.where(after < frames, after, before)
    left, right = (np.where(never, 0, np.clip(index, 0, frames - 1)) for index in (left, right))
    gap = np.maximum(right - left, 1)
    share = ((number - left) / gap).clip(0, 1).astype(np.float32)
    known = np.where(observed_mask, x, np.float32(0))
    out = np.empty_like(known)
    for source, target in zip(known, out, strict=True):
        first = np.take_along_axis(source, left, 0)
        target[:] = first + share * (np.take_along_axis(source, right, 0) - first)
    if never.any():
        out = np.where(never, mean_image(x, observed_mask)[:, None], out)
    return np.where(observed_mask, x, out)


def mean_image(x: Float32, observed_mask: Mask) -> Float32:
    """Mean over each pixel's visible moments, (C, H, W); of its surroundings where it has none."""
    count = observed_mask.sum(0)
    total = np.where(observed_mask, x, np.float32(0)).sum(1)
    return pull_push((total / np.maximum(count, 1)).astype(np.float32), count > 0)


def pull_push(image: Float32, observed_mask: Mask) -> Float32:
    """Fill the hidden pixels of one picture smoothly: means of ever coarser blocks, laid back.

    Args:
        image: (C, H, W).
        observed_mask: (H, W); at least one True.

    Returns:
        A new array, (C, H, W), float32; visible values are those of `image`.
    """
    weight = observed_mask.astype(np.float32)
    return _pull_push(np.where(observed_mask, image, 0).astype(np.float32), weight)


def _pull_push(value: Float32, weight: Float32) -> Float32:
    """`value` (C, H, W) is zero where `weight` (H, W), 0 to 1, is zero."""
    if weight.all():
        return value
    height, width = weight.shape
    assert height > 1 or width > 1, "nothing is visible"
    pad = ((0, height % 2), (0, width % 2))
    padded_weight = np.pad(weight, pad)
    padded = np.pad(value * weight, ((0, 0), *pad))
    blocks = (padded_weight.shape[0] // 2, 2, padded_weight.shape[1] // 2, 2)
    mass = padded_weight.reshape(blocks).sum((1, 3))
    total = padded.reshape(len(value), *blocks).sum((2, 4))
    coarse = _pull_push(total / np.where(mass > 0, mass, 1), np.minimum(mass, 1))
    fine = _double(coarse)[:, :height, :width]
    return value * weight + fine * (1 - weight)


def _double(coarse: Float32) -> Float32:
    """Twice the height and width, linear between the centres of the coarse pixels."""
    for axis in (1, 2):
        size = coarse.shape[axis]
        index = np.arange(2 * size)
        nearest = index // 2
        other = np.clip(nearest + np.where(index % 2, 1, -1), 0, size - 1)
        coarse = np.float32(0.75) * coarse.take(nearest, axis) + np.float32(0.25) * coarse.take(
            other, axis
        )
    return coarse


def harmonic_fill(
    x: Float32,
    observed_mask: Mask,
    *,
    temporal_weight: float = 1.0,
    iterations: int = 200,
    tolerance: float = 1e-4,
    start: Float32 | None = None,
) -> Float32:
    """Fill hidden pixels so that squared differences of neighbours are least, in space and time.

    That is the conditional mean, and mode, of a Markov random field with quadratic potentials on
    the six neighbours, found by conjugate gradients.

    Args:
        x: (C, T, H, W).
        observed_mask: (T, H, W).
        temporal_weight: of differences between frames against those within a frame; more trusts
            the past and the future more than the surroundings.
        iterations: at most.
        tolerance: of the residual, relative to the first one.
        start: first values; None for `interpolate_in_time`.

    Returns:
        A new array; visible values are those of `x`, bit for bit.
    """
    hidden = ~observed_mask
    u = np.where(
        observed_mask, x, interpolate_in_time(x, observed_mask) if start is None else start
    )
    u = u.astype(np.float32)
    weights = (temporal_weight, 1.0, 1.0)
    degree = np.zeros(observed_mask.shape, np.float32)
    for axis, weight in enumerate(weights):
        if degree.shape[axis] > 1:
            lower, upper = _sides(axis)
            degree[lower] += np.float32(weight)
            degree[upper] += np.float32(weight)
    inverse = np.where(degree > 0, 1 / np.maximum(degree, 1e-12), 0).astype(np.float32)
    for c in range(len(u)):
        r = -_laplace(u[c], weights) * hidden
        z = r * inverse
        p = z.copy()
        rz = float((r * z).sum(dtype=np.float64))
        first = rz
        for _ in range(iterations):
            if rz <= first * tolerance**2 or rz == 0:
                break
            ap = _laplace(p, weights) * hidden
            alpha = np.float32(rz / float((p * ap).sum(dtype=np.float64)))
            u[c] += alpha * p
            r -= alpha * ap
            z = r * inverse
            new = float((r * z).sum(dtype=np.float64))
            p = z + np.float32(new / rz) * p
            rz = new
    return np.where(observed_mask, x, u)


def _sides(axis: int) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    """Index of all but the last, and of all but the first, along an axis of (T, H, W)."""
    lower, upper = [slice(None)] * 3, [slice(None)] * 3
    lower[axis], upper[axis] = slice(None, -1), slice(1, None)
    return tuple(lower), tuple(upper)


def _laplace(u: Float32, weights: tuple[float, float, float]) -> Float32:
    """Gradient of half the weighted squared differences of neighbours, (T, H, W)."""
    out = np.zeros_like(u)
    for axis, weight in enumerate(weights):
        difference = np.diff(u, axis=axis) * np.float32(weight)
        lower, upper = _sides(axis)
        out[lower] -= difference
        out[upper] += difference
    return out


@dataclass(frozen=True)
class Filled:
    """Hidden pixels with first values, and how those were found.

    Attributes:
        x: (C, T, H, W); visible values are those given, bit for bit.
        base: the simple fill that recovers held-out visible pixels best: "time" for
            `interpolate_in_time`, the temporal weight of a `harmonic_fill`, "covariance" for
            `conditional_mean`, "motion" for `along_motion`; "a+b" for the mean of two.
        shares: how much of the learned correction was taken, 0 to 1, for each stage and each class
            of pixels (`_classes`): what was best on held-out visible pixels.
        held_out_error: mean absolute error at those, in the unit of `x`: of the base, then after
            each stage; NaN where nothing could be held out.
        kind: class of each pixel that `shares` speaks of, (T, H, W).
        lessons: the recoveries of held-out pixels that this was learned from, to learn more from.
    """

    x: Float32
    base: str
    shares: tuple[tuple[float, ...], ...]
    held_out_error: tuple[float, ...]
    kind: NDArray[np.intp]
    lessons: tuple[Trial, ...]


class Trial:
    """A recovery, of which the truth is known where pixels are held out.

    Attributes:
        observed_mask: what it may read.
        held: visible pixels that it may not read, (n, 3), and the truth there is known.
        hidden: all it has to recover, (m, 3).
        simple: the simple fills by name, see `Filled.base`.
        x: the recovery so far.
        kind: class of each pixel, (T, H, W).
        moments: see `_moments`.
        mean: the mean image, (C, H, W).
    """

    def __init__(self, x: Float32, observed_mask: Mask, held: Mask) -> None:
        self.observed_mask = observed_mask & ~held
        self.held = np.argwhere(held)
        self.hidden = np.argwhere(~self.observed_mask)
        self.kind = _classes(self.observed_mask)
        self.moments = _moments(self.observed_mask)
        self.mean = mean_image(x, self.observed_mask)
        first = interpolate_in_time(x, self.observed_mask)
        self.simple = {"time": first}
        # Where every frame is whole or hidden, surroundings within the frame say nothing.
        if (observed_mask.any((1, 2)) != observed_mask.all((1, 2))).any():
            for weight in ("1", "0.1"):
                self.simple[weight] = harmonic_fill(
                    x, self.observed_mask, temporal_weight=float(weight), start=first, iterations=60
                )
        self.simple["covariance"] = conditional_mean(x, self.observed_mask, self.mean)
        if _in_regions(observed_mask):
            back, ahead = gaps(self.observed_mask)
            self.simple["motion"] = along_motion(first, self.observed_mask, back, ahead)
        self.x = first


def fill_bytes(pixels: int, hidden: int) -> int:
    """Bytes that `fill` takes at its peak besides what it is given, features of pixels above all.

    Measured on the fire, 40x64x64 to 80x96x96 with 4 to 50 % hidden: 0.96 to 1.08 of it.

    Args:
        pixels: of all frames.
        hidden: how many of these are hidden.
    """
    return (90 << 20) + 650 * (pixels + hidden)


def fill(x: Float32, observed_mask: Mask, *, seed: int = 0) -> Filled:
    """Fill hidden pixels as exactly as their visible surroundings in space and time allow.

    The video itself teaches how. Visible pixels are hidden as well, in the shape of the mask moved
    elsewhere (`held_out`), and a linear predictor of the truth from the simple fills around each
    pixel, and from which of its neighbours are visible, is fitted to them for the least absolute
    error; it learns, for instance, how the picture moves. This is done twice, the second time
    around the first recovery. How much of each correction is taken, perhaps nothing, is what is
    best on held-out pixels that the predictor was not fitted to.

    Args:
        x: (C, T, H, W).
        observed_mask: (T, H, W); at least one True.
        seed: of what is held out.

    Returns:
        The recovery; it is what a careful interpolation gives, without texture where the hole is
        larger than a few pixels and frames.
    """
    assert observed_mask.any(), "nothing is visible"
    x = np.where(observed_mask, x, np.float32(0)).astype(np.float32)
    rng = np.random.default_rng(seed)
    whole = Trial(x, observed_mask, np.zeros_like(observed_mask))
    lessons: list[Trial] = []
    taken = np.zeros_like(observed_mask)
    for _ in range(4 * _FOLDS):  # a mask moved elsewhere may fall on what is hidden
        held = held_out(observed_mask, rng) & ~taken
        if held.any() and len(lessons) < _FOLDS:
            taken |= held
            lessons.append(Trial(x, observed_mask, held))
    if len(lessons) < 2:
        return Filled(whole.x, "time", (), (float("nan"),), whole.kind, ())
    names = [*whole.simple, *(f"{a}+{b}" for a, b in itertools.combinations(whole.simple, 2))]
    errors = {
        name: np.array([_weighed(_base(trial, name), x, trial, whole) for trial in lessons])
        for name in names
    }
    # Another start than a line in time must help in most of the lessons, as a correction must.
    trusted = [
        name for name in names if name == "time" or (errors[name] < errors["time"]).mean() > _MOST
    ]
    base = min(trusted, key=lambda name: float(errors[name].mean()))
    for trial in (whole, *lessons):
        trial.x = _base(trial, base)
    history, all_shares = [float(errors[base].mean())], []
    for stage in range(1 + _STAGES):
        apply, sample = (_apply, _sample) if stage else (_mixed, _sample_mix)
        samples = [sample(x, trial, rng) for trial in lessons]
        # Each lesson is corrected by what the others teach: its own truth takes no part.
        corrected = [
            apply(_fit(samples[:j] + samples[j + 1 :]), trial) for j, trial in enumerate(lessons)
        ]
        shares = best_shares(x, lessons, corrected)
        for trial, moved in zip(
            (*lessons, whole), (*corrected, apply(_fit(samples), whole)), strict=True
        ):
            trial.x = trial.x + shares[trial.kind] * (moved - trial.x)
        history.append(float(np.mean([mean_error(trial.x, x, trial.held) for trial in lessons])))
        all_shares.append(tuple(float(share) for share in shares))
    return Filled(
        np.where(observed_mask, x, whole.x),
        base,
        tuple(all_shares),
        tuple(history),
        whole.kind,
        tuple(lessons),
    )


def _weighed(guess: Float32, truth: Float32, trial: Trial, whole: Trial) -> float:
    """Error at held-out pixels, each class counting as much as it does among the hidden ones.

    Holding out makes gaps longer than they are, and what is best over long ones need not be.
    """
    wanted = np.bincount(whole.kind[tuple(whole.hidden.T)], minlength=_CLASSES)
    index = (slice(None), *trial.held.T)
    kind = trial.kind[tuple(trial.held.T)]
    count = np.bincount(kind, minlength=_CLASSES)
    total = np.bincount(kind, np.abs(guess[index] - truth[index]).mean(0), _CLASSES)
    weight = np.where(count > 0, np.maximum(wanted, 1), 0)
    return float((weight * total / np.maximum(count, 1)).sum() / weight.sum())


def _base(trial: Trial, name: str) -> Float32:
    """A simple fill, or the mean of two, "a+b"."""
    parts = [trial.simple[part] for part in name.split("+")]
    made: Float32 = sum(parts[1:], parts[0]) / np.float32(len(parts))
    return made


_FOLDS = 4  # held-out sets; each is recovered by what the others teach
_STAGES = 2
_SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)
_CLASSES = 5
_SAMPLES = 2_500  # pixels of each class of a held-out set that a fit sees
_RIDGE = 1e-2  # relative to the mean square of the standardised features
_CHUNK = 20_000  # pixels whose features are in memory at once
_HELD = 0.12  # share of all pixels in a held-out set, about
_OFFSETS = [
    (t, y, x) for t in (-1, 0, 1) for y in (-1, 0, 1) for x in (-1, 0, 1) if (t, y, x) != (0, 0, 0)
]


def gaps(observed_mask: Mask) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Frames back to, and ahead to, the nearest visible moment; very many where there is none."""
    frames = len(observed_mask)
    number = np.arange(frames, dtype=np.int32)[:, None, None]
    far = 1 << 20
    before = np.maximum.accumulate(np.where(observed_mask, number, -far), axis=0)
    after = np.minimum.accumulate(np.where(observed_mask, number, far)[::-1], axis=0)[::-1]
    return number - before, after - number


def _classes(observed_mask: Mask) -> NDArray[np.intp]:
    """By frames from one visible moment to the next: 2: 0; 3: 1; 4, 5: 2; more: 3; no next: 4."""
    back, ahead = gaps(observed_mask)
    kind = np.full(observed_mask.shape, 3, np.intp)
    kind[back + ahead <= 5] = 2
    kind[back + ahead <= 3] = 1
    kind[back + ahead <= 2] = 0
    kind[np.maximum(back, ahead) > len(observed_mask)] = 4
    return kind


def mean_error(guess: Float32, truth: Float32, at: NDArray[np.intp]) -> float:
    """Mean absolute difference at some pixels, (n, 3) of T, H, W, over all colours."""
    index = (slice(None), *at.T)
    return float(np.abs(guess[index] - truth[index]).mean(dtype=np.float64))


def best_shares(
    truth: Float32,
    lessons: Sequence[Trial],
    corrected: Sequence[Float32],
    tried: Sequence[float] = _SHARES,
) -> Float32:
    """For each class, the share of the correction with the least error, (_CLASSES,).

    None is taken that does not help in most of the lessons: what helps in one may be its accident.

    Args:
        truth: (C, T, H, W); read where the lessons hold out.
        lessons: recoveries with held-out pixels.
        corrected: of each lesson.
        tried: the shares to choose from; the first is 0.
    """
    total = np.zeros((len(lessons), _CLASSES, len(tried)))
    for errors, trial, moved in zip(total, lessons, corrected, strict=True):
        index = (slice(None), *trial.held.T)
        kind = trial.kind[tuple(trial.held.T)]
        for i, share in enumerate(tried):
            guess = trial.x[index] + np.float32(share) * (moved[index] - trial.x[index])
            errors[:, i] = np.bincount(kind, np.abs(guess - truth[index]).sum(0), _CLASSES)
    helps = (total < total[:, :, :1]).mean(0) > _MOST
    allowed = np.where(helps, total.sum(0), np.inf)
    allowed[:, 0] = total[:, :, 0].sum(0)
    shares: Float32 = np.array(tried, np.float32)[allowed.argmin(1)]
    return shares


_MOST = 0.7  # share of the lessons in which a correction must help: of four, three


class _Features:
    """What the predictor sees of each pixel of a trial.

    All as differences from the recovery at the pixel: each neighbour, once as it is and once where
    it is visible; the simple fills; the mean over time; the surroundings of the pixel's place at
    its nearest visible moments, before and after, and the place itself at the second nearest.
    """

    def __init__(self, trial: Trial) -> None:
        _, self._height, self._width = trial.observed_mask.shape
        self._colours = len(trial.x)
        # One pixel of held edges all around, so that every neighbour has an index.
        edge = ((1, 1), (1, 1), (1, 1))
        self._x = self._flat(np.pad(trial.x, ((0, 0), *edge), mode="edge"))
        self._seen = np.pad(trial.observed_mask, edge, mode="edge").ravel()
        self._simple = [self._flat(simple) for simple in trial.simple.values()]
        self._mean = self._flat(trial.mean)
        self._moments = [moments.ravel() for moments in trial.moments]

    def _flat(self, x: Float32) -> Float32:
        return x.reshape(self._colours, -1)

    def at(self, pixels: NDArray[np.intp]) -> tuple[Float32, Float32]:
        """Features, (n, features), and the recovery, (n, C), at pixels (n, 3) of T, H, W."""
        t, y, x = pixels.T
        row = self._width + 2
        frame = row * (self._height + 2)
        place = (y + 1) * row + x + 1  # in its frame, with the edge
        index = (t + 1) * frame + place
        inner = (t * self._height + y) * self._width + x  # without the edge
        here = self._x.take(index, 1)
        count = 2 * len(_OFFSETS) + len(self._simple) + 1 + 2 * len(_AROUND) + 2
        features = np.empty((count, self._colours, len(pixels)), np.float32)
        out = iter(features)
        for dt, dy, dx in _OFFSETS:
            neighbour = index + (dt * frame + dy * row + dx)
            difference = np.subtract(self._x.take(neighbour, 1), here, out=next(out))
            np.multiply(difference, self._seen.take(neighbour), out=next(out))
        for simple in self._simple:
            np.subtract(simple.take(inner, 1), here, out=next(out))
        np.subtract(self._mean.take(y * self._width + x, 1), here, out=next(out))
        for n, moments in enumerate(self._moments):
            moment = (moments.take(inner) + 1) * frame + place
            for dy, dx in _AROUND if n < 2 else ((0, 0),):
                np.subtract(self._x.take(moment + (dy * row + dx), 1), here, out=next(out))
        return features.reshape(count * self._colours, -1).T, here.T


_AROUND = [(y, x) for y in (-1, 0, 1) for x in (-1, 0, 1)]


def _moments(observed_mask: Mask) -> list[NDArray[np.int32]]:
    """Nearest visible moments before, after, and the second nearest ones; (T, H, W) each.

    The pixel's own where there is none.
    """
    frames = len(observed_mask)
    number = np.arange(frames, dtype=np.int32)[:, None, None]
    own = np.broadcast_to(number, observed_mask.shape)
    before = np.maximum.accumulate(np.where(observed_mask, number, -1), axis=0)
    after = np.minimum.accumulate(np.where(observed_mask, number, frames)[::-1], axis=0)[::-1]

    def previous(index: NDArray[np.int32]) -> NDArray[np.int32]:
        shifted = np.concatenate([np.full_like(before[:1], -1), before[:-1]])
        return np.where(
            index > 0, np.take_along_axis(shifted, np.clip(index, 0, frames - 1), 0), -1
        )

    def following(index: NDArray[np.int32]) -> NDArray[np.int32]:
        shifted = np.concatenate([after[1:], np.full_like(after[:1], frames)])
        return np.where(
            index < frames - 1,
            np.take_along_axis(shifted, np.clip(index, 0, frames - 1), 0),
            frames,
        )

    return [
        np.where((index >= 0) & (index < frames), index, own)
        for index in (before, after, previous(before), following(after))
    ]


_Sample = tuple[Float32, Float32, NDArray[np.intp]]
"""Features (n, features), what is to be added to the recovery (n, C), and classes (n,)."""


def _sample(truth: Float32, trial: Trial, rng: np.random.Generator) -> _Sample:
    at = _some(trial, rng)
    features, here = _Features(trial).at(at)
    return features, truth[(slice(None), *at.T)].T - here, trial.kind[tuple(at.T)]


def _some(trial: Trial, rng: np.random.Generator) -> NDArray[np.intp]:
    """Some of the held-out pixels, equally many of each class where there are, (n, 3)."""
    kind = trial.kind[tuple(trial.held.T)]
    rows = []
    for k in range(_CLASSES):
        of_kind = np.flatnonzero(kind == k)
        rows.append(of_kind[rng.permutation(len(of_kind))[:_SAMPLES]])
    return trial.held[np.concatenate(rows)]


def _others(trial: Trial) -> list[Float32]:
    """What a mixture may take instead of the recovery: every simple fill, and the mean image."""
    return [*trial.simple.values(), np.broadcast_to(trial.mean[:, None], trial.x.shape)]


def _sample_mix(truth: Float32, trial: Trial, rng: np.random.Generator) -> _Sample:
    """For a mixture: a row for each colour of a pixel."""
    at = _some(trial, rng)
    index = (slice(None), *at.T)
    here = trial.x[index]
    features = np.stack([(fill[index] - here).ravel() for fill in _others(trial)], 1)
    kind = np.tile(trial.kind[tuple(at.T)], len(here))
    return features, (truth[index] - here).reshape(-1, 1), kind


def _mixed(weights: Float32, trial: Trial) -> Float32:
    """The mixture of the fills at every pixel."""
    out = trial.x.copy()
    for n, fill in enumerate(_others(trial)):
        out += weights[:, n, 0][trial.kind] * (fill - trial.x)
    return np.where(trial.observed_mask, trial.x, out)


def _fit(samples: list[_Sample]) -> Float32:
    """Weights for each class, (_CLASSES, features, C).

    A class is fitted to its own samples and to some of the others', which count less; one without
    samples gets zeros.
    """
    features, wanted, kind = (np.concatenate([sample[i] for sample in samples]) for i in range(3))
    size = np.sqrt(np.square(features).mean(0)) + np.float32(1e-6)
    features = features / size
    weights = np.zeros((_CLASSES, features.shape[1], wanted.shape[1]), np.float32)
    for k in np.unique(kind):
        own = kind == k
        some = own.copy()
        some[::_OTHERS] = True
        importance = np.where(own[some], np.float32(1), np.float32(_OTHERS * _IMPORTANCE))
        solved = _least_absolute(features[some], wanted[some], importance)
        weights[k] = solved / size[:, None]
    return weights


_IMPORTANCE = 0.1  # of a sample of another class
_OTHERS = 5  # every so many of those are looked at, and count for the rest


def _least_absolute(features: Float32, wanted: Float32, importance: Float32) -> Float32:
    """Weights, (features, C), of least absolute error, by three rounds of reweighted squares."""
    balance = importance
    for _ in range(3):
        weighted = features * balance[:, None]
        square = (features.T @ weighted).astype(np.float64)
        square[np.diag_indices_from(square)] += _RIDGE * float(balance.sum())
        solved = np.linalg.solve(square, (weighted.T @ wanted).astype(np.float64))
        solved = solved.astype(np.float32)
        error = np.abs(wanted - features @ solved).mean(1)
        balance = importance / np.maximum(error, np.float32(0.2) * np.median(error) + 1e-6)
    return solved


def _apply(weights: Float32, trial: Trial) -> Float32:
    """The recovery with the predictor's correction at every pixel that the trial may not read."""
    out = trial.x.copy()
    read = _Features(trial)
    kind = trial.kind[tuple(trial.hidden.T)]
    for k in np.unique(kind):
        of_kind = trial.hidden[kind == k]
        for begin in range(0, len(of_kind), _CHUNK):
            at = of_kind[begin : begin + _CHUNK]
            features, here = read.at(at)
            out[(slice(None), *at.T)] = (here + features @ weights[k]).T
    return out


def held_out(observed_mask: Mask, rng: np.random.Generator) -> Mask:
    """Visible pixels to be hidden as well, in the shape of the hidden ones.

    The mask is moved in time and space, wrapping around, and mirrored in time at random; where it
    then hides what is visible, that is held out. Of a mask that hides much, only a part is: whole
    frames of it where it hides regions or frames, single pixels where it hides those, so that the
    gaps stay about as large as they are.

    Returns:
        True where held out, (T, H, W); a part of `observed_mask`, and never all of it.
    """
    hidden = ~observed_mask
    density = float(hidden.mean())
    moved = hidden[::-1] if rng.random() < 0.5 else hidden
    moved = np.roll(moved, [int(rng.integers(size)) for size in hidden.shape], (0, 1, 2))
    share = _HELD / max(density, _HELD)
    if share < 1:
        frames = rng.random((len(hidden), 1, 1)) < share
        in_regions = _in_regions(observed_mask)
        moved = moved & (frames if in_regions else rng.random(hidden.shape) < share)
    held: Mask = moved & observed_mask
    return held if (observed_mask & ~held).any() else np.zeros_like(held)


def _in_regions(observed_mask: Mask) -> bool:
    """Does the mask hide regions or frames, not pixels here and there?"""
    hidden = ~observed_mask
    together = hidden[:, :, 1:] & hidden[:, :, :-1]
    return bool(together.size and float(together.mean()) > 1.5 * float(hidden.mean()) ** 2)
