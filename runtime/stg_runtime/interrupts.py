"""Ctrl-C and SIGTERM while they must not come between."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def signals_wait() -> Iterator[None]:
    """Hold Ctrl-C and SIGTERM back until the block is left.

    Around the import of a C++ library: their handlers raise, and an exception that reaches C++ code
    which does not expect one, as PyTorch's start does not, aborts the process: no clean-up, no exit
    code of ours. And around what must happen whole, as renames that belong together.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # handlers run in the main thread
        return
    caught: list[int] = []
    # Not by a mask: a thread that is there already, of NumPy's, would take the signal.
    before = {
        number: handler
        for number in (signal.SIGINT, signal.SIGTERM)
        if (handler := signal.getsignal(number)) is not None  # None: not Python's, left alone
    }
    for number in before:
        signal.signal(number, lambda number, _frame: caught.append(number))
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for caught_number in caught:
            signal.raise_signal(caught_number)
