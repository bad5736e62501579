"""A result of a script, written with the date, the machine and the versions that made it."""

from __future__ import annotations

import datetime
import json
from pathlib import Path

from stg_runtime.doctor import processor, version
from stg_runtime.files import atomic_write_text
from stg_runtime.threads import usable_threads


def save(
    path: Path | None,
    what: str,
    packages: tuple[str, ...],
    threads: int | None = None,
    **rest: object,
) -> None:
    """Write the JSON file of a result, if there is a path.

    Args:
        path: of the file; its folder is made.
        what: the figures are of.
        packages: whose versions matter, besides stg.
        threads: that were used; None: all usable.
        rest: the figures.
    """
    if path is None:
        return
    result = {
        "what": what,
        "date": datetime.date.today().isoformat(),
        "hardware": {"processor": processor(), "threads": threads or usable_threads()},
        "versions": {name: version(name) for name in ("stg", *packages)},
        **rest,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write_text(path, json.dumps(result, indent=1) + "\n")
