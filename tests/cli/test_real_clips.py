"""The whole way on real clips, with hardly any learning: each step takes what the last wrote."""

import json
from pathlib import Path

import numpy as np
import pytest
from support import run


@pytest.mark.parametrize("name", ["boiling_water.avi", "fire_pot.avi"])
def test_clip_to_video(clips: Path, tmp_path: Path, name: str) -> None:
    trained = run("stg-train", clips / name, "-o", tmp_path / "run", "--updates", 2)
    assert trained.returncode == 0, trained.stderr
    observed = np.load(tmp_path / "run" / "observed.npy")
    assert observed.shape == (1, 64, 64, 64, 3)
    assert observed.std() > 10 and np.abs(np.diff(observed.astype(int), axis=1)).mean() > 0.5
    model = tmp_path / "model.onnx"
    exported = run("stg-export", tmp_path / "run", "-o", model)
    assert exported.returncode == 0, exported.stderr
    out = tmp_path / "new.npy"
    made = run("stg-run", "synthesize", model, "-o", out, "--seed", 4, "--json")
    assert made.returncode == 0, made.stderr
    assert json.loads(made.stdout)["steps"] == 30
    video = np.load(out)[0].astype(float)
    # What stands still is already there: it is the clip's mean, not something learned.
    assert np.corrcoef(video.mean(0).ravel(), observed[0].mean(0).ravel())[0, 1] > 0.9
