"""OnnxRuntimeCuda with a session that is a stand-in: what it asks for, and what it refuses."""

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))

from springs import Spring, calls

from stg_runtime.backends import onnxruntime_cuda as module
from stg_runtime.backends.onnxruntime_cuda import CUDA, CudaOptions, OnnxRuntimeCuda
from stg_runtime.errors import InputError, StgError

MODEL = Path("spring.onnx")
SHAPE = (2, 1, 2, 3, 4)


class Ort:
    """The parts of onnxruntime that the backend uses."""

    __version__ = "1.99"
    __file__ = "/nowhere/onnxruntime/__init__.py"

    def __init__(self) -> None:
        self.made: list[SimpleNamespace] = []
        self.providers = [CUDA, "CPUExecutionProvider"]
        self.on_cpu: list[str] = []
        self.graph_holds = True
        self.graph_runs = 10**9  # after so many a captured graph fails
        self.loads = True
        self.written = b""
        self.largest = 10**9
        ort = self

        class SessionOptions:
            def __init__(self) -> None:
                self.entries: dict[str, str] = {}
                self.axes: dict[str, int] = {}
                self.optimized_model_filepath = ""

            def add_session_config_entry(self, key: str, value: str) -> None:
                self.entries[key] = value

            def add_free_dimension_override_by_name(self, name: str, size: int) -> None:
                self.axes[name] = size

        class RunOptions:
            def __init__(self) -> None:
                self.entries: dict[str, str] = {}

            def add_run_config_entry(self, key: str, value: str) -> None:
                self.entries[key] = value

        class InferenceSession:
            def __init__(self, path: str, options: Any, providers: list) -> None:
                ((name, settings),) = providers
                assert name == CUDA
                if not ort.loads:
                    raise RuntimeError("the default CPU EP is disabled")
                if settings["enable_cuda_graph"] == "1" and not ort.graph_holds:
                    raise RuntimeError("graph capture: nodes on the CPU")
                Path(options.optimized_model_filepath).write_bytes(ort.written)
                self.graph = settings["enable_cuda_graph"] == "1"
                ort.made.append(SimpleNamespace(options=options, settings=settings))

            def disable_fallback(self) -> None:
                pass

            def get_providers(self) -> list[str]:
                return ort.providers

            def get_provider_graph_assignment_info(self) -> list:
                node = SimpleNamespace
                parts = [SimpleNamespace(ep_name=CUDA, get_nodes=lambda: [node(op_type="Conv")])]
                for kind in ort.on_cpu:
                    nodes = [node(op_type=kind)]
                    parts.append(
                        SimpleNamespace(
                            ep_name="CPUExecutionProvider", get_nodes=lambda nodes=nodes: nodes
                        )
                    )
                return parts

            def io_binding(self) -> Any:
                return Binding()

            def run_with_iobinding(self, binding: Any, options: Any) -> None:
                assert options.entries == {"disable_synchronize_execution_providers": "1"}
                shape = binding.bound["video"][1]
                if shape[0] > ort.largest:
                    raise RuntimeError("Failed to allocate memory for requested buffer")
                if self.graph:
                    ort.graph_runs -= 1
                    if ort.graph_runs < 0:
                        raise RuntimeError("CUDA failure 901: operation failed due to a capture")
                spring = Spring(binding.device)
                places = [binding.bound[n][0] for n in ("video", "energy", "energy_grad")]
                spring.bind(shape, *places)
                spring.run()

        class Binding:
            def __init__(self) -> None:
                self.bound: dict[str, tuple] = {}
                self.device: Any = None

            def bind_input(self, name, kind, index, dtype, shape, address) -> None:
                assert (kind, index, dtype) == ("cuda", 0, np.float32)
                self.bound[name] = (address, tuple(shape))

            bind_output = bind_input

        self.SessionOptions, self.RunOptions = SessionOptions, RunOptions
        self.InferenceSession = InferenceSession

    def preload_dlls(self) -> None:
        print("Failed to load libnothing.so")  # as the real one does, on stdout


@pytest.fixture
def ort(monkeypatch: pytest.MonkeyPatch) -> Ort:
    fake = Ort()
    metadata = SimpleNamespace(free_axes=("N", "T"))
    monkeypatch.setattr(module, "require_cuda_wheel", lambda: fake)
    monkeypatch.setattr(module, "missing_library", lambda _: "")
    monkeypatch.setattr(module, "open_session", lambda *a, **k: (None, metadata))
    return fake


def test_it_binds_the_chains_own_memory_and_stream(ort: Ort, capsys: Any) -> None:
    backend = OnnxRuntimeCuda(MODEL)
    chains = backend.chains(SHAPE)
    chains.start(seed=1, numbers=[0, 1], init_std=1.0)
    (made,) = ort.made
    assert made.options.axes == {"N": 2, "T": 2}
    assert made.options.entries["session.disable_cpu_ep_fallback"] == "1"
    assert made.settings["user_compute_stream"] == str(backend.device.stream)
    assert made.settings["cudnn_conv_algo_search"] == "HEURISTIC"
    assert made.settings["enable_cuda_graph"] == "1"
    calls()
    for step in (1, 2, 3):
        chains.step(step, step_size=0.1, noise_scale=1.0)
    assert calls() == ["upload", *["gradient", "stg_step"] * 3]  # nothing comes back
    assert np.isfinite(chains.read()).all()
    assert (chains.energies() > 0).all()
    again = backend.chains(SHAPE)
    again.start(seed=1, numbers=[0, 1], init_std=1.0)
    # A captured graph holds the addresses of the first chains, so others need a session of theirs.
    assert len(ort.made) == 2
    assert capsys.readouterr().out == ""


def test_without_a_graph_where_it_does_not_hold(ort: Ort) -> None:
    ort.graph_holds = False
    backend = OnnxRuntimeCuda(MODEL, options=CudaOptions(tf32=False, search="EXHAUSTIVE"))
    backend.chains(SHAPE).start(seed=1, numbers=[0, 1], init_std=1.0)
    (made,) = ort.made
    assert made.settings["enable_cuda_graph"] == made.settings["use_tf32"] == "0"
    assert made.settings["cudnn_conv_algo_search"] == "EXHAUSTIVE"
    assert "graph capture" in backend.graph_note


@pytest.mark.parametrize("runs", [0, 1, 4])  # in the capture, its replay, in mid-walk
def test_a_graph_that_fails_at_run_time_is_done_without(
    ort: Ort, runs: int, capsys: pytest.CaptureFixture[str]
) -> None:
    walks = []
    for graph_runs in (10**9, runs):
        ort.graph_runs = graph_runs
        backend = OnnxRuntimeCuda(MODEL)
        chains = backend.chains(SHAPE)
        chains.start(seed=1, numbers=[0, 1], init_std=1.0)
        for step in range(1, 6):
            chains.step(step, step_size=0.1, noise_scale=1.0)
        walks.append(chains.read())
    assert np.array_equal(*walks)
    assert [made.settings["enable_cuda_graph"] for made in ort.made] == ["1", "1", "0"]
    (line,) = capsys.readouterr().err.splitlines()
    assert "CUDA graph failed and is done without (CUDA failure 901" in line
    assert "CUDA graph failed" in backend.graph_note
    assert np.isfinite(chains.energies()).all()


def test_a_failure_without_a_graph_is_an_error(ort: Ort) -> None:
    ort.graph_runs = 0
    backend = OnnxRuntimeCuda(MODEL)
    chains = backend.chains(SHAPE)

    def refuse(self: Any, binding: Any, options: Any) -> None:
        raise RuntimeError("an illegal memory access")

    ort.InferenceSession.run_with_iobinding = refuse
    with pytest.raises(StgError, match=r"onnxruntime failed on Fake GPU .* illegal memory"):
        chains.start(seed=1, numbers=[0, 1], init_std=1.0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"providers": ["CPUExecutionProvider"]}, "session runs on CPUExecutionProvider"),
        ({"on_cpu": ["Slice", "Slice"]}, "2 Slice on CPUExecutionProvider"),
        ({"written": b"..MemcpyToHost.."}, r"copies between host and GPU.*--static"),
    ],
)
def test_never_on_the_processor(ort: Ort, change: dict, message: str) -> None:
    vars(ort).update(change)
    chains = OnnxRuntimeCuda(MODEL).chains(SHAPE)
    with pytest.raises(StgError, match=message):
        chains.start(seed=1, numbers=[0, 1], init_std=1.0)


def test_a_missing_library_is_named(ort: Ort, monkeypatch: pytest.MonkeyPatch) -> None:
    ort.loads = False
    text = "libcudnn.so.9: cannot open shared object file: No such file or directory"
    monkeypatch.setattr(module, "missing_library", lambda _: module.explain_library(text))
    chains = OnnxRuntimeCuda(MODEL).chains(SHAPE)
    with pytest.raises(InputError, match="pip install nvidia-cudnn-cu13"):
        chains.start(seed=1, numbers=[0, 1], init_std=1.0)


def test_too_little_memory_says_what_fits(ort: Ort) -> None:
    ort.largest = 3
    chains = OnnxRuntimeCuda(MODEL).chains((8, *SHAPE[1:]))
    with pytest.raises(StgError, match=r"chains of 8x1x2x3x4 need .* GiB and .* are free"):
        chains.start(seed=1, numbers=list(range(8)), init_std=1.0)
