"""Which device is taken where there is a driver, and what each missing part is called."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from stg_runtime.backends import onnxruntime_cpu, open_backend
from stg_runtime.backends import onnxruntime_cuda as module
from stg_runtime.backends.engine import Record, load_tensorrt, sha256, sidecar, stamped
from stg_runtime.backends.tensorrt import TensorRt
from stg_runtime.doctor import PACKAGES, diagnose
from stg_runtime.errors import InputError

MODEL = Path("model.onnx")


@pytest.fixture
def wheels(monkeypatch: pytest.MonkeyPatch) -> dict[str, str | None]:
    """Versions of the two distributions; onnxruntime itself has all that is asked of it."""
    have: dict[str, str | None] = {"onnxruntime": None, "onnxruntime-gpu": "1.99"}
    session = SimpleNamespace(get_provider_graph_assignment_info=None)
    fake = SimpleNamespace(
        __version__="1.99",
        InferenceSession=session,
        get_available_providers=lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"],
    )
    monkeypatch.setattr(module, "_version", lambda name: have[name])
    monkeypatch.setattr(module, "require_onnxruntime", lambda: fake)
    have["fake"] = fake  # type: ignore[assignment]
    return have


@pytest.mark.parametrize(
    ("cpu", "gpu", "message"),
    [
        ("1.30", None, r"is the build for the processor: pip uninstall -y onnxruntime && pip"),
        ("1.30", "1.31", r"are both installed and own the same files: pip uninstall -y onnxru"),
    ],
)
def test_the_wrong_wheel_or_both(
    wheels: dict, cpu: str | None, gpu: str | None, message: str
) -> None:
    wheels.update({"onnxruntime": cpu, "onnxruntime-gpu": gpu})
    with pytest.raises(InputError, match=rf"--device cuda: .*{message}"):
        open_backend(MODEL, "cuda")


def test_a_wheel_without_cuda_or_too_old(wheels: dict) -> None:
    wheels["fake"].get_available_providers = lambda: ["CPUExecutionProvider"]
    with pytest.raises(InputError, match="built without CUDA: pip uninstall"):
        open_backend(MODEL, "cuda")
    wheels["fake"].get_available_providers = lambda: ["CUDAExecutionProvider"]
    wheels["fake"].InferenceSession = SimpleNamespace()
    with pytest.raises(InputError, match=r"too old to say where .* pip install --upgrade"):
        open_backend(MODEL, "cuda")


@pytest.fixture
def cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    backend = SimpleNamespace(metadata=SimpleNamespace(scales=1), description="the CPU")
    monkeypatch.setattr(onnxruntime_cpu, "OnnxRuntimeCpu", lambda path, threads: backend)


def test_auto_says_why_it_is_not_the_gpu(cpu: None, wheels: dict, capsys: Any) -> None:
    wheels.update({"onnxruntime": "1.30", "onnxruntime-gpu": None})
    assert open_backend(MODEL, "auto").description == "the CPU"
    assert "auto: the CPU, because onnxruntime 1.30 is the build" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--loop", "--tile", "--endless"])
def test_what_a_gpu_cannot_do_is_not_given_to_one(
    cpu: None, wheels: dict, option: str, capsys: Any
) -> None:
    """`auto` takes the CPU at once, where it would be refused on the GPU it has."""
    assert open_backend(MODEL, "auto", host_only=option).description == "the CPU"
    assert f"auto: the CPU, because {option} does not work" in capsys.readouterr().err
    for device in ("cuda", "cuda:0", "tensorrt"):
        with pytest.raises(InputError, match=f"{device}: {option} does not .* pass --device cpu"):
            open_backend(MODEL, device, host_only=option)


def test_an_engine_of_tensorrt_for_rtx_names_the_extra_that_runs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import stg_runtime.backends.tensorrt as trt

    class Api(SimpleNamespace):
        class ILogger:
            ERROR, INTERNAL_ERROR = 1, 2

    api = Api(__name__="tensorrt", __version__="11.4", Runtime=lambda log: None)
    monkeypatch.setattr(trt, "load_tensorrt", lambda: api)
    metadata = SimpleNamespace(free_axes=(), precision="fp32")
    monkeypatch.setattr(trt, "open_session", lambda *a, **k: (None, metadata))
    model, engine = tmp_path / "m.onnx", tmp_path / "m.engine"
    model.write_bytes(b"model")
    engine.write_bytes(b"engine")
    shape = (1, 3, 4, 5, 6)
    made = Record(
        sha256(model), (shape,) * 3, "fp32", True, "TensorRT-RTX 1.7.1", "", ("sm90",), ""
    )
    sidecar(engine).write_text(stamped(made, b"engine").to_json())
    with pytest.raises(InputError, match=r"stg\[gpu,tensorrt-rtx\].*bindings==1\.7\.1\.\*"):
        TensorRt(model).adopt(engine, shape)


def test_tensorrt_that_is_missing_names_both_extras() -> None:
    with pytest.raises(InputError, match=r"stg\[gpu,tensorrt\].*stg\[gpu,tensorrt-rtx\]"):
        load_tensorrt(("no_such_tensorrt",))


def test_doctor_looks_at_the_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    found = diagnose()
    problems = json.dumps(found.problems)
    # Here the driver is there, and onnxruntime is the build for the processor.
    assert "is the build for the processor" in problems or "cuda" in found.devices
    assert ("tensorrt" in found.devices) == ("tensorrt" in found.machine)
    assert "stg[tensorrt-rtx]" in PACKAGES["tensorrt-rtx-cu13-bindings"]
    monkeypatch.setenv("FAKE_CUDA_VERSION", "12040")
    assert "it runs CUDA 12.4" in json.dumps(diagnose().problems)
    monkeypatch.setenv("FAKE_CUDA_VERSION", "13000")
    monkeypatch.setenv("FAKE_CUDA_MAJOR", "7")
    assert "compute capability 7.0 is below 7.5" in json.dumps(diagnose().problems)
