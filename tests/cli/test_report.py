"""stg-run report, and what stg-train prints and writes at its end."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from support import run, tiny_recipe


@pytest.fixture(scope="module")
def finished(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny run again, through the command."""
    folder = tmp_path_factory.mktemp("finished")
    recipe = tiny_recipe(trained / "clip.npy", **{"output.margin_frames": 2, "precision": "fp32"})
    recipe.save(folder / "tiny.toml")
    result = run("stg-train", "-o", folder / "run", "--recipe", folder / "tiny.toml")
    assert result.returncode == 0, result.stderr
    (folder / "stdout").write_text(result.stdout)
    return folder


def without_data(page: Path) -> str:
    """The encoder may write the same video in more than one way."""
    return re.sub(r"base64,[A-Za-z0-9+/=]*", "", page.read_text())


def test_training_ends_with_measures_and_a_report(finished: Path) -> None:
    printed = (finished / "stdout").read_text()
    assert "new 0" in printed and "motion energy" in printed and "diversity" in printed
    assert str(finished / "run" / "report.html") in printed
    assert (finished / "run" / "report.html").stat().st_size > 10_000


def test_the_exported_model_makes_the_samples_that_were_measured(
    finished: Path, tmp_path: Path
) -> None:
    record = json.loads((finished / "run" / "measures.json").read_text())
    model, out = tmp_path / "model.onnx", tmp_path / "new.npy"
    assert run("stg-export", finished / "run", "-o", model).returncode == 0
    made = run("stg-run", "synthesize", model, "-o", out, "-n", 2, "--seed", record["seed"])
    assert made.returncode == 0, made.stderr
    apart = np.load(out).astype(int) - np.load(finished / "run" / "synthesized.npy")
    assert np.abs(apart).max() <= 1  # rounding


def test_reports_of_a_run_with_other_videos_and_without_a_run(
    finished: Path, tmp_path: Path
) -> None:
    clip, page = finished / "run" / "observed.npy", tmp_path / "page.html"
    assert run("stg-run", "report", finished / "run", "-o", page).returncode == 0
    assert without_data(page) == without_data(finished / "run" / "report.html")
    assert (
        run("stg-run", "report", finished / "run", clip, "-o", tmp_path / "o.html").returncode == 0
    )
    assert "synthesized 0" not in (tmp_path / "o.html").read_text()
    assert run("stg-run", "report", clip, clip, clip, "-o", tmp_path / "c.html").returncode == 0
    assert (tmp_path / "c.html").read_text().count("<video") == 3


def test_bad_input_is_one_line_and_exit_2(finished: Path, tmp_path: Path) -> None:
    (tmp_path / "there.html").write_text("precious")
    copy = tmp_path / "copy"
    shutil.copytree(finished / "run", copy)
    (copy / "measures.json").write_text("{")
    for arguments, says in (
        ([finished / "run", "-o", tmp_path / "there.html"], "--overwrite"),
        ([finished / "run", "-o", tmp_path / "page.pdf"], ".html"),
        ([tmp_path / "none", "-o", tmp_path / "page.html"], "no such file or folder"),
        ([copy, "-o", tmp_path / "page.html"], "measures.json"),
    ):
        result = run("stg-run", "report", *arguments)
        assert result.returncode == 2, result
        assert says in result.stderr and len(result.stderr.strip().splitlines()) == 1
    assert (tmp_path / "there.html").read_text() == "precious"
    assert not (tmp_path / "page.html").exists()


def test_training_needs_no_measures_to_end_well(trained: Path, tmp_path: Path) -> None:
    options = {"data.frames": 6, "data.window": 6, "learning.updates": 1}
    tiny_recipe(trained / "clip.npy", **options).save(tmp_path / "tiny.toml")
    result = run("stg-train", "-o", tmp_path / "run", "--recipe", tmp_path / "tiny.toml")
    assert result.returncode == 0 and "warning: no measures" in result.stderr
    assert (tmp_path / "run" / "report.html").exists()
