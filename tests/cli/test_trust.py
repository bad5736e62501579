"""Full disks, read-only folders, signals, odd names, hostile models: earlier results stay whole."""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from support import BIN, refused, run

from stg_runtime.interrupts import signals_wait

ROOT = Path(__file__).parents[2]


def listing(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, hidden ones too."""
    files = sorted(item for item in folder.rglob("*") if item.is_file())
    return {str(item.relative_to(folder)): item.read_bytes() for item in files}


def failed(result: subprocess.CompletedProcess[str], *says: str) -> None:
    """Exit code 1 and one line."""
    assert result.returncode == 1, (result.returncode, result.stderr)
    lines = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and "Traceback" not in result.stderr, result.stderr
    for text in says:
        assert text in lines[0], lines[0]


@pytest.fixture
def tmpfs(tmp_path: Path) -> Iterator[Path]:
    """A disk of 4 MiB; only the superuser may make one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("cannot mount a small disk here")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=False)


def fill(disk: Path, left: int) -> Path:
    """Leave so many bytes free."""
    ballast = disk / "ballast"
    ballast.write_bytes(bytes(shutil.disk_usage(disk).free - left))
    return ballast


@pytest.mark.parametrize("name", ["o.mp4", "o.npy", "frames", "o.gif"])
def test_a_full_disk_keeps_the_earlier_video(trained: Path, tmpfs: Path, name: str) -> None:
    command = ("stg-run", "synthesize", trained / "model.onnx", "-o", tmpfs / name)
    assert run(*command, "--seed", 1).returncode == 0
    fill(tmpfs, 1 << 14)
    before = listing(tmpfs)
    larger = ("--frames", 100, "--size", "32x32", "--overwrite", "--seed", 2)
    failed(run(*command, *larger), str(tmpfs / name), "No space left on device")
    assert listing(tmpfs) == before


def test_a_full_disk_stops_training_whole(trained: Path, tmpfs: Path) -> None:
    shutil.copytree(trained / "run", tmpfs / "run")
    ballast = fill(tmpfs, 0)
    checkpoint = (tmpfs / "run" / "checkpoint.safetensors").read_bytes()
    result = run("stg-train", "-o", tmpfs / "run", "--resume", "--updates", 40)
    assert result.returncode in (1, 2), result.stderr
    assert "No space left on device" in result.stderr and "Traceback" not in result.stderr
    assert (tmpfs / "run" / "checkpoint.safetensors").read_bytes() == checkpoint
    ballast.unlink()
    again = run("stg-train", "-o", tmpfs / "run", "--resume", "--updates", 10)
    assert again.returncode == 0, again.stderr


def test_a_read_only_folder_is_refused(trained: Path, tmpfs: Path) -> None:
    shutil.copytree(trained / "run", tmpfs / "run")
    remount = ["mount", "-o", "remount,ro", str(tmpfs)]
    if subprocess.run(remount, capture_output=True).returncode:
        pytest.skip("cannot remount")
    before = listing(tmpfs)
    synthesize = run("stg-run", "synthesize", trained / "model.onnx", "-o", tmpfs / "o.mp4")
    assert synthesize.returncode in (1, 2) and "o.mp4: c" in synthesize.stderr, synthesize.stderr
    resumed = run("stg-train", "-o", tmpfs / "run", "--resume", "--updates", 40)
    refused(resumed, "Read-only file system")
    fresh = run("stg-train", trained / "clip.npy", "-o", tmpfs / "new", "--frames", 12)
    refused(fresh, "Read-only file system")
    assert listing(tmpfs) == before


@pytest.mark.parametrize("name", ["o.mp4", "o.webm", "o.mkv", "o.npy", "frames", "o.gif"])
def test_a_quota_keeps_the_earlier_video(trained: Path, tmp_path: Path, name: str) -> None:
    """A limit on the size of files, which every user may set, fails in the middle of a file."""
    command = ["stg-run", "synthesize", trained / "model.onnx", "-o", tmp_path / name]
    assert run(*command, "--seed", 1).returncode == 0
    before = listing(tmp_path)
    program = [str(BIN / "stg-run"), *map(str, command[1:]), "--overwrite", "--seed", "2"]
    result = subprocess.run(
        program,
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (400, 400)),
        timeout=100,
    )
    failed(result, str(tmp_path / name), "could not be written")
    assert listing(tmp_path) == before


def catches(process: subprocess.Popen[str], number: int) -> bool:
    """Has the process set its handler for a signal?"""
    for line in Path(f"/proc/{process.pid}/status").read_text().splitlines():
        if line.startswith("SigCgt:"):
            return bool(int(line.split()[1], 16) >> (number - 1) & 1)
    return False


COMMANDS = {
    "synthesize": "stg-run synthesize {0}/model.onnx -o {1}/o.mp4 -n 900 --overwrite",
    "inpaint": "stg-run inpaint {0}/model.onnx {0}/clip.npy --mask region:5 -o {1}/o.mp4 "
    "--steps 100000 --overwrite",
    "bench": "stg-run bench {0}/model.onnx --device cpu",
    "train": "stg-train {0}/clip.npy -o {1}/run --size 16x16 --frames 12 --updates 9000",
    "export": "stg-export {0}/run -o {1}/o.onnx --overwrite",
}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_wait_for_a_library_that_loads(number: signal.Signals) -> None:
    """PyTorch's start aborts where a handler raises in its C++ code."""
    before = signal.signal(number, signal.default_int_handler)
    done = False
    try:
        with pytest.raises(KeyboardInterrupt), signals_wait():
            os.kill(os.getpid(), number)
            done = True
        assert signal.getsignal(number) is signal.default_int_handler
    finally:
        signal.signal(number, before)
    assert done


@pytest.mark.skipif(sys.platform != "linux", reason="asks /proc for handlers")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("name", list(COMMANDS))
def test_every_command_leaves_everything_whole_when_it_is_told_to_stop(
    trained: Path, tmp_path: Path, name: str, number: signal.Signals
) -> None:
    (tmp_path / "o.mp4").write_bytes(b"earlier")
    (tmp_path / "o.onnx").write_bytes(b"earlier")
    program, *words = COMMANDS[name].format(trained, tmp_path).split()
    process = subprocess.Popen(
        [str(BIN / program), *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 100
    while not catches(process, signal.SIGTERM) and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.7)  # into its work, or its imports
    assert process.poll() is None, process.communicate()
    process.send_signal(number)
    _, stderr = process.communicate(timeout=100)
    assert process.returncode == 128 + number, stderr
    assert "Traceback" not in stderr and "fault of stg" not in stderr
    left = listing(tmp_path)
    assert not any(".stg-" in item for item in left), left.keys()
    if "run/lock" in left:
        pytest.fail("the lock outlived its owner")
    for file in ("o.mp4", "o.onnx"):
        assert left[file] == b"earlier"


ODD = ["with space", 'it\'s "quoted"', "-leading", "Ünïcode-日本-🔥", "$(id);`id` &", "%s {0} \\n"]


@pytest.mark.parametrize("name", ODD)
def test_names_are_never_more_than_names(trained: Path, tmp_path: Path, name: str) -> None:
    folder = tmp_path / name
    folder.mkdir()
    shutil.copy(trained / "model.onnx", folder / f"{name}.onnx")
    np.save(folder / f"{name}.npy", np.load(trained / "clip.npy"))
    made = folder / f"{name}.mp4"
    result = run("stg-run", "synthesize", "--seed", 1, "-o", made, "--", folder / f"{name}.onnx")
    assert result.returncode == 0, result.stderr
    rows = (f"{name}.mp4", f"{name}.npy")
    result = run("stg-run", "sheet", "-o", f"{name}.png", "--", *rows, cwd=folder)
    assert result.returncode == 0, result.stderr
    expected = [f"{name}{end}" for end in (".mp4", ".npy", ".onnx", ".png")]
    assert sorted(listing(folder)) == sorted(expected)


def test_a_model_with_external_data_reads_no_other_file(trained: Path, tmp_path: Path) -> None:
    import onnx

    model = onnx.load(trained / "model.onnx")
    onnx.save(
        model, tmp_path / "m.onnx", save_as_external_data=True, location="w.bin", size_threshold=0
    )
    assert (tmp_path / "w.bin").stat().st_size
    refused(
        run("stg-run", "synthesize", tmp_path / "m.onnx", "-o", tmp_path / "o.mp4"),
        "weights in another file",
    )
    refused(run("stg-run", "info", tmp_path / "m.onnx"), "weights in another file")
    assert not (tmp_path / "o.mp4").exists()


def test_sizes_in_metadata_allocate_nothing(trained: Path, tmp_path: Path) -> None:
    """A size from a stranger is refused by its figure before anything of it is allocated."""
    import onnx

    model = onnx.load(trained / "model.onnx")
    entry = next(item for item in model.metadata_props if item.key == "stg")
    stored = json.loads(entry.value)
    for frames, says in ((2**40, "damaged stg metadata: size.frames"), (2**24, "would fit")):
        stored["size"]["frames"] = stored["graph_size"]["frames"] = frames
        entry.value = json.dumps(stored)
        onnx.save(model, tmp_path / "m.onnx")
        refused(run("stg-run", "synthesize", tmp_path / "m.onnx", "-o", tmp_path / "o"), says)


def test_a_step_that_overflows_is_one_line(trained: Path, tmp_path: Path) -> None:
    """NumPy warned of it first, in lines of its own."""
    import onnx

    model = onnx.load(trained / "model.onnx")
    entry = next(item for item in model.metadata_props if item.key == "stg")
    entry.value = json.dumps(json.loads(entry.value) | {"reference_std": 1e12, "step_size": 1e12})
    onnx.save(model, tmp_path / "m.onnx")
    command = ("stg-run", "synthesize", tmp_path / "m.onnx", "-o", tmp_path / "o.npy", "--seed", 1)
    result = run(*command)
    failed(result, "became non-finite")
    assert len(result.stderr.splitlines()) == 1, result.stderr


def test_inpainting_that_does_not_fit_is_refused_with_the_figure(
    trained: Path, tmp_path: Path
) -> None:
    command = ["stg-run", "inpaint", trained / "model.onnx", trained / "clip.npy"]
    command += ["--mask", "region:5", "-o", tmp_path / "o.npy", "--max-memory"]
    result = run(*command, "20M")
    refused(result, "a walk of 16x16x16 needs about ")
    assert "20M are there" in result.stderr and "--crop auto" in result.stderr
    assert run(*command, "2G").returncode == 0


def test_a_title_in_no_encoding_is_read(tmp_path: Path) -> None:
    """What fuzzing found: players show such a title as they can, and the frames are fine."""
    from stg_runtime.video import read_clip
    from stg_runtime.video_write import write_video

    path = tmp_path / "a.mp4"
    write_video(path, np.zeros((3, 16, 16, 3), np.uint8), 25)
    data = path.read_bytes()
    assert b"Lavf" in data  # the encoder's name
    path.write_bytes(data.replace(b"Lavf", b"\x80\xffvf", 1))
    assert len(read_clip(path).frames) == 3


def test_a_codec_that_nobody_knows_is_refused(tmp_path: Path) -> None:
    """Found by fuzzing: such a stream has no size."""
    from stg_runtime.errors import InputError
    from stg_runtime.video import read_clip
    from stg_runtime.video_write import write_video

    path = tmp_path / "a.mp4"
    write_video(path, np.zeros((3, 16, 16, 3), np.uint8), 25)
    data = path.read_bytes()
    assert data.count(b"avc1") > 1
    path.write_bytes(data.replace(b"avc1", b"zzzz"))
    with pytest.raises(InputError, match="codec that FFmpeg does not know"):
        read_clip(path)


def test_deep_nesting_is_refused(tmp_path: Path) -> None:
    from stg_runtime.artifact import parse_metadata
    from stg_runtime.errors import InputError
    from stg_train.recipe import load_recipe

    with pytest.raises(InputError, match="not JSON"):
        parse_metadata("[" * 100_000, "m.onnx")
    (tmp_path / "a.toml").write_text("a = " + "[" * 100_000)
    with pytest.raises(InputError, match="not valid TOML"):
        load_recipe(str(tmp_path / "a.toml"))


def test_onnxruntime_gathers_no_usage_data(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its wheels write a device id and events under ~/.cache, and send them, unless told not to."""
    monkeypatch.delenv("ORT_DISABLE_TELEMETRY", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    for command in (
        ("stg-run", "synthesize", trained / "model.onnx", "-o", tmp_path / "a.npy"),
        ("stg-run", "doctor"),
        ("stg-export", trained / "run", "-o", tmp_path / "m.onnx"),
    ):
        result = run(*command)
        assert result.returncode == 0, result.stderr
    assert {item.name for item in tmp_path.rglob("*") if item.is_file()} == {"a.npy", "m.onnx"}


def test_a_full_disk_ends_a_stream_with_a_line(trained: Path, tmpfs: Path) -> None:
    """FFmpeg's .mp4 crashed when the rest was written after a failure."""
    for suffix in (".mp4", ".mkv"):
        ballast = fill(tmpfs, 0)
        out = tmpfs / f"a{suffix}"
        result = run(
            "stg-run", "synthesize", trained / "model.onnx", "--endless", "--frames", 40, "-o", out
        )
        failed(result, "No space left on device")
        ballast.unlink()
        out.unlink(missing_ok=True)


def test_pipes_and_devices_in_folders_are_not_waited_for(tmp_path: Path) -> None:
    frames = tmp_path / "frames"
    frames.mkdir()
    os.mkfifo(frames / "0.png")
    refused(run("stg-run", "compare", frames, frames), "0.png: is a folder, a pipe or a device")
    os.mkfifo(tmp_path / "f.toml")
    (tmp_path / "z.toml").symlink_to("/dev/zero")
    clip = ("stg-train", tmp_path / "clip.npy", "-o", tmp_path / "run")
    for name in ("f.toml", "z.toml"):
        refused(run(*clip, "--recipe", tmp_path / name), "is a folder, a pipe or a device")


def test_a_name_that_is_not_utf8_is_refused_before_any_work(tmp_path: Path) -> None:
    name = os.fsdecode(b"x\xff.npy")
    refused(run("stg-train", name, "-o", tmp_path / "run"), "is not UTF-8")
    refused(run("stg-run", "sheet", "y" * 300 + ".npy", "-o", tmp_path / "a.png"), "too long")
    (tmp_path / "r.toml").write_text('name = "evil\\u001b[2J"\n')
    result = run("stg-train", "a.npy", "-o", tmp_path / "run", "--recipe", tmp_path / "r.toml")
    assert result.returncode == 2 and result.stderr.strip().isprintable(), result.stderr


def test_ctrl_c_is_understood_from_the_start() -> None:
    """Before `run_app` is there, while the command's modules are imported."""
    code = (
        "import importlib, signal\n"
        "importlib.import_module = lambda name: signal.raise_signal(signal.SIGINT)\n"
        "import stg_cli.start\n"
        "stg_cli.start.run()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (130, "error: interrupted\n")


def test_crash_and_fuzz_in_short(tmp_path: Path) -> None:
    """The long forms of `bench/`, for seconds: nothing lost, nothing half written, no fault."""
    crash = [sys.executable, str(ROOT / "bench" / "crash.py"), "--kills", "8", "--seed", "5"]
    done = subprocess.run(
        [*crash, "--kinds", "training", "synthesis", "replacement"],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["kills"] >= 7 and found["lost_or_half_written"] == 0
    fuzz = [sys.executable, str(ROOT / "bench" / "fuzz.py"), "--seconds", "1.5", "--seed", "1000"]
    done = subprocess.run(fuzz, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
