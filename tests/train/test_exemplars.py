"""Learning by exemplars: the energy, what it learns, what the file does with it."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support import check_resume, check_windows, tiny_recipe
from support import run as command
from torch._subclasses.fake_tensor import FakeTensorMode

from stg_export import export_run
from stg_runtime.backends import open_backend
from stg_runtime.errors import InputError
from stg_runtime.synthesize import plan, synthesize
from stg_train.descriptor import Energy
from stg_train.exemplars import (
    MOST_MOMENTS,
    Exemplars,
    ExemplarSpec,
    Level,
    _cosines,
    overlapping,
)
from stg_train.memory import Tally, foresee
from stg_train.recipe import Recipe, load_recipe
from stg_train.run import Run
from stg_train.sample import sample

SPEC = ExemplarSpec(frames=3, window=4, stride=2, shares=(0.5, 0.5), temperature=0.05)
WINDOWS = {"frames": 3, "window": 4, "stride": 2, "shares": [0.6, 0.4], "temperature": 0.02}


def recipe_of(clip: Path, **overrides: Any) -> Recipe:
    return tiny_recipe(
        clip,
        **{
            "network.form": "exemplars",
            "network.layers": [],
            "network.exemplars": WINDOWS,
            "pixels.mean": "image",
            "langevin.first_noise": "time",
            "langevin.reference_std": 0.1,
            "langevin.step_size": 0.11,
            "langevin.noise_scale": 0.0,
            "learning.bias_rate": 0.03,
            **overrides,
        },
    )


def network(
    clips: int = 1, frames: int = 9, spec: ExemplarSpec = SPEC
) -> tuple[Exemplars, torch.Tensor]:
    made = Exemplars(spec, 3, (clips, frames, 10, 13)).double()
    seen = torch.randn(clips, 3, frames, 10, 13, generator=torch.Generator().manual_seed(1))
    made.see(seen.double())
    made.waves, made.modes = _cosines(frames, spec.frames - 1)
    return made, seen.double()


def levels(made: Exemplars) -> list[Level]:
    return [level for level in made.levels if isinstance(level, Level)]


def loosen(made: Exemplars) -> list[float]:
    """Give the network a precision of its own; q_j of lags 2, 3, ..."""
    torch.nn.init.normal_(made.looseness, 0.1, 0.1, generator=torch.Generator().manual_seed(6))
    with torch.no_grad():
        made.lags.copy_(torch.tensor([-0.3, 0.2, 0.1])[: len(made.lags)] * made.lag_scale)
    most = 0.18 / len(made.lags)
    return [most * math.tanh(0.4 * lag / made.lag_scale / most) for lag in made.lags.tolist()]


def precisions(
    loose: torch.Tensor, common: list[float], length: int, *, back: bool
) -> torch.Tensor:
    """P = 1 - k - k' D^T D / 4 - sum of q_j R_j of each place, (H, W, length, length).

    Beyond its ends a video goes `back`, the last frame first, or there is nothing.
    """
    steps = torch.eye(length).diff(dim=0).double()
    slow, fast = loose.double()[..., None, None]
    precision = torch.eye(length).double() * (1 - slow) - fast * (steps.t() @ steps) / 4
    for lag, q in enumerate(common, 2):
        for at in range(length):
            for other in (at - lag, at + lag):
                if back and other < 0:
                    precision[..., at, -1 - other] -= q / 2
                elif back and other >= length:
                    precision[..., at, 2 * length - 1 - other] -= q / 2
                elif 0 <= other < length:
                    precision[..., at, other] -= q / 2
    return precision


def moved(made: Exemplars, x: torch.Tensor) -> torch.Tensor:
    """x - sigma^2 dE/dx: where a step of its whole length leads."""
    leaf = x.clone().requires_grad_()
    (grad,) = torch.autograd.grad(made(leaf).sum(), leaf)
    return grad


@pytest.mark.parametrize(("extent", "window", "stride"), [(10, 4, 2), (33, 6, 2), (5, 9, 3)])
def test_windows_add_up_to_one_everywhere(extent: int, window: int, stride: int) -> None:
    weights = overlapping(extent, window, stride)
    torch.testing.assert_close(weights.sum(0), torch.ones(extent))
    torch.testing.assert_close(weights, weights.flip(0, 1))
    assert (weights.sum(1) > 0).all()


@pytest.mark.parametrize("frames", [3, 5])
def test_the_energy_is_what_the_formula_says(frames: int) -> None:
    """By hand: every window, time and moment, from the distances in plain loops."""
    made, seen = network(spec=replace(SPEC, frames=frames))
    for level in levels(made):
        torch.nn.init.normal_(level.biases, 0, 0.1, generator=torch.Generator().manual_seed(5))
    common = loosen(made)
    rows, columns = (matrix.double() for matrix in (levels(made)[0].rows, levels(made)[0].columns))
    loose = 0.4 * torch.einsum(
        "ih,kij,jw->khw", rows, (made.looseness.detach() / 0.4).tanh(), columns
    )
    precision = precisions(loose, common, 9, back=True)
    centres = torch.einsum("hwst,cthw->cshw", torch.linalg.inv(precision), seen[0])
    centres = torch.minimum(centres, seen[0].amax(1, keepdim=True))
    centres = torch.maximum(centres, seen[0].amin(1, keepdim=True))
    pulled = torch.einsum("hwst,cthw->cshw", precision, centres)
    x = torch.randn(1, 3, 6, 10, 13, dtype=torch.float64)
    loosened = torch.eye(6) - precisions(loose, common, 6, back=False)
    given_back = torch.einsum("hwst,cthw->cshw", loosened, x[0])
    weights = {3: [0.25, 0.5, 0.25], 5: [1 / 12, 0.25, 1 / 3, 0.25, 1 / 12]}[frames]
    times = torch.tensor(weights, dtype=torch.float64)
    padded = torch.nn.functional.pad(x[0], (0, 0, 0, 0, frames - 1, frames - 1))
    total = 0.5 * float((x[0] * given_back).sum())
    rows, columns = torch.eye(10).double(), torch.eye(13).double()
    for share, level in zip(SPEC.shares, levels(made), strict=True):
        rows, columns = level.rows @ rows, level.columns @ columns
        for i in range(len(rows)):
            for j in range(len(columns)):
                weight = rows[i][:, None] * columns[j]
                mean = (seen[0].square().mean(1) + 0.003).sum(0)
                size = float((weight * mean).sum())
                assert float(level.size[i, j]) == pytest.approx(size)
                for t in range(6 + frames - 1):
                    found = []
                    for u in range(9 - frames + 1):
                        c, pc = centres[:, u : u + frames], pulled[:, u : u + frames]
                        each = (padded[:, t : t + frames] * pc - 0.5 * c * pc).sum(0)
                        each = each * times[:, None, None] * weight
                        found.append(each.sum() / size + level.biases[i, j, 0, u])
                    tau = SPEC.temperature
                    total += (
                        share
                        * size
                        * tau
                        * float(torch.logsumexp(torch.stack(found).detach() / tau, 0))
                    )
    assert made(x).item() == pytest.approx(total, rel=1e-9)


def test_the_clip_stays_where_it_is_and_what_comes_near_is_drawn_to_it() -> None:
    made, seen = network()
    inside = (..., slice(2, -2), slice(None), slice(None))  # frames of no other window
    torch.testing.assert_close(moved(made, seen)[inside], seen[inside], atol=1e-3, rtol=0)
    near = seen + 0.3 * torch.randn(seen.shape, generator=torch.Generator().manual_seed(2))
    assert (moved(made, near) - seen)[inside].abs().max() < 0.01


def test_where_it_is_loose_chains_come_to_rest_at_more_contrast_and_motion() -> None:
    made, seen = network()
    made.clips[:, 0], made.clips[:, 1] = 9.0, -9.0  # nothing else is bounded
    with torch.no_grad():
        made.looseness[0], made.looseness[1] = 0.1, 0.2
    rest = made._centres()[0][None, :, 0]
    inside = (..., slice(4, -2), slice(None), slice(None))
    torch.testing.assert_close(moved(made, rest)[inside], rest[inside], atol=1e-3, rtol=0)
    contrast, motion = (
        (x[inside].square().mean() / y[inside].square().mean()).item()
        for x, y in ((rest, seen), (rest.diff(dim=2), seen.diff(dim=2)))
    )
    assert 1.2 < contrast < motion < 2


@pytest.mark.parametrize("sign", [-1, 1])
def test_whole_steps_are_stable_however_loose(sign: int) -> None:
    made, _ = network(spec=replace(SPEC, frames=5))
    with torch.no_grad():
        made.looseness.fill_(sign * 9.0)
        for lag in range(3):
            for also in (-1, 1):
                made.lags.fill_(also * 9.0 * made.lag_scale)
                made.lags[lag].neg_()
                loose, common = made._loose().detach(), made._common().tolist()
                for back in (False, True):
                    found = torch.linalg.eigvals(precisions(loose, common, 9, back=back)).real
                    assert found.min() > 0.01 and found.max() < 1.99


def test_no_moment_is_brighter_than_the_clips_are_at_its_place() -> None:
    made, seen = network()
    with torch.no_grad():
        made.looseness.fill_(0.3)
    centres, _ = made._centres()
    assert (centres <= seen[0].amax(1, keepdim=True)[:, None]).all()
    assert (centres >= seen[0].amin(1, keepdim=True)[:, None]).all()
    assert centres.square().mean() > 1.1 * seen.square().mean()


def test_what_chains_lack_is_the_gradient_of_the_precision() -> None:
    """Of k half the mean square, of k' an eighth of that of differences, of q half the product."""
    made, _ = network()
    with torch.no_grad():
        made.looseness[0], made.looseness[1] = 0.2, -0.1
        made.lags.fill_(0.3 * made.lag_scale)
    x = torch.randn(1, 3, 7, 10, 13, dtype=torch.float64)
    found, common = torch.autograd.grad(made(x).sum(), [made.looseness, made.lags])
    later = 0.5 * (x[:, :, 2:] * x[:, :, :-2]).sum()
    later *= 0.4 / made.lag_scale / math.cosh(0.4 * 0.3 / 0.18) ** 2
    torch.testing.assert_close(common, later[None])
    rows, columns = levels(made)[0].rows.double(), levels(made)[0].columns.double()
    square, steps = x[0].square().sum((0, 1)), x[0].diff(dim=1).square().sum((0, 1))
    expected = torch.stack([rows @ (0.5 * square) @ columns.t(), rows @ steps @ columns.t() / 8])
    expected /= torch.cosh(made.looseness.detach() / 0.4).square()  # they are bounded
    torch.testing.assert_close(found, expected)


def test_what_stands_still_stays() -> None:
    made = Exemplars(SPEC, 3, (1, 8, 10, 13))
    made.see(torch.zeros(1, 3, 8, 10, 13))
    assert moved(made, torch.randn(1, 3, 6, 10, 13)).abs().max() < 1e-6


def test_no_moment_is_of_two_clips() -> None:
    made, seen = network(clips=2, frames=5)
    across = torch.cat([seen[:1, :, -1:], seen[1:, :, :2]], 2)
    response = moved(made, across)
    assert (response - across).abs().max() > 0.3
    alone, _ = network(clips=1, frames=5)
    assert len(made.never) == 8 and int((made.never < 0).sum()) == 2
    assert (alone.never == 0).all()


def test_moments_of_two_clips_are_out_at_any_temperature() -> None:
    made = Exemplars(replace(SPEC, temperature=0.001), 3, (2, 9, 10, 13))
    clips = 0.1 * torch.randn(2, 3, 9, 10, 13)
    clips[0, :, -1] = clips[1, :, 0] = 3.0
    made.see(clips)
    bright = torch.full((1, 3, 2, 10, 13), 3.0)
    before = made(bright).item()
    made.never[made.never < 0] *= 100
    assert made(bright).item() == pytest.approx(before)


def test_other_clips_are_other_filters() -> None:
    made, seen = network()
    made(seen)
    other, _ = network()
    other.see(2 * seen)
    made.load_state_dict(other.state_dict())
    assert made(seen).item() == pytest.approx(other(seen).item())
    made.float().see(seen.float())
    made(seen.float())
    assert made.double()(seen).item() == pytest.approx(network()[0](seen).item())


@pytest.mark.parametrize("name", ["looseness", "lags"])
def test_an_update_is_heeded(name: str) -> None:
    made, seen = network()
    before = made(seen).item()
    optimizer = torch.optim.Adam([getattr(made, name)], lr=0.1)
    (-made(seen).sum()).backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    other, _ = network()
    getattr(other, name).data.copy_(getattr(made, name))
    assert made(seen).item() == pytest.approx(other(seen).item())
    assert made(seen).item() != pytest.approx(before)


@pytest.mark.parametrize("frames", [3, 5])
def test_a_frame_is_in_the_terms_of_its_windows_alone(frames: int) -> None:
    made, _ = network(spec=replace(SPEC, frames=frames))
    loosen(made)
    x = torch.randn(1, 3, 7, 10, 13, dtype=torch.float64)
    with torch.no_grad():
        for frame in range(7):
            other = x.clone()
            other[:, :, frame] += 1
            changed = (made._terms(other) - made._terms(x)).flatten().abs() > 1e-9
            assert changed.nonzero().flatten().tolist() == list(range(frame, frame + frames))


@pytest.mark.parametrize("frames", [3, 5])
def test_pieces_make_the_whole(frames: int) -> None:
    made, _ = network(spec=replace(SPEC, frames=frames))
    loosen(made)
    x = torch.randn(1, 3, 7, 10, 13, dtype=torch.float64)
    ones = torch.zeros(1, 1, 7 + frames - 1, 1, 1, dtype=torch.float64)
    ones[:, :, :4] = 1
    energy = Energy(made, 0.5)
    quadratic = 0.5 * float(x.square().sum()) / 0.25
    with torch.no_grad():
        parts = float(energy(x, ones)) + float(energy(x, 1 - ones)) - quadratic
        assert parts == pytest.approx(float(energy(x)))


def test_learning_brings_in_the_moments_that_chains_leave_out(clip: Path, tmp_path: Path) -> None:
    recipe = recipe_of(clip, **{"learning.updates": 30, "langevin.n_steps": 8})
    learner = Run.start(tmp_path / "run", recipe).learner
    network = learner.descriptor
    assert isinstance(network, Exemplars)

    rare = torch.arange(len(network.never)) % 5 < 2
    with torch.no_grad():
        for level in levels(network):
            level.biases[..., rare] = -0.3  # fifteen times the temperature, so that none is chosen

    def handicap() -> list[float]:
        found = [level.biases.detach() for level in levels(network)]
        return [float(b[..., ~rare].mean() - b[..., rare].mean()) for b in found]

    assert min(handicap()) > 0.29
    for _ in range(30):
        learner.update()
    assert max(handicap()) < 0.15


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_resume_is_bit_for_bit(clip: Path, tmp_path: Path, precision: str) -> None:
    recipe = recipe_of(clip, precision=precision)
    check_resume(recipe, clip, tmp_path)


def test_the_file_makes_the_videos_of_the_run(clip: Path, tmp_path: Path) -> None:
    several = tmp_path / "several.npy"
    frames = np.load(clip)
    np.save(several, np.stack([frames, frames[::-1]]))
    run = Run.start(tmp_path / "run", recipe_of(several, **{"langevin.noise_cells": 1}))
    run.learn()
    metadata = export_run(tmp_path / "run", tmp_path / "m.onnx")
    assert metadata.free_axes == ("N", "T") and metadata.noise_cells == 1
    described = command("stg-run", "info", tmp_path / "m.onnx").stdout
    assert "along time, one noise for the whole frame" in described
    # The clips are in it twice, as exemplars and for first noise, but not cut to windows.
    assert (tmp_path / "m.onnx").stat().st_size < 4 * 3 * frames.size + 100_000
    backend = open_backend(tmp_path / "m.onnx", "cpu")
    job = plan(metadata, seed=5)
    made = synthesize(backend.chains(job.graph), metadata, job, number=0)
    expected = sample(run.learner, count=1, seed=5).videos[0]
    assert np.abs(made.astype(int) - expected).max() <= 1

    check_windows(backend, (2, 3, 50, 16, 16), (3, 1, 1))

    with pytest.raises(InputError, match="leave --precision fp16 out"):
        export_run(tmp_path / "run", tmp_path / "h.onnx", precision="fp16")


def test_a_long_clip_makes_a_file_that_opens(tmp_path: Path) -> None:
    """Exporters fold what is small alone: what is made of a clip's length must be in the file."""
    frames = np.random.default_rng(0).integers(0, 256, (350, 8, 8, 3), dtype=np.uint8)
    np.save(tmp_path / "long.npy", frames)
    overrides: dict[str, Any] = {
        "data.size": [8, 8],
        "data.frames": 350,
        "network.exemplars": {**WINDOWS, "frames": 5},
        "langevin.n_steps": 1,
        "learning.updates": 1,
    }
    Run.start(tmp_path / "run", recipe_of(tmp_path / "long.npy", **overrides)).learn()
    export_run(tmp_path / "run", tmp_path / "m.onnx")
    open_backend(tmp_path / "m.onnx", "cpu")


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        ({"network.form": "descriptor"}, "belong together"),
        ({"network.exemplars": {**WINDOWS, "frames": 4}}, "odd"),
        ({"network.exemplars": {**WINDOWS, "frames": 1}}, "greater than or equal to 3"),
        ({"network.exemplars": {**WINDOWS, "window": 3}}, "twice the stride"),
        ({"network.exemplars": {**WINDOWS, "shares": [0.5, 0.4]}}, "add up to 1; they make 0.9"),
        ({"network.exemplars": {**WINDOWS, "frames": 13}}, "shorter than an exemplar"),
        ({"network.padding": "valid"}, "no layers"),
        ({"data.mask": "frames:0.5"}, "fc-s where there is a --mask"),
        ({"pixels.mean": "channel", "langevin.first_noise": "white"}, 'pixels.mean = "image"'),
        ({"learning.growth": [3]}, "learning.growth"),
        ({"learning.regime": "multi-grid"}, "fc-s"),
    ],
)
def test_what_cannot_be_is_refused(clip: Path, overrides: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says):
        recipe_of(clip, **overrides)


def test_a_misspelt_key_is_told_those_of_its_table(clip: Path) -> None:
    with pytest.raises(
        InputError, match=r"strid, did you mean stride\?; known here: frames, share"
    ):
        recipe_of(clip, **{"network.exemplars": {**WINDOWS, "strid": 2}})


def test_an_export_that_does_not_fit_is_refused(
    clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run.start(tmp_path / "run", recipe_of(clip, **{"learning.updates": 1}))
    run.learn()
    network = run.learner.descriptor
    assert isinstance(network, Exemplars)
    refused: list[int] = []
    monkeypatch.setattr("stg_export.run.refuse_least", lambda needed, *_: refused.append(needed))
    export_run(tmp_path / "run", tmp_path / "m.onnx", frames=94)
    assert refused[0] > 8 * network.compared(94)


@pytest.mark.parametrize(("clip", "made"), [((40, 48, 40), 48), ((64, 32, 64), 20)])
def test_a_gradient_holds_at_least_what_is_foreseen(clip: tuple[int, int, int], made: int) -> None:
    with FakeTensorMode(), Tally(True) as tally:
        network = Exemplars(replace(SPEC, frames=5, window=6), 3, (1, *clip)).requires_grad_(False)
        x = torch.empty(1, 3, made, *clip[1:], requires_grad=True)
        before = tally.live
        torch.autograd.grad(network(x).sum(), x)
    assert 0.7 < 4 * network.compared(made) / (tally.peak - before) <= 1


def test_too_many_frames_are_refused() -> None:
    with pytest.raises(InputError, match=rf"600 exemplars; at most {MOST_MOMENTS}.*fc-s"):
        Exemplars(SPEC, 3, (10, 60, 8, 8))


def test_its_memory_is_foreseen_for_the_recipe() -> None:
    recipe = load_recipe("exemplars").model_copy(update={"device": "cpu", "precision": "fp32"})
    one, two = (foresee(recipe, clips) for clips in (1, 2))
    assert 200 << 20 < one.total < 2 << 30
    assert two.work > 1.3 * one.work  # each frame is compared with twice as many
