"""The runtime's chain equals the training chain, given the same noise."""

from pathlib import Path

import numpy as np
import pytest
import torch
from support import tiny_recipe

from stg_export import export_run
from stg_runtime.backends import open_backend
from stg_runtime.langevin import INITIAL, standard_normal
from stg_runtime.spot import first_noise
from stg_runtime.synthesize import plan, synthesize
from stg_runtime.video import to_pixels
from stg_train.chains import walk
from stg_train.run import Run, load_energy, read_run_clips


@pytest.mark.parametrize(
    ("mean", "first", "static"),
    [
        ("channel", "white", False),
        ("channel", "space-time", False),
        ("image", "time", False),
        ("image", "white", True),
    ],
)
def test_same_noise_same_video(
    clip: Path, tmp_path: Path, mean: str, first: str, static: bool
) -> None:
    recipe = tiny_recipe(
        clip,
        **{
            "pixels.mean": mean,
            "langevin.first_noise": first,
            "learning.updates": 20,
            "output.margin_frames": 2,
        },
    )
    Run.start(tmp_path / "run", recipe).learn()
    metadata = export_run(tmp_path / "run", tmp_path / "model.onnx", static=static)
    backend = open_backend(tmp_path / "model.onnx", "cpu")
    assert backend.metadata == metadata
    job = plan(metadata, seed=11)
    video = synthesize(backend.chains(job.graph), metadata, job, number=3)

    energy, checkpoint = load_energy(tmp_path / "run")
    energy.requires_grad_(False)
    shape = (1, 3, 12 + 2 * 2, 16, 16)

    def draw(step: int, _: object = None) -> torch.Tensor:
        noise = standard_normal(int(np.prod(shape)), seed=11, chain=3, step=step)
        return torch.from_numpy(noise.reshape(shape))

    langevin = recipe.langevin
    spot = None if first == "white" else read_run_clips(tmp_path / "run", checkpoint).spot(first)
    start = first_noise(spot, shape[1:], seed=11, number=3, init_std=langevin.init_std)
    assert spot is not None or np.array_equal(start, draw(INITIAL)[0].numpy())
    x, _ = walk(
        energy,
        torch.from_numpy(start)[None],
        n_steps=langevin.n_steps,
        step_size=langevin.step_size,
        noise_scale=langevin.noise_scale,
        draw=draw,
    )
    kept = x[0, :, 2:-2].contiguous().numpy()
    expected = to_pixels(kept, checkpoint.mean, checkpoint.scale)
    assert video.shape == expected.shape == (12, 16, 16, 3)
    # Equal up to the rounding of the gradient: a few pixels fall on the other side of a half.
    difference = np.abs(video.astype(int) - expected.astype(int))
    assert difference.max() <= 1
    assert difference.mean() < 0.01
    assert video.std() > 5
