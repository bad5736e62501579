"""The experiments: recipes `action` and `texture-2d` with hardly any learning, their benchmarks."""

import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support import run

from stg_runtime.video import read_clip

sys.path.insert(0, str(Path(__file__).parents[2] / "bench"))
from nearest import distances
from seam import figures, tones


def test_an_image_becomes_a_texture_of_any_size(tmp_path: Path) -> None:
    y, x = np.mgrid[0:80, 0:100]
    image = 120 + 80 * np.sin(x / 3)[..., None] * np.cos(y / 4)[..., None] + np.zeros(3)
    Image.fromarray(image.astype(np.uint8)).save(tmp_path / "cloth.png")
    texture = ("--recipe", "texture-2d", "--size", "32x32", "--updates", 2, "--seed", 1)
    trained = run("stg-train", tmp_path / "cloth.png", "-o", tmp_path / "run", *texture)
    assert trained.returncode == 0, trained.stderr
    assert np.load(tmp_path / "run" / "observed.npy").shape == (1, 1, 32, 32, 3)
    model = tmp_path / "cloth.onnx"
    exported = run("stg-export", tmp_path / "run", "-o", model)
    assert exported.returncode == 0, exported.stderr
    make = ("stg-run", "synthesize", model, "--seed", 1, "-o")
    assert run(*make, tmp_path / "new.png").returncode == 0
    with Image.open(tmp_path / "new.png") as new:
        assert new.size == (32, 32) and new.format == "PNG"
        alone = np.asarray(new)
    assert run(*make, tmp_path / "new.npy").returncode == 0
    assert np.array_equal(np.load(tmp_path / "new.npy")[0, 0], alone)
    larger = run(*make, tmp_path / "large.png", "--size", "48x64")
    assert larger.returncode == 0, larger.stderr
    assert read_clip(tmp_path / "large.png").frames.shape == (1, 48, 64, 3)
    assert run(*make, tmp_path / "several.png", "-n", 2).returncode == 0
    assert (tmp_path / "several-001.png").exists()
    folder = run(*make, tmp_path / "folder")
    assert folder.returncode == 0 and len(list((tmp_path / "folder").iterdir())) == 1
    refused = run(*make, tmp_path / "long.png", "--frames", 3)
    assert (
        refused.returncode == 2 and "a .png holds one frame, and the video has 3" in refused.stderr
    )
    assert not (tmp_path / "long.png").exists()


def test_an_action_from_aligned_clips(tmp_path: Path) -> None:
    """A bar that swings to and fro, in two colours and at two phases."""
    turn = 2 * np.pi * np.arange(36)[:, None, None] / 12
    y, x = np.mgrid[0:40, 0:80]
    for name, phase, colour in (("a", 0.0, (200, 80, 60)), ("b", 1.5, (60, 90, 220))):
        bar = np.abs(x - 40 - (y - 20) * np.sin(turn + phase)) < 5
        bar &= np.abs(y - 20) < 15
        np.save(tmp_path / f"{name}.npy", (bar[..., None] * np.array(colour)).astype(np.uint8))
    clips = (tmp_path / "a.npy", tmp_path / "b.npy")
    action = ("--recipe", "action", "--size", "16x32", "--frames", 16, "--updates", 2, "--align")
    trained = run("stg-train", *clips, "-o", tmp_path / "run", *action)
    assert trained.returncode == 0, trained.stderr
    observed = np.load(tmp_path / "run" / "observed.npy")
    assert observed.shape == (2, 16, 16, 32, 3)
    # In step: where one bar is, the other is, in its own colour.
    there = [clip.max(-1) > 30 for clip in observed]
    assert (there[0] & there[1]).sum() > 0.8 * (there[0] | there[1]).sum()
    model = tmp_path / "bar.onnx"
    exported = run("stg-export", tmp_path / "run", "-o", model)
    assert exported.returncode == 0, exported.stderr
    make = ("stg-run", "synthesize", model, "-o", tmp_path / "new.npy", "-n", 2, "--seed", 1)
    assert run(*make).returncode == 0
    new = np.load(tmp_path / "new.npy")
    assert new.shape == (2, 12, 16, 32, 3)  # a cycle: two frames are cut at each end
    # What the two share is there exactly, whatever was learned: nothing moves where neither does.
    still = (observed[:, 2:-2].max((0, 1)) == observed[:, 2:-2].min((0, 1))).all(-1)
    assert still.sum() > 50 and np.abs(new[:, :, still].astype(int)).max() < 40
    longer = run(*make, "--frames", 13, "--overwrite")
    assert longer.returncode == 2
    assert "this model makes 12 only" in longer.stderr and "full in time" in longer.stderr
    failed = run("stg-train", *clips, "-o", tmp_path / "none", *action, "--start", 30)
    assert failed.returncode == 2 and "--align needs" in failed.stderr
    assert not (tmp_path / "none").exists()


def test_a_copy_is_called_a_copy() -> None:
    generator = np.random.default_rng(0)
    observed = generator.integers(0, 256, (3, 4, 8, 8, 3)).astype(np.uint8)
    other = generator.integers(0, 256, (1, 4, 8, 8, 3)).astype(np.uint8)
    blend = observed.mean(0, keepdims=True).astype(np.uint8)
    found = distances(observed, np.concatenate([observed[1:2], other, blend]))
    copy, new, average = found["clips"]
    assert copy["copy"] and copy["nearest"] == 1 and copy["distance"] == 0
    assert not new["copy"] and new["share"] == pytest.approx(1, abs=0.1)
    assert average["distance"] == pytest.approx(found["average of the training clips"], abs=1)
    alone = distances(observed[:1], other)
    assert np.isnan(alone["between training clips"]) and not alone["clips"][0]["copy"]
    exact = np.sqrt(((observed[0].astype(float) - observed[1]) ** 2).mean())
    assert found["between training clips"] == pytest.approx(exact, rel=0.1)


def test_a_hole_that_is_lighter_and_wilder_is_seen_in_the_figures() -> None:
    rng = np.random.default_rng(5)
    clean = rng.normal(120, 10, (40, 48, 48, 3)).round().astype(np.uint8)
    mean, spread = tones(clean).mean(1), tones(clean).std(1)
    known = np.ones((20, 48, 48), bool)
    known[3:17, 12:36, 12:36] = False
    other = rng.normal(120, 10, (20, 48, 48, 3))
    same = figures(other.round().astype(np.uint8), known, mean, spread)
    assert same["level"] == pytest.approx(0, abs=0.5)
    for name in ("ratio", "contrast", "R - G", "G - B", "motion", "turn"):
        assert same[name] == pytest.approx(1, abs=0.06)
    other[~known] = 125 + 1.5 * (other[~known] - 120)
    wild = figures(other.round().astype(np.uint8), known, mean, spread)
    assert wild["level"] == pytest.approx(5, abs=0.5)
    assert wild["motion"] == pytest.approx(1.5, abs=0.06) and wild["ratio"] > 1.1
    assert wild["R - G"] == pytest.approx(1.5, abs=0.06)
    assert wild["contrast"] > wild["R - G"]  # the level counts there
