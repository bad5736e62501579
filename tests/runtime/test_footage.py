"""Given video: where a walk begins, and what of it is read."""

import tracemalloc
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from stg_runtime.artifact import Size
from stg_runtime.errors import InputError
from stg_runtime.footage import read_ends, read_init
from stg_runtime.video import to_pixels

RNG = np.random.default_rng(3)


@pytest.mark.parametrize("shape", [(3, 1, 1), (3, 12, 14), (3, 10, 12, 14)])
def test_a_beginning_is_the_video_whatever_mean_is_taken_off(
    tmp_path: Path, shape: tuple[int, ...]
) -> None:
    frames = RNG.integers(0, 256, (6, 8, 10, 3), np.uint8)
    np.save(tmp_path / "a.npy", frames)
    mean = RNG.uniform(0, 255, shape).astype(np.float32)  # of the walk: margins and all
    metadata: Any = SimpleNamespace(mean=lambda: mean, pixel_scale=40.0)
    size = Size(frames=6, height=8, width=10)
    x = read_init(tmp_path / "a.npy", metadata, size, 2, 2)
    assert x.shape == (3, 10, 12, 14)
    again = to_pixels(x, mean, 40.0)
    assert np.array_equal(again[2:-2, 2:-2, 2:-2], frames)
    assert np.array_equal(again, np.pad(frames, [(2, 2)] * 3 + [(0, 0)], mode="edge"))


def test_of_two_clips_only_the_ends_are_held(tmp_path: Path) -> None:
    frames = RNG.integers(0, 256, (400, 32, 32, 3), np.uint8)
    np.save(tmp_path / "a.npy", frames)
    least = SimpleNamespace(frames=1, height=1, width=1)
    metadata: Any = SimpleNamespace(
        free_axes=("N", "T"), stride=(1, 1, 1), receptive_field=(5, 1, 1), padding=(2, 0, 0),
        min_size=least, mean=lambda: np.zeros((3, 1, 1), np.float32), pixel_scale=1.0,
    )  # fmt: skip
    path = tmp_path / "a.npy"
    tracemalloc.start()
    before, after = read_ends([path, path], metadata, (32, 32))
    taken = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert before.shape == after.shape == (3, 4, 32, 32)
    assert np.array_equal(before.transpose(1, 2, 3, 0), frames[-4:])
    assert np.array_equal(after.transpose(1, 2, 3, 0), frames[:4])
    assert taken < frames.nbytes / 4
    np.save(path, frames[:0])
    with pytest.raises(InputError, match="holds no frames"):
        read_ends([path, path], metadata, (32, 32))
