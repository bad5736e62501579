"""The commands as a user types them: results, exit codes; bad input is one line, nothing kept."""

import json
import math
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
from PIL import Image
from support import refused, run

from stg_cli.common import print_json
from stg_runtime.artifact import METADATA_KEY
from stg_runtime.video import read_clip


@pytest.mark.parametrize("command", ["stg-run", "stg-train", "stg-export"])
def test_help_opens_with_an_example_and_imports_nothing_heavy(command: str) -> None:
    result = run(command, "--help")
    assert result.returncode == 0
    assert f"Example: {command}" in result.stdout
    code = (
        f"import sys; from stg_cli.{command[4:]} import app;"
        "app(['--help'], standalone_mode=False);"
        "print([m for m in ('torch', 'onnxruntime', 'av', 'PIL', 'pydantic') if m in sys.modules])"
    )
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert loaded.stdout.strip().endswith("[]"), loaded.stdout


def test_help_takes_less_than_a_third_of_a_second() -> None:
    times = []
    for _ in range(7):
        began = time.perf_counter()
        run("stg-run", "--help")
        times.append(time.perf_counter() - began)
    assert min(times) < 0.3, times


def test_importing_the_runtime_imports_no_onnxruntime() -> None:
    code = (
        "import sys, stg_runtime, stg_runtime.synthesize, stg_runtime.backends;"
        "assert 'onnxruntime' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("name", ["out.mp4", "out.webm", "out.gif", "out.npy", "out"])
def test_synthesize_writes_every_format(trained: Path, tmp_path: Path, name: str) -> None:
    out = tmp_path / name
    result = run("stg-run", "synthesize", trained / "model.onnx", "-o", out, "--seed", 3)
    assert result.returncode == 0, result.stderr
    clip = read_clip(out)
    assert clip.frames.shape == (12, 16, 16, 3)
    exact = tmp_path / "exact.npy"
    run("stg-run", "synthesize", trained / "model.onnx", "-o", exact, "--seed", 3)
    error = np.abs(clip.frames.astype(int) - np.load(exact)[0]).mean()
    # Pixel noise is the hardest picture for 4:2:0 video and 256 colours.
    assert error == 0 if name in ("out", "out.npy") else error < 40


def test_seeds_and_videos(trained: Path, tmp_path: Path) -> None:
    model = trained / "model.onnx"

    def make(name: str, *options: object) -> np.ndarray:
        result = run("stg-run", "synthesize", model, "-o", tmp_path / name, *options)
        assert result.returncode == 0, result.stderr
        return np.load(tmp_path / name)

    one = make("one.npy", "--seed", 5)
    three = make("three.npy", "--seed", 5, "-n", 3)
    assert three.shape == (3, 12, 16, 16, 3)
    assert np.array_equal(one[0], three[0])
    assert not np.array_equal(three[0], three[1])
    assert not np.array_equal(make("other.npy", "--seed", 6)[0], one[0])
    assert np.array_equal(make("threads.npy", "--seed", 5, "--threads", 1).shape, one.shape)
    longer = make("longer.npy", "--seed", 5, "--frames", 20, "--size", "24x20")
    assert longer.shape == (1, 20, 24, 20, 3)
    free = [make(f"free-{i}.npy") for i in range(2)]
    assert not np.array_equal(*free)


def test_numbered_files_and_grid(trained: Path, tmp_path: Path) -> None:
    model = trained / "model.onnx"
    numbered = run(
        "stg-run", "synthesize", model, "-o", tmp_path / "a.mp4", "-n", 2, "--seed", 1, "--json"
    )
    result = json.loads(numbered.stdout)
    assert result["files"] == [str(tmp_path / "a-000.mp4"), str(tmp_path / "a-001.mp4")]
    assert all(Path(name).exists() for name in result["files"])
    assert result["seed"] == 1
    run("stg-run", "synthesize", model, "-o", tmp_path / "b.npy", "-n", 3, "--grid", "--seed", 1)
    assert np.load(tmp_path / "b.npy").shape == (1, 12, 32, 32, 3)


def test_info_and_doctor_speak_to_people_and_programs(trained: Path) -> None:
    info = run("stg-run", "info", trained / "model.onnx")
    assert info.returncode == 0 and "12x16x16" in info.stdout
    metadata = json.loads(run("stg-run", "info", trained / "model.onnx", "--json").stdout)
    assert metadata["size"] == {"frames": 12, "height": 16, "width": 16}
    assert metadata["n_steps"] == 5
    doctor = run("stg-run", "doctor")
    assert doctor.returncode == 0 and "synthesize on" in doctor.stdout
    found = json.loads(run("stg-run", "doctor", "--json").stdout)
    assert "cpu" in found["devices"]
    assert found["packages"]["onnxruntime"]


def test_sheet(trained: Path, tmp_path: Path) -> None:
    observed = trained / "run" / "observed.npy"
    assert run("stg-run", "sheet", observed, observed, "-o", tmp_path / "s.png").returncode == 0
    with Image.open(tmp_path / "s.png") as image:
        assert image.width > 800 and image.height > 200
    np.save(tmp_path / "three.npy", np.repeat(np.load(observed), 3, axis=0))
    assert run("stg-run", "sheet", tmp_path / "three.npy", "-o", tmp_path / "u.png").returncode == 0
    other = tmp_path / "other.npy"
    np.save(other, np.zeros((2, 8, 8, 3), np.uint8))
    refused(run("stg-run", "sheet", observed, other, "-o", tmp_path / "t.png"), "one size")


def test_what_is_not_finite_is_null_in_json(capsys: pytest.CaptureFixture[str]) -> None:
    print_json({"seam": {"ratio": math.nan}, "rates": [math.inf, 1.5], "pair": (2, None)})
    found = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert found == {"seam": {"ratio": None}, "rates": [None, 1.5], "pair": [2, None]}


# --- bad input -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--frames", "0"], "--frames"),
        (["--steps", "0"], "--steps"),
        (["--seed", "-1"], "--seed"),
        (["--size", "16"], "HxW"),
        (["--size", "0x16"], "at least 1"),
        (["--size", "1x1"], "at least 2"),
        (["--device", "cuda"], "--device cuda"),
        (["--device", "gpu"], "expected auto, cpu"),
        (["-n", "0"], "'-n'"),
        (["--nonsense"], "--nonsense"),
        (["--speed", "0"], "must be above 0"),
        (["--endless", "--speed", "0", "--frames", "2"], "must be above 0"),
        (["--first", "18446744073709551616"], "'--first'"),
        (["--frames", "2147483648"], "frames: Input should be less than or equal to 16777216"),
        (["--frames", "8589934592", "--loop"], "frames: Input should be less than or equal to"),
        (["--size", "2147483648x16", "--tile"], "height: Input should be less than or equal to"),
    ],
)
def test_synthesize_refuses_bad_options(
    trained: Path, tmp_path: Path, options: list[str], says: str
) -> None:
    result = run(
        "stg-run", "synthesize", trained / "model.onnx", "-o", tmp_path / "o.mp4", *options
    )
    refused(result, says)
    assert list(tmp_path.iterdir()) == []


def test_synthesize_refuses_bad_outputs(trained: Path, tmp_path: Path) -> None:
    model = trained / "model.onnx"
    (tmp_path / "there.mp4").write_bytes(b"precious")
    refused(run("stg-run", "synthesize", model, "-o", tmp_path / "there.mp4"), "--overwrite")
    assert (tmp_path / "there.mp4").read_bytes() == b"precious"
    refused(run("stg-run", "synthesize", model, "-o", tmp_path / "no" / "o.mp4"), "does not exist")
    refused(run("stg-run", "synthesize", model, "-o", tmp_path / "o.mov"), ".mp4, .webm, .mkv")
    ok = run(
        "stg-run", "synthesize", model, "-o", tmp_path / "there.mp4", "--overwrite", "--seed", 1
    )
    assert ok.returncode == 0
    assert read_clip(tmp_path / "there.mp4").frames.shape == (12, 16, 16, 3)
    assert [item.name for item in tmp_path.iterdir()] == ["there.mp4"]


def foreign_models(folder: Path, model: Path) -> dict[str, tuple[Path, str]]:
    files = {}

    def add(name: str, data: bytes | None, says: str) -> None:
        if data is not None:
            (folder / name).write_bytes(data)
        files[name] = (folder / name, says)

    add("missing.onnx", None, "no such model")
    add("empty.onnx", b"", "refused before it is loaded")
    add("text.onnx", b"this is not a model", "refused before it is loaded")
    add("cut.onnx", model.read_bytes()[:3000], "refused before it is loaded")
    plain = onnx.load(model)
    entry = next(item for item in plain.metadata_props if item.key == METADATA_KEY)
    metadata = json.loads(entry.value)
    entry.value = json.dumps({**metadata, "schema_version": 2})
    add("schema.onnx", plain.SerializeToString(), "schema 2")
    entry.value = json.dumps({**metadata, "n_steps": 0})
    add("steps.onnx", plain.SerializeToString(), "n_steps")
    entry.value = json.dumps({**metadata, "free_axes": ["N"]})
    add("axes.onnx", plain.SerializeToString(), "its metadata says")
    plain.metadata_props.remove(entry)
    add("foreign.onnx", plain.SerializeToString(), "not one of stg-export")
    return files


def test_foreign_and_damaged_models_are_refused(trained: Path, tmp_path: Path) -> None:
    for name, (path, says) in foreign_models(tmp_path, trained / "model.onnx").items():
        for command in (["info", path], ["synthesize", path, "-o", tmp_path / "o.mp4"]):
            result = run("stg-run", *command)
            refused(result, says)
            assert name in result.stderr
    assert not (tmp_path / "o.mp4").exists()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["missing.mp4"], "missing.mp4: no such file"),
        (["empty.mp4"], "empty"),
        (["text.mp4"], "text.mp4: not a video"),
        (["clip.npy", "--recipe", "fc-s"], "12 frames from frame 0 on, 64 asked for; pass --fr"),
        (["clip.npy", "--frames", "12", "--start", "5"], "pass --frames 7 or an earlier --start"),
        (["clip.npy", "--frames", "12", "--start", "99"], "--start 99 is past its end"),
        (["clip.npy", "--frames", "12", "--crop", "8,8,16,16"], "reaches outside"),
        (["clip.npy", "--frames", "12", "--crop", "8,8"], "expected X,Y,W,H"),
        (["clip.npy", "--frames", "12", "--size", "2x2", "--recipe", "paper-st"], "too small"),
        (["clip.npy", "--updates", "0"], "--updates"),
        (["clip.npy", "--recipe", "fcs"], "did you mean fc-s"),
        (["clip.npy", "--recipe", "typo.toml"], "updatse, did you mean updates"),
        (["clip.npy", "--frames", "12", "--device", "cuda:77"], "--device cuda:77"),
        (["clip.npy", "--scale", "huge"], "small"),
        ([], "give at least one VIDEO"),
    ],
)
def test_train_refuses_bad_input(
    trained: Path, tmp_path: Path, options: list[str], says: str
) -> None:
    shutil.copy(trained / "clip.npy", tmp_path)
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "text.mp4").write_text("not a video, but long enough to be looked at " * 20)
    (tmp_path / "typo.toml").write_text('name = "x"\n[learning]\nupdatse = 3\n')
    before = sorted(item.name for item in tmp_path.iterdir())
    refused(run("stg-train", *options, "-o", tmp_path / "run", cwd=tmp_path), says)
    assert sorted(item.name for item in tmp_path.iterdir()) == before


def test_train_refuses_an_existing_run_and_changed_options_on_resume(trained: Path) -> None:
    clip, folder = trained / "clip.npy", trained / "run"
    refused(run("stg-train", clip, "-o", folder, "--frames", 12), "--resume")
    refused(run("stg-train", "-o", folder, "--resume", "--seed", 9), "seed is 0")
    refused(run("stg-train", "-o", folder, "--resume", "--scale", "paper"), "not")
    refused(run("stg-train", "-o", folder, "--resume", "--recipe", "none.toml"), "cannot read")
    refused(run("stg-train", "-o", folder, "--resume", "--overwrite"), "exclude each other")
    refused(run("stg-train", "-o", trained / "none", "--resume"), "no such checkpoint")
    again = run("stg-train", clip, "-o", folder, "--resume")
    assert again.returncode == 0 and "8 updates already" in again.stderr


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--opset", "21"], "--opset"),
        (["--precision", "int8"], "--precision"),
        (["--lowering", "magic"], "lowering"),
        (["--static", "--size", "1x1"], "at least height 2"),
    ],
)
def test_export_refuses_bad_options(
    trained: Path, tmp_path: Path, options: list[str], says: str
) -> None:
    refused(run("stg-export", trained / "run", "-o", tmp_path / "m.onnx", *options), says)
    assert list(tmp_path.iterdir()) == []


def test_export_refuses_bad_paths(trained: Path, tmp_path: Path) -> None:
    refused(run("stg-export", tmp_path / "none", "-o", tmp_path / "m.onnx"), "no such folder")
    refused(run("stg-export", tmp_path, "-o", tmp_path / "m.onnx"), "no such checkpoint")
    refused(run("stg-export", trained / "run", "-o", tmp_path / "m.pt"), ".onnx")
    refused(run("stg-export", trained / "run", "-o", trained / "model.onnx"), "--overwrite")
    assert list(tmp_path.iterdir()) == []


def test_export_and_synthesize_static(trained: Path, tmp_path: Path) -> None:
    model = tmp_path / "static.onnx"
    result = run("stg-export", trained / "run", "-o", model, "--static", "--json")
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["free_axes"] == []
    ok = run("stg-run", "synthesize", model, "-o", tmp_path / "o.npy", "--seed", 1)
    assert ok.returncode == 0
    longer = run("stg-run", "synthesize", model, "-o", tmp_path / "p.npy", "--frames", 13)
    refused(longer, "export the run again without --static")
