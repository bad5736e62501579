"""One program at a time in a folder; nobody is kept out by the dead."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from stg_runtime.errors import InputError
from stg_runtime.lock import LOCK, STALE_AFTER, FolderLock, Owner

HOLD = (
    "import sys, time; from pathlib import Path; from stg_runtime.lock import FolderLock;"
    "held = FolderLock(Path(sys.argv[1])); print('held', flush=True); time.sleep(60)"
)


def hold(folder: Path) -> subprocess.Popen[str]:
    """Another process that has the lock."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    return process


def refused(folder: Path) -> str:
    with pytest.raises(InputError) as caught:
        FolderLock(folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_second_process_is_refused_until_the_first_is_gone(tmp_path: Path) -> None:
    process = hold(tmp_path)
    try:
        message = refused(tmp_path)
        assert f"in use by process {process.pid} on " in message and str(tmp_path) in message
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert (tmp_path / LOCK).exists(), "a killed process cannot clean up"
    with FolderLock(tmp_path):
        owner = Owner.read((tmp_path / LOCK).read_text())
        assert owner is not None and owner.pid == os.getpid()
    assert list(tmp_path.iterdir()) == []


def test_the_lock_is_the_processs(tmp_path: Path) -> None:
    outer = FolderLock(tmp_path)
    with FolderLock(tmp_path):
        assert (tmp_path / LOCK).exists()
    assert (tmp_path / LOCK).exists()
    outer.release()
    outer.release()
    assert not (tmp_path / LOCK).exists()
    FolderLock(tmp_path)  # kept by nobody: gone at once
    assert not (tmp_path / LOCK).exists()


def elsewhere(folder: Path, age: float) -> None:
    """A lock of a machine whose own locks we cannot see."""
    owner = {"pid": 7, "host": "other", "boot": "00-11", "since": "2026-01-01T00:00:00+00:00"}
    (folder / LOCK).write_text(json.dumps(owner))
    os.utime(folder / LOCK, (time.time() - age,) * 2)


def test_another_machines_lock_counts_while_it_is_touched(tmp_path: Path) -> None:
    elsewhere(tmp_path, 3)
    message = refused(tmp_path)
    assert "process 7 on other, since 2026-01-01" in message and "another machine" in message
    assert str(tmp_path / LOCK) in message
    elsewhere(tmp_path, STALE_AFTER + 5)
    with FolderLock(tmp_path):
        pass


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, '{"pid": "x"}', "null", "\x00" * 9])
def test_a_damaged_lock_file_keeps_nobody_out(tmp_path: Path, text: str) -> None:
    (tmp_path / LOCK).write_text(text)
    with FolderLock(tmp_path):
        pass


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / LOCK).symlink_to(victim)
    with pytest.raises(OSError, match="symbolic"):
        FolderLock(tmp_path / "folder")
    assert victim.read_text() == "precious"


def test_two_streams_of_frames_do_not_share_a_folder(tmp_path: Path) -> None:
    from stg_runtime.video_write import FrameFolder

    with FrameFolder(tmp_path / "frames"), pytest.raises(InputError, match="another program"):
        FrameFolder(tmp_path / "frames")
    with FrameFolder(tmp_path / "frames"):
        pass


def test_a_held_lock_is_touched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stg_runtime.lock.TOUCHED_EVERY", 0.02)
    with FolderLock(tmp_path):
        os.utime(tmp_path / LOCK, (0, 0))
        deadline = time.monotonic() + 5
        while (tmp_path / LOCK).stat().st_mtime < 1 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert (tmp_path / LOCK).stat().st_mtime > 1
