"""One program at a time in a folder: a lock file that says whose it is, and outlives nobody.

The system's own lock on the file (`flock`) tells two programs of one machine apart, and goes with
its owner, however that ended. Where the file lies on a disk that several machines share, a lock of
another machine counts as long as its file is touched, which its owner does every few seconds.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Final, Self

from stg_runtime.errors import InputError

LOCK: Final = "lock"
"""Name of the file in a folder that is in use; it holds owner, host and times as JSON."""

TOUCHED_EVERY: Final = 10.0  # seconds
STALE_AFTER: Final = 120.0  # seconds without a touch, after which another machine's lock is void


@dataclass(frozen=True)
class Owner:
    """Who holds a lock.

    Attributes:
        pid: process number.
        host: name of the machine.
        boot: of the machine, which process numbers belong to.
        since: when it was taken, local time, ISO 8601.
    """

    pid: int
    host: str
    boot: str
    since: str

    @classmethod
    def me(cls) -> Owner:
        """This process."""
        since = datetime.now().astimezone().isoformat(timespec="seconds")
        return cls(os.getpid(), socket.gethostname(), _boot(), since)

    @classmethod
    def read(cls, text: str) -> Owner | None:
        """From a lock file's text; None where it is empty or damaged."""
        try:
            value = json.loads(text)
            owner = cls(**value)
        except (ValueError, TypeError, RecursionError):
            return None
        kinds = (int, str, str, str)
        found = (owner.pid, owner.host, owner.boot, owner.since)
        return owner if all(map(isinstance, found, kinds)) else None

    def __str__(self) -> str:
        """For messages."""
        return f"process {self.pid} on {self.host[:64]}, since {self.since[:32]}"


class _Held:
    """A folder that this process holds, by so many `FolderLock`s."""

    def __init__(self, path: Path, shown: str) -> None:
        self.path, self.pid, self.count = path, os.getpid(), 0
        self.file = _take(path, shown)
        self.ended = threading.Event()
        threading.Thread(
            target=_touch, args=(self.file, self.ended), name="stg-lock", daemon=True
        ).start()

    def end(self) -> None:
        """Remove the file and let go."""
        self.ended.set()
        with suppress(OSError):
            # Before the lock itself: whoever opened the file meanwhile sees that it is gone.
            if _same(self.file, self.path):
                self.path.unlink()
        os.close(self.file)


_held: dict[str, _Held] = {}
_guard = threading.RLock()


class FolderLock:
    """The right to write in a folder, until `release` or until nothing refers to it any more.

    A process that holds a folder may lock it again: the lock is the process's.

    Args:
        folder: that exists.
        shown: how messages call it; its path by default.

    Raises:
        InputError: another process holds it.
        OSError: the lock file cannot be written.
    """

    def __init__(self, folder: Path, shown: str | None = None) -> None:
        path = Path(os.path.realpath(folder)) / LOCK
        self._key: str | None = None
        with _guard:
            held = _held.get(str(path))
            if held is None or held.pid != os.getpid():  # a forked child holds nothing
                held = _held[str(path)] = _Held(path, shown or str(folder))
            held.count += 1
        self._key = str(path)

    def __enter__(self) -> Self:
        """Use as a context manager."""
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def __del__(self) -> None:
        self.release()

    def release(self) -> None:
        """Let others have the folder; the file goes. Calling it again does nothing."""
        key, self._key = self._key, None
        with _guard:
            held = _held.get(key or "")
            if held is None or held.pid != os.getpid():
                return
            held.count -= 1
            if not held.count:
                _held.pop(key or "").end()


def _take(path: Path, shown: str) -> int:
    """Open, lock and fill the lock file; returns its descriptor."""
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
        try:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                    raise
                owner = Owner.read(_text(file))
                who = f"{owner}" if owner else "another process"
                raise InputError(
                    f"{shown}: in use by {who}; wait for it, end it, or name another folder"
                ) from None
            if not _same(file, path):  # its last owner removed it after we opened it
                os.close(file)
                continue
            _refuse_elsewhere(file, path, shown)
            text = json.dumps(Owner.me().__dict__) + "\n"
            os.ftruncate(file, 0)
            os.pwrite(file, text.encode(), 0)
            return file
        except BaseException:
            with suppress(OSError):
                os.close(file)
            raise


def _refuse_elsewhere(file: int, path: Path, shown: str) -> None:
    """Refuse a folder that a process of another machine, whose lock we cannot see, still holds."""
    owner = Owner.read(_text(file))
    me = Owner.me()
    if owner is None or (owner.boot == me.boot and (me.boot or owner.host == me.host)):
        return  # an owner of this machine is gone, or the system would not have given us the lock
    age = _now(path.parent) - os.fstat(file).st_mtime
    if age < STALE_AFTER:
        raise InputError(
            f"{shown}: in use by {owner}, another machine, {max(age, 0):.0f} s ago. If "
            f"it is gone, wait {STALE_AFTER - age:.0f} s or remove {path}"
        )


def _now(folder: Path) -> float:
    """The file system's clock, which may be another machine's."""
    probe = folder / f".stg-clock-{os.getpid()}"
    try:
        probe.touch()
        return probe.stat().st_mtime
    except OSError:
        return time.time()
    finally:
        with suppress(OSError):
            probe.unlink()


def _touch(file: int, ended: threading.Event) -> None:
    while not ended.wait(TOUCHED_EVERY):
        with suppress(OSError):
            os.utime(file)


def _text(file: int) -> str:
    return os.pread(file, 4096, 0).decode(errors="replace")


def _same(file: int, path: Path) -> bool:
    try:
        there = path.stat()
    except FileNotFoundError:
        return False
    mine = os.fstat(file)
    return (mine.st_dev, mine.st_ino) == (there.st_dev, there.st_ino)


def _boot() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""
