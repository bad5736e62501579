import math
import tracemalloc

import numpy as np
import pytest

from stg_runtime.langevin import BLOCK, INITIAL, PER_COUNTER, Walker, langevin_step, standard_normal

MASK = 2**64 - 1
PLACES = [0, 1, 7, 8, 1000, BLOCK - 9, BLOCK - 1, BLOCK, BLOCK + 3, 2 * BLOCK - 1, 2 * BLOCK + 36]
SIZE = 2 * BLOCK + 37


def philox(counter: list[int], key: list[int]) -> list[int]:
    """Philox-4x64-10 in integers.

    Source: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        p0, p1 = 0xD2E7470EE14C6C93 * c0, 0xCA5A826395121157 * c2
        c0, c1, c2, c3 = (p1 >> 64) ^ c1 ^ k0, p1 & MASK, (p0 >> 64) ^ c3 ^ k1, p0 & MASK
        k0, k1 = (k0 + 0x9E3779B97F4A7C15) & MASK, (k1 + 0xBB67AE8584CAA73B) & MASK
    return [c0, c1, c2, c3]


def normals(words: list[int]) -> list[float]:
    """Eight values of four 64-bit words, in float64."""
    halves = [half for word in words for half in (word & 0xFFFFFFFF, word >> 32)]
    u = [(half >> 8) / 2**24 for half in halves]
    values = []
    for a, b in zip(u[::2], u[1::2], strict=True):
        radius = math.sqrt(-2 * math.log(1 - a))
        values += [radius * math.cos(2 * math.pi * b), radius * math.sin(2 * math.pi * b)]
    return values


@pytest.mark.parametrize(
    ("seed", "chain", "step"),
    [
        (0, 0, 0),
        (5, 3, 7),
        (2**63 - 1, 2**40 + 1, 10**6),
        (2**64 - 1, 2, 1),
    ],
)
def test_the_noise_is_as_documented(seed: int, chain: int, step: int) -> None:
    noise = standard_normal(SIZE, seed=seed, chain=chain, step=step)
    assert noise.dtype == np.float32 and noise.shape == (SIZE,)
    for place in PLACES:
        i, part = divmod(place, PER_COUNTER)
        words = philox([i + 1, step, 0, 0], [seed, chain])
        # NumPy's own words: it counts before it draws.
        counter, key = np.array([i, step, 0, 0], np.uint64), np.array([seed, chain], np.uint64)
        assert np.random.Philox(counter=counter, key=key).random_raw(4).tolist() == words
        # 2 pi u is rounded to a float: an angle error of 2^-22 at most, times a radius below 6.
        assert noise[place] == pytest.approx(normals(words)[part], abs=2e-6), place


def test_every_value_follows_from_the_raw_words() -> None:
    noise = standard_normal(SIZE, seed=11, chain=1, step=2)
    raw = np.random.Philox(counter=[0, 2, 0, 0], key=[11, 1]).random_raw(4 * -(-SIZE // 8))
    u = (raw.view("<u4") >> 8) / 2**24
    radius, angle = np.sqrt(-2 * np.log(1 - u[::2])), 2 * np.pi * u[1::2]
    expected = np.stack([radius * np.cos(angle), radius * np.sin(angle)], 1).ravel()[:SIZE]
    np.testing.assert_allclose(noise, expected, rtol=0, atol=4e-6)


@pytest.mark.parametrize("size", [1, 7, 8, 9, BLOCK - 1, BLOCK, BLOCK + 1])
def test_a_shorter_video_begins_with_the_same_noise(size: int) -> None:
    whole = standard_normal(SIZE, seed=4, chain=0, step=3)
    assert np.array_equal(standard_normal(size, seed=4, chain=0, step=3), whole[:size])


def walk(threads: int, size: int, steps: int = 3, seed: int = 9, chain: int = 1) -> np.ndarray:
    x = np.empty(size, np.float32)
    with Walker(seed=seed, chain=chain, threads=threads) as walker:
        walker.start(x, init_std=0.7)
        for step in range(1, steps + 1):
            walker.step(x, np.sin(x), step, step_size=0.4, noise_scale=0.9)
    return x


@pytest.mark.parametrize("size", [5, BLOCK, 3 * BLOCK + 5])
def test_the_number_of_threads_changes_no_bit(size: int) -> None:
    one = walk(1, size)
    for threads in (2, 3, 5):
        assert np.array_equal(walk(threads, size).view(np.uint32), one.view(np.uint32)), threads


def test_threads_pass_errors_on() -> None:
    with (
        Walker(seed=0, chain=0, threads=2) as walker,
        pytest.raises(ValueError, match="broadcast"),
    ):
        walker.step(np.zeros(5, np.float32), np.zeros(4, np.float32), 1, step_size=0.1)


def test_seeds_chains_and_steps_are_independent() -> None:
    n = 1 << 16
    names = [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 1), (0, 1, 1), (1, 0, 1), (0, 0, 2)]
    noise = [standard_normal(n, seed=seed, chain=chain, step=step) for seed, chain, step in names]
    # Correlations are N(0, 1/n); also those of values one and eight apart, and of squares.
    for shift in (0, 1, 2, 8):
        for i, a in enumerate(noise):
            for j, b in enumerate(noise):
                if (i, shift) == (j, 0) or (shift == 0 and i > j):
                    continue
                assert abs(np.mean(a * np.roll(b, shift))) * math.sqrt(n) < 5, (names[i], names[j])
                squares = np.mean((a**2 - 1) * (np.roll(b, shift) ** 2 - 1)) / 2
                assert abs(squares) * math.sqrt(n) < 6, (names[i], names[j], shift)


def test_the_noise_is_standard_normal() -> None:
    x = np.concatenate(
        [standard_normal(1 << 17, seed=2, chain=0, step=step) for step in (1, 2)]
    ).astype(np.float64)
    n = x.size
    for power, moment, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert abs((x**power).mean() - moment) < 5 * math.sqrt(variance / n), power
    x.sort()
    cdf = np.array([0.5 * math.erfc(-value / math.sqrt(2)) for value in x])
    steps = np.arange(n + 1) / n
    distance = max(np.max(cdf - steps[:-1]), np.max(steps[1:] - cdf))
    assert distance * math.sqrt(n) < 1.95  # Kolmogorov: probability 0.001
    assert 4 < x.max() < 5.8 and -5.8 < x.min() < -4  # 24 bits reach 5.77


@pytest.mark.parametrize("noise_scale", [1.0, 0.3, 0.0])
@pytest.mark.parametrize("threads", [1, 2])
def test_the_walker_takes_the_documented_step(noise_scale: float, threads: int) -> None:
    shape = (1, 3, 9, 50, 61)  # more than one block, and not a whole number of them
    rng = np.random.default_rng(0)
    x = rng.standard_normal(shape, np.float32)
    energy_grad = rng.standard_normal(shape, np.float32) * 4
    noise = standard_normal(x.size, seed=3, chain=2, step=6).reshape(shape)
    expected = langevin_step(x, energy_grad, noise, step_size=0.3, noise_scale=noise_scale)
    with Walker(seed=3, chain=2, threads=threads) as walker:
        walker.step(x, energy_grad, 6, step_size=0.3, noise_scale=noise_scale)
    np.testing.assert_array_max_ulp(x, expected, maxulp=2)


def test_the_langevin_step_is_the_equation() -> None:
    x, energy_grad, noise = np.array([2.0]), np.array([3.0]), np.array([5.0])
    got = langevin_step(x, energy_grad, noise, step_size=0.2, noise_scale=0.5)
    assert got == pytest.approx(2.0 - 0.2**2 / 2 * 3.0 + 0.2 * 0.5 * 5.0)
    assert x == 2.0


def test_the_start_is_the_initial_noise_scaled() -> None:
    x = np.full((1, 3, 5, 7, 9), np.nan, np.float32)
    with Walker(seed=8, chain=4, threads=2) as walker:
        walker.start(x, init_std=0.25)
        expected = standard_normal(x.size, seed=8, chain=4, step=INITIAL) * np.float32(0.25)
        assert np.array_equal(x.ravel(), expected)
        walker.start(x, init_std=0)
        assert not x.any()


def test_without_noise_and_gradient_nothing_moves() -> None:
    rng = np.random.default_rng(0)
    x = (rng.standard_normal(BLOCK + 99) * 10.0 ** rng.integers(-44, 38, BLOCK + 99)).astype("f4")
    x[:4] = [0.0, -0.0, np.finfo("f4").max, np.finfo("f4").smallest_subnormal]
    before = x.view(np.uint32).copy()
    with Walker(seed=0, chain=0, threads=2) as walker:
        for step in range(1, 4):
            walker.step(x, np.zeros_like(x), step, step_size=0.7, noise_scale=0)
    assert np.array_equal(x.view(np.uint32), before)


@pytest.mark.parametrize("relative", [0.5, 1.2, 1.8])
def test_the_chain_of_the_reference_term_alone_has_its_exact_variance(relative: float) -> None:
    # f = 0: x <- a x + delta z with a = 1 - delta^2 / (2 sigma^2), from x = 0.
    sigma, n = 1.7, 200_000
    delta = relative * sigma
    limit = sigma**2 / (1 - delta**2 / (4 * sigma**2))
    a = 1 - delta**2 / (2 * sigma**2)
    x = np.zeros(n, np.float32)
    with Walker(seed=1, chain=0, threads=2) as walker:
        for step in range(1, 61):
            walker.step(x, x / np.float32(sigma**2), step, step_size=delta)
            if step in (1, 3, 60):
                variance = limit * (1 - a ** (2 * step))
                assert abs(x.var() / variance - 1) < 4 * math.sqrt(2 / n), step
                assert abs(x.mean()) < 4 * math.sqrt(variance / n), step
    assert abs(a) ** 120 < 1e-6  # the last one is the limit


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("noise_scale", [1.0, 0.0])
def test_a_step_allocates_nothing(threads: int, noise_scale: float) -> None:
    peaks = []
    for blocks in (4, 32):
        x, energy_grad = np.zeros((2, blocks * BLOCK), np.float32)
        with Walker(seed=0, chain=0, threads=threads) as walker:
            walker.step(x, energy_grad, 1, step_size=0.1, noise_scale=noise_scale)
            tracemalloc.start()
            walker.start(x, init_std=1)
            for step in (2, 3):
                walker.step(x, energy_grad, step, step_size=0.1, noise_scale=noise_scale)
            peaks.append(tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()
    # Objects of Python, some kilobytes; one block of float32 would be 256 KiB.
    assert max(peaks) < 64 * 1024, peaks
