"""A run's folder: resumed equals undisturbed, bit for bit, whatever stopped it."""

import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from support import check_resume, same_state, tiny_recipe
from support import run as run_command

from stg_cli.train import _learn
from stg_runtime.errors import DivergenceError, InputError
from stg_runtime.lock import LOCK
from stg_train.checkpoint import read_checkpoint
from stg_train.recipe import Recipe
from stg_train.run import CHECKPOINT, METRICS, OBSERVED, RECIPE, Run, load_energy


@pytest.mark.parametrize("regime", ["short-run", "persistent"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_resume_is_bit_for_bit(clip: Path, tmp_path: Path, regime: str, precision: str) -> None:
    recipe = tiny_recipe(clip, precision=precision, **{"learning.regime": regime})
    check_resume(recipe, clip, tmp_path)
    lines = [(tmp_path / run / METRICS).read_text() for run in ("whole", "cut")]
    assert lines[0] == lines[1]
    assert [json.loads(line)["update"] for line in lines[0].splitlines()] == list(range(1, 9))


def test_resume_is_bit_for_bit_through_the_guard(
    clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kept parameters and returns survive a stop at an update where nothing was kept."""
    monkeypatch.setattr("stg_train.learn.LOST", 1.02)  # any small difference is a loss
    monkeypatch.setattr("stg_train.learn.HEALTHY", 1e9)
    monkeypatch.setattr("stg_train.learn.MOST_RETURNS", 10**6)
    recipe = tiny_recipe(clip, **{"learning.updates": 30})
    returned = []
    Run.start(tmp_path / "whole", recipe).learn(lambda m: returned.append(m.returned_to))
    assert 9 in returned
    cut = Run.start(tmp_path / "cut", recipe)
    cut.learn(stop=lambda: cut.learner.update_count == 14)
    assert read_checkpoint(tmp_path / "cut" / CHECKPOINT).kept["update"] == 9
    assert Run.resume(tmp_path / "cut").learn()
    assert same_state(tmp_path / "whole", tmp_path / "cut")


def start_cli(folder: Path, recipe: Path) -> subprocess.Popen[str]:
    program = str(Path(sys.executable).with_name("stg-train"))
    command = [program, "-o", str(folder), "--recipe", str(recipe)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for(condition: object, process: subprocess.Popen[str]) -> None:
    assert callable(condition)
    deadline = time.monotonic() + 120
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_signals_leave_a_resumable_run(clip: Path, tmp_path: Path, number: signal.Signals) -> None:
    recipe = tiny_recipe(clip, **{"learning.updates": 40})
    recipe.save(tmp_path / "tiny.toml")
    Run.start(tmp_path / "whole", recipe).learn()
    process = start_cli(tmp_path / "cut", tmp_path / "tiny.toml")
    metrics = tmp_path / "cut" / METRICS
    wait_for(lambda: metrics.exists() and len(metrics.read_text().splitlines()) >= 7, process)
    process.send_signal(number)
    _, stderr = process.communicate(timeout=60)
    made = read_checkpoint(tmp_path / "cut" / CHECKPOINT).update
    assert 6 <= made < 40, "the run was not stopped in its middle"
    if number is signal.SIGKILL:
        assert process.returncode == -signal.SIGKILL
    else:
        assert process.returncode == 128 + number
        assert "--resume" in stderr and "Traceback" not in stderr
    (tmp_path / "cut" / ".stg-0123456789ab.safetensors").write_bytes(b"half a checkpoint")
    assert Run.resume(tmp_path / "cut").learn()
    assert same_state(tmp_path / "whole", tmp_path / "cut")
    assert not list((tmp_path / "cut").glob(".stg-*"))


def test_divergence_keeps_the_last_checkpoint(clip: Path, tmp_path: Path) -> None:
    run = Run.start(tmp_path / "run", tiny_recipe(clip))
    run.learn(stop=lambda: run.learner.update_count == 3)
    kept = (tmp_path / "run" / CHECKPOINT).read_bytes()
    resumed = Run.resume(tmp_path / "run")
    with torch.no_grad():
        resumed.learner.descriptor.convs[0].weight.fill_(torch.nan)
    with pytest.raises(DivergenceError):
        resumed.learn()
    assert (tmp_path / "run" / CHECKPOINT).read_bytes() == kept
    assert Run.resume(tmp_path / "run").learn()


def test_folder_holds_what_the_documentation_says(tiny: Recipe, tmp_path: Path) -> None:
    run = Run.start(tmp_path / "run", tiny)
    run.learn()
    folder = tmp_path / "run"
    names = {item.name for item in folder.iterdir()} - {"tensorboard"}
    assert LOCK in names
    run.close()
    assert names - {LOCK} == {RECIPE, OBSERVED, CHECKPOINT, METRICS, "chains", "chains.mp4"}
    assert [sheet.name for sheet in (folder / "chains").iterdir()] == ["update-000008.png"]
    observed = np.load(folder / OBSERVED)
    assert (observed.dtype, observed.shape) == (np.uint8, (1, 12, 16, 16, 3))
    energy, checkpoint = load_energy(folder)
    for name, value in run.learner.energy.state_dict().items():
        assert torch.equal(energy.state_dict()[name], value)
    assert checkpoint.update == 8


def test_several_videos_make_one_batch(clip: Path, tmp_path: Path) -> None:
    recipe = tiny_recipe(clip, **{"data.videos": [str(clip)] * 3, "data.batch": 2})
    run = Run.start(tmp_path / "run", recipe)
    run.learner.update()
    assert run.learner.observed.pixels.shape[0] == 3
    assert run.learner.windows.shape == (2, 3, 8, 16, 16)


def test_mean_image_is_the_clips_mean_over_time(clip: Path, tmp_path: Path) -> None:
    run = Run.start(tmp_path / "run", tiny_recipe(clip, **{"pixels.mean": "image"}))
    observed = run.learner.observed
    exact = observed.pixels[0].astype(np.float64).mean(0).transpose(2, 0, 1)
    assert np.abs(observed.mean - exact).max() <= 0.5 / 256 + 1e-6
    x = observed.windows([0], [0], 12)
    assert float(x.mean(2).abs().max()) < 0.01
    assert float(x.std()) == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize(("mean", "says"), [("channel", "one flat colour"), ("image", "not move")])
def test_flat_clip_is_refused_and_nothing_written(tmp_path: Path, mean: str, says: str) -> None:
    path = tmp_path / "flat.npy"
    np.save(path, np.full((12, 16, 16, 3), 77, np.uint8))
    with pytest.raises(InputError, match=says):
        Run.start(tmp_path / "run", tiny_recipe(path, **{"pixels.mean": mean}))
    assert not (tmp_path / "run").exists()


def test_folder_is_never_overwritten_unasked(tiny: Recipe, tmp_path: Path) -> None:
    Run.start(tmp_path / "run", tiny)
    with pytest.raises(InputError, match="already a run; continue it with --resume"):
        Run.start(tmp_path / "run", tiny)
    Run.start(tmp_path / "run", tiny, overwrite=True)
    foreign = tmp_path / "holiday"
    foreign.mkdir()
    (foreign / "photo.jpg").write_bytes(b"precious")
    with pytest.raises(InputError, match="not a run of stg-train"):
        Run.start(foreign, tiny, overwrite=True)
    assert (foreign / "photo.jpg").read_bytes() == b"precious"


def test_an_overwritten_run_stays_until_the_new_one_is_there(clip: Path, tmp_path: Path) -> None:
    """A limit on the size of files stops the new run after its clips, at its checkpoint."""
    folder = tmp_path / "run"
    run = Run.start(folder, tiny_recipe(clip, **{"learning.updates": 2}))
    run.learn()
    run.close()
    before = {item.name: item.read_bytes() for item in folder.iterdir() if item.is_file()}
    assert len(before[CHECKPOINT]) > len(before[OBSERVED]) and METRICS in before
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(before[OBSERVED]), limits[1]))
        with pytest.raises(InputError, match=f"-o {folder}: could not be written: File too large"):
            Run.start(folder, tiny_recipe(clip, seed=1), overwrite=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert {item.name: item.read_bytes() for item in folder.iterdir() if item.is_file()} == before
    assert Run.resume(folder).learner.update_count == 2


@pytest.mark.parametrize("what", ["report.html", "chains/update-000001.png", "chains"])
def test_a_run_that_cannot_be_removed_is_not_replaced(
    tiny: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    folder = tmp_path / "run"
    Run.start(folder, tiny).close()
    (folder / "chains").mkdir()
    (folder / "chains" / "update-000002.png").touch()
    if what == "chains":  # of another user, and not writable
        monkeypatch.setattr("os.access", lambda path, _mode: path.name != what)
    else:
        (folder / what).mkdir()
    before = {item: item.is_file() and item.read_bytes() for item in folder.rglob("*")}
    with pytest.raises(InputError, match=r"is a folder, of no run|cannot be replaced, its folder"):
        Run.start(folder, tiny, overwrite=True)
    assert {item: item.is_file() and item.read_bytes() for item in folder.rglob("*")} == before


def test_an_overwritten_run_leaves_nothing_behind(clip: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    recipe = tiny_recipe(clip, **{"data.mask": "region:4"})
    Run.start(folder, recipe).close()
    for name in (METRICS, "report.html", "chains.mp4", "recovered.npy"):
        (folder / name).touch()
    assert (folder / "mask.npy").exists() and (folder / "truth.npy").exists()
    Run.start(folder, tiny_recipe(clip), overwrite=True).close()
    assert {item.name for item in folder.iterdir()} == {OBSERVED, RECIPE, CHECKPOINT}


@pytest.mark.parametrize("kind", ["empty", "header", "scalar", "pipe"])
def test_damaged_clips_are_refused(tiny: Recipe, tmp_path: Path, kind: str) -> None:
    folder = tmp_path / "run"
    Run.start(folder, tiny).close()
    data = (folder / OBSERVED).read_bytes()
    (folder / OBSERVED).unlink()
    if kind == "pipe":
        os.mkfifo(folder / OBSERVED)
    elif kind == "scalar":
        np.save(folder / OBSERVED, np.uint8(3))
    else:
        (folder / OBSERVED).write_bytes(b"" if kind == "empty" else data[:10] + b"('\n" + data[13:])
    with pytest.raises(InputError, match=OBSERVED):
        Run.resume(folder)


def test_resume_refuses_what_does_not_belong_together(tiny: Recipe, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with pytest.raises(InputError, match="no such checkpoint"):
        Run.resume(folder)
    Run.start(folder, tiny)
    other = np.load(folder / OBSERVED)
    other[0, 0, 0, 0, 0] ^= 1
    np.save(folder / OBSERVED, other)
    with pytest.raises(InputError, match="not the clips"):
        Run.resume(folder)


@pytest.mark.parametrize("line", [b"{}", b"1", b"\xff\xfe", b"[" * 100_000, b'{"update": "x"}'])
def test_damaged_lines_of_metrics_are_dropped(tiny: Recipe, tmp_path: Path, line: bytes) -> None:
    run = Run.start(tmp_path / "run", tiny)
    run.learn(stop=lambda: run.learner.update_count == 2)
    run.close()
    path = tmp_path / "run" / METRICS
    path.write_bytes(line + b"\n" + path.read_bytes())
    assert Run.resume(tmp_path / "run").learn()
    made = [json.loads(line)["update"] for line in path.read_text().splitlines()]
    assert made == list(range(1, 9))


@pytest.mark.parametrize("damage", ["truncate", "empty", "garbage", "foreign", "schema"])
def test_damaged_checkpoints_are_refused(tiny: Recipe, tmp_path: Path, damage: str) -> None:
    from safetensors.torch import load_file, save_file

    Run.start(tmp_path / "run", tiny)
    path = tmp_path / "run" / CHECKPOINT
    data = path.read_bytes()
    if damage == "truncate":
        path.write_bytes(data[: len(data) // 2])
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "garbage":
        path.write_bytes(b"\x80\x04not a checkpoint" * 50)
    elif damage == "foreign":
        save_file({"x": torch.zeros(1)}, path)
    else:
        header = {"stg_checkpoint": json.dumps({"schema_version": 99})}
        save_file(load_file(path), path, header)
    with pytest.raises(InputError, match="checkpoint") as caught:
        Run.resume(tmp_path / "run")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("mean", torch.full((3, 7, 5), 100.0)),
        ("mean", torch.full((3, 0, 5), 100.0)),
        ("mean", torch.full((1, 1, 1), 100.0)),
        ("mean", torch.full((3, 1, 1), -5.0)),
        ("chains", torch.zeros(1, 1, 1, 1, 1)),
        ("adam.0.exp_avg", torch.zeros(2, 2)),
        ("adam.0.step", None),
        ("adam.0.step", torch.tensor(-1.0)),
        ("adam.99.step", torch.zeros(())),
        ("strange", torch.zeros(1)),
    ],
)
def test_a_tensor_that_does_not_fit_is_damage(
    clip: Path, tmp_path: Path, name: str, value: torch.Tensor | None
) -> None:
    from safetensors import safe_open
    from safetensors.torch import load_file, save_file

    Run.start(tmp_path / "run", tiny_recipe(clip, **{"learning.updates": 1})).learn()
    path = tmp_path / "run" / CHECKPOINT
    with safe_open(path, framework="pt") as file:
        header = file.metadata()
    tensors = load_file(path)
    assert "adam.0.step" in tensors
    tensors[name] = value  # type: ignore[assignment]
    save_file({key: held for key, held in tensors.items() if held is not None}, path, header)
    damage = "a damaged checkpoint, or of another stg"
    with pytest.raises(InputError, match=rf"{damage} \(ValueError: {name} "):
        Run.resume(tmp_path / "run", updates=2)


def test_a_header_without_a_field_is_damage(tiny: Recipe, tmp_path: Path) -> None:
    from safetensors import safe_open
    from safetensors.torch import load_file, save_file

    Run.start(tmp_path / "run", tiny)
    path = tmp_path / "run" / CHECKPOINT
    with safe_open(path, framework="pt") as file:
        header = json.loads(file.metadata()["stg_checkpoint"])
    tensors = load_file(path)
    several = {**header["recipe"]["learning"], "regime": "multi-grid", "scales": 2}
    for broken in (
        {key: value for key, value in header.items() if key != "fps"},
        [1, 2],
        {**header, "recipe": 3},
        {**header, "update": "8"},
        {**header, "update": -1},
        {**header, "fps": float("nan")},
        {**header, "scale": 0},
        {**header, "kept": {"update": 1}},
        {**header, "versions": 7},
        {**header, "norm_mean": 10**400},
        {**header, "recipe": {**header["recipe"], "learning": several}},
        {**header, "fps": 1e9},
        {**header, "kept": {"update": 1, "returns": 1}},
        {**header, "best": {"update": 1, "returns": 1}},
        {**header, "recipe": {**header["recipe"], "name": "\ud800"}},
    ):
        save_file(tensors, path, {"stg_checkpoint": json.dumps(broken)})
        with pytest.raises(InputError, match="checkpoint"):
            Run.resume(tmp_path / "run")
    del tensors["energy.descriptor.convs.0.weight"]
    save_file(tensors, path, {"stg_checkpoint": json.dumps(header)})
    for use in (Run.resume, load_energy):
        with pytest.raises(InputError, match="damaged"):
            use(tmp_path / "run")


def test_resume_writes_nothing_before_it_learns(tiny: Recipe, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    run = Run.start(folder, tiny)
    run.learn(stop=lambda: run.learner.update_count == 4)
    before = {item.name: item.read_bytes() for item in folder.iterdir() if item.is_file()}
    with pytest.raises(InputError, match="has made 4 already"):
        Run.resume(folder, updates=3)
    Run.resume(folder, updates=50)
    assert {item.name: item.read_bytes() for item in folder.iterdir() if item.is_file()} == before


def test_an_edited_recipe_is_not_silently_passed_over(tiny: Recipe, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    Run.start(folder, tiny)
    text = (folder / RECIPE).read_text()
    (folder / RECIPE).write_text(text.replace("learning_rate = 0.02", "learning_rate = 0.01"))
    with pytest.raises(InputError, match="--recipe"):
        Run.resume(folder)
    assert "learning_rate = 0.01" in (folder / RECIPE).read_text()


def test_a_start_that_was_cut_off_can_be_made_again(tiny: Recipe, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    (folder / "chains").mkdir(parents=True)
    (folder / ".stg-0123.toml").write_text("half")
    (folder / RECIPE).write_text(tiny.to_toml())
    Run.start(folder, tiny)
    assert not (folder / ".stg-0123.toml").exists()


def test_clips_of_different_rates_are_pointed_out(
    clip: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from stg_runtime.video_write import write_video

    frames = np.load(clip)
    for rate in (25, 30):
        write_video(tmp_path / f"{rate}.mp4", frames, rate)
    videos = [str(tmp_path / "25.mp4"), str(tmp_path / "30.mp4")]
    Run.start(tmp_path / "run", tiny_recipe(clip, **{"data.videos": videos}))
    assert "25, 30 frames/s" in caplog.text


def test_an_array_of_several_clips_is_several_clips(clip: Path, tmp_path: Path) -> None:
    several = tmp_path / "several.npy"
    frames = np.load(clip)
    np.save(several, np.stack([frames, frames[:, ::-1]]))
    run = Run.start(tmp_path / "run", tiny_recipe(clip, **{"data.videos": [str(several)]}))
    assert np.array_equal(run.learner.observed.pixels[1], frames[:, ::-1])


def test_a_run_in_use_is_refused_in_one_line(clip: Path, tmp_path: Path) -> None:
    recipe = tiny_recipe(clip, **{"learning.updates": 5000})
    recipe.save(tmp_path / "tiny.toml")
    process = start_cli(tmp_path / "run", tmp_path / "tiny.toml")
    try:
        wait_for((tmp_path / "run" / METRICS).exists, process)
        for again in (["--resume"], ["--overwrite", "--recipe", str(tmp_path / "tiny.toml")]):
            result = run_command("stg-train", "-o", tmp_path / "run", *again)
            assert result.returncode == 2, result.stderr
            assert f"in use by process {process.pid} on " in result.stderr
            assert len(result.stderr.splitlines()) == 1
        assert process.poll() is None
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    assert (tmp_path / "run" / LOCK).exists()
    resumed = Run.resume(tmp_path / "run", updates=5000)  # the lock of the dead is void
    resumed.close()
    assert not (tmp_path / "run" / LOCK).exists()


def test_the_last_line_names_what_is_there(
    tiny: Recipe,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Samples that fail leave no report, and the last line said to look at one."""

    def fails(_: Run) -> None:
        raise DivergenceError("a video from fresh noise became non-finite")

    monkeypatch.setattr(Run, "finish", fails)
    monkeypatch.setattr("signal.signal", lambda *_: None)
    learning = tiny.learning.model_copy(update={"updates": 1})
    work = Run.start(tmp_path / "run", tiny.model_copy(update={"learning": learning}))
    _learn(work)
    said = capsys.readouterr()
    assert "no measures and no report" in said.err
    assert f"look at {tmp_path / 'run' / 'chains.mp4'};" in said.out
