"""Many clips, or one long one: evenly cut windows, and memory that does not grow with them."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from support import refused, run, tiny_recipe

from stg_runtime.errors import InputError
from stg_train.observed import read_observed, scale_observed, window_starts
from stg_train.recipe import load_recipe
from stg_train.run import OBSERVED, Run


def numbered(folder: Path, frames: int, name: str = "long.npy") -> Path:
    """A video whose every frame says its number, in its first pixel."""
    generator = np.random.default_rng(1)
    video = generator.integers(60, 200, (frames, 16, 16, 3)).astype(np.uint8)
    video[:, 0, 0, 0] = np.arange(frames) % 256
    np.save(folder / name, video)
    return folder / name


@pytest.mark.parametrize("windows", [1, 2, 5, 17])
def test_windows_are_evenly_spaced_and_cover_both_ends(tmp_path: Path, windows: int) -> None:
    path = numbered(tmp_path, 60)
    recipe = tiny_recipe(path, **{"data.windows": windows, "data.start": 4})
    pixels = read_observed(recipe.data, recipe.pixels).pixels
    assert pixels.shape == (windows, 12, 16, 16, 3)
    whole = np.load(path)
    firsts = pixels[:, 0, 0, 0, 0].astype(int)
    for clip, first in zip(pixels, firsts, strict=True):
        assert np.array_equal(clip, whole[first : first + 12])
    assert firsts[0] == 4
    if windows > 1:
        assert firsts[-1] == 60 - 12
        assert np.ptp(np.diff(firsts)) <= 1


def test_each_of_several_videos_is_cut(tmp_path: Path) -> None:
    paths = [numbered(tmp_path, 30, "a.npy"), numbered(tmp_path, 40, "b.npy")]
    recipe = tiny_recipe(paths[0], **{"data.videos": list(map(str, paths)), "data.windows": 3})
    pixels = read_observed(recipe.data, recipe.pixels).pixels
    assert list(pixels[:, 0, 0, 0, 0]) == [0, 9, 18, 0, 14, 28]


def test_too_many_windows_are_refused(tmp_path: Path) -> None:
    path = numbered(tmp_path, 20)
    recipe = tiny_recipe(path, **{"data.windows": 10})
    with pytest.raises(InputError, match="--windows 10 of 12 frames need at least 21"):
        read_observed(recipe.data, recipe.pixels)
    assert window_starts(21, 10, 12) == list(range(10))
    result = run("stg-train", path, "-o", tmp_path / "run", "--windows", 10, "--align")
    assert result.returncode == 2 and "exclude each other" in result.stderr


def test_statistics_are_those_of_all_clips_at_once(tmp_path: Path) -> None:
    path = numbered(tmp_path, 60)
    recipe = load_recipe("st")
    whole = np.load(path)
    observed = scale_observed(np.stack([whole[:30], whole[30:]]), 25, recipe.pixels)
    levels = whole.astype(float)
    assert np.abs(observed.mean.ravel() - levels.mean((0, 1, 2))).max() < 1 / 256
    exact = np.sqrt(((levels - observed.mean.ravel()) ** 2).mean())
    assert observed.scale == pytest.approx(exact, rel=1e-6)


def test_a_mini_batch_takes_some_clips_and_all_have_their_turn(tmp_path: Path) -> None:
    path = numbered(tmp_path, 60)
    recipe = tiny_recipe(path, **{"data.windows": 6, "data.batch": 2, "data.window": 12})
    learner = Run.start(tmp_path / "run", recipe).learner
    seen = set()
    for _ in range(12):
        windows, count = learner._observed_windows()
        assert count == len(windows) == 2
        red = float(learner.observed.mean[0].item())
        values = windows[:, 0, 0, 0, 0] * learner.observed.scale + red
        seen |= {round(float(value)) for value in values}
    assert len(seen) == 6


def test_a_start_that_fails_leaves_no_trace(tmp_path: Path) -> None:
    path = numbered(tmp_path, 20)
    with pytest.raises(InputError):
        Run.start(tmp_path / "new" / "run", tiny_recipe(path, **{"data.windows": 10}))
    assert not (tmp_path / "new").exists()
    good = tiny_recipe(path)
    Run.start(tmp_path / "run", good)
    before = {item.name: item.read_bytes() for item in (tmp_path / "run").iterdir()}
    with pytest.raises(InputError):
        Run.start(tmp_path / "run", tiny_recipe(path, **{"data.windows": 10}), overwrite=True)
    assert {item.name: item.read_bytes() for item in (tmp_path / "run").iterdir()} == before


@pytest.mark.parametrize("mask", [(), ("--mask", "region:3")])
def test_clips_of_different_sizes_are_refused(tmp_path: Path, mask: tuple[str, ...]) -> None:
    numbered(tmp_path, 12, "square.npy")
    wide = np.random.default_rng(0).integers(60, 200, (12, 16, 20, 3)).astype(np.uint8)
    np.save(tmp_path / "wide.npy", wide)
    before = sorted(tmp_path.iterdir())
    command = ("stg-train", "square.npy", "wide.npy", "-o", "run", *mask)
    result = run(*command, "--recipe", "st", "--frames", 12, cwd=tmp_path)
    refused(result, "wide.npy: 16x20, square.npy is 16x16 (height x width)")
    assert sorted(tmp_path.iterdir()) == before
    both = [str(tmp_path / name) for name in ("square.npy", "wide.npy")]
    cut = tiny_recipe(tmp_path, **{"data.videos": both, "data.crop": [0, 0, 16, 16]})
    assert len(read_observed(cut.data, cut.pixels).pixels) == 2


def test_a_run_can_be_replaced_by_one_of_its_own_clips(tmp_path: Path) -> None:
    Run.start(tmp_path / "run", tiny_recipe(numbered(tmp_path, 20)))
    own = tmp_path / "run" / OBSERVED
    kept = np.load(own)
    Run.start(tmp_path / "run", tiny_recipe(own), overwrite=True)
    assert np.array_equal(np.load(own), kept)


PROGRAM = """
import gc, resource, sys
from pathlib import Path
from support import tiny_recipe
from stg_train.run import Run

folder, clip = Path(sys.argv[1]), sys.argv[2]

def learn(name, windows):
    recipe = tiny_recipe(
        clip, threads=1, precision="fp32",
        **{"data.windows": windows, "data.size": [64, 64], "data.batch": 2, "learning.updates": 2,
           "data.frames": 32, "output.checkpoint_every": 1},
    )
    run = Run.start(folder / name, recipe)
    run.learn()
    Run.resume(folder / name, updates=3).learn()
    assert len(run.learner.observed.pixels) == windows
    return run.learner.observed.pixels.nbytes

def private():
    text = Path("/proc/self/status").read_text()
    return 1024 * int(text.split("VmData:")[1].split()[0])

learn("few", 3)
gc.collect()
room = 48 << 20
resource.setrlimit(resource.RLIMIT_DATA, (private() + room,) * 2)
size = learn("many", 600)
assert size > 4 * room, size
print("done", size)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits private memory")
def test_memory_does_not_grow_with_the_number_of_clips(tmp_path: Path) -> None:
    """226 MiB of clips are prepared, learned from and resumed in 48 MiB more than three clips."""
    generator = np.random.default_rng(1)
    video = generator.integers(0, 256, (800, 64, 64, 3)).astype(np.uint8)
    np.save(tmp_path / "long.npy", video)
    command = [sys.executable, "-c", PROGRAM, str(tmp_path), str(tmp_path / "long.npy")]
    here = {"PYTHONPATH": str(Path(__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, capture_output=True, text=True, env=here, timeout=280)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("done")
