"""What the three commands share: running an app, parsing sizes, progress on a terminal or not."""

from __future__ import annotations

import errno
import importlib.util
import json
import logging
import math
import os
import signal
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any, Never, Protocol

import typer
from typer.exceptions import Exit, TyperException

from stg_runtime.errors import InputError, StgError

INTERRUPTED = 130

NoBuild = Annotated[
    bool, typer.Option("--no-build", help="TensorRT: fail where no engine is in the cache.")
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what is there.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show a traceback when something goes wrong.")]
Threads = Annotated[
    int | None, typer.Option(min=1, max=1024, help="Processor threads [default: all usable].")
]


def run_app(app: typer.Typer) -> Never:
    """Run a command; turn errors into one line on stderr and an exit code.

    0 done, 1 failed, 2 bad usage or bad input, 130 interrupted. With --debug, errors keep their
    traceback.
    """
    debug = "--debug" in sys.argv
    signal.signal(signal.SIGTERM, _terminated)
    caught: list[int] = []

    def interrupted(number: int, _frame: object) -> Never:
        caught.append(number)
        raise KeyboardInterrupt

    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, interrupted)
    told = logging.StreamHandler()
    told.setFormatter(_Plain())
    logging.basicConfig(handlers=[told], level=logging.WARNING)
    if not debug:
        # What is not finite is found and named; NumPy would tell of it before, in several lines.
        warnings.simplefilter("ignore", RuntimeWarning)
    try:
        for argument in sys.argv[1:]:
            _check_text(argument)
        code = app(standalone_mode=False)
        if code == INTERRUPTED and caught:  # typer makes this of a KeyboardInterrupt
            _complain("interrupted")
    except Exit as leave:
        code = leave.exit_code
    except TyperException as error:
        code = getattr(error, "exit_code", 2)
        if not error.format_message():  # no arguments at all: the help was printed
            code = 2
        else:
            _complain(error.format_message())
    except KeyboardInterrupt:
        _complain("interrupted")
        code = INTERRUPTED
    except BrokenPipeError:
        # The reader of our output left; Python would complain again when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    except Exception as error:
        if debug:
            raise
        if isinstance(error, StgError):
            _complain(str(error))
            code = error.exit_code
        elif isinstance(error, OSError):
            _complain(str(error))
            code = 2 if error.errno == errno.ENAMETOOLONG else 1
        elif isinstance(error, MemoryError):
            _complain(f"out of memory ({error}); make the video smaller")
            code = 1
        else:
            _complain(f"{type(error).__name__}: {error} (a fault of stg; --debug shows where)")
            code = 1
    raise SystemExit(code if isinstance(code, int) else 0)


class _Plain(logging.Formatter):
    """Warnings as they are, in one line."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(" ".join(super().format(record).split()))


def _check_text(argument: str) -> None:
    try:
        argument.encode()
    except UnicodeEncodeError:  # a run's recipe, a page and a terminal could not hold it
        raise InputError(f"{argument}: is not UTF-8; rename the file") from None


def _terminated(number: int, _frame: object) -> Never:
    """Leave through the clean-up of what is half written."""
    raise SystemExit(128 + number)


def _complain(message: str) -> None:
    print("error: " + printable(" ".join(message.split())), file=sys.stderr)


def printable(text: str) -> str:
    """Text for a terminal: what foreign files hold must not move its cursor or rewrite its lines.

    Control, format and other characters that cannot be seen stand as Python's escapes.
    """
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def require(extra: str, *modules: str) -> None:
    """Refuse a command whose optional dependencies are not installed.

    Raises:
        InputError: names the extra to install.
    """
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    if missing:
        raise InputError(
            f"{', '.join(missing)} not installed, and this command needs it: "
            f"pip install 'stg[{extra}]'"
        )


def check_no_build(no_build: bool, device: str) -> None:
    """Refuse --no-build where no engine is built.

    Raises:
        InputError: another device than TensorRT.
    """
    if no_build and not device.startswith("tensorrt"):
        raise InputError(f"--no-build is for --device tensorrt; leave it out with {device}")


def parse_size(text: str | None) -> tuple[int, int] | None:
    """`HxW` to (height, width)."""
    if text is None:
        return None
    height, width = _integers("--size", text, "x", 2, "HxW, for instance 64x64")
    if height < 1 or width < 1:
        raise InputError(f"--size {text}: height and width must be at least 1")
    return height, width


def parse_crop(text: str | None) -> tuple[int, int, int, int] | None:
    """`X,Y,W,H` to four integers."""
    if text is None:
        return None
    x, y, width, height = _integers("--crop", text, ",", 4, "X,Y,W,H, for instance 10,0,200,200")
    if x < 0 or y < 0 or width < 1 or height < 1:
        raise InputError(f"--crop {text}: X and Y must be at least 0, W and H at least 1")
    return x, y, width, height


def _integers(option: str, text: str, separator: str, count: int, form: str) -> list[int]:
    parts = text.lower().split(separator)
    try:
        values = [int(part) for part in parts]
    except ValueError:
        values = []
    if len(values) != count:
        raise InputError(f"{option} {text}: expected {form}")
    return values


def print_json(value: Any) -> None:
    """A result for programs, on stdout; what is not finite is null there, as JSON has no NaN."""
    print(json.dumps(_finite(value), indent=2, allow_nan=False))


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def print_rows(rows: dict[str, str]) -> None:
    """Names and values on stdout, a line each."""
    width = max(len(name) for name in rows)
    for name, value in rows.items():
        print(f"{name:<{width}}  {printable(value)}")


class Bar(Protocol):
    """A progress bar with a line of figures below it."""

    figures: str

    def add_task(self, description: str, *, total: float, completed: int = 0) -> Any:
        """Start a bar; returns its number."""

    def update(self, task_id: Any, *, completed: float) -> None:
        """Move a bar."""


@contextmanager
def progress_bar() -> Iterator[Bar | None]:
    """A rich progress bar on a terminal; None elsewhere, where plain lines are printed instead."""
    from rich.console import Console

    console = Console(stderr=True)
    if not console.is_terminal:
        yield None
        return
    from rich.console import RenderableType
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )
    from rich.text import Text

    class WithFigures(Progress):
        figures = ""

        def get_renderables(self) -> Iterator[RenderableType]:
            yield self.make_tasks_table(self.tasks)
            # A line of its own: beside the bar it would squeeze the bar out of 80 columns.
            yield Text(self.figures, no_wrap=True, overflow="ellipsis")

    with WithFigures(
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
    ) as bar:
        yield bar
