"""TensorRt with a stand-in for TensorRT itself: the engine cache, and one graph per step."""

import json
import re
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))

from springs import Spring, calls

from stg_runtime.backends import tensorrt as module
from stg_runtime.backends.engine import EngineCache, Record, sha256, sidecar, stamped
from stg_runtime.backends.tensorrt import TensorRt
from stg_runtime.errors import InputError, StgError

SHAPE = (2, 1, 2, 3, 4)


class Anything:
    """Takes any call and gives itself."""

    def __getattr__(self, name: str) -> Any:
        return self

    def __call__(self, *arguments: Any) -> Any:
        return self


class Trt(ModuleType):
    """Builds engines that are the model's bytes behind a mark; runs them as a spring."""

    def __init__(self) -> None:
        super().__init__("tensorrt")
        self.__version__ = "10.99"
        self.built = 0
        self.workspace = 0
        self.device: Any = None
        trt = self

        class ILogger:
            ERROR, INTERNAL_ERROR = 1, 2

        class Network(Anything):
            def get_input(self, index: int) -> Any:
                return SimpleNamespace(shape=(-1, 1, -1, 3, 4))

        class Builder(Anything):
            def __init__(self, log: Any) -> None:
                pass

            def create_network(self, flags: int) -> Network:
                assert flags == 1 << 1  # strongly typed
                return Network()

            def create_builder_config(self) -> Any:
                return Config()

            def build_serialized_network(self, network: Any, config: Any) -> bytes:
                trt.built += 1
                config.progress_monitor.phase_start("Tactics", None, 3)
                return b"ENGINE" + trt.parsed

        class Config(Anything):
            progress_monitor: Any = None

            def create_timing_cache(self, data: bytes) -> Any:
                return SimpleNamespace(serialize=lambda: b"timings")

            def set_timing_cache(self, cache: Any, ignore: bool) -> bool:
                return True

        class Parser:
            def __init__(self, network: Any, log: Any) -> None:
                pass

            def parse(self, data: bytes) -> bool:
                trt.parsed = data
                return True

        class Context:
            def __init__(self) -> None:
                self.places: dict[str, int] = {}

            def set_input_shape(self, name: str, shape: tuple) -> bool:
                self.shape = shape
                return True

            def set_tensor_address(self, name: str, address: int) -> bool:
                self.places[name] = address
                return True

            def execute_async_v3(self, stream: int) -> bool:
                spring = Spring(trt.device)
                assert stream == 0x51
                places = [self.places[n] for n in ("video", "energy", "energy_grad")]
                spring.bind(self.shape, *places)
                spring.run()
                return True

        class Runtime:
            def __init__(self, log: Any) -> None:
                pass

            def deserialize_cuda_engine(self, data: bytes) -> Any:
                if not data.startswith(b"ENGINE"):
                    return None
                return SimpleNamespace(
                    device_memory_size_v2=trt.workspace, create_execution_context=Context
                )

        self.ILogger, self.Builder, self.OnnxParser, self.Runtime = (
            ILogger,
            Builder,
            Parser,
            Runtime,
        )
        self.IProgressMonitor = type("IProgressMonitor", (), {})
        self.NetworkDefinitionCreationFlag = SimpleNamespace(STRONGLY_TYPED=1)
        self.BuilderFlag = SimpleNamespace(TF32=1)


@pytest.fixture
def trt(monkeypatch: pytest.MonkeyPatch) -> Trt:
    fake = Trt()
    metadata = SimpleNamespace(free_axes=("N", "T"), precision="fp32")
    monkeypatch.setattr(module, "load_tensorrt", lambda: fake)
    monkeypatch.setattr(module, "open_session", lambda *a, **k: (None, metadata))
    return fake


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "spring.onnx"
    path.write_bytes(b"an ONNX file")
    return path


def backend(trt: Trt, model: Path, **options: Any) -> tuple[TensorRt, list[str]]:
    said: list[str] = []
    cache = EngineCache(model.parent / "engines")
    made = TensorRt(model, say=said.append, cache=cache, **options)
    trt.device = made.device
    return made, said


def walk(made: TensorRt) -> np.ndarray:
    chains = made.chains(SHAPE)
    chains.start(seed=1, numbers=[0, 1], init_std=1.0)
    calls()
    for step in range(1, 6):
        chains.step(step, step_size=0.1, noise_scale=1.0)
    return chains.read()


def test_gradient_and_update_are_one_graph(trt: Trt, model: Path) -> None:
    made, said = backend(trt, model)
    x = walk(made)
    recorded = ["begin capture", "record gradient", "record stg_step", "end capture"]
    expected = ["upload", "gradient", "stg_step", *recorded, *["replay"] * 4, "download", "wait"]
    assert calls()[: len(expected)] == expected
    assert np.isfinite(x).all()
    assert "first use" in said[0]
    assert list((model.parent / "engines").glob("timing-*.cache"))


def test_an_engine_is_built_once(trt: Trt, model: Path) -> None:
    for _ in range(2):
        walk(backend(trt, model)[0])
    assert trt.built == 1
    made, said = backend(trt, model, may_build=False)
    walk(made)
    assert said == []


def entry(model: Path) -> Path:
    (path,) = (model.parent / "engines").glob("*.engine")
    return path


def index(model: Path) -> Path:
    return model.parent / "engines" / "index.json"


def change(model: Path, **values: Any) -> None:
    text = json.loads(index(model).read_text())
    text["engines"][entry(model).name].update(values)
    index(model).write_text(json.dumps(text))


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (lambda m: entry(m).write_bytes(b"ENGINE of somebody else"), "it is damaged"),
        (lambda m: entry(m).unlink(), "it cannot be read"),
        (lambda m: index(m).unlink(), r"index\.json does not name it"),
        (lambda m: index(m).write_text("{"), r"index\.json is damaged"),
        (lambda m: index(m).write_text('{"stg_engines": 1, "engines": []}'), "is damaged"),
        (lambda m: change(m, capabilities=None), "is damaged"),
        (lambda m: index(m).chmod(0o666), r"index\.json could be written by others"),
        (lambda m: index(m).parent.chmod(0o777), "engines could be written by others"),
        (lambda m: change(m, tensorrt="TensorRT 9.0"), r"was TensorRT 9\.0, is TensorRT 10\.99"),
        (lambda m: change(m, gpu="Other GPU"), r"the GPU changed \(was Other GPU, is Fake GPU\)"),
        (lambda m: change(m, driver="12.4"), "the driver changed"),
        (lambda m: change(m, capabilities=["sm86"]), "it is for sm86, this GPU is sm90"),
    ],
)
def test_a_stale_foreign_or_damaged_engine(trt: Trt, model: Path, fault: Any, reason: str) -> None:
    walk(backend(trt, model)[0])
    fault(model)
    with pytest.raises(InputError, match=f"{reason}.*--no-build"):
        walk(backend(trt, model, may_build=False)[0])
    made, said = backend(trt, model)
    walk(made)
    assert trt.built == 2
    assert re.search(f"building it, because.*{reason}", said[0])
    walk(backend(trt, model, may_build=False)[0])  # mended


def test_files_put_side_by_side_are_not_run(trt: Trt, model: Path) -> None:
    """Engine and record may both be somebody else's; the index is in one place."""
    made, _ = backend(trt, model)
    walk(made)
    record = EngineCache(model.parent / "engines").find(made.wanted(SHAPE))
    assert record == (entry(model).read_bytes(), "")
    foreign = b"ENGINE that reads your mail"
    entry(model).write_bytes(foreign)
    sidecar(entry(model)).write_text(stamped(made.wanted(SHAPE), foreign).to_json())
    with pytest.raises(InputError, match="it is damaged"):
        walk(backend(trt, model, may_build=False)[0])
    assert oct(index(model).stat().st_mode)[-3:] == oct(entry(model).stat().st_mode)[-3:] == "600"
    assert oct(index(model).parent.stat().st_mode)[-3:] == "700"


def test_what_others_could_write_is_forgotten_and_shut(trt: Trt, model: Path) -> None:
    walk(backend(trt, model)[0])
    walk(backend(trt, model, tf32=False)[0])
    index(model).parent.chmod(0o770)
    walk(backend(trt, model)[0])
    assert len(json.loads(index(model).read_text())["engines"]) == 1  # the other one went
    assert oct(index(model).parent.stat().st_mode)[-3:] == "750"
    assert trt.built == 3
    walk(backend(trt, model, may_build=False)[0])


def test_another_model_another_engine(trt: Trt, model: Path) -> None:
    walk(backend(trt, model)[0])
    model.write_bytes(b"another ONNX file")
    walk(backend(trt, model)[0])
    walk(backend(trt, model, tf32=False)[0])
    assert trt.built == 3


def test_an_engine_from_elsewhere_must_be_adopted(trt: Trt, model: Path, tmp_path: Path) -> None:
    made, _ = backend(trt, model, may_build=False)
    engine = tmp_path / "spring.engine"
    engine.write_bytes(b"ENGINE built without a GPU")
    record = Record(
        model=sha256(model),
        shapes=(SHAPE,) * 3,
        precision="fp32",
        tf32=True,
        tensorrt="TensorRT 10.99",
        gpu="",
        capabilities=("sm89", "sm90"),
        driver="",
    )
    with pytest.raises(InputError, match=r"\.json that stg-export"):
        made.adopt(engine, SHAPE)
    sidecar(engine).write_text(record.to_json())
    with pytest.raises(InputError, match="SHA-256"):
        made.adopt(engine, SHAPE)
    sidecar(engine).write_text(stamped(record, engine.read_bytes()).to_json())
    with pytest.raises(InputError, match="the size changed"):
        made.adopt(engine, (1, *SHAPE[1:]))
    with pytest.raises(InputError, match="there is none"):
        walk(made)
    made.adopt(engine, SHAPE)
    walk(made)
    assert trt.built == 0


def test_memory_is_known_before_the_walk(
    trt: Trt, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trt.workspace = 3 << 30
    made, _ = backend(trt, model)
    with pytest.raises(StgError, match=r"need 3\.0 GiB and 1\.0 GiB are free"):
        made.chains(SHAPE)
