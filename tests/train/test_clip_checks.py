"""Clips that cannot be learned from are refused, nothing written; borders are warned of."""

from pathlib import Path

import numpy as np
import pytest
from support import run, tiny_recipe

from stg_runtime.errors import InputError
from stg_runtime.video_write import write_video
from stg_train.recipe import load_recipe
from stg_train.run import RECIPE, Run


@pytest.fixture
def film(clip: Path, tmp_path: Path) -> Path:
    """Seven frames of the clip, then five of another, darker one."""
    frames = np.load(clip)
    path = tmp_path / "film.npy"
    np.save(path, np.concatenate([frames[:7], frames[7:] // 8]))
    return path


def test_a_cut_is_refused_unless_allowed(film: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"film\.npy: the scene changes at frame 7 .* --frames 7"):
        Run.start(tmp_path / "run", tiny_recipe(film))
    assert not (tmp_path / "run").exists()
    Run.start(tmp_path / "run", tiny_recipe(film, **{"data.allow_cuts": True}))
    assert load_recipe(str(tmp_path / "run" / RECIPE)).data.allow_cuts
    Run.start(tmp_path / "part", tiny_recipe(film, **{"data.frames": 7, "data.window": 7}))


def test_the_frame_is_counted_in_the_file(film: Path, tmp_path: Path) -> None:
    recipe = tiny_recipe(film, **{"data.start": 2, "data.frames": 10})
    with pytest.raises(InputError, match=r"at frame 7 .* --start 2 --frames 5"):
        Run.start(tmp_path / "run", recipe)


def test_the_command_takes_allow_cuts(film: Path, tmp_path: Path) -> None:
    tiny_recipe(film, **{"learning.updates": 1}).save(tmp_path / "tiny.toml")
    refused = run("stg-train", "-o", tmp_path / "run", "--recipe", tmp_path / "tiny.toml")
    assert refused.returncode == 2 and "--allow-cuts" in refused.stderr
    assert len(refused.stderr.strip().splitlines()) == 1
    command = ["stg-train", "-o", tmp_path / "run", "--recipe", tmp_path / "tiny.toml"]
    assert run(*command, "--allow-cuts").returncode == 0
    assert run("stg-train", "-o", tmp_path / "run", "--resume", "--allow-cuts").returncode == 0


@pytest.mark.parametrize("mean", ["channel", "image"])
def test_a_still_clip_is_refused(clip: Path, tmp_path: Path, mean: str) -> None:
    still = tmp_path / "still.npy"
    np.save(still, np.repeat(np.load(clip)[:1], 12, 0))
    for videos in ([still], [clip, still]):
        names = [str(video) for video in videos]
        recipe = tiny_recipe(still, **{"data.videos": names, "pixels.mean": mean})
        with pytest.raises(InputError, match=r"do(es)? not move"):
            Run.start(tmp_path / "run", recipe)
    assert not (tmp_path / "run").exists()


def test_black_borders_are_warned_of(
    clip: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    wide = np.zeros((12, 64, 64, 3), np.uint8)
    wide[:, 16:48] = np.load(clip).repeat(4, 1).repeat(4, 2)[:, 16:48]
    write_video(tmp_path / "film.mp4", wide, 25)
    Run.start(tmp_path / "run", tiny_recipe(tmp_path / "film.mp4"))
    assert "top 16, bottom 16 px" in caplog.text and "--crop 0,16,64,32" in caplog.text
    caplog.clear()
    cropped = tiny_recipe(tmp_path / "film.mp4", **{"data.crop": [0, 16, 64, 32]})
    Run.start(tmp_path / "other", cropped)
    assert caplog.text == ""
