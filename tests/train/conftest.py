from pathlib import Path

import numpy as np
import pytest
from support import tiny_recipe

from stg_train.recipe import Recipe


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    """A small video with moving stripes and noise, as an .npy."""
    generator = np.random.default_rng(0)
    t, y, x = np.mgrid[0:12, 0:16, 0:16]
    stripes = 60 * np.sin(0.8 * x - 0.9 * t + 0.3 * y)
    frames = 120 + stripes[..., None] + generator.normal(0, 8, (12, 16, 16, 3))
    path = tmp_path / "clip.npy"
    np.save(path, frames.clip(0, 255).astype(np.uint8))
    return path


@pytest.fixture
def tiny(clip: Path) -> Recipe:
    """A recipe that learns in a fraction of a second per update."""
    return tiny_recipe(clip)
