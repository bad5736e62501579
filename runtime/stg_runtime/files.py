"""Outputs appear whole or not at all: written under a hidden name beside them, then renamed."""

from __future__ import annotations

import ctypes
import errno
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from stg_runtime.errors import InputError, StgError
from stg_runtime.interrupts import signals_wait

FRAME_NAME: Final = re.compile(r"\d{5,}\.png")
"""What the frames of an image folder are called; a folder of nothing else may be replaced."""

TEMPORARY_PREFIX: Final = ".stg-"
"""Of the hidden names that outputs are written under; what a killed program leaves has them."""


def check_output(
    path: str | os.PathLike[str],
    overwrite: bool = False,
    *,
    suffixes: Sequence[str] | None = None,
) -> Path:
    """Refuse an output that could not be written, before the work that would fill it starts.

    Args:
        path: file or folder to be written.
        overwrite: an existing file may be replaced, and so may a folder that holds only frames
            (`00000.png`, ...) and what a killed program left. Other folders are never replaced. An
            empty folder may always be.
        suffixes: the valid ones, lower case with their dot; `""` stands for a folder. None: any
            file.

    Returns:
        `path`, with symbolic links followed.

    Raises:
        InputError: the suffix is not valid; the parent folder is missing or not writable; the
            path exists (and `overwrite` is off), is a folder where a file is meant or the
            reverse, or is neither a file nor a folder (a device, a pipe).
    """
    shown, path = Path(path), Path(os.path.realpath(path))
    suffix = shown.suffix.lower()
    check_name(shown, suffixes or ())
    if suffixes is not None and suffix not in suffixes:
        valid = ", ".join(item for item in suffixes if item)
        folder = " or a name without a suffix (a folder)" if "" in suffixes else ""
        raise InputError(f"{shown}: unknown suffix {suffix or '(none)'!r}; use {valid}{folder}")
    parent = path.parent
    if not parent.is_dir():
        reason = "is not a folder" if parent.exists() else "does not exist; create it first"
        raise InputError(f"{shown}: cannot be written, its folder {parent} {reason}")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise InputError(f"{shown}: cannot be written, its folder {parent} is not writable")
    _check_replaceable(shown, path, overwrite, folder=suffixes is not None and suffix == "")
    return path


def check_name(path: Path, suffixes: Sequence[str]) -> None:
    """Refuse a name that is one of the suffixes alone: `.mp4` is a hidden name without a suffix.

    Raises:
        InputError: it is.
    """
    if not path.suffix and path.name and path.name.lower() in suffixes:
        raise InputError(f"{path}: is a suffix alone; put a name before it")


def check_regular(path: Path) -> None:
    """Refuse what is there and no file, before it is opened.

    A pipe would be waited for, and a device read for ever.

    Raises:
        InputError: a folder, a pipe or a device.
    """
    if path.exists() and not path.is_file():
        raise InputError(f"{path}: is a folder, a pipe or a device; expected a file")


def _check_replaceable(shown: Path, path: Path, overwrite: bool, *, folder: bool) -> None:
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return
    except OSError as error:
        raise InputError(f"{shown}: cannot be written: {error.strerror}") from None
    if stat.S_ISDIR(mode):
        if not folder:
            raise InputError(f"{shown}: is a folder; give the name of a file")
        names = sorted(item.name for item in path.iterdir())
        if not names:
            return
        ours = re.compile(rf"{FRAME_NAME.pattern}|{re.escape(TEMPORARY_PREFIX)}.*")
        foreign = next((name for name in names if not ours.fullmatch(name)), None)
        if foreign is not None:
            raise InputError(
                f"{shown}: holds other files than frames ({foreign}); give a new or an empty folder"
            )
    elif not stat.S_ISREG(mode):
        raise InputError(f"{shown}: is neither a file nor a folder; give another name")
    elif folder:
        raise InputError(f"{shown}: is a file, and without a suffix a folder is meant; rename it")
    if not overwrite:
        raise InputError(f"{shown}: exists; pass --overwrite to replace it")


@contextmanager
def atomic_path(path: str | os.PathLike[str], *, replace: bool = True) -> Iterator[Path]:
    """Write a file or a folder so that `path` holds all of it or is left as it was.

    The caller creates the file or folder at the yielded path, which lies in the same folder, is
    hidden and has the same suffix. When the block ends it is flushed to the disk and renamed to
    `path`, replacing what was there; on any exception it is removed.

    Args:
        path: the final name. Symbolic links are followed. Check it with `check_output` first.
        replace: what is there by then, too; otherwise only an empty folder.

    Yields:
        The temporary path; nothing exists there yet.

    Raises:
        InputError: something is there, and `replace` is not set: another program was faster.
        StgError: the finished output could not be moved into place.
    """
    final = Path(os.path.realpath(path))
    temporary = _hidden(final)
    try:
        yield temporary
        assert temporary.exists(), "nothing was written to the temporary path"
        try:
            _flush(temporary)
            _move(temporary, final, replace)
        except FileExistsError:
            raise InputError(
                f"{path}: exists by now, another program wrote it meanwhile; pass --overwrite to "
                "replace it"
            ) from None
        except OSError as error:
            raise write_failed(path, error) from error
    finally:  # a successful rename leaves nothing to remove
        _remove(temporary)


@contextmanager
def atomic_files(folder: Path, names: Sequence[str]) -> Iterator[dict[str, Path]]:
    """Write several files of a folder so that all of them are there or none has changed.

    The caller writes to the yielded hidden paths, to those that there are to be; old files of the
    others go. When the block ends they are flushed to the disk and renamed with Ctrl-C and SIGTERM
    held back, the last one last; its old file goes first. So a program that is killed at that very
    moment leaves no last file, and never old files with new ones that count.

    Args:
        folder: that they are in.
        names: of the files; the last is the one without which the others do not count.

    Raises:
        OSError: a file could not be flushed or moved.
    """
    hidden = {name: _hidden(folder / name) for name in names}
    try:
        yield hidden
        made = [name for name in names if hidden[name].exists()]
        for name in made:
            _flush(hidden[name])
        with signals_wait():
            for name in (names[-1], *(name for name in names if name not in made)):
                (folder / name).unlink(missing_ok=True)
            for name in made:
                _move(hidden[name], folder / name)
    finally:
        for path in hidden.values():
            _remove(path)


def _hidden(final: Path) -> Path:
    return final.with_name(f"{TEMPORARY_PREFIX}{secrets.token_hex(6)}{final.suffix}")


def atomic_write_bytes(path: str | os.PathLike[str], data: bytes) -> None:
    """Write `data` to `path`, whole or not at all.

    Raises:
        StgError: the file could not be written (no space, no permission).
    """
    with atomic_path(path) as temporary:
        try:
            temporary.write_bytes(data)
        except OSError as error:
            raise write_failed(path, error) from error


def atomic_write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write `text` to `path` as UTF-8, whole or not at all.

    Raises:
        StgError: the file could not be written (no space, no permission).
    """
    atomic_write_bytes(path, text.encode())


def atomic_save_array(path: str | os.PathLike[str], array: NDArray[np.generic]) -> None:
    """Write an .npy, whole or not at all.

    Raises:
        StgError: the file could not be written (no space, no permission).
    """
    with atomic_path(path) as temporary:
        try:
            with temporary.open("wb") as file:
                np.save(file, array)
        except OSError as error:
            raise write_failed(path, error) from error


def write_failed(path: str | os.PathLike[str], error: OSError) -> StgError:
    """The error that says why an output could not be written."""
    reason = error.strerror or " ".join(str(error).split())
    if error.errno is None and "requested and" in reason:  # NumPy's words for a short write
        reason = os.strerror(errno.ENOSPC)
    return StgError(f"{path}: could not be written: {reason}")


def remove_leftovers(folder: Path) -> None:
    """Remove the temporary files that a killed program left in a folder of its own."""
    for item in folder.glob(f"{TEMPORARY_PREFIX}*"):
        _remove(item)


def _flush(path: Path) -> None:
    """Have the disk hold a file, or a folder's files and the folder."""
    for item in [*path.iterdir(), path] if path.is_dir() else [path]:
        _fsync(item)


def _move(temporary: Path, final: Path, replace: bool = True) -> None:
    """Rename, also over a folder that is not empty.

    Raises:
        FileExistsError: something is there that may not be replaced.
    """
    try:
        if replace or temporary.is_dir():  # over an empty folder only
            temporary.replace(final)
        else:
            _move_new(temporary, final)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        if not replace:
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(final)) from None
        if not _exchange(temporary, final):
            _replace_folder(temporary, final)
    with suppress(OSError):  # not every file system lets a folder be flushed
        _fsync(final.parent)


def _move_new(temporary: Path, final: Path) -> None:
    """Rename a file where nothing is yet; of two programs that do so, one fails."""
    try:
        os.link(temporary, final)
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links
        if final.exists():
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(final)) from None
        temporary.replace(final)
    else:
        temporary.unlink()


def _exchange(temporary: Path, final: Path) -> bool:
    """Have two names change places in one step, so that a kill finds either; False: cannot."""
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError):  # not Linux
        return False
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    names = os.fsencode(temporary), os.fsencode(final)
    return int(rename(here, names[0], here, names[1], exchange)) == 0


def _replace_folder(temporary: Path, final: Path) -> None:
    """Two renames, where the file system cannot exchange; a kill between leaves both hidden."""
    old = final.with_name(f"{TEMPORARY_PREFIX}{secrets.token_hex(6)}")
    final.replace(old)
    try:
        temporary.replace(final)
    except BaseException:
        old.replace(final)
        raise
    _remove(old)


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
