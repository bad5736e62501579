import contextlib
import errno
import os
import resource
import signal
from pathlib import Path

import numpy as np
import pytest

from stg_runtime.errors import InputError, StgError
from stg_runtime.files import (
    atomic_files,
    atomic_path,
    atomic_save_array,
    atomic_write_bytes,
    atomic_write_text,
    check_output,
)

SUFFIXES = (".mp4", ".npy", "")


def listing(folder: Path) -> list[str]:
    return sorted(item.name for item in folder.iterdir())


def test_bytes_and_text_arrive_and_replace(tmp_path: Path) -> None:
    atomic_write_bytes(tmp_path / "a.bin", b"old")
    atomic_write_bytes(tmp_path / "a.bin", b"new")
    atomic_write_text(tmp_path / "b.txt", "δ")
    assert (tmp_path / "a.bin").read_bytes() == b"new"
    assert (tmp_path / "b.txt").read_text(encoding="utf-8") == "δ"
    assert listing(tmp_path) == ["a.bin", "b.txt"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_exception_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, error: type[BaseException]
) -> None:
    atomic_write_bytes(tmp_path / "a.mp4", b"old")
    with pytest.raises(error), atomic_path(tmp_path / "a.mp4") as temporary:
        assert temporary.parent == tmp_path and temporary.suffix == ".mp4"
        assert temporary.name.startswith(".")
        temporary.write_bytes(b"half")
        raise error
    assert (tmp_path / "a.mp4").read_bytes() == b"old"
    assert listing(tmp_path) == ["a.mp4"]


def test_a_folder_replaces_a_folder(tmp_path: Path) -> None:
    for text in ("old", "new"):
        with atomic_path(tmp_path / "frames") as temporary:
            temporary.mkdir()
            (temporary / f"{text}.png").write_text(text)
    assert listing(tmp_path) == ["frames"]
    assert listing(tmp_path / "frames") == ["new.png"]


@pytest.mark.parametrize("exchanges", [True, False])
def test_a_folder_is_replaced_in_one_step_where_the_system_can(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exchanges: bool
) -> None:
    """A kill, or Ctrl-C, at any moment of the move finds the old frames or the new ones."""
    if not exchanges:
        monkeypatch.setattr("stg_runtime.files._exchange", lambda *_: False)
    (tmp_path / "frames").mkdir()
    (tmp_path / "frames" / "old.png").touch()
    renamed = []
    replace = Path.replace

    def seen(source: Path, target: Path) -> Path:
        if source.is_dir():
            renamed.append(listing(tmp_path / "frames") if (tmp_path / "frames").exists() else [])
            if len(renamed) == 3:
                raise KeyboardInterrupt
        return replace(source, target)

    monkeypatch.setattr(Path, "replace", seen)
    with (
        contextlib.suppress(KeyboardInterrupt),
        atomic_path(tmp_path / "frames") as temporary,
    ):
        temporary.mkdir()
        (temporary / "new.png").touch()
    if exchanges:
        assert renamed == [["old.png"]]
        assert listing(tmp_path / "frames") == ["new.png"]
    else:
        assert renamed == [["old.png"], ["old.png"], [], []]  # the last one puts the old one back
        assert listing(tmp_path / "frames") == ["old.png"]
    assert listing(tmp_path) == ["frames"]


@pytest.mark.parametrize("links", [True, False])
def test_of_two_programs_that_write_one_new_file_one_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool
) -> None:
    def no_links(*_: object) -> None:
        raise OSError(errno.EPERM, "no hard links")

    if not links:
        monkeypatch.setattr("os.link", no_links)
    for name in ("a.npy", "frames"):
        with (
            pytest.raises(InputError, match=f"{name}: exists by now, another program"),
            atomic_path(tmp_path / name, replace=False) as temporary,
        ):
            if name == "frames":
                temporary.mkdir()
                (tmp_path / name).mkdir()
                (tmp_path / name / "00000.png").write_text("theirs")
            else:
                temporary.write_text("ours")
                (tmp_path / name).write_text("theirs")
    assert listing(tmp_path) == ["a.npy", "frames"]
    assert (tmp_path / "a.npy").read_text() == "theirs"
    with atomic_path(tmp_path / "b.npy", replace=False) as temporary:
        temporary.write_text("ours")
    assert listing(tmp_path) == ["a.npy", "b.npy", "frames"]
    assert (tmp_path / "b.npy").stat().st_nlink == 1


def test_files_that_belong_together_change_together(tmp_path: Path) -> None:
    for name in ("clips", "mask", "state"):
        (tmp_path / name).write_text("old")
    names = ("mask", "clips", "state")
    with pytest.raises(ZeroDivisionError), atomic_files(tmp_path, names) as hidden:
        hidden["clips"].write_text("new")
        raise ZeroDivisionError
    assert {item.read_text() for item in tmp_path.iterdir()} == {"old"}
    with atomic_files(tmp_path, names) as hidden:
        for name in ("clips", "state"):
            hidden[name].write_text("new")
        assert {(tmp_path / name).read_text() for name in names} == {"old"}
    assert listing(tmp_path) == ["clips", "state"]
    assert {item.read_text() for item in tmp_path.iterdir()} == {"new"}


def test_a_signal_waits_until_files_that_belong_together_have_their_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace = Path.replace

    def interrupted(source: Path, target: Path) -> Path:
        signal.raise_signal(signal.SIGINT)
        return replace(source, target)

    monkeypatch.setattr(Path, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt), atomic_files(tmp_path, ("a", "b")) as hidden:
        for path in hidden.values():
            path.write_text("new")
    assert listing(tmp_path) == ["a", "b"]


def test_a_full_disk_is_named(tmp_path: Path) -> None:
    """A limit on the size of files stands in for a full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    atomic_save_array(tmp_path / "a.npy", np.zeros(4))
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
        with pytest.raises(StgError, match=r"a\.npy: could not be written: ") as caught:
            atomic_save_array(tmp_path / "a.npy", np.zeros(100_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert "requested" not in str(caught.value) and str(tmp_path) in str(caught.value)
    assert listing(tmp_path) == ["a.npy"] and np.load(tmp_path / "a.npy").shape == (4,)


def test_a_file_gets_the_permissions_of_the_umask(tmp_path: Path) -> None:
    (tmp_path / "plain").write_bytes(b"")
    atomic_write_bytes(tmp_path / "atomic", b"")
    assert (tmp_path / "plain").stat().st_mode == (tmp_path / "atomic").stat().st_mode


def test_a_link_is_followed(tmp_path: Path) -> None:
    atomic_write_bytes(tmp_path / "real.bin", b"old")
    (tmp_path / "link.bin").symlink_to("real.bin")
    atomic_write_bytes(tmp_path / "link.bin", b"new")
    assert (tmp_path / "link.bin").is_symlink()
    assert (tmp_path / "real.bin").read_bytes() == b"new"


def test_good_outputs_pass(tmp_path: Path) -> None:
    assert check_output(tmp_path / "new.MP4", suffixes=SUFFIXES) == tmp_path / "new.MP4"
    assert check_output(tmp_path / "folder", suffixes=SUFFIXES) == tmp_path / "folder"
    (tmp_path / "folder").mkdir()
    check_output(tmp_path / "folder", suffixes=SUFFIXES)  # empty: nothing to lose
    (tmp_path / "folder" / "00000.png").touch()
    check_output(tmp_path / "folder", overwrite=True, suffixes=SUFFIXES)
    check_output(tmp_path / "any.thing")
    (tmp_path / "old.npy").touch()
    check_output(tmp_path / "old.npy", overwrite=True, suffixes=SUFFIXES)


@pytest.mark.parametrize(
    ("name", "overwrite", "said"),
    [
        ("old.npy", False, "--overwrite"),
        ("missing/clip.mp4", True, "does not exist"),
        ("old.npy/clip.mp4", True, "is not a folder"),
        ("clip.mkv", True, "'.mkv'; use .mp4, .npy or a name without a suffix"),
        ("folder.mp4", True, "is a folder"),
        ("frames", False, "--overwrite"),
        ("precious", True, "holds other files than frames (thesis.tex)"),
        ("plain", True, "is a file"),
        ("pipe.mp4", True, "neither a file nor a folder"),
    ],
)
def test_bad_outputs_are_refused_in_one_line(
    tmp_path: Path, name: str, overwrite: bool, said: str
) -> None:
    for folder in ("folder.mp4", "frames", "precious"):
        (tmp_path / folder).mkdir()
    for file in ("old.npy", "plain", "frames/00000.png", "precious/00000.png"):
        (tmp_path / file).touch()
    (tmp_path / "precious" / "thesis.tex").touch()
    os.mkfifo(tmp_path / "pipe.mp4")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(InputError) as caught:
        check_output(tmp_path / name, overwrite, suffixes=SUFFIXES)
    message = str(caught.value)
    assert said in message and name in message and "\n" not in message
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_an_unwritable_folder_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(InputError, match="not writable"):
        check_output(tmp_path / "clip.mp4")
