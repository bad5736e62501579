"""An endless video is the walk of one infinitely long video, in constant memory."""

from itertools import islice
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from networks import SMALL, Network

from stg_runtime import langevin
from stg_runtime.endless import FIRST_CHAIN, GROUP, Endless, block_frames
from stg_runtime.errors import DivergenceError, InputError
from stg_runtime.langevin import langevin_step, standard_normal
from stg_runtime.video import to_pixels
from stg_runtime.windows import Windowed

STEPS, SIZE = 3, (12, 14)


def network(**changes: Any) -> Network:
    made = Network(SMALL)
    defaults = {
        "channels": 1,
        "margin_frames": 2,
        "init_std": 1.0,
        "step_size": 0.3,
        "noise_at": lambda step, n_steps: 1.0,
        "n_steps": STEPS,
        "pixel_scale": 50.0,
        "mean": lambda: np.full((1, 1, 1), 120, np.float32),
    }
    made.metadata = SimpleNamespace(**(vars(made.metadata) | defaults | changes))
    return made


@pytest.mark.parametrize("noise_end", [1.0, 0.2])
def test_a_stream_equals_one_long_video(noise_end: float) -> None:
    def noise_at(step: int, n_steps: int) -> float:
        return langevin.noise_at(step, n_steps, noise_scale=1.0, noise_end=noise_end)

    gradient = network(noise_at=noise_at)
    stream = Endless(gradient, SIZE, n_steps=STEPS, seed=7)  # type: ignore[arg-type]
    count = 2 * GROUP + 3
    got = np.concatenate(list(islice(stream, count)))
    block = block_frames(gradient.metadata)
    assert got.shape == (count * block - 2, *SIZE, 1)

    blocks = count + STEPS + 2
    shape = (1, 1, blocks * block, *SIZE)

    def noise(step: int) -> np.ndarray:
        parts = [
            standard_normal(block * SIZE[0] * SIZE[1], seed=7, chain=FIRST_CHAIN + b, step=step)
            for b in range(blocks)
        ]
        return np.concatenate(parts).reshape(shape)

    x = noise(0)
    grad = np.empty_like(x)
    for step in range(1, STEPS + 1):
        gradient.bind(x, grad)
        gradient.run()
        scale = noise_at(step, STEPS)
        x = langevin_step(x, grad, noise(step), step_size=0.3, noise_scale=scale)
    expected = to_pixels(x[0, :, 2 : count * block], np.full((1, 1, 1), 120, np.float32), 50.0)
    difference = np.abs(got.astype(int) - expected.astype(int))
    assert difference.max() <= 1 and difference.mean() < 1e-3
    assert got.std() > 20


def test_memory_is_constant_and_late_blocks_are_as_early_ones() -> None:
    stream = Endless(network(), SIZE, n_steps=STEPS, seed=1)  # type: ignore[arg-type]
    held, means = [], []
    for number, frames in enumerate(stream):
        means.append((frames.mean(), frames.std()))
        held.append(len(stream._spare) + sum(map(len, stream._levels)))
        if number == 60:
            break
    assert max(held[30:]) <= max(held[:30]) <= 2 * (STEPS + 1) + 3 * GROUP + 2
    early, late = np.array(means[1:20]).mean(0), np.array(means[41:]).mean(0)
    np.testing.assert_allclose(late, early, rtol=0.05)


def test_minute_ten_is_as_minute_one() -> None:
    gradient = network()
    stream = Endless(gradient, SIZE, n_steps=STEPS, seed=2)  # type: ignore[arg-type]
    minute = 60 * 25 // block_frames(gradient.metadata)
    figures: list[list[tuple[float, float, float]]] = [[], []]
    for number, frames in enumerate(islice(stream, 10 * minute)):
        if number // minute in (0, 9):
            levels = frames.astype(np.float32)
            motion = np.abs(np.diff(levels, axis=0)).mean()
            figures[number >= minute].append((levels.mean(), levels.std(), motion))
    one, ten = (np.array(rows[1:]) for rows in figures)
    error = np.sqrt(one.var(0) / len(one) + ten.var(0) / len(ten))
    assert (np.abs(ten.mean(0) - one.mean(0)) < 4 * error).all()
    assert (error < 0.02 * one.mean(0)).all()  # it would see a drift of less than a tenth


def test_the_same_seed_streams_the_same_and_windows_change_nothing() -> None:
    whole = Endless(network(), SIZE, n_steps=STEPS, seed=3)  # type: ignore[arg-type]
    cut = Endless(
        Windowed(network(), pieces=(2, 1, 1)),  # type: ignore[arg-type]
        SIZE,
        n_steps=STEPS,
        seed=3,
    )
    other = Endless(network(), SIZE, n_steps=STEPS, seed=4)  # type: ignore[arg-type]
    first, second, third = (next(iter(each)).astype(int) for each in (whole, cut, other))
    assert np.abs(first - second).max() <= 1
    assert np.abs(first - third).mean() > 5


def test_divergence_stops_the_stream() -> None:
    stream = Endless(network(step_size=1e12), SIZE, n_steps=STEPS, seed=3)  # type: ignore[arg-type]
    with (
        pytest.raises(DivergenceError, match=r"block \d+ .* at step \d"),
        np.errstate(all="ignore"),
    ):
        list(islice(stream, 3))


def test_a_fixed_length_cannot_be_streamed() -> None:
    gradient = network(free_axes=())
    with pytest.raises(InputError, match=r"--endless: the length .* without --static"):
        Endless(gradient, SIZE, n_steps=STEPS, seed=3)  # type: ignore[arg-type]
