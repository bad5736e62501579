"""Entry points of the commands: Ctrl-C is understood before anything large is imported."""

from __future__ import annotations

import importlib
import sys


def train() -> None:
    """stg-train."""
    _start("train")


def export() -> None:
    """stg-export."""
    _start("export")


def run() -> None:
    """stg-run."""
    _start("run")


def _start(name: str) -> None:
    try:
        importlib.import_module(f"stg_cli.{name}").main()
    except KeyboardInterrupt:  # once `run_app` is there it does this itself
        print("error: interrupted", file=sys.stderr)
        raise SystemExit(130) from None
