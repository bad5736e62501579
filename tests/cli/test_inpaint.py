"""stg-run inpaint and stg-train --mask as a user types them."""

import json
from pathlib import Path

import numpy as np
import pytest
from support import run

from stg_runtime.video import read_clip
from stg_runtime.video_write import write_video


@pytest.fixture
def damaged(trained: Path, tmp_path: Path) -> Path:
    """A folder with a video, video.mp4, and its mask, mask.mp4, 12x16x16."""
    frames = np.random.default_rng(1).integers(0, 255, (12, 16, 16, 3), dtype=np.uint8)
    write_video(tmp_path / "video.mp4", frames, 30)
    hidden = np.zeros((12, 16, 16, 3), np.uint8)
    hidden[2:9, 4:10, 5:12] = 255
    write_video(tmp_path / "mask.mp4", hidden, 30)
    return tmp_path


@pytest.mark.parametrize("out", ["out.npy", "out"])
def test_known_pixels_are_the_decoded_ones(trained: Path, damaged: Path, out: str) -> None:
    result = run(
        "stg-run", "inpaint", trained / "model.onnx", damaged / "video.mp4", "--mask",
        damaged / "mask.mp4", "-o", damaged / out, "--seed", "3", "--json",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    figures = json.loads(result.stdout)
    decoded, made = (read_clip(damaged / name).frames for name in ("video.mp4", out))
    mask = read_clip(damaged / "mask.mp4").frames[..., 0] >= 128
    np.testing.assert_array_equal(made[~mask], decoded[~mask])
    assert (made[mask] != decoded[mask]).any()
    assert figures["hidden"] == pytest.approx(mask.mean(), abs=1e-6)
    assert figures["fps"] == 30 and figures["seed"] == 3 and figures["seam"]["ratio"] > 0
    assert figures["mean_absolute_error"] is None


def test_one_seed_gives_one_video_and_a_pattern_its_error(trained: Path, tmp_path: Path) -> None:
    made = []
    for name, seed in (("a.npy", 1), ("b.npy", 1), ("c.npy", 2)):
        result = run(
            "stg-run", "inpaint", trained / "model.onnx", trained / "clip.npy", "--mask",
            "fixed-region:6", "-o", tmp_path / name, "--seed", seed, "--init", "interpolate",
        )  # fmt: skip
        assert result.returncode == 0, result.stderr
        assert "seam: gradient discontinuity" in result.stdout
        assert "mean absolute error over hidden pixels" in result.stdout
        made.append((tmp_path / name).read_bytes())
    assert made[0] == made[1] != made[2]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--mask", "none.mp4"], "no such file or folder, nor one of region:PX"),
        (["--mask", "region:99"], "must fit into the clip's 16x16 pixels"),
        (["--mask", "mask.mp4", "--frames", "40"], "12 frames from frame 0 on, 40 asked for"),
        (["--mask", "small.png"], "the mask is 8x8"),
        (["--mask", "mask.mp4", "--crop", "0,0,4,4"], "leaves hidden pixels out"),
        (["--mask", "mask.mp4", "--crop", "half"], "expected X,Y,W,H"),
    ],
)
def test_bad_input_is_one_line(trained: Path, damaged: Path, options: list[str], says: str) -> None:
    white = np.full((1, 8, 8, 3), 255, np.uint8)
    write_video(damaged / "small", white, 1)
    (damaged / "small" / "00000.png").rename(damaged / "small.png")
    result = run(
        "stg-run", "inpaint", trained / "model.onnx", "video.mp4", *options, "-o", "out.npy",
        cwd=damaged,
    )  # fmt: skip
    assert result.returncode == 2, result.stderr
    assert len(result.stderr.strip().splitlines()) == 1 and says in result.stderr, result.stderr
    assert not (damaged / "out.npy").exists()


def test_training_on_incomplete_video_writes_its_recovery(tmp_path: Path, trained: Path) -> None:
    recipe = trained / "run" / "recipe.toml"
    result = run(
        "stg-train", trained / "clip.npy", "-o", tmp_path / "run", "--recipe", recipe, "--mask",
        "frames:0.5", "--updates", "2",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert "mean absolute error over hidden pixels" in result.stdout
    mask = np.load(tmp_path / "run" / "mask.npy")
    recovered = np.load(tmp_path / "run" / "recovered.npy")
    np.testing.assert_array_equal(recovered[mask], np.load(trained / "clip.npy")[None][mask])
    result = run("stg-export", tmp_path / "run", "-o", tmp_path / "model.onnx")
    assert result.returncode == 0, result.stderr


def test_bad_masks_stop_training_before_anything_is_written(tmp_path: Path, trained: Path) -> None:
    np.save(tmp_path / "mask.npy", np.ones((12, 16, 16), bool))
    result = run(
        "stg-train", trained / "clip.npy", "-o", tmp_path / "run", "--recipe",
        trained / "run" / "recipe.toml", "--mask", tmp_path / "mask.npy",
    )  # fmt: skip
    assert result.returncode == 2 and "everything is hidden" in result.stderr
    assert not (tmp_path / "run").exists()
