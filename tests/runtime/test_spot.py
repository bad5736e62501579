"""First noise with a clip's covariance: laws that hold exactly, as it is linear in the noise."""

import tracemalloc

import numpy as np
import pytest
from numpy.typing import NDArray

from stg_runtime import spot as module
from stg_runtime.langevin import standard_normal
from stg_runtime.spot import NO_WRAP, Axes, Spot, Wrap, first_noise

RNG = np.random.default_rng(5)
CLIP = RNG.standard_normal((1, 2, 7, 6, 5)).astype(np.float32) + 3
SHAPE = (2, 9, 6, 5)


def matrix(spot: Spot, shape: tuple, wrap: Wrap) -> NDArray[np.float64]:
    """What each value of noise adds, (values of the video, values of noise)."""
    size = spot.noise_size(shape, wrap=wrap)
    still = spot.gaussian(np.zeros(size, np.float32), shape, wrap=wrap).ravel()
    rows = [spot.gaussian(one, shape, wrap=wrap).ravel() - still for one in np.eye(size, dtype="f")]
    return np.stack(rows, 1).astype(float)


@pytest.mark.parametrize("axes", ["time", "space-time"])
@pytest.mark.parametrize("wrap", [(False,) * 3, (True,) * 3])
def test_the_mean_is_the_clips(axes: Axes, wrap: Wrap) -> None:
    spot = Spot(CLIP, axes)
    made = spot.gaussian(np.zeros(spot.noise_size(SHAPE, wrap=wrap), np.float32), SHAPE, wrap=wrap)
    over = 2 if axes == "time" else (2, 3, 4)
    np.testing.assert_allclose(
        made, np.broadcast_to(CLIP.mean(over, keepdims=True)[0], SHAPE), rtol=1e-5
    )


def test_covariance_along_time_is_the_clips(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_fade", lambda size, length: np.ones(size, np.float32))
    # One noise for all places: the covariances are exact.
    A = matrix(Spot(CLIP, "time", cells=1), SHAPE, (False,) * 3)
    found = (A @ A.T).reshape(*SHAPE, *SHAPE)
    u = (CLIP - CLIP.mean(2, keepdims=True))[0].astype(float)
    for lag in range(7):
        # Between channels, and between places, as in the clip; the same at every time.
        expected = np.einsum("cthw,dtij->chwdij", u[:, lag:], u[:, : 7 - lag]) / 7
        for t in range(9 - lag):
            np.testing.assert_allclose(found[:, t + lag, :, :, :, t], expected, atol=1e-5)
    assert np.abs(found[:, 8, :, :, :, 1]).max() < 1e-6  # beyond the clip's length: none


def test_cells_leave_variances_and_weaken_only_distant_covariances() -> None:
    A = matrix(Spot(CLIP, "time"), SHAPE, (False,) * 3)
    found = (A @ A.T).reshape(*SHAPE, *SHAPE)[:, 4, :, :, :, 4]
    u = Spot(CLIP, "time")._clips[0].astype(float)
    full = np.einsum("cthw,dtij->chwdij", u, u)
    variance = np.einsum("chwchw->chw", found)
    np.testing.assert_allclose(variance, np.einsum("chwchw->chw", full), rtol=1e-4)
    share = found / full
    assert share.max() < 1 + 1e-3 and share.min() > -1e-3
    assert np.abs(share[0, 0, 0, 0, 5, 4]) < 1e-3  # opposite corners


def test_covariance_along_space_and_time_depends_on_the_distance_alone() -> None:
    shape = (2, 4, 6, 5)
    A = matrix(Spot(CLIP, "space-time"), shape, (True,) * 3)
    found = (A @ A.T).reshape(*shape, *shape)
    u = module.folded(Spot(CLIP, "space-time")._clips[0], shape[1:]).astype(float)
    for shift in [(0, 0, 0), (1, 0, 0), (0, 2, 1), (3, 5, 4)]:
        expected = np.einsum("cthw,dthw->cd", np.roll(u, [-step for step in shift], (1, 2, 3)), u)
        for place in [(0, 0, 0), (2, 3, 1)]:
            there = tuple((a + b) % n for a, b, n in zip(place, shift, shape[1:], strict=True))
            pair = found[(slice(None), *there, slice(None), *place)]
            np.testing.assert_allclose(pair, expected, atol=1e-5)


@pytest.mark.parametrize("axes", ["time", "space-time"])
def test_a_loop_is_periodic(axes: Axes) -> None:
    shape = (2, 5, 6, 5)
    A = matrix(Spot(CLIP, axes), shape, (True, False, False)).reshape(*shape, -1)

    # The covariance of frames is the same one step on, around the end too.
    def covariance(t: int, s: int) -> NDArray[np.float64]:
        return A[:, t].reshape(-1, A.shape[-1]) @ A[:, s].reshape(-1, A.shape[-1]).T

    for t in range(5):
        np.testing.assert_allclose(
            covariance((t + 1) % 5, t), covariance(1, 0), atol=1e-5 * np.abs(covariance(0, 0)).max()
        )


def test_every_number_and_seed_is_another_and_clips_are_all_taken() -> None:
    clips = np.concatenate([CLIP, -2 * CLIP, CLIP * 0 + 9])
    spot = Spot(clips, "time")
    made = [
        first_noise(spot, SHAPE, seed=seed, number=number, init_std=1.0)
        for seed in range(4)
        for number in range(8)
    ]
    assert len({video.tobytes() for video in made if video.std() > 0.5}) > 15
    # Means of the three clips: 3, -6 and, still, 9.
    taken = {round(float(video.mean()) / 3) for video in made}
    assert taken == {1, -2, 3}
    again = first_noise(spot, SHAPE, seed=3, number=7, init_std=1.0)
    assert np.array_equal(again, made[-1])


def test_without_a_spot_it_is_the_white_noise_of_the_conventions() -> None:
    made = first_noise(None, SHAPE, seed=1, number=2, init_std=0.5)
    noise = standard_normal(made.size, seed=1, chain=2, step=0)
    assert np.array_equal(made.ravel(), noise * np.float32(0.5))


@pytest.mark.parametrize("axes", ["time", "space-time"])
@pytest.mark.parametrize("frames", [2, 4, 9])
def test_a_stream_is_one_process_across_its_blocks(
    axes: Axes, frames: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Spot, "_coloured", lambda self, x, clip: x)  # linear in the noise
    spot, shape = Spot(CLIP, axes), (2, frames, 6, 5)
    blocks, numbers = 3 + 6 // frames, {}

    def columns(pick: tuple[int, int] | None) -> NDArray[np.float32]:
        """The first blocks when one value of the noise is 1 and all others 0."""

        def draw(block: int, size: int) -> NDArray[np.float32]:
            numbers[block] = max(numbers.get(block, 0), size)
            noise = np.zeros(size, np.float32)
            if pick is not None and pick[0] == block and pick[1] < size:
                noise[pick[1]] = 1
            return noise

        stream = spot.stream(draw, shape)
        return np.concatenate([next(stream) for _ in range(blocks)], 1)

    still = columns(None)
    picks = [(block, place) for block, size in list(numbers.items()) for place in range(size)]
    A = np.stack([(columns(pick) - still).astype(float) for pick in picks], -1)
    total = blocks * frames

    def covariance(t: int, s: int) -> NDArray[np.float64]:
        return A[:, t].reshape(-1, A.shape[-1]) @ A[:, s].reshape(-1, A.shape[-1]).T

    # Stationary: pairs of frames at one distance are alike wherever the blocks end.
    for lag in (0, 1, 3):
        first = covariance(lag, 0)
        assert np.abs(first).max() > 0.1
        for t in range(1, total - lag):
            np.testing.assert_allclose(covariance(t + lag, t), first, atol=1e-5)
    # ... and it is the covariance of a video made in one piece.
    whole = matrix(spot, (2, 9, 6, 5), NO_WRAP).reshape(2, 9, 6, 5, -1)
    if axes == "time":
        a, b = (whole[:, t].reshape(-1, whole.shape[-1]) for t in (1, 0))
        np.testing.assert_allclose(a @ b.T, covariance(1, 0), atol=1e-5)


def test_along_time_every_place_keeps_its_colours() -> None:
    rng = np.random.default_rng(8)
    # Dark at most times and bright at some, as in a fire; three channels that belong together.
    bright = (rng.random((1, 1, 40, 6, 5)) < 0.2) * np.float32(3)
    clip = (bright * np.array([1, 0.6, 0.2]).reshape(1, 3, 1, 1, 1)).astype(np.float32)
    spot = Spot(clip, "time")
    made = first_noise(spot, (3, 200, 6, 5), seed=1, number=0, init_std=1.0)
    gaussian = spot.gaussian(
        standard_normal(spot.noise_size((3, 200, 6, 5)), seed=1, chain=0, step=0), (3, 200, 6, 5)
    )
    assert gaussian.min() < -0.5
    assert made.min() >= 0 and made.max() <= 3
    np.testing.assert_allclose(made[1], 0.6 * made[0], atol=1e-5)
    np.testing.assert_allclose(made[2], 0.2 * made[0], atol=1e-5)
    share = (made[0] > 1.5).mean((1, 2)).mean()
    assert abs(share - (clip[0, 0] > 1.5).mean()) < 0.04
    # The brighter, the brighter: at each place the ranks are those of the Gaussian values.
    for y, x in ((0, 0), (3, 2)):
        order = np.argsort(gaussian[0, :, y, x])
        assert (np.diff(made[0, order, y, x]) >= -1e-5).all()


def test_the_normal_distribution_function() -> None:
    from math import erf

    x = np.linspace(-6, 6, 401, dtype=np.float32)
    exact = [0.5 * (1 + erf(value / 2**0.5)) for value in x]
    np.testing.assert_allclose(module._normal_cdf(x), exact, atol=3e-7)


def test_given_darker_values_the_draw_is_as_dark() -> None:
    """Light changes: deep in a hole the noise is at the level of what is known around."""
    rng = np.random.default_rng(2)
    clip = module.box_mean(rng.standard_normal((1, 3, 12, 40, 40)).astype(np.float32), 2)
    clip /= clip.std()
    spot = Spot(clip, "space-time")
    shape = (3, 12, 40, 40)
    known = np.ones(shape[1:], bool)
    known[:, 12:28, 12:28] = False
    drawn = spot.make(rng.standard_normal(spot.noise_size(shape)).astype(np.float32), shape)
    values = (clip[0] - 0.5).astype(np.float32)
    found = spot.given(drawn, values, known)
    change = (found - drawn)[:, :, 16:24, 16:24].mean()
    assert change == pytest.approx(-0.5, abs=0.15)


def test_given_lower_waves_the_draw_is_as_low() -> None:
    """A river's waves are lower at its far side, in the clip as in the video."""
    rng = np.random.default_rng(7)
    shape = (3, 12, 48, 48)
    waves = module.box_mean(rng.standard_normal((2, *shape)).astype(np.float32), 1)
    waves /= waves.std()
    waves *= np.linspace(0.4, 1.6, 48, dtype=np.float32)[:, None]
    spot = Spot(waves[:1], "space-time").evened()
    known = np.ones(shape[1:], bool)
    known[:, 4:44, 16:32] = False
    drawn = spot.make(rng.standard_normal(spot.noise_size(shape)).astype(np.float32), shape)
    found = spot.given(drawn, waves[1], known)
    for rows in (slice(5, 15), slice(33, 43)):
        size = found[:, :, rows, 18:30].std() / waves[1][:, :, rows, 18:30].std()
        assert size == pytest.approx(1, abs=0.15)


def test_light_that_stands_still_in_a_clip_makes_no_patches() -> None:
    rng = np.random.default_rng(8)
    shape = (3, 16, 48, 48)
    clip = rng.standard_normal((1, *shape)).astype(np.float32)
    clip += 3 * np.sin(np.linspace(0, np.pi, 48, dtype=np.float32))
    plain = Spot(clip, "space-time")
    patches = []
    for spot in (plain, plain.evened()):
        drawn = spot.make(rng.standard_normal(spot.noise_size(shape)).astype(np.float32), shape)
        patches.append(module.box_mean(drawn.mean(1), 6)[:, 6:-6, 6:-6].std())
        assert np.abs(drawn).mean() > 0.5
    assert patches[1] < patches[0] / 4, patches


def test_given_known_values_the_mean_is_that_of_kriging() -> None:
    rng = np.random.default_rng(6)
    t, y, x = np.mgrid[0:7, 0:6, 0:5]
    clip = np.stack([np.cos(y + t / 2), np.sin(x - t / 2) + np.cos(y + t / 2)])[None]
    spot = Spot((clip + 0.1 * rng.standard_normal(clip.shape)).astype(np.float32), "space-time")
    shape = (2, 4, 4, 3)
    known = rng.random(shape[1:]) < 0.6
    values = spot.make(rng.standard_normal(spot.noise_size(shape)).astype(np.float32), shape)
    still = np.broadcast_to(spot._mean[0], shape).astype(np.float32)
    found = spot.given(still, values, known)
    assert np.array_equal(found[:, known], values[:, known])

    # The same by a dense solution, one principal colour at a time.
    own = spot._clips[0].astype(float)
    places = np.array(list(np.ndindex(*shape[1:])))
    at = known.ravel()
    mean = spot._mean[0]
    level = mean + module._level(values - mean, known)[:, None]
    contrast = module._contrast(values - level, known)[:, None]
    contrast /= np.sqrt(np.square(spot._plain[0] - mean).mean((1, 2, 3), keepdims=True))
    expected = np.zeros((2, len(places)))
    missed = ((values - level) / contrast).reshape(2, -1).astype(float)
    for colour in np.linalg.eigh(np.einsum("ctyx,dtyx->cd", own, own))[1].T:
        grey = np.tensordot(colour, own, 1)
        K = np.zeros((len(places), len(places)))
        for i, p in enumerate(places):
            for j, q in enumerate(places):
                lag = np.abs(p - q)
                one = tuple(slice(max(0, b - a), None if b >= a else b - a) for a, b in zip(p, q))  # noqa: B905
                two = tuple(slice(max(0, a - b), None if a >= b else a - b) for a, b in zip(p, q))  # noqa: B905
                fade = np.prod(0.5 + 0.5 * np.cos(np.pi * lag / np.array(grey.shape)))
                K[i, j] = (grey[one] * grey[two]).sum() * fade
        noise = module.GIVEN_NUGGET * K[0, 0] * np.eye(at.sum())
        weights = np.linalg.solve(K[np.ix_(at, at)] + noise, (colour @ missed)[at])
        expected += np.outer(colour, K[:, at] @ weights)
    got = ((found - level) / contrast).reshape(2, -1)
    error, moved = (got - expected)[:, ~at], expected[:, ~at]
    assert np.sqrt((error**2).mean()) < 0.05 * np.sqrt((moved**2).mean())


def test_a_bank_beside_the_river_does_not_run_into_it() -> None:
    """Known values that the texture does not have, a part that a stationary clip cannot explain."""
    rng = np.random.default_rng(2)
    t, y, x = np.mgrid[0:12, 0:24, 0:30]
    waves = np.sin(0.9 * x + 0.7 * y - 0.8 * t) + 0.1 * rng.standard_normal((3, 12, 24, 30))
    spot = Spot(waves[None].astype(np.float32), "space-time")
    values = waves.astype(np.float32)
    values[:, :, :6] = 12 + 3 * rng.standard_normal((3, 12, 6, 30))
    known = np.ones(values.shape[1:], bool)
    known[3:9, 8:18, 8:22] = False
    drawn = spot.make(
        rng.standard_normal(spot.noise_size(values.shape)).astype(np.float32), values.shape
    )
    found = spot.given(drawn, values, known)
    assert np.array_equal(found[:, known], values[:, known])
    assert np.abs(found[:, ~known]).max() < 5
    # It goes on from what is known: next to the edge it is near the waves that are there.
    edge = ~known
    edge[4:8, 9:17, 9:21] = False
    apart = [np.abs(v - waves)[:, edge].mean() for v in (found, drawn)]
    assert apart[0] < 0.8 * apart[1]


def test_what_lies_over_something_else_is_told_from_the_texture() -> None:
    rng = np.random.default_rng(2)
    clip = rng.standard_normal((3, 12, 24, 30)).astype(np.float32)
    spot = Spot(clip[None], "space-time")
    values = clip.copy()
    values[:, :, :6] = 12  # a bank
    values[:, 6:, 12:20, 25:] = 12  # a wake that is there afterwards only
    known = np.ones(values.shape[1:], bool)
    known[3:5, 2:22, 8:30] = False
    known[:, :4, :4] = False  # a place that is never known
    values[:, ~known] = np.nan
    found = spot.elsewhere(values, known)
    assert found[3:5, 2:5, 8:].all()
    assert not found[known].any() and not found[:, 9:].any() and not found[:, :2, :2].any()


def a_scene(frames: int = 40) -> NDArray[np.float32]:
    """Dark and bright shapes that drift: far from Gaussian, (1, 3, T, 24, 24), model units."""
    t, y, x = np.mgrid[:frames, :24, :24]
    wave = (
        np.sin(0.21 * t + 0.3 * x) + np.sin(0.13 * t - 0.35 * y) + np.sin(0.29 * t + 0.2 * (x + y))
    )
    return np.tanh(3 * wave)[None, None].repeat(3, 1).astype(np.float32)


def spectra_apart(spot: Spot, scene: NDArray[np.float32]) -> tuple[float, float]:
    """Root mean square differences of power spectra along time and over space, dB."""
    rng = np.random.default_rng(11)
    shape = scene.shape[1:]
    draws = [
        spot.make(rng.standard_normal(spot.noise_size(shape)).astype(np.float32), shape)
        for _ in range(4)
    ]

    def along(x: NDArray) -> NDArray:
        window = np.hanning(x.shape[1] + 2)[1:-1, None, None]
        return (np.abs(np.fft.rfft(x[0] * window, axis=0)) ** 2).mean((1, 2))[1:]

    def over(x: NDArray) -> NDArray:
        window = np.outer(np.hanning(26)[1:-1], np.hanning(26)[1:-1])
        power = (np.abs(np.fft.rfft2(x[0] * window)) ** 2).mean(0)
        return np.stack([power[1:12, 0], power[0, 1:12]])

    mean = scene[0].mean(1, keepdims=True)
    apart = []
    for power in (along, over):
        found = np.mean([power(draw - mean) for draw in draws], 0)
        decibels = 10 * np.log10((found + 1e-3) / (power(scene[0] - mean) + 1e-3))
        apart.append(float(np.sqrt((decibels**2).mean())))
    return apart[0], apart[1]


def test_the_equalizer_brings_the_spectra_to_the_clips() -> None:
    scene = a_scene()
    plain = spectra_apart(Spot(scene, "time"), scene)
    fitted = spectra_apart(Spot.fitted(scene, "time", 60.0), scene)
    assert plain[0] > 5 and plain[1] > 2  # steps in time, speckle in space
    assert fitted[0] < 0.6 * plain[0] and fitted[1] < 0.8 * plain[1]


def test_an_equalizer_leaves_what_stands_still() -> None:
    scene = a_scene()
    scene[:, :, :, :8] = np.linspace(0, 3, 24, dtype=np.float32)  # of no motion, but with edges
    spot = Spot.fitted(scene, "time", 60.0)
    made = spot.make(
        np.random.default_rng(1).standard_normal(spot.noise_size((3, 40, 24, 24))).astype("f"),
        (3, 40, 24, 24),
    )
    np.testing.assert_allclose(made[:, :, :2], scene[0, :, :, :2], atol=1e-5)


@pytest.mark.parametrize("frames", [3, 16])
def test_a_stream_is_equalized_without_seams(frames: int) -> None:
    scene = a_scene()
    spot, plain = Spot.fitted(scene, "time", 60.0), Spot(scene, "time")
    assert spot.equalizer is not None

    def stream(which: Spot) -> NDArray[np.float32]:
        def draw(block: int, size: int) -> NDArray[np.float32]:
            return standard_normal(size, seed=4, chain=block, step=0)

        blocks = which.stream(draw, (3, frames, 24, 24))
        return np.concatenate([next(blocks) for _ in range(60 // frames + 8)], 1)

    mean = scene[0].mean(1, keepdims=True)
    whole = spot.equalizer.over_space(spot.equalizer.along_time(stream(plain) - mean)) + mean
    found = stream(spot)[:, :60]
    np.testing.assert_allclose(found, whole[:, :60], atol=2e-5)


@pytest.mark.parametrize("wrap", [NO_WRAP, (True, False, False)])
@pytest.mark.parametrize("frames", [3, 40])
def test_frames_at_a_time_are_those_made_at_once(
    frames: int, wrap: Wrap, monkeypatch: pytest.MonkeyPatch
) -> None:
    spot, shape = Spot.fitted(a_scene(), "time", 60.0), (3, frames, 24, 24)
    noise = standard_normal(spot.noise_size(shape, wrap=wrap), seed=1, chain=0, step=0)
    whole = spot.make(noise, shape, wrap=wrap)
    # As the formulas say it, in one piece.
    assert spot.equalizer is not None
    mean = a_scene()[0].mean(1, keepdims=True)
    plain = spot._coloured(spot.gaussian(noise, shape, wrap=wrap), 0) - mean
    ends = "wrap" if wrap[0] else "edge"
    expected = spot.equalizer.over_space(spot.equalizer.along_time(plain, ends)) + mean
    np.testing.assert_allclose(whole, expected, atol=1e-6)
    for block in (1, 7 * 24 * 24):
        monkeypatch.setattr(module, "BLOCK", block)
        np.testing.assert_allclose(spot.make(noise, shape, wrap=wrap), whole, atol=2e-6)


@pytest.mark.parametrize("axes", ["time", "space-time"])
def test_where_it_is_made_changes_nothing(axes: Axes) -> None:
    spot, shape = Spot(a_scene(), axes), (3, 50, 24, 24)
    noise = standard_normal(spot.noise_size(shape), seed=3, chain=1, step=0)
    expected = spot.make(noise, shape)
    out = np.full(shape, np.nan, np.float32)
    for values in (0, 20_000, out.size):  # room for nothing, for one spectrum, for all
        room = np.full(values, np.nan, np.float32)
        found = first_noise(
            spot, shape, seed=3, number=1, init_std=1.0, out=out, room=room.reshape(-1, 2)
        )
        assert found is out and np.array_equal(out, expected)


@pytest.mark.parametrize("axes", ["time", "space-time"])
@pytest.mark.parametrize("frames", [40, 300])
def test_no_more_memory_is_taken_than_is_foreseen(
    axes: Axes, frames: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BLOCK", 10 * 24 * 24)
    scene = a_scene()
    spot = Spot.fitted(scene, axes, 60.0) if axes == "time" else Spot(scene, axes)
    shape = (3, frames, 24, 24)
    out, room = (np.zeros(shape, np.float32) for _ in range(2))
    tracemalloc.start()
    first_noise(spot, shape, seed=1, number=0, init_std=1.0, out=out, room=room)
    taken = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert taken < 1.05 * spot.scratch_bytes(shape, room=room.nbytes)
    if frames == 300:  # a whole video's transforms, or colours, would be some 60 bytes a pixel
        assert taken < 12 * frames * 24 * 24


def test_between_given_frames_each_place_is_led_as_kriging_says() -> None:
    rng = np.random.default_rng(4)
    clip = np.cumsum(rng.standard_normal((1, 1, 30, 1, 1)), 2).astype(np.float32)
    spot, x = Spot(clip, "time"), np.zeros((1, 40, 1, 1), np.float32)
    before, after = (rng.standard_normal((1, n, 1, 1)).astype(np.float32) for n in (6, 3))
    found = spot.between(x, before, after)[0, :, 0, 0]
    own = spot._clips[0, 0, :, 0, 0].astype(float)
    fade = 0.5 + 0.5 * np.cos(np.pi * np.arange(24) / 24)
    lagged = np.r_[[(own[k:] * own[: 30 - k]).sum() for k in range(24)] * fade, np.zeros(16)]
    given = np.r_[0:6, 37:40]
    K = lagged[np.abs(np.subtract.outer(np.arange(40), np.arange(40)))]
    among = K[np.ix_(given, given)] + module.LED_NUGGET * K[0, 0] * np.eye(9)
    expected = K[:, given] @ np.linalg.solve(among, np.r_[before.ravel(), after.ravel()])
    np.testing.assert_allclose(found[6:37], expected[6:37], atol=1e-4)
    assert np.array_equal(found[given], np.r_[before.ravel(), after.ravel()])


@pytest.mark.parametrize("frames", [20, 80])
def test_given_takes_no_more_memory_than_is_foreseen(
    frames: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "GIVEN_STEPS", 3)
    spot, shape = Spot(a_scene(), "space-time"), (3, frames, 48, 48)
    x, known = np.zeros(shape, np.float32), np.ones(shape[1:], bool)
    known[:, 20:30, 20:30] = False
    values = np.random.default_rng(1).standard_normal(shape, np.float32)
    tracemalloc.start()
    spot.given(x, values, known)
    taken = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    foreseen = spot.given_bytes(shape)
    assert 0.8 * foreseen < taken < 1.05 * foreseen


@pytest.mark.parametrize("axes", ["time", "space-time"])
def test_between_takes_no_more_memory_than_is_foreseen(
    axes: Axes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "GIVEN_STEPS", 3)
    spot, shape = Spot(a_scene(), axes), (3, 80, 24, 24)
    x, ends = np.zeros(shape, np.float32), a_scene()[0, :, :15]
    tracemalloc.start()
    spot.between(x, ends, ends)
    taken = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert taken < 1.05 * spot.between_bytes(shape)


@pytest.mark.parametrize("axes", ["time", "space-time"])
def test_between_given_frames_no_end_is_seen_and_the_motion_is_kept(axes: Axes) -> None:
    # White noise that goes together over some frames and pixels.
    noise = np.random.default_rng(1).standard_normal((1, 3, 160, 24, 24))
    for axis, length in ((2, 4.0), (3, 3.0), (4, 3.0)):
        frequency = np.fft.fftfreq(noise.shape[axis]).reshape(
            [-1 if i == axis else 1 for i in range(5)]
        )
        low = np.exp(-((length * frequency * 2) ** 2))
        noise = np.fft.ifft(np.fft.fft(noise, axis=axis) * low, axis=axis).real
    scene = (noise / noise.std()).astype(np.float32)
    spot = (
        Spot.fitted(scene[:, :, :64], axes, 60.0)
        if axes == "time"
        else Spot(scene[:, :, :64], axes)
    )
    into, moved, plain = [], [], []
    for seed in range(4):
        x = first_noise(spot, (3, 54, 24, 24), seed=seed, number=0, init_std=1.0)
        before, after = scene[0, :, 80:95], scene[0, :, 120:135]
        steps = np.abs(np.diff(spot.between(x, before, after), axis=1)).mean((0, 2, 3))
        given = np.r_[steps[:14], steps[40:]].mean()
        into += [steps[14] / given, steps[38] / given]
        moved.append(steps[15:38].mean() / np.abs(np.diff(x[:, 15:39], axis=1)).mean())
        plain.append(np.abs(x[:, 15] - before[:, -1]).mean() / given)
    assert np.mean(plain) > 2
    assert np.mean(into) < 1.2 and max(into) < 1.3
    assert 0.9 < np.mean(moved) < 1.2


@pytest.mark.parametrize("size", [(24, 24), (20, 15)])
def test_between_on_a_torus_knows_no_edges(
    size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "FOREIGN", 1e6)  # what belongs to the texture is told edge by edge
    monkeypatch.setattr(module, "GIVEN_STEPS", 10)  # more let rounding grow
    spot, wrap = Spot(a_scene(), "space-time"), (False, True, True)
    x = first_noise(spot, (3, 20, *size), seed=1, number=0, init_std=1.0, wrap=wrap)
    ends = first_noise(spot, (3, 8, *size), seed=2, number=0, init_std=1.0, wrap=wrap)
    before, after = ends[:, :4], ends[:, 4:]
    made = spot.between(x, before, after, wrap)
    turned = [np.roll(each, (7, 5), (2, 3)) for each in (x, before, after)]
    again = spot.between(*turned, wrap)
    assert np.abs(again - np.roll(made, (7, 5), (2, 3))).max() < 1e-3
    plain = spot.between(*turned)
    assert np.abs(plain - np.roll(spot.between(x, before, after), (7, 5), (2, 3))).max() > 0.1
