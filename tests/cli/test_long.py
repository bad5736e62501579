"""Loops, streams, given footage, budgets and many videos, as a user types them."""

import array
import fcntl
import importlib.util
import json
import os
import re
import resource
import signal
import subprocess
import termios
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

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


def test_a_budget_that_is_too_small_names_one_that_is_not(trained: Path, tmp_path: Path) -> None:
    video = ["--frames", 600, "--steps", 1, "--seed", 1]

    def told(*options: object) -> str:
        out = tmp_path / "refused.npy"
        result = run("stg-run", "synthesize", trained / "model.onnx", "-o", out, *options)
        assert result.returncode == 2, result.stdout
        return result.stderr

    said = told(*video, "--max-memory", "1M")
    assert "--endless" not in said  # no length fits
    found = re.search(r"needs at least (\d+)M .*; in one piece it takes (\d+)M$", said.strip())
    assert found and int(found[1]) < int(found[2]), said
    assert len(make(trained, tmp_path / "a.npy", *video, "--max-memory", f"{found[1]}M")[0]) == 600
    long = ["--frames", 20_000, "--steps", 1, "--max-memory", f"{int(found[1]) + 20}M"]
    assert "--endless streams any length" in told(*long)
    for options in (["--loop"], ["--init", trained / "clip.npy"]):
        said = told(*long, *options)
        assert "--endless" not in said
        fits = re.search(r"--frames (\d+) would fit", said)
        assert fits, said
        if "--loop" in options:
            assert int(fits[1]) % 2 == 0  # the network's stride
            long[1] = int(fits[1])
            assert make(trained, tmp_path / "b.npy", *long, *options).shape[1] == long[1]
            long[1] = 20_000


def test_memory_of_videos_that_are_not_made_is_not_counted(trained: Path, tmp_path: Path) -> None:
    many = ["-n", 2, "--batch", 100_000, "--max-memory", "500M"]
    make_many = run(
        *("stg-run", "synthesize", trained / "model.onnx", "-o", tmp_path / "m.mp4"), *many
    )
    assert make_many.returncode == 0, make_many.stderr


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
        (["--init", "none.mp4", "--strength", "0"], "above 0"),
        (["--init", "none.mp4"], "no such file"),
        (["--init", "none.mp4", "--max-memory", "1M"], "needs at least"),  # and is not read
        (["--endless", "--steps", "1000000000"], "fewer --steps take less"),
        (["--between", "none.mp4", "none.mp4", "--frames", "4"], "no such file"),
        (["--between", "none.mp4", "none.mp4"], "needs --frames"),
        (["--fps", "0"], "from 0.1 to 1000"),
        (["--speed", "-1"], "above 0"),
        (["--fps", "5", "--speed", "2"], "exclude"),
        (["--only", "3"], "the videos are 0 to 0"),
        (["--skip-existing", "--overwrite"], "exclude"),
        (["--batch", "0"], "--batch"),
        (["--skip-existing", "-n", "2"], "--skip-existing needs --seed"),
        (["--strength", "0.3"], "--strength is for --init"),
        (["--strength", "0.3", "--endless"], "--strength is for --init"),
        (["--between", "a", "b", "--frames", "4", "--strength", "1"], "--strength is for --init"),
        (["--endless", "--only", "0"], "--only exclude each other"),
        (["--endless", "--batch", "2"], "--batch exclude each other"),
        (["--ray", "local", "--batch", "2", "-n", "4"], "--ray and --batch exclude each other"),
        (["--no-build"], "--no-build is for --device tensorrt"),
        (["--endless", "--no-build", "--device", "cpu"], "--no-build is for --device tensorrt"),
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


@pytest.mark.parametrize(
    ("name", "options", "says"),
    [
        ("o.npy", ["--fps", "5"], "--fps: an .npy has no rate"),
        ("o", ["--speed", "2"], "--speed: a folder of PNGs has no rate"),
        ("o.png", ["--fps", "5", "--frames", "1"], "--fps: a .png has no rate"),
        ("o", ["--endless", "--fps", "5"], "--fps: a folder of PNGs has no rate"),
        ("o.gif", ["--fps", "300"], "a .gif plays at most 50"),
        (".mp4", ["-n", "2"], "is a suffix alone"),
    ],
)
def test_options_that_an_output_ignores_are_refused(
    trained: Path, tmp_path: Path, name: str, options: list[str], says: str
) -> None:
    refused(trained, tmp_path / name, says, *options)


def test_stdout_takes_no_rate_and_no_json(trained: Path) -> None:
    for options in (["--fps", "5"], ["--json"]):
        result = run(
            *("stg-run", "synthesize", trained / "model.onnx", "-o", "-", "--endless", *options)
        )
        assert result.returncode == 2 and options[0] in result.stderr and not result.stdout


@pytest.mark.parametrize("name", ["o.mp4", "o.npy"])
def test_skip_existing_takes_what_is_there_for_finished(
    trained: Path, tmp_path: Path, name: str
) -> None:
    command = ["stg-run", "synthesize", trained / "model.onnx", "-o", tmp_path / name]
    command += ["--seed", "5", "-n", "2", "--skip-existing", "--json"]
    first, again = (json.loads(run(*command).stdout) for _ in range(2))
    assert first["videos"] == 2 and again["videos"] == 0


def test_skip_existing_does_not_count_what_is_empty(trained: Path, tmp_path: Path) -> None:
    (tmp_path / "o-000").mkdir()
    model, options = trained / "model.onnx", ["--seed", "5", "-n", "2", "--skip-existing"]
    assert run("stg-run", "synthesize", model, "-o", tmp_path / "o", *options).returncode == 0
    assert len(list((tmp_path / "o-000").iterdir())) == 12
    (tmp_path / "o-000.mp4").touch()
    refused(trained, tmp_path / "o.mp4", "o-000.mp4: is empty", *options)


def test_names_do_not_depend_on_how_many_there_are(trained: Path, tmp_path: Path) -> None:
    command = ("stg-run", "synthesize", trained / "model.onnx", "-o", tmp_path / "o.mkv")
    for count, number in ((1000, 5), (1001, 5), (1001, 1000)):
        done = run(*command, "-n", count, "--only", number, "--overwrite")
        assert done.returncode == 0, done.stderr
    assert sorted(item.name for item in tmp_path.iterdir()) == ["o-005.mkv", "o-1000.mkv"]


def test_a_seed_that_was_drawn_is_told_at_the_beginning(trained: Path, tmp_path: Path) -> None:
    result = run(
        *("stg-run", "synthesize", trained / "model.onnx", "-o", tmp_path / "o.mp4"),
        *("-n", "2", "--json"),
    )
    told, *videos = result.stderr.splitlines()
    assert told == f"seed {json.loads(result.stdout)['seed']}"
    assert videos == ["video 1 of 2", "video 2 of 2"]


def test_ctrl_c_amid_many_says_so(trained: Path, tmp_path: Path) -> None:
    process = stg_run(trained, tmp_path / "o.mp4", "-n", "1000", "--seed", "1")
    wait_for(lambda: (tmp_path / "o-001.mp4").exists())
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130 and stderr.endswith(b"error: interrupted\n")


# --- streams that are stopped, or that cannot be written


def stg_run(trained: Path, out: object, *options: str, **more: Any) -> subprocess.Popen[bytes]:
    command = [BIN / "stg-run", "synthesize", trained / "model.onnx", "-o", out, *options]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, **{"stdout": pipe, "stderr": pipe, **more})


def wait_for(ready: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not ready():
        assert time.monotonic() < deadline
        time.sleep(0.05)


SLOW = ("--endless", "--overwrite", "--steps", "100000", "--seed", "1")
"""The first frames never come, but their computation begins at once."""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("name", ["o", "o.mkv"])
def test_a_stream_without_frames_replaces_nothing(
    trained: Path, tmp_path: Path, name: str, number: signal.Signals, code: int
) -> None:
    for there in (False, True):
        if there:
            make(trained, tmp_path / name)
        before = [(item, item.stat().st_mtime_ns) for item in sorted(tmp_path.rglob("*"))]
        process = stg_run(trained, tmp_path / name, *SLOW, "--max-memory", "900G")
        time.sleep(4)
        process.send_signal(number)
        stdout, stderr = process.communicate(timeout=60)
        assert process.returncode == code and b"nothing was made" in stderr, stderr
        assert not stdout
        after = [(item, item.stat().st_mtime_ns) for item in sorted(tmp_path.rglob("*"))]
        assert [item for item, _ in after] == [item for item, _ in before]


def test_a_killed_stream_into_a_folder_can_be_replaced(trained: Path, tmp_path: Path) -> None:
    make(trained, tmp_path / "o")
    (tmp_path / "o" / ".stg-frame.png").write_bytes(b"half a frame")
    made = make(trained, tmp_path / "o", "--endless", "--overwrite", "--frames", 3)
    assert len(made) == 3
    assert sorted(item.name for item in (tmp_path / "o").iterdir()) == [
        "00000.png", "00001.png", "00002.png",
    ]  # fmt: skip
    (tmp_path / "o" / ".stg-frame.png").write_bytes(b"half a frame")
    assert len(make(trained, tmp_path / "o", "--overwrite")) == 12


@pytest.mark.parametrize("form", ["raw", "matroska"])
def test_a_pipe_whose_reader_stalls_takes_all_or_is_left_at_a_second_signal(
    trained: Path, form: str
) -> None:
    options = ("--endless", "--format", form, "--seed", "1", "--size", "64x64")
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    for stays_away in (False, True):
        process = stg_run(trained, "-", *options, env=environment)
        assert process.stdout is not None and process.stderr is not None
        pipe, held, readings = process.stdout, array.array("i", [0]), [0]

        def is_full(pipe: Any = pipe, held: Any = held, readings: Any = readings) -> bool:
            fcntl.ioctl(pipe, termios.FIONREAD, held)
            readings.append(held[0])
            return readings[-1] > 40_000 and len(set(readings[-20:])) == 1

        wait_for(is_full)
        process.send_signal(signal.SIGTERM)
        process.send_signal(signal.SIGTERM)  # as a group's and a parent's: one and the same
        time.sleep(1.5)
        assert process.poll() is None
        if stays_away:
            process.send_signal(signal.SIGTERM)
            process.wait(10)
            assert process.returncode == 143
            assert b"the end of stdout is cut" in process.stderr.read()
            process.stdout.close()
            process.stderr.close()
            continue
        stdout, stderr = process.communicate(timeout=60)
        assert process.returncode == 0, stderr
        if form == "raw":
            frames = int(stderr.split(b" x ")[1].split(b"x")[0])
            assert len(stdout) == frames * 64 * 64 * 3


@pytest.mark.parametrize("form", ["raw", "matroska"])
def test_a_reader_that_leaves_ends_a_stream_quietly(trained: Path, form: str) -> None:
    process = stg_run(trained, "-", "--endless", "--format", form, "--seed", "1")
    assert process.stdout is not None and process.stderr is not None
    process.stdout.read(1000)
    process.stdout.close()
    assert process.wait(60) == 1 and process.stderr.read() == b""
    process.stderr.close()


@pytest.mark.parametrize("form", ["raw", "matroska"])
def test_a_full_disk_is_said_of_stdout(trained: Path, form: str) -> None:
    with Path("/dev/full").open("wb") as full:
        process = stg_run(trained, "-", "--endless", "--format", form, "--seed", "1", stdout=full)
        _, stderr = process.communicate(timeout=60)
    assert process.returncode == 1
    assert stderr == b"error: stdout: could not be written: No space left on device\n"


@pytest.mark.parametrize("name", ["o.mp4", "o.mkv"])
def test_a_full_disk_is_said_of_the_file(trained: Path, tmp_path: Path, name: str) -> None:
    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))

    options = ("--endless", "--seed", "1", "--size", "64x64")
    process = stg_run(trained, tmp_path / name, *options, preexec_fn=limited)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 1
    says = f"error: {tmp_path / name}: could not be written: File too large\n"
    assert stderr.decode() == says


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
