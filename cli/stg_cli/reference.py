"""The command reference, docs/cli.md, made from the commands' own help."""

from __future__ import annotations

import sys
from pathlib import Path

import typer
from typer.testing import CliRunner

from stg_cli import export, run, train

_WIDTH = 96

_HEAD = """# Commands

Made from the commands' `--help` by `make docs`; a test keeps the two together.
"""


def reference() -> str:
    """The page, markdown."""
    commands: list[tuple[str, typer.Typer, list[str]]] = [
        ("stg-train", train.app, []),
        ("stg-export", export.app, []),
    ]
    names = (
        "synthesize",
        "inpaint",
        "compare",
        "report",
        "sheet",
        "info",
        "bench",
        "engine",
        "doctor",
    )
    commands += [(f"stg-run {name}", run.app, [name]) for name in [*names, "doctor"]]
    runner = CliRunner()
    page = [_HEAD]
    for name, app, arguments in commands:
        help_ = runner.invoke(
            app, [*arguments, "--help"], prog_name=name.split()[0], terminal_width=_WIDTH
        )
        assert help_.exit_code == 0, help_.output
        page.append(f"## {name}\n\n```text\n{help_.stdout.strip()}\n```\n")
    return "\n".join(page)


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(reference(), encoding="utf-8")
