"""stg-run info --verify: a whole file passes, an altered one does not."""

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from support import refused, run, tiny_metadata

from stg_runtime.artifact import DIGEST_KEY, METADATA_KEY
from stg_runtime.errors import InputError
from stg_runtime.verify import Check, verify


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny network, untrained, exported as `stg-export` does."""
    import torch

    from stg_export import export_energy_grad
    from stg_runtime.artifact import Metadata
    from stg_train.descriptor import ConvSpec, Descriptor, Energy, init_he

    path = tmp_path_factory.mktemp("verify") / "model.onnx"
    layers = (
        ConvSpec(4, (3, 3, 3), (2, 2, 2), (1, 1, 1)),
        ConvSpec(3, (2, 2, 2), (1, 1, 1), (0, 0, 0)),
    )
    descriptor = Descriptor(layers, 3, (8, 8, 8))
    init_he(descriptor, torch.Generator().manual_seed(0))
    export_energy_grad(
        Energy(descriptor, 0.7),
        path,
        example_shape=(1, 3, 8, 8, 8),
        metadata=lambda parity, used, digest: Metadata.model_validate(
            tiny_metadata(reference_std=0.7, parity=parity, lowering=used, graph_sha256=digest)
        ),
        gradient_scale=0.49,
    )
    return path


def by_name(checks: list[Check]) -> dict[str, Check]:
    return {check.name: check for check in checks}


def test_a_whole_file_passes(model: Path) -> None:
    found = by_name(verify(model))
    assert all(check.passed is not False for check in found.values()), found
    assert {name for name, check in found.items() if check.passed} == {
        "contents", "graph", "metadata", "opset", "parity", "evaluation", "gradient",
    }  # fmt: skip
    result = run("stg-run", "info", model, "--verify")
    assert result.returncode == 0, result.stderr
    assert "within" in result.stdout and "FAILED" not in result.stdout


def test_an_altered_weight_is_found(model: Path, tmp_path: Path) -> None:
    """A hair off in one weight of the forward pass: the hash tells."""
    changed = onnx.load(model)
    conv = next(node for node in changed.graph.node if node.op_type == "Conv")
    tensor = next(item for item in changed.graph.initializer if item.name == conv.input[1])
    weights = numpy_helper.to_array(tensor).copy()
    weights.flat[0] += 1e-4
    tensor.CopyFrom(numpy_helper.from_array(weights, tensor.name))
    onnx.save(changed, tmp_path / "m.onnx")
    assert by_name(verify(tmp_path / "m.onnx"))["graph"].passed is False
    result = run("stg-run", "info", tmp_path / "m.onnx", "--verify", "--json")
    assert result.returncode == 1
    checks = {check["name"]: check["passed"] for check in json.loads(result.stdout)["checks"]}
    assert checks["graph"] is False and checks["contents"] is True


def test_an_altered_number_of_the_metadata_is_found(model: Path, tmp_path: Path) -> None:
    changed = onnx.load(model)
    (entry,) = [item for item in changed.metadata_props if item.key == METADATA_KEY]
    assert '"pixel_scale":20.0' in entry.value
    entry.value = entry.value.replace('"pixel_scale":20.0', '"pixel_scale":21.0')
    onnx.save(changed, tmp_path / "m.onnx")
    failed = [check.name for check in verify(tmp_path / "m.onnx") if check.passed is False]
    assert failed == ["metadata"]
    (entry,) = [item for item in changed.metadata_props if item.key == DIGEST_KEY]
    changed.metadata_props.remove(entry)  # as an older export
    onnx.save(changed, tmp_path / "m.onnx")
    assert by_name(verify(tmp_path / "m.onnx"))["metadata"].passed is None


def test_a_files_words_do_not_move_the_cursor(model: Path, tmp_path: Path) -> None:
    """Control codes in what a stranger's file says of itself are shown, not obeyed."""
    changed = onnx.load(model)
    (entry,) = [item for item in changed.metadata_props if item.key == METADATA_KEY]
    value = json.loads(entry.value)
    value["recipe"], value["versions"] = "\x1b[2Jst", {"torch\x1b[1A": "\x9b3J2\u202e.0"}
    entry.value = json.dumps(value)
    onnx.save(changed, tmp_path / "m.onnx")
    for options in ([], ["--verify"]):
        told = run("stg-run", "info", tmp_path / "m.onnx", *options).stdout
        assert "\\x1b[1A" in told
        assert all(line.isprintable() for line in told.splitlines()), told
    value["free_axes"] = ["\x1b]0;owned\x07"]
    entry.value = json.dumps(value)
    onnx.save(changed, tmp_path / "m.onnx")
    result = run("stg-run", "info", tmp_path / "m.onnx")
    refused(result, "free_axes")
    assert result.stderr.strip().isprintable(), result.stderr


def test_a_gradient_of_another_energy_is_found(model: Path, tmp_path: Path) -> None:
    """The gradient's sign turned: every hash could be right, finite differences are not."""
    changed = onnx.load(model)
    for node in changed.graph.node:
        for index, name in enumerate(node.output):
            if name == "energy_grad":
                node.output[index] = "turned"
    changed.graph.node.append(onnx.helper.make_node("Neg", ["turned"], ["energy_grad"]))
    onnx.save(changed, tmp_path / "m.onnx")
    found = by_name(verify(tmp_path / "m.onnx"))
    assert found["gradient"].passed is False, found["gradient"]
    assert found["evaluation"].passed


def test_the_gradients_error_is_small_against_its_tolerance(model: Path) -> None:
    detail = by_name(verify(model))["gradient"].detail
    assert float(detail.split()[1]) < 5e-3, detail
    assert np.isfinite(float(detail.split()[1]))


def test_an_input_that_does_not_fit_is_refused_with_the_figure(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stg_runtime.memory.budget", lambda _: 1 << 20)
    with pytest.raises(InputError, match=r"an input of 8x8x8 takes at least \d+M, 1M are there"):
        verify(model)


def test_a_smallest_input_that_nobody_can_hold_is_no_model(model: Path, tmp_path: Path) -> None:
    """Asked for 11 GiB before."""
    held = onnx.load(model)
    entry = next(item for item in held.metadata_props if item.key == METADATA_KEY)
    sizes = dict.fromkeys(("size", "graph_size", "min_size"), [1000] * 3)
    names = ("frames", "height", "width")
    changed = {key: dict(zip(names, value, strict=True)) for key, value in sizes.items()}
    entry.value = json.dumps(json.loads(entry.value) | changed)
    onnx.save(held, tmp_path / "m.onnx")
    refused(run("stg-run", "info", tmp_path / "m.onnx", "--verify"), "min_size 1000x1000x1000 is")
