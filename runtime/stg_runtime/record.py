"""RUN/measures.json: what training found out about its own samples, for the report and programs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from stg_runtime.artifact import first_error
from stg_runtime.errors import InputError
from stg_runtime.files import atomic_write_text
from stg_runtime.measures import Comparison

# Files of a run that hold the samples made at its end, and what was found about them.
MEASURES = "measures.json"
SYNTHESIZED = "synthesized.npy"
PATH = "path.npy"
REPORT = "report.html"


class Record(BaseModel):
    """The samples of a finished run and their measures.

    Attributes:
        schema_version: of this file.
        update: parameter updates made when the samples were.
        seed: of their noise; video i is chain i. `stg-run synthesize MODEL -n 2 --seed SEED` makes
            the same videos from the exported file.
        n_steps: Langevin steps, K.
        fps: frames per second of the clips.
        path_steps: steps made at each stop of `PATH`.
        measures: of the videos of `SYNTHESIZED` against the clips; None where they cannot be taken.
        why_none: why `measures` is None; empty otherwise.
        versions: of the packages at work.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal[1] = 1
    update: Annotated[int, Field(ge=0)]
    seed: Annotated[int, Field(ge=0)]
    n_steps: Annotated[int, Field(ge=1)]
    fps: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    path_steps: tuple[int, ...]
    measures: Comparison | None
    why_none: str = ""
    versions: dict[str, str]

    def save(self, path: Path) -> None:
        """Write the file, whole or not at all."""
        atomic_write_text(path, self.model_dump_json(indent=1) + "\n")


def read_record(path: Path) -> Record | None:
    """Read a run's record; None where there is none (the run was not finished).

    Raises:
        InputError: the file is damaged or of another schema.
    """
    if not path.is_file():
        return None
    try:
        return Record.model_validate_json(path.read_bytes())
    except (ValidationError, OSError) as error:
        reason = first_error(error) if isinstance(error, ValidationError) else str(error)
        raise InputError(
            f"{path}: not a record of stg-train ({reason}); stg-train -o {path.parent} --resume "
            "makes it again"
        ) from None
