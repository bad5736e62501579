import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def clips() -> Path:
    """The folder of real clips, named by STG_CLIPS; tests that need it are skipped without."""
    name = os.environ.get("STG_CLIPS")
    if not name:
        pytest.skip("STG_CLIPS is not set: the folder of real clips")
    folder = Path(name)
    if not folder.is_dir():
        pytest.skip(f"STG_CLIPS={name} is not a folder")
    return folder
