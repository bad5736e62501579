"""Learning by denoising: the energy, what it learns, what the file does with it."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support import check_resume, check_windows, tiny_recipe

from stg_export import export_run
from stg_runtime.backends import open_backend
from stg_runtime.errors import DivergenceError, InputError
from stg_runtime.langevin import noise_at
from stg_runtime.synthesize import plan, synthesize
from stg_train.denoiser import Denoiser, init_denoiser
from stg_train.descriptor import ConvSpec, Energy
from stg_train.learn import Learner
from stg_train.memory import foresee
from stg_train.parallel import World
from stg_train.recipe import Recipe, load_recipe
from stg_train.run import Run
from stg_train.sample import sample

LAYER = {"filters": 6, "kernel": [3, 3, 3], "stride": [1, 1, 1], "padding": [1, 1, 1]}
SPECS = tuple(ConvSpec(count, (3, 3, 3), (1, 1, 1), (1, 1, 1)) for count in (6, 6, 3))


def denoising(clip: Path, **overrides: Any) -> Recipe:
    return tiny_recipe(
        clip,
        **{
            "network.form": "denoiser",
            "network.layers": [LAYER, LAYER],
            "langevin.reference_std": 0.4,
            "langevin.step_size": 0.3,
            "langevin.noise_scale": 0.7,
            "langevin.noise_end": 0.1,
            "learning.regime": "denoising",
            "learning.noise": [0.05, 0.5],
            "learning.patch": [6, 12, 12],
            "learning.denoisings": 5,
            **overrides,
        },
    )


def network(places: tuple[int, int] | None = None) -> Denoiser:
    made = Denoiser(SPECS, 3, places)
    init_denoiser(made, torch.Generator().manual_seed(3))
    with torch.no_grad():
        made.convs[-1].weight.mul_(3)
    return made


def test_the_energy_is_the_distance_from_the_denoised_video() -> None:
    made = network().double()
    x = torch.randn(2, 3, 6, 7, 8, generator=torch.Generator().manual_seed(1)).double()
    first, inner, last = made.convs
    y = first(x).relu()
    clean = last(y + inner(y).relu())
    expected = ((x - clean) ** 2).flatten(1).sum(1) / (2 * 0.4**2)
    torch.testing.assert_close(Energy(made, 0.4)(x), expected)


def test_without_biases_noise_of_every_level_is_met_alike() -> None:
    made, x = network().double(), torch.randn(1, 3, 5, 6, 6).double()
    torch.testing.assert_close(made(3 * x), 9 * made(x))


def test_a_patch_knows_its_place() -> None:
    made = network((12, 14))
    made.see_places(torch.rand(12, 14, generator=torch.Generator().manual_seed(4)))
    x = torch.randn(1, 3, 5, 12, 14, requires_grad=True)
    (whole,) = torch.autograd.grad(made(x).sum(), x)
    patch = x[..., 2:11, 1:13]
    (part,) = torch.autograd.grad(made(patch, (2, 1)).sum(), x)
    reach = 2 * 3  # of three layers, there and back
    inside = (..., slice(2 + reach, 11 - reach), slice(1 + reach, 13 - reach))
    assert whole[inside].numel() == 0 or torch.allclose(whole[inside], part[inside], atol=1e-6)
    (elsewhere,) = torch.autograd.grad(made(x[..., 2:11, 1:13], (0, 0)).sum(), x)
    assert not torch.allclose(part, elsewhere)


def test_what_stands_still_is_pulled_to_its_mean() -> None:
    made = network((6, 6))
    made.see_places(torch.zeros(6, 6))
    x = torch.randn(1, 3, 5, 6, 6, requires_grad=True)
    (grad,) = torch.autograd.grad(Energy(made, 1.0)(x).sum(), x)
    torch.testing.assert_close(grad, x)


def test_learning_takes_noise_out(clip: Path, tmp_path: Path) -> None:
    recipe = denoising(clip, **{"learning.updates": 40, "learning.learning_rate": 0.05})
    run = Run.start(tmp_path / "run", recipe)
    found = [run.learner.update().residual for _ in range(40)]
    first, last = (np.mean([r for r in part if r is not None]) for part in (found[:5], found[-5:]))
    assert last < 0.5 * first
    x = run.learner.windows
    noise = 0.3 * torch.randn(x.shape, generator=torch.Generator().manual_seed(2))
    leaf = (x + noise).requires_grad_()
    (clean,) = torch.autograd.grad(run.learner.descriptor(leaf).sum(), leaf)
    assert (clean - x).square().mean() < 0.6 * noise.square().mean()


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_resume_is_bit_for_bit(clip: Path, tmp_path: Path, precision: str) -> None:
    recipe = denoising(clip, precision=precision, **{"pixels.mean": "image"})
    check_resume(recipe, clip, tmp_path)


def test_the_report_shows_the_noise_that_is_left(clip: Path, tmp_path: Path) -> None:
    run = Run.start(tmp_path / "run", denoising(clip))
    run.learn()
    run.finish()
    page = (tmp_path / "run" / "report.html").read_text()
    assert "Noise left after denoising" in page and "Energy per value" not in page


@pytest.mark.parametrize(
    ("mean", "first"), [("image", "time"), ("channel", "space-time"), ("channel", "white")]
)
def test_the_file_makes_the_videos_of_the_run(
    clip: Path, tmp_path: Path, mean: str, first: str
) -> None:
    recipe = denoising(clip, **{"pixels.mean": mean, "langevin.first_noise": first})
    run = Run.start(tmp_path / "run", recipe)
    run.learn()
    metadata = export_run(tmp_path / "run", tmp_path / "m.onnx")
    assert metadata.noise_end == 0.1
    free = ("N", "T") if mean == "image" else ("N", "T", "H", "W")
    assert metadata.free_axes == free
    backend = open_backend(tmp_path / "m.onnx", "cpu")
    job = plan(metadata, seed=5)
    made = synthesize(backend.chains(job.graph), metadata, job, number=0)
    expected = sample(run.learner, count=1, seed=5).videos[0]
    assert np.abs(made.astype(int) - expected).max() <= 1

    if mean == "channel":  # free in space
        check_windows(backend, (1, 3, 40, 33, 30), (3, 2, 1))


def test_the_noise_falls_over_the_steps() -> None:
    falling = [noise_at(step, 5, noise_scale=0.8, noise_end=0.1) for step in range(1, 6)]
    assert falling[0] == 0.8
    assert falling[-1] == pytest.approx(0.08)
    assert np.diff(np.log(falling)) == pytest.approx(np.log(0.1) / 4)
    assert noise_at(1, 1, noise_scale=0.8, noise_end=0.1) == 0.8
    assert noise_at(3, 5, noise_scale=0.8, noise_end=1) == 0.8


def test_a_gradient_that_is_not_finite_is_said(clip: Path, tmp_path: Path) -> None:
    run = Run.start(tmp_path / "run", denoising(clip))
    with torch.no_grad():
        run.learner.descriptor.convs[0].weight.fill_(float("nan"))
    with pytest.raises(DivergenceError, match="update 1: the gradient of learning is not finite"):
        run.learner.update()


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        ({"network.form": "descriptor"}, "belong together"),
        ({"learning.regime": "short-run"}, "belong together"),
        ({"learning.noise": [0.5, 0.1]}, "must rise"),
        ({"data.mask": "frames:0.5"}, "leave --mask"),
        ({"learning.growth": [3]}, "learning.growth out"),
        ({"network.padding": "valid"}, "zeros"),
        ({"network.layers": [LAYER | {"stride": [1, 2, 2]}]}, "stride"),
        ({"network.layers": [LAYER, LAYER | {"filters": 5}]}, "equally many"),
        ({"network.layers": [LAYER | {"kernel": [4, 3, 3]}]}, "odd"),
    ],
)
def test_what_cannot_be_is_refused(clip: Path, overrides: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says):
        denoising(clip, **overrides)


def test_several_processes_are_refused(clip: Path, tmp_path: Path) -> None:
    run = Run.start(tmp_path / "run", denoising(clip, **{"langevin.chains": 2}))
    with pytest.raises(InputError, match="one process"):
        Learner(run.learner.recipe, run.learner.observed, World(0, 2, 0))


def test_its_memory_is_foreseen_for_the_recipes() -> None:
    for name in ("denoising", "denoising-st"):
        recipe = load_recipe(name).model_copy(update={"device": "cpu", "precision": "fp32"})
        need = foresee(recipe, 1)
        assert 0 < need.work < 2**30
