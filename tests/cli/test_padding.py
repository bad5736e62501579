"""Valid convolutions and margins in space: nothing tells the network where the edges are."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from support import run, tiny_recipe

from stg_export import export_run
from stg_runtime.backends import open_backend
from stg_runtime.errors import InputError
from stg_runtime.windows import Windowed
from stg_train.chains import energy_and_grad
from stg_train.learn import Learner, build_energy
from stg_train.observed import read_observed
from stg_train.run import Run, load_energy
from stg_train.sample import sample

LAYERS = [
    {"filters": 6, "kernel": [3, 4, 4], "stride": [1, 2, 2], "padding": [1, 1, 1]},
    {"filters": 6, "kernel": [3, 3, 3], "stride": [1, 1, 1], "padding": [1, 1, 1]},
]
VALID = {
    "network.layers": LAYERS,
    "network.padding": "valid",
    "data.size": [20, 24],
    "data.window_size": [12, 14],
    "output.margin_frames": 2,
    "output.margin_size": 6,  # receptive field 8, stride 2
    "langevin.first_noise": "space-time",
    "langevin.step_size": 0.005,
    "learning.updates": 3,
}


@pytest.fixture(scope="module")
def valid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run of valid convolutions and its export."""
    folder = tmp_path_factory.mktemp("valid")
    frames = np.random.default_rng(0).integers(0, 255, (12, 20, 24, 3), dtype=np.uint8)
    np.save(folder / "clip.npy", frames)
    Run.start(folder / "run", tiny_recipe(folder / "clip.npy", **VALID)).learn()
    export_run(folder / "run", folder / "model.onnx")
    return folder


def test_padding_goes_where_the_network_is_free_alone(valid: Path) -> None:
    recipe = tiny_recipe(valid / "clip.npy", **VALID)
    assert [spec.padding for spec in recipe.network.specs()] == [(0, 0, 0)] * 2
    full = [*LAYERS, {**LAYERS[1], "kernel": [3, "full", "full"], "padding": [1, 0, 0]}]
    layers = {"network.layers": full, "network.padding": "valid"}
    specs = tiny_recipe(valid / "clip.npy", **layers).network.specs()
    assert [spec.padding for spec in specs] == [(0, 1, 1), (0, 1, 1), (0, 0, 0)]


def test_more_canvas_changes_nothing_beyond_the_margin(valid: Path) -> None:
    energy = build_energy(tiny_recipe(valid / "clip.npy", **VALID), 3).requires_grad_(False)
    x = torch.randn(1, 3, 18, 30, 30, generator=torch.Generator().manual_seed(0))
    whole = energy_and_grad(energy, x)[1][..., 2:-2, 4:-4, 4:-4]
    part = energy_and_grad(energy, x[..., 2:-2, 4:-4, 4:-4])[1]
    difference, size = (whole - part).abs(), whole.abs().max()
    assert difference[..., 4:-4, 6:-6, 6:-6].max() < 1e-5 * size
    # And a margin of one pixel less would not do.
    assert difference[..., 4:-4, 5:-5, 5:-5].max() > 1e-4 * size


def test_windows_in_space_are_random_parts_of_the_clip(valid: Path) -> None:
    recipe = tiny_recipe(valid / "clip.npy", **VALID, precision="fp32", threads=1)
    learner = Learner(recipe, read_observed(recipe.data, recipe.pixels))
    clip = learner.observed.windows([0], [0], 12)[0]
    places = set()
    for _ in range(12):
        (window,), _ = learner._observed_windows()
        assert window.shape == (3, 8, 12, 14)
        places |= {
            (t, y, x)
            for t in range(5)
            for y in range(9)
            for x in range(11)
            if torch.equal(window, clip[:, t : t + 8, y : y + 12, x : x + 14])
        }
    assert len({y for _, y, _ in places}) > 3 and len({x for _, _, x in places}) > 3
    assert learner.chains.shape[3:] == (12, 14)


def test_the_file_makes_what_the_run_makes_margins_cut(valid: Path, tmp_path: Path) -> None:
    expected = sample(Run.resume(valid / "run").learner, count=1, seed=9).videos
    assert expected.shape == (1, 12, 20, 24, 3)

    def make(name: str, *options: object) -> np.ndarray:
        model = valid / "model.onnx"
        done = run("stg-run", "synthesize", model, "-o", tmp_path / name, "--seed", 9, *options)
        assert done.returncode == 0, done.stderr
        return np.load(tmp_path / name)

    assert np.abs(make("a.npy").astype(int) - expected).max() <= 1
    assert make("b.npy", "--size", "9x31", "--frames", 5).shape == (1, 5, 9, 31, 3)
    assert make("c.npy", "--loop", "--tile", "--size", "10x16").shape == (1, 12, 10, 16, 3)
    given = make("d.npy", "--init", valid / "clip.npy", "--strength", 0.001)
    assert np.abs(given.astype(int) - np.load(valid / "clip.npy")).mean() < 20
    done = run(
        *("stg-run", "synthesize", valid / "model.onnx", "-o", tmp_path / "e.mkv"),
        *("--endless", "--frames", 20),
    )
    assert done.returncode == 0 and "20x20x24" in done.stdout, done.stderr
    clip = valid / "clip.npy"
    done = run(
        *("stg-run", "synthesize", valid / "model.onnx", "-o", tmp_path / "f.mp4"),
        *("--between", clip, clip, "--frames", 8),
    )
    assert done.returncode == 2 and "margin in space" in done.stderr


def test_the_file_says_its_margins_and_a_static_one_includes_them(
    valid: Path, tmp_path: Path
) -> None:
    value = json.loads(run("stg-run", "info", valid / "model.onnx", "--json").stdout)
    assert value["margin_size"] == 6 and value["padding"] == [0, 0, 0]
    assert value["size"] == {"frames": 12, "height": 20, "width": 24}
    assert value["graph_size"] == {"frames": 16, "height": 32, "width": 36}
    metadata = export_run(valid / "run", tmp_path / "static.onnx", static=True)
    assert metadata.size.height == 20 and metadata.graph_size.height == 32
    done = run("stg-run", "synthesize", tmp_path / "static.onnx", "-o", tmp_path / "s.npy")
    assert done.returncode == 0 and np.load(tmp_path / "s.npy").shape == (1, 12, 20, 24, 3)


def test_pieces_of_a_valid_network_are_the_whole(valid: Path) -> None:
    energy, _ = load_energy(valid / "run")
    x = torch.randn(1, 3, 20, 40, 36, generator=torch.Generator().manual_seed(1))
    expected = energy_and_grad(energy.requires_grad_(False), x)
    windowed = Windowed(open_backend(valid / "model.onnx", "cpu", 1), pieces=(2, 2, 2))
    values, grad = x.numpy(), np.empty(x.shape, np.float32)
    windowed.bind(values, grad)
    assert windowed.run() == pytest.approx(expected[0].numpy(), rel=1e-5)
    assert np.abs(grad - expected[1].numpy()).max() < 1e-4 * np.abs(grad).max()


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ({"data.window_size": [21, 14]}, "window_size 21x14 is larger than the clip's 20x24"),
        ({"pixels.mean": "image"}, "data.window_size is for textures alike everywhere"),
        (
            {"pixels.mean": "image", "data.window_size": None, "output.margin_size": 2},
            "output.margin_size is for textures alike everywhere",
        ),
        ({"data.mask": "region:20"}, "window_size needs whole clips"),
        ({"learning.regime": "multi-grid"}, "data.window_size 12x14: 3 scales"),
    ],
)
def test_what_does_not_go_together_is_said(
    valid: Path, override: dict[str, object], says: str
) -> None:
    with pytest.raises(InputError, match=says):
        kept = {key: value for key, value in {**VALID, **override}.items() if value is not None}
        tiny_recipe(valid / "clip.npy", **kept)
