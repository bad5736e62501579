"""How close synthesized video is to its clip, and whether it is new: figures, NumPy only.

Every figure compares videos frame by frame: rates in frames per second are not looked at, lengths
may differ. What each says is in `MEASURES`; what they read on known material, docs/measures.md.

Luminance is 0.299 R + 0.587 G + 0.114 B, grey levels. Powers have the power of rounding to grey
levels added, so that a still or flat video gives large figures and not infinite ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import combinations, pairwise

import numpy as np
from numpy.typing import NDArray

from stg_runtime.errors import InputError
from stg_runtime.features import Gaussian, count_scales, features, frechet
from stg_runtime.video import Frames

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]

MIN_FRAMES = 8
MIN_SIZE = 16  # px, height and width

_LUMA = np.array([0.299, 0.587, 0.114], np.float32)
_ROUNDING = float((_LUMA**2).sum()) / 12  # variance of luminance that rounding adds, grey levels^2
_STILL = 0.1  # a clip whose distant frames differ by less (rms, grey levels) does not move

_BLOCK = 1 << 15  # values of a frame that the distances between frames take at a time


@dataclass(frozen=True)
class Measure:
    """What one figure is.

    Attributes:
        key: field of `Measures`.
        label: for tables.
        unit: "" for a plain number.
        best: the figure of a perfect new video; None where there is no such figure.
        what: one sentence.
    """

    key: str
    label: str
    unit: str
    best: float | None
    what: str


MEASURES: tuple[Measure, ...] = (
    Measure("colour_mean", "colour mean", "levels", 0, "error of the mean of red, green, blue"),
    Measure(
        "colour_distance",
        "colour distribution",
        "levels",
        0,
        "Wasserstein distance of the distributions of R, G, B, R - G and G - B, their mean",
    ),
    Measure("spatial_db", "spatial spectrum", "dB", 0, "rms over rings of the power ratio"),
    Measure("temporal_db", "temporal spectrum", "dB", 0, "rms over frequencies of the power ratio"),
    Measure("motion", "motion energy", "", 1, "ratio of the differences of neighbouring frames"),
    Measure("sharpness", "sharpness", "", 1, "ratio of the differences of neighbouring pixels"),
    Measure("contrast", "contrast", "", 1, "ratio of the standard deviations of luminance"),
    Measure(
        "moving_contrast", "moving contrast", "", 1, "ratio of the standard deviations over time"
    ),
    Measure("mean_image", "mean image", "", 0, "rms error of the mean over time, per contrast"),
    Measure(
        "feature_distance",
        "feature distance",
        "",
        0,
        "Frechet distance of the responses of a fixed bank of space-time Gabor filters",
    ),
    Measure(
        "difference",
        "difference at equal times",
        "",
        1,
        "from the clip frame by frame; 1: as two distant moments of the clip, 0: a replay",
    ),
    Measure(
        "replay",
        "the same, best shift",
        "",
        1,
        "difference from the clip at the shift (in frames) where it is smallest; 0: shifted replay",
    ),
    Measure(
        "nearest_frame",
        "nearest frame",
        "",
        None,
        "difference of each frame from the clip's most similar frame; 0: the clip's own frames",
    ),
    Measure("saturated", "saturated", "share", None, "share of values at 0 or 255"),
    Measure("saturated_observed", "of the clip", "share", None, "the clip's own share"),
)


@dataclass(frozen=True)
class Measures:
    """The figures of one synthesized video against its clip; see `MEASURES`.

    Attributes:
        colour_mean: mean absolute error of the three channel means, grey levels.
        colour_distance: mean Wasserstein-1 distance of five distributions (R, G, B, R - G, G - B),
            grey levels.
        spatial_db: rms over rings of 10 log10 of the ratio of spatial power, dB.
        temporal_db: rms over frequencies of 10 log10 of the ratio of temporal power, dB.
        motion: ratio of the mean absolute luminance difference of neighbouring frames.
        sharpness: the same of neighbouring pixels.
        contrast: ratio of the standard deviations of luminance.
        moving_contrast: ratio of the mean over pixels of the standard deviations over time.
        mean_image: rms difference of the luminance means over time, over the clip's contrast.
        feature_distance: see `feature_distance`.
        difference: rms difference at equal times, in units of the clip's own distant moments, see
            `distant_difference`.
        replay: the smallest such difference over all shifts in time that let at least half of the
            shorter video overlap.
        replay_shift: that shift, frames; frame t resembles the clip's frame t + `replay_shift`.
        nearest_frame: mean over frames of the rms difference from the nearest frame of the clip, in
            the same units.
        saturated: share of the values that are 0 or 255.
        saturated_observed: the clip's own share.
    """

    colour_mean: float
    colour_distance: float
    spatial_db: float
    temporal_db: float
    motion: float
    sharpness: float
    contrast: float
    moving_contrast: float
    mean_image: float
    feature_distance: float
    difference: float
    replay: float
    replay_shift: int
    nearest_frame: float
    saturated: float
    saturated_observed: float

    def as_dict(self) -> dict[str, float]:
        """Names and figures, for JSON; all are finite."""
        return asdict(self)


@dataclass(frozen=True)
class Comparison:
    """Several synthesized videos against the clips they were learned from.

    Attributes:
        videos: the figures of each video.
        diversity: smallest rms difference at equal times between two of the videos, in units of
            the clip's own difference at distant times; None for one video. 0: two are alike.
        halves: the second half of the first clip against its first half, the figures that more of
            the same material gets; None where a half is shorter than `MIN_FRAMES`.
        independent: the difference at equal times that an unrelated video reads on average; see
            `independent_difference`. None in records of before it was measured.
    """

    videos: tuple[Measures, ...]
    diversity: float | None
    halves: Measures | None
    independent: float | None = None


def compare(
    observed: Sequence[Frames], synthesized: Sequence[Frames], names: Sequence[str] = ()
) -> Comparison:
    """Measure synthesized videos against one or several observed clips, pooled.

    Args:
        observed: clips, each uint8, (T, H, W, 3); lengths may differ.
        synthesized: videos, at least one, of the clips' height and width; lengths may differ.
        names: of the synthesized videos, for messages.

    Raises:
        InputError: sizes differ, a video is shorter than `MIN_FRAMES` or smaller than `MIN_SIZE`,
            or the clips do not move.
    """
    assert observed and synthesized
    for number, video in enumerate(synthesized):
        name = names[number] if names else f"synthesized video {number}"
        _check(video, name, observed[0])
    clips = _Videos(observed)
    videos = tuple(_measure(clips, video) for video in synthesized)
    return Comparison(
        videos,
        diversity(observed, synthesized),
        _halves(observed[0]),
        independent_difference(observed),
    )


def measure(observed: Frames, synthesized: Frames) -> Measures:
    """Measure one video against one clip.

    Args:
        observed: uint8, (T, H, W, 3).
        synthesized: uint8, (T', H, W, 3).

    Raises:
        InputError: see `compare`.
    """
    _check(synthesized, "the synthesized video", observed)
    return _measure(_Videos([observed]), synthesized)


def diversity(observed: Sequence[Frames], synthesized: Sequence[Frames]) -> float | None:
    """The smallest difference between two of the videos.

    Args:
        observed: clips, each uint8, (T, H, W, 3); they give the unit.
        synthesized: videos of one height and width; the frames that both of a pair have count.

    Returns:
        rms difference at equal times of the two most similar videos, in units of the clips' own at
        distant times; None for fewer than two videos.
    """
    if len(synthesized) < 2:
        return None
    least = min(_equal_times(a, b) for a, b in combinations(synthesized, 2))
    return least / distant_difference(observed)


def distant_difference(observed: Sequence[Frames]) -> float:
    """The clips' own rms difference between frames at least a quarter of their clip apart.

    This is the unit of what says how new a video is.

    Args:
        observed: clips, each uint8, (T, H, W, 3).

    Returns:
        Grey levels, over all three colours.

    Raises:
        InputError: the clips do not move.
    """
    total, count = 0.0, 0
    for clip in observed:
        apart = np.triu_indices(len(clip), max(1, len(clip) // 4))
        total += float(_squared_distances(clip, clip)[apart].sum())
        count += len(apart[0])
    unit = float(np.sqrt(total / count))
    if unit < _STILL:
        raise InputError(
            f"the observed video does not move (its frames differ by {unit:.2f} grey levels), and "
            "motion and novelty are measured against its own; give a video in which something moves"
        )
    return unit


def independent_difference(observed: Sequence[Frames]) -> float:
    """The difference at equal times of a video that shares with a clip only what each place does.

    Of a video that is independent of the clip and has its mean and its variance at every place, the
    mean squared difference is twice that variance. Distant moments of the clip itself differ by
    more where it is slow: whatever it does once in its length, it does on both sides of its own
    mean. The unit is then larger than what any new video with that mean and variance can read on
    the average.

    Args:
        observed: clips, each uint8, (T, H, W, 3).

    Returns:
        In units of the clips' own rms difference at distant times; of several clips, the root of
        the mean square over their frames.

    Raises:
        InputError: the clips do not move.
    """
    frames = sum(len(clip) for clip in observed)
    # The mean over all pairs of frames, each with itself too, is twice the variance over time.
    squares = (_squared_distances(clip, clip).mean() * len(clip) for clip in observed)
    return float(np.sqrt(sum(squares) / frames)) / distant_difference(observed)


def feature_distance(observed: Sequence[Frames], synthesized: Sequence[Frames]) -> float:
    """Frechet distance between the responses of a fixed bank of space-time filters.

    At every second pixel and frame 16 features are taken: log(1 + |response|) of complex Gabor
    filters on luminance (still gratings of 4 orientations, moving ones of 8 directions, flicker),
    and the local means of luminance, R - G and G - B. Their means and covariances, each feature in
    units of its standard deviation (root mean square of the two sides), are compared by
    |m_a - m_b|^2 + tr(A + B - 2 (A B)^(1/2)), divided by the number of features, and averaged over
    the scales 1, 1/2, 1/4 (in space and time) that leave at least 24 px and frames. Nothing in it
    is learned or random.

    Args:
        observed: videos, each uint8, (T, H, W, 3).
        synthesized: the same; swapping the two sides gives the same figure.

    Returns:
        0 for equal statistics; plain number.

    Source: the motion energy filters of Adelson and Bergen, J. Opt. Soc. Am. A 2, 1985; the
    distance of Dowson and Landau, J. Multivariate Analysis 12, 1982, as in Heusel et al.,
    NeurIPS 2017.
    """
    return _feature_distance(_Videos(observed), _Videos(synthesized))


def spatial_power(videos: Sequence[Frames]) -> Float64:
    """Radially averaged power of luminance over space, mean over frames.

    Each video's mean luminance is subtracted, each frame tapered by a Hann window in both axes.

    Args:
        videos: each uint8, (T, H, W, 3), of one size.

    Returns:
        (R,), power on rings of 1, 2, ... cycles per shorter side, up to below the Nyquist
        frequency; grey levels^2 up to one factor.
    """
    return _Videos(videos).spatial_power


def temporal_power(videos: Sequence[Frames], length: int) -> Float64:
    """Power of luminance over time, mean over pixels.

    Videos longer than `length` are cut into segments of that length, half overlapping, whose powers
    are averaged (Welch 1967); that is how videos of different lengths are compared. Each pixel's
    mean over the segment is subtracted and a Hann window laid over it.

    Args:
        videos: each uint8, (T, H, W, 3), T at least `length`.
        length: of a segment, frames.

    Returns:
        (length // 2,), power at 1, 2, ... cycles per segment; grey levels^2 up to one factor.
    """
    return _Videos(videos).temporal_power(length)


def table(comparison: Comparison, names: Sequence[str]) -> list[list[str]]:
    """A comparison as rows of text: a head, then one row per measure.

    Args:
        comparison: of as many videos as there are names.
        names: of the videos, for the head.

    Returns:
        Rows of equal length: label with unit, one cell per video, the best figure, the halves'.
    """
    rows = [["", *names, "best", "clip's halves"]]
    columns = [*comparison.videos, comparison.halves]
    for item in MEASURES:
        label = f"{item.label}, {item.unit}" if item.unit else item.label
        *cells, halves = (_cell(column, item.key) for column in columns)
        rows.append([label, *cells, "" if item.best is None else f"{item.best:g}", halves])
    if comparison.diversity is not None:
        blank = [""] * (len(names) - 1)
        rows.append(
            ["diversity, least of all pairs", f"{comparison.diversity:.2f}", *blank, "1", ""]
        )
    if comparison.independent is not None:
        label = "an independent video's difference at equal times"
        rows.append([label, f"{comparison.independent:.2f}", *[""] * (len(names) + 1)])
    return rows


def _cell(measures: Measures | None, key: str) -> str:
    if measures is None:
        return ""
    value = getattr(measures, key)
    if key.startswith("saturated"):
        return f"{value:.4f}"
    if key == "replay":
        return f"{value:.2f} ({measures.replay_shift:+d})"
    return f"{value:.3f}" if key == "feature_distance" else f"{value:.2f}"


def _check(synthesized: Frames, name: str, observed: Frames) -> None:
    for label, video in (("the observed video", observed), (name, synthesized)):
        frames, height, width = video.shape[:3]
        if frames < MIN_FRAMES or min(height, width) < MIN_SIZE:
            raise InputError(
                f"{label} is {frames} frames of {height}x{width}; measures need at least "
                f"{MIN_FRAMES} frames of {MIN_SIZE}x{MIN_SIZE}"
            )
    if synthesized.shape[1:] != observed.shape[1:]:
        raise InputError(
            f"{name} is {synthesized.shape[1]}x{synthesized.shape[2]}, the observed one "
            f"{observed.shape[1]}x{observed.shape[2]} (height x width); measures compare videos of "
            "one size"
        )


class _Videos:
    """Statistics of some videos of one size, pooled; each is computed once."""

    def __init__(self, videos: Sequence[Frames]) -> None:
        self.videos = list(videos)
        self._temporal: dict[int, Float64] = {}
        self._features: dict[int, list[Gaussian]] = {}

    @property
    def shortest(self) -> int:
        return min(len(video) for video in self.videos)

    @cached_property
    def luma(self) -> list[Float32]:
        return [video.astype(np.float32) @ _LUMA for video in self.videos]

    @cached_property
    def distant(self) -> float:
        return distant_difference(self.videos)

    @cached_property
    def levels(self) -> Float64:
        """Mean of each channel, grey levels, (3,)."""
        count = sum(video[..., 0].size for video in self.videos)
        total = sum(video.sum((0, 1, 2), dtype=np.int64) for video in self.videos)
        return np.asarray(total / count, np.float64)

    @cached_property
    def distributions(self) -> Float64:
        """Cumulative distributions of R, G, B, R - G, G - B over levels -255..255, (5, 511)."""
        counts = np.zeros((5, 511))
        for video in self.videos:
            for frame in video:
                red, green, blue = frame.astype(np.int16).reshape(-1, 3).T
                for row, values in enumerate((red, green, blue, red - green, green - blue)):
                    counts[row] += np.bincount(values + 255, minlength=511)
        return np.asarray(counts.cumsum(1) / counts.sum(1, keepdims=True))

    @cached_property
    def spatial_power(self) -> Float64:
        height, width = self.videos[0].shape[1:3]
        side = min(height, width)
        taper = _hann(height)[:, None] * _hann(width)
        radius = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width)) * side
        rings = radius.astype(int).ravel()
        power = np.zeros((height, width))
        frames = 0
        for luma in self.luma:
            mean = luma.mean(dtype=np.float64)
            for frame in luma:
                power += np.abs(np.fft.fft2((frame - mean) * taper)) ** 2
            frames += len(luma)
        power = power / frames + _ROUNDING * (taper**2).sum()
        total = np.bincount(rings, power.ravel())
        return np.asarray((total / np.bincount(rings))[1 : side // 2])

    def temporal_power(self, length: int) -> Float64:
        if length not in self._temporal:
            taper = _hann(length)[:, None, None]
            power, segments = np.zeros(length // 2 + 1), 0
            for luma in self.luma:
                for start in range(0, len(luma) - length + 1, max(1, length // 2)):
                    segment = luma[start : start + length]
                    for top in range(0, segment.shape[1], 16):  # rows: bounded memory
                        part = segment[:, top : top + 16].astype(np.float64)
                        part = (part - part.mean(0)) * taper
                        spectrum = np.abs(np.fft.rfft(part, axis=0)) ** 2
                        power += spectrum.sum((1, 2)) / segment[0].size
                    segments += 1
            self._temporal[length] = (power / segments + _ROUNDING * (taper**2).sum())[1:]
        return self._temporal[length]

    @cached_property
    def motion(self) -> float:
        total = sum(_mean_difference(luma, 0) * (len(luma) - 1) for luma in self.luma)
        return total / sum(len(luma) - 1 for luma in self.luma)

    @cached_property
    def sharpness(self) -> float:
        total = sum(
            (_mean_difference(luma, 1) + _mean_difference(luma, 2)) * len(luma)
            for luma in self.luma
        )
        return total / sum(len(luma) for luma in self.luma)

    @cached_property
    def contrast(self) -> float:
        return float(np.mean([luma.std(dtype=np.float64) for luma in self.luma]))

    @cached_property
    def moving_contrast(self) -> float:
        return float(np.mean([luma.std(0, dtype=np.float64).mean() for luma in self.luma]))

    @cached_property
    def mean_image(self) -> Float64:
        frames = sum(len(luma) for luma in self.luma)
        return np.asarray(sum(luma.sum(0, dtype=np.float64) for luma in self.luma) / frames)

    @cached_property
    def saturated(self) -> float:
        count = sum(int(((video == 0) | (video == 255)).sum()) for video in self.videos)
        return count / sum(video.size for video in self.videos)

    def features(self, scales: int) -> list[Gaussian]:
        if scales not in self._features:
            self._features[scales] = features(self.videos, self.luma, scales)
        return self._features[scales]


def _measure(clips: _Videos, video: Frames) -> Measures:
    new = _Videos([video])
    length = min(clips.shortest, new.shortest)
    unit = clips.distant
    squares = [_squared_distances(video, clip) for clip in clips.videos]
    replay, shift = min(_best_shift(table) for table in squares)
    nearest = np.sqrt(np.min([table.min(1) for table in squares], axis=0)).mean()
    image = np.sqrt(((clips.mean_image - new.mean_image) ** 2).mean())
    return Measures(
        colour_mean=float(np.abs(clips.levels - new.levels).mean()),
        colour_distance=float(np.abs(clips.distributions - new.distributions).sum(1).mean()),
        spatial_db=_decibels(clips.spatial_power, new.spatial_power),
        temporal_db=_decibels(clips.temporal_power(length), new.temporal_power(length)),
        motion=new.motion / clips.motion,
        sharpness=_ratio(new.sharpness, clips.sharpness),
        contrast=_ratio(new.contrast, clips.contrast),
        moving_contrast=_ratio(new.moving_contrast, clips.moving_contrast),
        mean_image=float(image) / clips.contrast,
        feature_distance=_feature_distance(clips, new),
        difference=min(_equal_times(video, clip) for clip in clips.videos) / unit,
        replay=replay / unit,
        replay_shift=shift,
        nearest_frame=float(nearest) / unit,
        saturated=new.saturated,
        saturated_observed=clips.saturated,
    )


def _halves(clip: Frames) -> Measures | None:
    half = len(clip) // 2
    if half < MIN_FRAMES:
        return None
    try:
        return measure(clip[:half], clip[half:])
    except InputError:  # the first half stands still
        return None


def _ratio(new: float, clip: float) -> float:
    """`new / clip`, both at least 0; finite also for a clip that has none of it."""
    return 1.0 if new == clip else new / max(clip, 1e-3)


def _decibels(a: Float64, b: Float64) -> float:
    return float(np.sqrt(np.mean((10 * np.log10(b / a)) ** 2)))


def _hann(length: int) -> Float64:
    return np.hanning(length + 2)[1:-1]  # without the zeros at the ends


def _mean_difference(luma: Float32, axis: int) -> float:
    if axis == 0:
        steps = [np.abs(b - a).mean(dtype=np.float64) for a, b in pairwise(luma)]
    else:
        steps = [np.abs(np.diff(frame, axis=axis - 1)).mean(dtype=np.float64) for frame in luma]
    return float(np.mean(steps))


def _squared_distances(a: Frames, b: Frames) -> Float64:
    """Mean squared difference, grey levels^2, of each frame of `a` from each of `b`, exact."""
    flat_a, flat_b = a.reshape(len(a), -1), b.reshape(len(b), -1)
    values = flat_a.shape[1]
    total = np.zeros((len(a), len(b)))
    for start in range(0, values, _BLOCK):
        # Whole numbers below 2^53: every sum is exact, and equal frames are at exactly 0.
        x = flat_a[:, start : start + _BLOCK].astype(np.float64)
        y = flat_b[:, start : start + _BLOCK].astype(np.float64)
        total += (x * x).sum(1)[:, None] + (y * y).sum(1) - 2 * (x @ y.T)
    return total / values


def _equal_times(a: Frames, b: Frames) -> float:
    """Root mean square difference of the frames that both videos have, grey levels."""
    pairs = zip(a, b, strict=False)
    squares = [np.mean((x.astype(np.float32) - y.astype(np.float32)) ** 2) for x, y in pairs]
    return float(np.sqrt(np.mean(squares, dtype=np.float64)))


def _best_shift(squares: Float64) -> tuple[float, int]:
    """Smallest rms difference along a diagonal of at least half the shorter side; its offset."""
    rows, columns = squares.shape
    overlap = -(-min(rows, columns) // 2)
    shifts = sorted(range(overlap - rows, columns - overlap + 1), key=abs)
    found = [(float(np.sqrt(np.diagonal(squares, shift).mean())), shift) for shift in shifts]
    return min(found, key=lambda item: item[0])


def _feature_distance(a: _Videos, b: _Videos) -> float:
    scales = count_scales((min(a.shortest, b.shortest), *a.videos[0].shape[1:3]))
    pairs = zip(a.features(scales), b.features(scales), strict=True)
    return float(np.mean([frechet(x, y) for x, y in pairs]))
