"""A model of several scales, from training to video: one run, one file."""

import base64
import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from support import run, tiny_recipe

from stg_export import export_run
from stg_export.onnx import export_energy_grad
from stg_runtime.artifact import DIGEST_KEY, METADATA_KEY
from stg_runtime.backends import open_backend
from stg_runtime.backends.onnxruntime_cpu import read_scales
from stg_runtime.errors import DivergenceError, InputError
from stg_runtime.grids import COARSER_KEY, halve, pack_coarser, unpack_coarser
from stg_runtime.synthesize import fitted_chains, plan, start
from stg_runtime.verify import verify
from stg_train.checkpoint import read_checkpoint
from stg_train.learn import Learner
from stg_train.observed import read_observed
from stg_train.run import CHECKPOINT, Run
from stg_train.sample import sample

GRID = {"learning.regime": "multi-grid", "output.margin_frames": 2}


@pytest.fixture(scope="module")
def grid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `run`, of three scales from spot noise, and its `model.onnx`."""
    folder = tmp_path_factory.mktemp("grid")
    t, y, x = np.mgrid[0:12, 0:16, 0:16]
    stripes = 60 * np.sin(0.8 * x - 0.9 * t + 0.3 * y)
    noise = np.random.default_rng(0).normal(0, 8, (12, 16, 16, 3))
    np.save(folder / "clip.npy", (120 + stripes[..., None] + noise).clip(0, 255).astype(np.uint8))
    recipe = tiny_recipe(
        folder / "clip.npy",
        **GRID,
        **{"langevin.first_noise": "space-time", "langevin.step_size": 0.005},
    )
    assert recipe.learning.scales == 3
    Run.start(folder / "run", recipe).learn()
    export_run(folder / "run", folder / "model.onnx")
    return folder


@pytest.mark.parametrize("noise", ["white", "space-time"])
def test_every_scale_learns_and_starts_where_the_coarser_one_leads(grid: Path, noise: str) -> None:
    recipe = tiny_recipe(grid / "clip.npy", **GRID, **{"langevin.first_noise": noise})
    learner = Learner(recipe.model_copy(update={"precision": "fp32"}), read_observed(
        recipe.data, recipe.pixels
    ))  # fmt: skip
    assert [scale.chains.shape[3] for scale in learner.scales()] == [16, 8, 4]
    before = [[p.detach().clone() for p in s.energy.parameters()] for s in learner.scales()]
    walked = learner._walked
    starts = []
    learner._walked = lambda x: starts.append(x.detach().clone()) or walked(x)
    learner.update()
    for scale, old in zip(learner.scales(), before, strict=True):
        assert scale.update_count == 1
        assert any(
            not torch.equal(p, q) for p, q in zip(scale.energy.parameters(), old, strict=True)
        )
    made = learner.from_coarser(learner.coarser.chains)
    left = halve(starts[0].numpy()) - made
    assert np.sqrt((left**2).mean()) < 0.1 * made.std()
    assert halve(starts[0].numpy()).std() > 0.5 * made.std()


def test_the_file_makes_what_the_run_makes(grid: Path) -> None:
    learner = Run.resume(grid / "run").learner
    expected = sample(learner, count=2, seed=9)
    backend = open_backend(grid / "model.onnx", "cpu", 1)
    job = plan(backend.metadata, seed=9)
    out = grid / "same.npy"
    done = run("stg-run", "synthesize", grid / "model.onnx", "-o", out, "--seed", 9, "-n", 2)
    assert done.returncode == 0, done.stderr
    videos = np.load(out)
    assert videos.shape == (2, 12, 16, 16, 3)
    assert np.abs(videos.astype(int) - expected.videos).max() <= 2
    assert not np.array_equal(videos[0], videos[1])
    # The finest walk begins at the coarser one's result, not at noise of its own.
    chains = fitted_chains(backend, job)
    start(chains, backend.metadata, job, [0])
    coarse = chains.coarser.read() * backend.coarser.metadata.pixel_scale
    fine = halve(chains.read().copy()) * backend.metadata.pixel_scale
    shift = backend.metadata.mean() - backend.coarser.metadata.mean()
    assert np.abs(fine + shift[:, None] - coarse).mean() < 0.1 * coarse.std()


def test_info_says_the_scales_and_their_parity(grid: Path) -> None:
    said = run("stg-run", "info", grid / "model.onnx").stdout
    assert "first noise" in said and "the clip's covariance along space and time" in said
    assert "12x8x8, gradient within" in said and "12x4x4, gradient within" in said
    value = json.loads(run("stg-run", "info", grid / "model.onnx", "--json").stdout)
    assert value["scales"] == 3
    assert [inner["scales"] for inner in value["coarser"]] == [2, 1]
    assert all(len(inner["parity"]) == 5 for inner in value["coarser"])
    # Every scale is a model of its own that any ONNX tool opens.
    props = {p.key: p.value for p in onnx.load(grid / "model.onnx").metadata_props}
    inner = onnx.load_from_string(base64.b64decode(props[COARSER_KEY]))
    onnx.checker.check_model(inner)
    assert {p.key for p in inner.metadata_props} == {METADATA_KEY, COARSER_KEY, DIGEST_KEY}


def test_a_wrong_coarser_graph_is_not_exported(
    grid: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def off(energy: torch.nn.Module, path: Path, **options: object) -> object:
        if options["example_shape"][3] == 4:
            raise InputError("scale 4x4 misses")
        return export_energy_grad(energy, path, **options)

    monkeypatch.setattr("stg_export.run.export_energy_grad", off)
    with pytest.raises(InputError, match="scale 4x4 misses"):
        export_run(grid / "run", tmp_path / "m.onnx")
    assert not list(tmp_path.iterdir())


def test_other_lengths_sizes_loops_tiles_and_given_footage(grid: Path, tmp_path: Path) -> None:
    model = grid / "model.onnx"

    def make(name: str, *options: object) -> np.ndarray:
        done = run("stg-run", "synthesize", model, "-o", tmp_path / name, "--seed", 1, *options)
        assert done.returncode == 0, done.stderr
        return np.load(tmp_path / name)[0]

    assert make("a.npy", "--frames", 20, "--size", "24x32").shape == (20, 24, 32, 3)
    both = make("b.npy", "--loop", "--tile", "--frames", 10, "--size", "24x16")
    assert both.shape == (10, 24, 16, 3)
    kept = make("c.npy", "--init", grid / "clip.npy", "--strength", 0.001)
    assert np.abs(kept.astype(int) - np.load(grid / "clip.npy")).mean() < 20


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--size", "18x16"], "multiples of 4"),
        (["--tile", "--size", "16x12"], "W with 12 pixels: the network has a stride of 8"),
        (["--tile", "--size", "16x12"], "nearest are 8 and 16"),
        (["--size", "4x4"], "height 4: at least 8"),
        (["--endless", "--frames", "20"], "--endless: not for models of several scales"),
        (["--between", "C", "C", "--frames", "8"], "--between: not for models of several scales"),
        (["--device", "tensorrt"], ""),
    ],
)
def test_what_several_scales_cannot_do_is_one_line(
    grid: Path, tmp_path: Path, options: list[str], says: str
) -> None:
    options = [str(grid / "clip.npy") if option == "C" else option for option in options]
    out = tmp_path / "x.mp4"
    done = run("stg-run", "synthesize", grid / "model.onnx", "-o", out, *options)
    assert done.returncode == 2 and len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert says in done.stderr and not out.exists()


def test_inpainting_and_training_refuse_what_they_cannot(grid: Path, tmp_path: Path) -> None:
    done = run(
        *("stg-run", "inpaint", grid / "model.onnx", grid / "clip.npy"),
        *("--mask", "fixed-region:4", "-o", tmp_path / "out"),
    )
    assert done.returncode == 2 and "inpaint: not for models of several" in done.stderr
    with pytest.raises(InputError, match=r"--size 18x16: 3 scales.*learning.scales smaller"):
        tiny_recipe(grid / "clip.npy", **GRID, **{"data.size": [18, 16]})
    with pytest.raises(InputError, match="leave --mask out"):
        tiny_recipe(grid / "clip.npy", **GRID, **{"data.mask": "region:20"})
    recipe = tiny_recipe(grid / "clip.npy", **GRID, **{"learning.scales": 5})
    with pytest.raises(InputError, match="scale 1x1 of multi-grid learning"):
        Run.start(tmp_path / "run", recipe)
    assert not (tmp_path / "run").exists()


def test_a_coarser_scale_that_fails_is_named(grid: Path) -> None:
    learner = Run.resume(grid / "run").learner
    with torch.no_grad():
        learner.scales()[-1].descriptor.convs[0].weight.fill_(torch.nan)
    with pytest.raises(DivergenceError, match="scale 4x4 of multi-grid learning: update 9"):
        learner.update()


def test_a_file_whose_coarser_scale_is_missing_or_damaged_is_refused(
    grid: Path, tmp_path: Path
) -> None:
    model = onnx.load(grid / "model.onnx")
    (entry,) = [p for p in model.metadata_props if p.key == COARSER_KEY]
    whole = entry.value
    for text, says in ((whole[:4000], "scale 2 of 3"), (None, "holds none")):
        if text is None:
            model.metadata_props.remove(entry)
        else:
            entry.value = text
        onnx.save(model, tmp_path / "bad.onnx")
        with pytest.raises(InputError, match=says):
            open_backend(tmp_path / "bad.onnx", "cpu")
        with pytest.raises(InputError, match=says):
            read_scales(tmp_path / "bad.onnx")


def test_resume_is_bit_for_bit_at_every_scale(grid: Path, tmp_path: Path) -> None:
    recipe = tiny_recipe(grid / "clip.npy", **GRID, **{"learning.updates": 4})
    Run.start(tmp_path / "whole", recipe).learn()
    cut = Run.start(tmp_path / "cut", recipe)
    assert not cut.learn(stop=lambda: cut.learner.update_count == 2)
    assert Run.resume(tmp_path / "cut").learn()
    left, right = (read_checkpoint(tmp_path / name / CHECKPOINT) for name in ("whole", "cut"))
    scales = 0
    while left is not None and right is not None:
        assert left.update == right.update == 4 and left.tensors.keys() == right.tensors.keys()
        assert all(torch.equal(left.tensors[name], right.tensors[name]) for name in left.tensors)
        left, right, scales = left.coarser, right.coarser, scales + 1
    assert left is right is None and scales == 3


def test_verify_looks_at_every_scale(grid: Path, tmp_path: Path) -> None:
    checks = verify(grid / "model.onnx")
    assert all(check.passed is not False for check in checks), checks
    assert [check.name for check in checks if check.name.endswith("gradient")] == [
        "gradient", "scale 2, gradient", "scale 3, gradient",
    ]  # fmt: skip

    def altered(model: bytes, deeper: int) -> bytes:
        """The file with a weight a hair off, `deeper` scales below its own."""
        file = onnx.load_from_string(model)
        if deeper:
            (entry,) = [p for p in file.metadata_props if p.key == COARSER_KEY]
            entry.value = pack_coarser(altered(unpack_coarser(entry.value, "m"), deeper - 1))
        else:
            conv = next(node for node in file.graph.node if node.op_type == "Conv")
            tensor = next(t for t in file.graph.initializer if t.name == conv.input[1])
            weights = numpy_helper.to_array(tensor).copy()
            weights.flat[0] += 1e-4
            tensor.CopyFrom(numpy_helper.from_array(weights, tensor.name))
        return file.SerializeToString()

    path = tmp_path / "m.onnx"
    path.write_bytes(altered((grid / "model.onnx").read_bytes(), 2))
    failed = [check.name for check in verify(path) if check.passed is False]
    # Each scale's properties hold the coarser file.
    assert failed == ["metadata", "scale 2, metadata", "scale 3, graph"]
    result = run("stg-run", "info", path, "--verify")
    assert result.returncode == 1 and "scale 3, graph" in result.stdout
