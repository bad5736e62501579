"""A run's export: what the file says of itself, and that it is the run's energy."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from energies import autograd, error, run
from support import tiny_recipe

from stg_export import export_run
from stg_runtime.artifact import DIGEST_KEY, METADATA_KEY, Metadata, Size, parse_metadata
from stg_runtime.errors import InputError
from stg_train.checkpoint import read_checkpoint
from stg_train.run import CHECKPOINT, Run, load_energy

FULL = [
    {"filters": 8, "kernel": [4, 4, 4], "stride": [2, 2, 2], "padding": [1, 1, 1]},
    {"filters": 8, "kernel": [3, "full", "full"], "stride": [1, 1, 1], "padding": [1, 0, 0]},
]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Runs after two updates: convolutional, and spatially full with a mean image."""
    folder = tmp_path_factory.mktemp("runs")
    generator = np.random.default_rng(0)
    np.save(folder / "clip.npy", generator.integers(0, 256, (12, 16, 16, 3), np.uint8))
    kinds = {
        "free": {"pixels.mean": "channel"},
        "full": {"pixels.mean": "image", "network.layers": FULL},
    }
    for name, options in kinds.items():
        recipe = tiny_recipe(folder / "clip.npy", **{"learning.updates": 2, **options})
        Run.start(folder / name, recipe).learn()
    return {name: folder / name for name in kinds}


def stored(path: Path) -> Metadata:
    entries = {entry.key: entry.value for entry in onnx.load(path).metadata_props}
    assert set(entries) == {METADATA_KEY, DIGEST_KEY}
    return parse_metadata(entries[METADATA_KEY], str(path))


@pytest.mark.parametrize("kind", ["free", "full"])
def test_free_size_file(kind: str, runs: dict[str, Path], tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    metadata = export_run(runs[kind], path)
    assert stored(path) == metadata
    checkpoint = read_checkpoint(runs[kind] / CHECKPOINT)
    recipe, margin = checkpoint.recipe, checkpoint.recipe.output.margin_frames
    assert margin > 0
    assert metadata.size == Size(frames=12, height=16, width=16)
    assert metadata.graph_size == Size(frames=12 + 2 * margin, height=16, width=16)
    assert metadata.margin_frames == margin
    assert metadata.step_size == recipe.langevin.step_size
    assert metadata.clips == checkpoint.clips
    assert np.array_equal(metadata.mean(), checkpoint.mean)
    assert {"stg", "torch", "onnx", "onnxscript", "onnxruntime"} <= set(metadata.versions)
    full = kind == "full"
    assert metadata.free_axes == (("N", "T") if full else ("N", "T", "H", "W"))
    assert metadata.lowering == ("matmul+phases" if full else "phases")
    assert len({parity.shape for parity in metadata.parity}) == 4
    least = metadata.min_size
    assert (least.height, least.width) == ((16, 16) if full else (2, 2))
    energy, _ = load_energy(runs[kind])
    shape = (2, 3, least.frames, least.height, least.width)
    x = np.random.default_rng(1).standard_normal(shape, np.float32)
    for found, right in zip(run(path, x), autograd(energy, x), strict=True):
        assert error(found, right) < 1e-5


def test_static_file_of_another_length(runs: dict[str, Path], tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    metadata = export_run(runs["full"], path, static=True, frames=9, precision="fp16")
    assert stored(path) == metadata
    frames = 9 + 2 * metadata.margin_frames
    assert metadata.free_axes == ()
    assert metadata.size.frames == 9
    assert metadata.graph_size == metadata.min_size == Size(frames=frames, height=16, width=16)
    x = np.random.default_rng(1).standard_normal((1, 3, frames, 16, 16), np.float32)
    expected = autograd(load_energy(runs["full"])[0], x)
    assert error(run(path, x)[1], expected[1]) < 2e-2


def test_depth_of_layer_wise_growth(runs: dict[str, Path], tmp_path: Path) -> None:
    recipe = tiny_recipe(
        runs["free"].parent / "clip.npy",
        **{"learning.updates": 2, "learning.growth": [100], "network.layers": FULL},
    )
    Run.start(tmp_path / "run", recipe).learn()
    path = tmp_path / "m.onnx"
    export_run(tmp_path / "run", path, static=True)
    kinds = [node.op_type for node in onnx.load(path).graph.node]
    assert kinds.count("Relu") == 1  # the second layer is not in use yet


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": (20, 16)}, "fixed to height 16; got 20"),
        ({"opset": 30}, "17 to 20"),
        ({"frames": 1 << 25}, "frames: Input should be less than or equal to 16777216"),
        ({"frames": 1 << 23}, "against float64 autograd takes at least .*G, .* are there"),
    ],
)
def test_refused(options: dict, message: str, runs: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        export_run(runs["full"], tmp_path / "m.onnx", **options)
    assert list(tmp_path.iterdir()) == []


def test_not_a_run(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such folder"):
        export_run(tmp_path / "none", tmp_path / "m.onnx")
