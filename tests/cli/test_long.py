"""Loops, streams, given footage, budgets and many videos, as a user types them."""

import importlib.util
import json
import os
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
from support import BIN, run

from stg_runtime.video import read_clip


def make(trained: Path, out: Path, *options: object) -> np.ndarray:
    result = run("stg-run", "synthesize", trained / "model.onnx", "-o", out, "--seed", 5, *options)
    assert result.returncode == 0, result.stderr
    return np.load(out) if out.suffix == ".npy" else read_clip(out).frames


def refused(trained: Path, out: Path, says: str, *options: object) -> None:
    before = sorted(out.parent.iterdir())
    result = run("stg-run", "synthesize", trained / "model.onnx", "-o", out, *options)
    assert result.returncode == 2, (result.returncode, result.stdout, result.stderr)
    assert len(result.stderr.strip().splitlines()) == 1, result.stderr
    assert says in result.stderr, result.stderr
    assert sorted(out.parent.iterdir()) == before


def test_loop_and_tile(trained: Path, tmp_path: Path) -> None:
    assert make(trained, tmp_path / "l.npy", "--loop", "--frames", 10).shape == (1, 10, 16, 16, 3)
    both = make(trained, tmp_path / "b.npy", "--loop", "--tile", "--size", "12x20")
    assert both.shape == (1, 12, 12, 20, 3)


def test_a_budget_changes_nothing_but_rounding(trained: Path, tmp_path: Path) -> None:
    size = ["--frames", 90, "--size", "96x96", "--steps", 2]
    whole = make(trained, tmp_path / "a.npy", *size).astype(int)
    cut = make(trained, tmp_path / "b.npy", *size, "--max-memory", "340M").astype(int)
    assert np.abs(whole - cut).max() <= 1 and np.abs(whole - cut).mean() < 0.01


def test_strength_one_is_noise_and_a_little_keeps_the_video(trained: Path, tmp_path: Path) -> None:
    clip = trained / "clip.npy"
    noise = make(trained, tmp_path / "noise.npy")
    assert np.array_equal(noise, make(trained, tmp_path / "1.npy", "--init", clip, "--strength", 1))
    apart = [
        np.abs(
            make(trained, tmp_path / f"{s}.npy", "--init", clip, "--strength", s)[0].astype(int)
            - np.load(clip)
        ).mean()
        for s in (0.001, 0.9)
    ]
    assert apart[0] < apart[1]


def test_between_two_clips(trained: Path, tmp_path: Path) -> None:
    clip = trained / "clip.npy"
    made = make(trained, tmp_path / "b.npy", "--between", clip, clip, "--frames", 5)
    assert made.shape == (1, 5, 16, 16, 3)


def test_fps_and_speed(trained: Path, tmp_path: Path) -> None:
    for name, options in {"a.mp4": ["--fps", 10], "b.mkv": ["--speed", 2]}.items():
        make(trained, tmp_path / name, *options)
    assert read_clip(tmp_path / "a.mp4").fps == pytest.approx(10)
    assert read_clip(tmp_path / "b.mkv").fps == pytest.approx(50)


def test_any_video_of_many_can_be_made_again_alone(trained: Path, tmp_path: Path) -> None:
    all_ = make(trained, tmp_path / "all.npy", "-n", 4)
    assert np.array_equal(all_[2:3], make(trained, tmp_path / "2.npy", "-n", 4, "--only", 2))
    assert np.array_equal(all_[2:4], make(trained, tmp_path / "23.npy", "-n", 2, "--first", 2))
    together = make(trained, tmp_path / "batch.npy", "-n", 4, "--batch", 3).astype(int)
    assert np.abs(all_ - together).max() <= 1


def test_skip_existing_goes_on_where_it_was(trained: Path, tmp_path: Path) -> None:
    model, out = trained / "model.onnx", tmp_path / "v.mp4"
    command = ("stg-run", "synthesize", model, "-o", out, "--seed", 5, "-n", 3, "--skip-existing")
    assert run(*command).returncode == 0
    (tmp_path / "v-001.mp4").unlink()
    (tmp_path / "v-000.mp4").write_bytes(b"kept")
    again = run(*command, "--json")
    assert json.loads(again.stdout)["files"] == [str(tmp_path / "v-001.mp4")]
    assert (tmp_path / "v-000.mp4").read_bytes() == b"kept"
    assert json.loads(run(*command, "--json").stdout)["files"] == []


@pytest.mark.parametrize("name", ["e.mp4", "e.webm", "e.mkv", "e"])
def test_endless_ends_at_frames(trained: Path, tmp_path: Path, name: str) -> None:
    assert len(make(trained, tmp_path / name, "--endless", "--frames", 25)) == 25


def test_endless_to_a_pipe(trained: Path, tmp_path: Path) -> None:
    command = [BIN / "stg-run", "synthesize", trained / "model.onnx", "-o", "-", "--endless"]
    command += ["--frames", "25", "--seed", "5", "--size", "16x18"]
    raw = subprocess.run(command, capture_output=True, timeout=120)
    assert raw.returncode == 0 and len(raw.stdout) == 25 * 16 * 18 * 3
    frames = np.frombuffer(raw.stdout, np.uint8).reshape(25, 16, 18, 3)
    make(trained, tmp_path / "e", "--endless", "--frames", 25, "--size", "16x18")
    assert np.array_equal(frames, read_clip(tmp_path / "e").frames)
    movie = subprocess.run([*command, "--format", "matroska"], capture_output=True, timeout=120)
    (tmp_path / "e.mkv").write_bytes(movie.stdout)
    assert len(read_clip(tmp_path / "e.mkv").frames) == 25


@pytest.mark.parametrize("name", ["e.mp4", "e.webm", "e.mkv"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stopping_leaves_a_whole_file(
    trained: Path, tmp_path: Path, name: str, number: signal.Signals
) -> None:
    out = tmp_path / name
    process = subprocess.Popen(
        [BIN / "stg-run", "synthesize", trained / "model.onnx", "-o", out, "--endless", "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    deadline = time.monotonic() + 60
    while not (out.exists() and out.stat().st_size > 20_000) and time.monotonic() < deadline:
        time.sleep(0.05)
    os.kill(process.pid, number)
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 0, stderr
    frames = read_clip(out).frames
    assert json.loads(stdout)["size"] == f"{len(frames)}x16x16"
    assert len(frames) > 10


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--loop", "--frames", "13"], "nearest are 12 and 14"),
        (["--tile", "--size", "16x15"], "nearest are 14 and 16"),
        (["--max-memory", "lots"], "2G or 500M"),
        (["--max-memory", "1M"], "needs at least"),
        (["--endless", "--max-memory", "1M"], "needs at least"),
        (["--endless", "--loop"], "--loop exclude each other"),
        (["--endless", "-n", "2"], "-n exclude each other"),
        (["--format", "raw"], "--endless"),
        (["--endless", "--format", "avi"], "raw or matroska"),
        (["--strength", "0"], "above 0"),
        (["--init", "none.mp4"], "no such file"),
        (["--between", "none.mp4", "none.mp4", "--frames", "4"], "no such file"),
        (["--between", "none.mp4", "none.mp4"], "needs --frames"),
        (["--fps", "0"], "from 0.1 to 1000"),
        (["--speed", "-1"], "above 0"),
        (["--fps", "5", "--speed", "2"], "exclude"),
        (["--only", "3"], "the videos are 0 to 0"),
        (["--skip-existing", "--overwrite"], "exclude"),
        (["--batch", "0"], "--batch"),
        (["--ray", "local", "--device", "cuda:1"], "Ray chooses each task's GPU"),
        (["--loop", "--device", "cuda"], "--loop does not work on GPUs yet; pass --device cpu"),
        (["--endless", "--device", "tensorrt"], "--endless does not work on GPUs yet"),
    ],
)
def test_what_cannot_be_is_refused(
    trained: Path, tmp_path: Path, options: list[str], says: str
) -> None:
    refused(trained, tmp_path / "o.mp4", says, *options)


def test_outputs_that_cannot_stream_are_refused(trained: Path, tmp_path: Path) -> None:
    for name in ("o.gif", "o.npy"):
        refused(trained, tmp_path / name, "unknown suffix", "--endless")
    (tmp_path / "there.mkv").write_bytes(b"precious")
    refused(trained, tmp_path / "there.mkv", "--overwrite", "--endless")
    assert (tmp_path / "there.mkv").read_bytes() == b"precious"


def test_a_static_model_cannot_loop(trained: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    model = tmp_path / "static.onnx"
    assert run("stg-export", trained / "run", "-o", model, "--static").returncode == 0
    for options in (["--loop"], ["--tile"], ["--endless"]):
        out = tmp_path / "out" / "o.mp4"
        result = run("stg-run", "synthesize", model, "-o", out, *options)
        assert result.returncode == 2 and "without --static" in result.stderr, result.stderr
        assert list((tmp_path / "out").iterdir()) == []


# --- a farm


def test_without_ray_the_extra_is_named(trained: Path, tmp_path: Path) -> None:
    if importlib.util.find_spec("ray") is not None:
        pytest.skip("ray is installed here")
    refused(trained, tmp_path / "o.mp4", "stg[ray]", "--ray", "local")


def test_a_killed_workers_videos_are_made_again(trained: Path, tmp_path: Path) -> None:
    if importlib.util.find_spec("ray") is None:
        pytest.skip("ray is not installed: pip install 'stg[ray]'")
    import ray

    from stg_runtime.backends import open_backend
    from stg_runtime.farm import Order, make_on_farm
    from stg_runtime.synthesize import fitted_chains, plan, synthesize

    model = trained / "model.onnx"
    backend = open_backend(model, "cpu", 1)
    job = plan(backend.metadata, seed=5, n_steps=300)
    order = Order(model.read_bytes(), "cpu", 1, job, (1, 1, 1), None)
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        made, workers = {}, []
        for number, frames, worker in make_on_farm(ray, order, range(8)):
            made[number] = frames
            workers.append(worker)
            if len(made) == 2:
                os.kill(worker, signal.SIGKILL)  # it has begun its next video by now
    finally:
        ray.shutdown()
    assert sorted(made) == list(range(8))
    assert workers[1] not in workers[2:]  # it is dead; another made what it had begun
    chains = fitted_chains(backend, job)
    for number, frames in made.items():
        expected = synthesize(chains, backend.metadata, job, number=number)
        assert np.array_equal(frames, expected), number
