from pathlib import Path

import numpy as np
import pytest
from support import tiny_recipe

from stg_export import export_run
from stg_train.run import Run


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny run, `run`, its export, `model.onnx`, and its clip, `clip.npy`."""
    folder = tmp_path_factory.mktemp("trained")
    clip = folder / "clip.npy"
    frames = np.random.default_rng(0).integers(0, 255, (12, 16, 16, 3), dtype=np.uint8)
    np.save(clip, frames)
    recipe = tiny_recipe(clip, **{"output.margin_frames": 2})
    Run.start(folder / "run", recipe).learn()
    export_run(folder / "run", folder / "model.onnx")
    return folder
