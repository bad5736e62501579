"""Analysis by synthesis: what each regime does with its chains, and what stops a run."""

import math
from pathlib import Path

import pytest
import torch
from support import tiny_recipe

from stg_runtime.errors import DivergenceError, InputError
from stg_train.chains import walk
from stg_train.learn import Learner, choose_device
from stg_train.observed import read_observed
from stg_train.recipe import Recipe
from stg_train.run import resolve


def learner(recipe: Recipe) -> Learner:
    return Learner(resolve(recipe), read_observed(recipe.data, recipe.pixels))


def test_short_run_restarts_its_chains_and_persistent_carries_them_on(clip: Path) -> None:
    silent = {"langevin.noise_scale": 0.0, "langevin.n_steps": 1, "langevin.step_size": 1e-6}
    for regime, carried in (("persistent", True), ("short-run", False)):
        work = learner(tiny_recipe(clip, **{"learning.regime": regime, **silent}))
        work.update()
        before = work.chains.clone()
        work.update()
        # The tiny step leaves a carried chain where it was.
        assert torch.allclose(work.chains, before, atol=1e-3) == carried


def test_update_raises_observed_responses_over_synthesized(clip: Path) -> None:
    """One Adam step moves g(observed) - g(synthesized) the way the likelihood's gradient says."""
    work = learner(tiny_recipe(clip, precision="fp32"))
    for _ in range(2):
        work.update()
        chains, windows = work.chains, work.windows
        with torch.no_grad():
            after = work.descriptor(windows).mean() - work.descriptor(chains).mean()
        work.optimizer.zero_grad()
        (work.descriptor(chains).mean() - work.descriptor(windows).mean()).backward()
        work.optimizer.step()
        with torch.no_grad():
            later = work.descriptor(windows).mean() - work.descriptor(chains).mean()
        assert later > after


def test_learning_brings_samples_from_noise_to_the_clip(clip: Path) -> None:
    """Fresh chains take on the clip's contrast and its stripes' direction of travel."""
    recipe = tiny_recipe(clip, **{"learning.updates": 150, "langevin.n_steps": 15})
    work = learner(recipe)

    def correlations(x: torch.Tensor) -> tuple[float, float]:
        luma = x.mean(1)
        luma = luma - luma.mean()
        here, there = luma[:, :-1, :, :-1], luma[:, 1:, :, 1:]
        back, forth = luma[:, :-1, :, 1:], luma[:, 1:, :, :-1]
        scale = luma.square().mean()
        return float((here * there).mean() / scale), float((back * forth).mean() / scale)

    for _ in range(recipe.learning.updates):
        work.update()
    chains, windows = work.chains, work.windows
    assert 0.6 < float(chains.std() / windows.std()) < 1.3
    along, against = correlations(chains)
    observed_along, observed_against = correlations(windows)
    assert observed_along - observed_against > 0.5
    assert along - against > 0.5 * (observed_along - observed_against)


def test_growth_adds_layers_at_its_updates(clip: Path) -> None:
    work = learner(tiny_recipe(clip, **{"learning.growth": [3], "learning.regime": "persistent"}))
    upper = work.descriptor.convs[1].weight
    fresh = upper.clone()
    assert [work.update().layers for _ in range(3)] == [1, 1, 1]
    assert torch.equal(upper, fresh)
    assert work.update().layers == 2
    assert not torch.equal(upper, fresh)


def test_fan_in_rates_move_every_layer_by_the_same_share(clip: Path) -> None:
    work = learner(tiny_recipe(clip, precision="fp32"))
    before = [conv.weight.detach().clone() for conv in work.descriptor.convs]
    work.update()
    shares = [
        float((conv.weight.detach() - old).abs().mean() / old.std())
        for conv, old in zip(work.descriptor.convs, before, strict=True)
    ]
    # Adam's first step is the rate itself, for weights whose gradient is not zero.
    rate = work.recipe.learning.learning_rate
    assert all(0.5 * rate < share <= 1.05 * rate for share in shares)


def test_rates_fall_to_the_final_one(clip: Path) -> None:
    work = learner(tiny_recipe(clip, **{"learning.updates": 10, "learning.decay_from": 0.6}))
    factors = []
    for update in range(11):
        work.update_count = update
        factors.append(work.rate_factor())
    assert factors[:7] == [1.0] * 7
    assert factors[10] == pytest.approx(0.05)
    assert factors == sorted(factors, reverse=True)


def test_exploding_chain_stops_with_step_and_advice(clip: Path) -> None:
    work = learner(tiny_recipe(clip, **{"learning.learning_rate": 1e30}))
    parameters = None
    with pytest.raises(DivergenceError, match=r"update \d+.*lower langevin.step_size") as caught:
        for _ in range(5):
            parameters = [p.detach().clone() for p in work.energy.parameters()]
            work.update()
    assert "\n" not in str(caught.value)
    assert parameters is not None
    for kept, now in zip(parameters, work.energy.parameters(), strict=True):
        assert torch.equal(kept, now)


def test_dead_network_stops(clip: Path) -> None:
    work = learner(tiny_recipe(clip))
    with torch.no_grad():
        work.descriptor.convs[-1].bias.fill_(-1e6)
    with pytest.raises(DivergenceError, match="every top response of the network is zero"):
        work.update()


def test_walk_with_no_network_has_the_chains_exact_variance() -> None:
    """With f = 0 the chain is an AR(1) process of variance sigma^2 / (1 - delta^2/(4 sigma^2))."""

    class Reference(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.square().flatten(1).sum(1) / (2 * 0.5**2)

    generator = torch.Generator().manual_seed(0)
    for delta in (0.2, 0.8):
        x, energies = walk(
            Reference(),
            torch.zeros(4, 1, 4, 64, 64),
            n_steps=300,
            step_size=delta,
            noise_scale=1.0,
            draw=lambda _step, like: torch.randn(like.shape, generator=generator),
        )
        exact = 0.5**2 / (1 - delta**2 / (4 * 0.5**2))
        # The relative standard error of a variance over n values is sqrt(2 / n).
        assert float(x.var()) == pytest.approx(exact, rel=4 * math.sqrt(2 / x.numel()))
        assert energies.shape == (300, 4)


def test_missing_gpu_is_an_error() -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(InputError, match=r"--device cuda: PyTorch .* finds no usable GPU"):
        choose_device("cuda")


def test_guard_returns_from_a_provoked_collapse(clip: Path) -> None:
    """Once the responses part, the kept parameters come back and learning goes on, more slowly."""
    recipe = {"learning.updates": 200, "learning.decay_from": 1.0, "langevin.n_steps": 15}
    work = learner(tiny_recipe(clip, **recipe))
    for _ in range(60):  # past the first, wild updates
        work.update()
    assert work.kept is not None and work.returns == 0
    kept = {name: value.clone() for name, value in work.kept.parameters.items()}
    update = work.kept.update
    with torch.no_grad():  # the network falls silent, as after a step that was too large
        work.descriptor.convs[-1].bias.fill_(-1e6)
    metrics = work.update()
    assert metrics.returned_to == update
    for name, value in work.energy.state_dict().items():
        assert torch.equal(value, kept[name])
    assert work.rate_factor() == pytest.approx(0.7)
    assert not work.optimizer.state and work.returns == 1


def test_guard_gives_up_after_many_returns(clip: Path) -> None:
    work = learner(tiny_recipe(clip, **{"learning.updates": 200, "langevin.n_steps": 15}))
    while work.kept is None:
        work.update()
    with pytest.raises(DivergenceError, match="learning collapsed 9 times"):
        for _ in range(9):
            with torch.no_grad():
                work.descriptor.convs[-1].bias.fill_(-1e6)
            work.update()


def test_long_gradients_are_clipped_to_their_running_mean(clip: Path) -> None:
    work = learner(tiny_recipe(clip, **{"learning.clip": 1.5}))
    gradient = torch.full((4,), 0.5)  # norm 1
    work._clip([gradient], 1.0, 1)
    assert work.norm_mean == 1.0 and torch.equal(gradient, torch.full((4,), 0.5))
    gradient = torch.full((4,), 50.0)
    work._clip([gradient], 100.0, 100)
    assert float(gradient.norm()) == pytest.approx(1.5)
    assert work.norm_mean == pytest.approx(1 + 0.5 / 20)


def test_a_new_layer_is_no_collapse(clip: Path) -> None:
    """Its responses are of another size; the guard and the clipping begin anew with it."""
    growth = {"learning.growth": [60], "learning.regime": "persistent", "learning.updates": 80}
    work = learner(tiny_recipe(clip, **growth, **{"langevin.n_steps": 15}))
    for _ in range(60):
        work.update()
    assert work.kept is not None
    with torch.no_grad():
        work.descriptor.convs[1].weight.mul_(1e-3)
    metrics = work.update()
    assert metrics.layers == 2 and metrics.returned_to is None
    assert work.kept is None
    assert work.norm_mean == pytest.approx(metrics.grad_norm)
    assert work.response_mean == pytest.approx(metrics.response_observed)
