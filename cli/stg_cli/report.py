"""stg-run report: one self-contained page about a run, or about a clip and what was made of it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from stg_cli.common import Debug, Overwrite
from stg_cli.compare import read_all

Source = Annotated[
    Path, typer.Argument(metavar="RUN|OBSERVED", help="Folder of stg-train, or a clip.")
]
Synthesized = Annotated[
    list[Path] | None,
    typer.Argument(metavar="SYNTHESIZED...", help="Videos to show and measure."),
]


def report(
    source: Source,
    output: Annotated[Path, typer.Option("-o", "--output", metavar="OUT.html", help="The page.")],
    synthesized: Synthesized = None,
    overwrite: Overwrite = False,
    debug: Debug = False,
) -> None:
    """Write one HTML page that needs no network: videos in step, measures, curves, recipe.

    Example: stg-run report runs/fire new-0.npy new-1.npy -o fire.html

    Without SYNTHESIZED it shows the videos that the run made at its end, as RUN/report.html does.
    """
    from stg_runtime.files import check_output
    from stg_runtime.report import is_run, of_clip, read_run, with_synthesized, write_report

    check_output(output, overwrite, suffixes=(".html", ".htm"))
    content = read_run(source) if is_run(source) else of_clip(source.name, read_all([source]))
    if synthesized:
        content = with_synthesized(content, read_all(synthesized))
    write_report(output, content)
    print(f"{output}  ({output.stat().st_size / 1e6:.1f} MB)")
