"""Pieces of a video give the gradient of the whole, whatever the network; periods have no seam."""

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import PAPER, SMALL, Array, Network

from stg_runtime.backends.host import HostChains
from stg_runtime.errors import InputError
from stg_runtime.synthesize import plan
from stg_runtime.windows import AXES, Reach, Windowed, check_period, cover, reach
from stg_train.descriptor import ConvSpec


def both(gradient: Any, x: Array) -> tuple[Array, Array]:
    grad = np.full_like(x, np.nan)
    gradient.bind(x, grad)
    return gradient.run().copy(), grad


def video(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def same(got: tuple[Array, Array], expected: tuple[Array, Array]) -> None:
    np.testing.assert_allclose(got[0], expected[0], rtol=1e-5, atol=1e-4)
    np.testing.assert_allclose(got[1], expected[1], atol=2e-5 * max(1, np.abs(expected[1]).max()))


@pytest.mark.parametrize("pieces", [(2, 1, 1), (3, 1, 2), (2, 2, 2), (99, 1, 1)])
def test_windows_equal_the_whole(pieces: tuple[int, int, int]) -> None:
    network = Network(SMALL, channels=3)
    x = video(2, 3, 53, 50, 47)
    expected = both(network, x)
    network.sizes.clear()
    same(both(Windowed(network, pieces=pieces), x), expected)  # type: ignore[arg-type]
    assert max(network.sizes) < x.size  # it was cut


def test_windows_of_the_papers_network_equal_the_whole() -> None:
    network = Network(PAPER)
    x = video(1, 1, 180, 30, 40)
    same(both(Windowed(network, pieces=(2, 1, 1)), x), both(network, x))  # type: ignore[arg-type]


layer = st.tuples(st.integers(1, 5), st.integers(1, 3), st.integers(0, 3))


@settings(max_examples=60, deadline=None)
@given(
    st.lists(layer, min_size=1, max_size=3),
    st.integers(1, 60),
    st.integers(1, 6),
    st.booleans(),
)
def test_any_network_any_length_any_pieces(
    layers: list[tuple[int, int, int]], extra: int, pieces: int, periodic: bool
) -> None:
    """Kernel, stride and padding of each layer along T; 1 along H and W."""
    specs = tuple(
        ConvSpec(2, (max(k, s), 1, 1), (s, 1, 1), (min(p, max(k, s) - 1), 0, 0))
        for k, s, p in layers
    )
    network = Network(specs)
    known = reach(network.metadata, "T")
    assert known is not None
    if not periodic:
        x = video(1, 1, known.overlap + extra, 1, 2)
        got = both(Windowed(network, pieces=(pieces, 1, 1)), x)  # type: ignore[arg-type]
        same(got, both(network, x))
        return
    period = known.stride * extra
    x = video(1, 1, period, 1, 2)
    windowed = Windowed(network, pieces=(pieces, 1, 1), periodic=("T",))  # type: ignore[arg-type]
    same(both(windowed, x), tiled(network, x, known))


def tiled(network: Network, x: Array, known: Reach) -> tuple[Array, Array]:
    """Gradient and energy of one period amid many."""
    period = x.shape[2]
    around = period * math.ceil(known.overlap / period)
    repeated = np.concatenate([x] * (1 + 2 * around // period), axis=2)
    more = np.concatenate([repeated, x], axis=2)
    energy, grad = both(network, repeated)
    energy_more, _ = both(network, more)
    # One more period adds the energy of one period.
    return energy_more - energy, grad[:, :, around : around + period]


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("pieces", [1, 2])
def test_a_period_is_one_of_many(axis: int, pieces: int) -> None:
    network = Network(SMALL, channels=2)
    x = np.moveaxis(video(1, 2, 24, 12, 16), 2, 2 + axis)
    x = np.ascontiguousarray(x)
    counts = [1, 1, 1]
    counts[axis] = pieces
    windowed = Windowed(network, pieces=(*counts,), periodic=(AXES[axis],))  # type: ignore[arg-type]
    _, grad = both(windowed, x)
    many = np.concatenate([x] * 5, axis=2 + axis)
    _, expected = both(network, many)
    length = x.shape[2 + axis]
    middle = np.take(expected, range(2 * length, 3 * length), axis=2 + axis)
    np.testing.assert_allclose(grad, middle, atol=2e-5 * np.abs(middle).max())


def test_turning_a_loop_turns_its_gradient() -> None:
    windowed = Windowed(Network(SMALL), periodic=("T", "W"))  # type: ignore[arg-type]
    x = video(1, 1, 20, 12, 16)
    energy, grad = both(windowed, x)
    turned_energy, turned = both(windowed, np.roll(x, (4, 8), axis=(2, 4)))
    np.testing.assert_allclose(turned_energy, energy, rtol=1e-5)
    np.testing.assert_allclose(turned, np.roll(grad, (4, 8), axis=(2, 4)), atol=2e-5)
    _, off = both(windowed, np.roll(x, 1, axis=2))  # half a unit is another video to the network
    assert np.abs(off - np.roll(grad, 1, axis=2)).max() > 1e-2


def test_chains_in_windows_walk_as_in_one_piece() -> None:
    network = Network(SMALL)
    shape = (1, 1, 60, 20, 20)
    walked = []
    for gradient in (network, Windowed(network, pieces=(3, 1, 1))):  # type: ignore[arg-type]
        chains = HostChains(gradient, shape)  # type: ignore[arg-type]
        chains.start(seed=3, numbers=[4], init_std=1.0)
        for step in range(1, 6):
            chains.step(step, step_size=0.2, noise_scale=1.0)
        walked.append(chains.read().copy())
        energies = chains.energies()
    np.testing.assert_allclose(walked[1], walked[0], atol=1e-4)
    assert np.isfinite(energies).all()


def test_a_value_that_is_not_finite_is_not_lost_between_pieces() -> None:
    windowed = Windowed(Network(SMALL), pieces=(3, 1, 1))  # type: ignore[arg-type]
    x = video(1, 1, 60, 12, 12)
    x[0, 0, 30, 5, 5] = np.inf
    with np.errstate(invalid="ignore"):
        energy, grad = both(windowed, x)
    assert not np.isfinite(energy).any() and not np.isfinite(grad).all()


def test_pieces_are_of_nearly_one_length_and_own_each_unit_once() -> None:
    known = Reach(stride=4, field=18, padding=7)
    pieces = cover(400, known, pieces=5)
    lengths = [item.length for item in pieces]
    assert len(lengths) == 5 and max(lengths) - min(lengths) <= 5 * known.stride
    assert all(item.start % known.stride == 0 for item in pieces)
    owned = [item.start // 4 + unit for item in pieces for unit in range(item.first, item.last)]
    assert owned == list(range(known.units(400)))
    assert len(cover(10, known, pieces=3)) == 1  # too short to be cut


def test_a_cut_costs_one_overlap() -> None:
    known = Reach(stride=4, field=18, padding=7)
    for length in (100, 333, 2000):
        for count in (2, 3, 5):
            pieces = cover(length, known, pieces=count)
            most = length + (len(pieces) - 1) * (known.overlap + 2)
            assert sum(item.length for item in pieces) <= most


def test_a_file_of_an_older_export_is_refused() -> None:
    network = Network(SMALL)
    network.weighs_units = False
    with pytest.raises(InputError, match="export the run again"):
        Windowed(network, pieces=(2, 1, 1))  # type: ignore[arg-type]


def test_impossible_periods_are_refused_with_the_nearest() -> None:
    network = Network(SMALL, free="NT")
    with pytest.raises(InputError, match=r"--loop with 30 frames.*stride of 4.*28 and 32"):
        check_period(network.metadata, "T", 30, "--loop")
    with pytest.raises(InputError, match=r"the nearest is 4$"):
        check_period(network.metadata, "T", 3, "--loop")
    with pytest.raises(InputError, match=r"height of this model.*recipe st"):
        check_period(network.metadata, "H", 32, "--tile")
    network.metadata.free_axes = ("N",)
    with pytest.raises(InputError, match=r"length of this model.*recipe st or fc-s"):
        check_period(network.metadata, "T", 32, "--loop")
    network.metadata.free_axes = ()
    with pytest.raises(InputError, match=r"length of this model.*without --static"):
        check_period(network.metadata, "T", 32, "--loop")
    network.metadata.free_axes, network.metadata.stride = ("N", "T"), None
    with pytest.raises(InputError, match="export the run again"):
        check_period(network.metadata, "T", 32, "--loop")


@pytest.mark.parametrize(
    ("free", "asked", "says"),
    [
        (
            "NT",
            {"size": (20, 16)},
            r"--size height 20.*16 only.*convolutional in space \(recipe st",
        ),
        ("NT", {"size": (16, 20)}, r"--size width 20.*16 only.*recipe st"),
        ("NHW", {"frames": 40}, r"--frames 40.*this model makes 28 only.*with that many --frames"),
        ("", {"size": (20, 16)}, r"--size height 20.*16 only.*again without --static"),
    ],
)
def test_a_size_on_a_locked_axis_says_what_would_be_free(
    free: str, asked: dict[str, Any], says: str
) -> None:
    size, least = (SimpleNamespace(frames=n, height=16, width=16) for n in (32, 8))
    metadata: Any = SimpleNamespace(
        free_axes=tuple(free),
        size=SimpleNamespace(frames=28, height=16, width=16),
        graph_size=size,
        min_size=least,
        margin_frames=2,
        margin_size=0,
        scales=1,
        n_steps=3,
        channels=3,
    )
    with pytest.raises(InputError, match=says):
        plan(metadata, **asked)
