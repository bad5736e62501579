"""stg-run bench, and the plan of bench/gpu.py."""

import ctypes
import importlib.util
import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from support import run

from stg_runtime.backends.onnxruntime_cpu import open_session
from stg_runtime.bench import count_flop, matmul_model, network_flop

PATH = Path(__file__).parents[2] / "bench" / "gpu.py"


def has_driver() -> bool:
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    return True


needs_no_driver = pytest.mark.skipif(has_driver(), reason="there is an NVIDIA driver here")


@pytest.fixture(scope="module")
def gpu() -> Any:
    spec = importlib.util.spec_from_file_location("bench_gpu", PATH)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["bench_gpu"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_figures_fit_together(trained: Path) -> None:
    model = trained / "model.onnx"
    arguments = ["--device", "cpu", "-n", 2, "--vs", "torch", "--run", trained / "run", "--json"]
    result = run("stg-run", "bench", model, *arguments)
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    assert found["shape"] == [2, 3, 16, 16, 16]
    assert found["chain_ms"] == pytest.approx(found["step_ms"] / 2)
    assert 0 < found["gradient_share"] < 1
    assert found["gflop"] < found["graph_gflop"]
    assert found["tflop_per_s"] == pytest.approx(found["gflop"] / found["gradient_ms"])
    moved = 12 * math.prod(found["shape"])
    assert found["update_gb_per_s"] == pytest.approx(moved / found["update_ms"] / 1e6)
    floor = found["gflop"] / found["matmul_tflop_per_s"] + moved / found["copy_gb_per_s"] / 1e6
    assert found["floor_ms"] == pytest.approx(floor)
    frames = 2 * 12 / (found["steps"] * found["step_ms"] / 1e3)
    assert found["frames_per_s"] == pytest.approx(frames)
    assert found["times_torch"] == pytest.approx(found["torch_step_ms"] / found["step_ms"])
    table = run("stg-run", "bench", model, "--device", "cpu", "--repeats", 1)
    assert table.returncode == 0, table.stderr
    assert "of a step" in table.stdout


def test_operations_are_counted_as_by_hand(trained: Path) -> None:
    model = trained / "model.onnx"
    _, metadata = open_session(model, 1)
    # 8 filters of 3x4x4x4, stride 2, padding 1: 8x8x8 outputs; then 8 of 8x3x5x5, stride 1.
    one = 2 * 8 * 8**3 * 3 * 4**3
    two = 2 * 8 * 8**3 * 8 * 3 * 5 * 5
    shape = (1, 3, 16, 16, 16)
    # Forward, and the same back; but the phases of the first layer reach into its padding, 9x9x9.
    back = 2 * 8 * 9**3 * 3 * 4**3
    assert count_flop(model, shape, metadata) == one + two + back + two
    # The floor is the network's, whatever the graph makes of it.
    assert network_flop(metadata.layers, shape) == 2 * (one + two)
    twice = (1, 3, 32, 16, 16)  # 16 outputs in time, then 16
    assert network_flop(metadata.layers, twice) == 4 * (one + two)


@pytest.mark.parametrize("half", [False, True])
def test_the_handwritten_product(half: bool) -> None:
    session = onnxruntime.InferenceSession(
        matmul_model(300, half=half), providers=["CPUExecutionProvider"]
    )
    a, b = np.random.default_rng(0).standard_normal((2, 300, 300), np.float32)
    if half:
        a, b = a.astype(np.float16), b.astype(np.float16)
    (c,) = session.run(None, {"a": a, "b": b})
    assert c.dtype == a.dtype
    error = np.linalg.norm(c.astype(float) - a.astype(float) @ b.astype(float))
    assert error / np.linalg.norm(c.astype(float)) < (5e-3 if half else 1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--vs", "torch"], "give --vs torch and --run RUN"),
        (["--device", "gpu"], "expected auto, cpu, cuda, cuda:i or tensorrt"),
        (["--device", "cpu:1"], "expected auto, cpu, cuda, cuda:i or tensorrt"),
        (["--frames", "0"], "--frames"),
        (["-n", "1000000000000000000000"], "--count"),
        (["--device", "cpu", "-n", "1048576"], "pass a smaller -n"),
        (["--device", "cpu", "--vs", "torch", "--run", "nowhere"], "nowhere: no such folder"),
    ],
)
def test_wrong_use(trained: Path, arguments: list[str], message: str) -> None:
    result = run("stg-run", "bench", trained / "model.onnx", *arguments)
    assert result.returncode == 2, result.stderr
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1


@needs_no_driver
@pytest.mark.parametrize("device", ["cuda", "cuda:1", "tensorrt"])
@pytest.mark.parametrize("command", ["bench", "synthesize"])
def test_without_a_driver_it_says_so(
    trained: Path, tmp_path: Path, device: str, command: str
) -> None:
    output = ["-o", tmp_path / "o.mp4"] if command == "synthesize" else []
    result = run("stg-run", command, trained / "model.onnx", "--device", device, *output)
    assert result.returncode == 2
    assert "no NVIDIA driver on this machine" in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


@needs_no_driver
def test_export_for_a_gpu_that_is_not_here(trained: Path, tmp_path: Path) -> None:
    model, engine = tmp_path / "m.onnx", tmp_path / "m.engine"
    for arguments, message in (
        (["--tensorrt", engine], "or build for other machines with --target"),
        (["--target", "sm89"], "give that too"),
        (["--tensorrt", engine, "--target", "sm90"], "choose among sm75"),
        (["--tensorrt", tmp_path / "m.bin", "--target", "sm89"], "use .engine"),
    ):
        result = run("stg-export", trained / "run", "-o", model, *arguments)
        assert result.returncode == 2, result.stderr
        assert message in result.stderr or "TensorRT" in result.stderr
        assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx_bindings") is None,
    reason="tensorrt_rtx_bindings is not installed (extra: dev)",
)
def test_an_engine_for_three_gpus_without_one(trained: Path, tmp_path: Path) -> None:
    model, engine = tmp_path / "m.onnx", tmp_path / "m.engine"
    result = run(
        *("stg-export", trained / "run", "-o", model, "--tensorrt", engine, "--json"),
        *("--target", "sm86,sm89,sm120", "--lowering", "space-to-depth"),
    )
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["lowering"] == "space-to-depth"
    record = json.loads((tmp_path / "m.engine.json").read_text())
    assert record["capabilities"] == ["sm86", "sm89", "sm120"]
    assert engine.stat().st_size > 10_000


# --- bench/gpu.py


def test_the_plan_checks_first_and_leaves_out_what_is_missing(gpu: Any) -> None:
    options = gpu.parse(["--networks", "st", "--lowerings", "auto", "--precisions", "fp16"])
    made = gpu.make_plan(options, {})
    assert made.left_out == {}
    assert made.run[0] == "kernel check"
    assert made.run.index("agree st tensorrt") < made.run.index("step st cuda auto fp16")
    assert {"torch st", "train st", "first st", "search st", "written st"} <= set(made.run)
    assert len(set(made.run)) == len(made.run)
    made = gpu.make_plan(options, {"cuda": "no wheel", "torch": "no torch", "av": "no av"})
    assert made.left_out["train st"] == "no torch"
    assert made.left_out["step st cuda auto fp16"] == "no wheel"
    assert made.left_out["torch st"] == "no torch"
    assert "step st tensorrt auto fp16" in made.run
    assert "kernel check" in made.run
    assert gpu.make_plan(options, {"gpu": "no driver"}).run == []


def test_the_goals_are_judged_and_what_was_not_measured_is_not(gpu: Any) -> None:
    figures = {"step_ms": 2.0, "floor_ms": 1.0, "times_real_time": 60.0}
    slow = {"step_ms": 4.0, "floor_ms": 1.0, "times_real_time": 30.0}
    results = {
        "kernel speed": {"ratio": 1.4},
        "step st cuda auto fp32": {"3": slow, "1": slow},
        "step st cuda auto fp16": {"3": figures, "1": figures},
        "first st": {"device_ms": 16.0},
        "train st": {"thousand_s": 70.0},
        "step st tensorrt auto fp16": {"error": "no"},
        "torch st": {"torch_step_ms": 7.0},
        "agree st cuda": {"1": 0.001, "20": 0.5},
    }
    rows = {(row["goal"], row["of"]): row for row in gpu.judge(results, 3)}

    def row(goal: str, of: str) -> tuple:
        found = next(
            r for (g, o), r in rows.items() if g == gpu.GOALS[goal][1] and o.startswith(of)
        )
        return found["measured"], found["met"]

    assert row("update", "kernel") == (1.4, False)
    assert row("torch", "st, step st cuda auto fp16") == (3.5, True)
    assert row("floor", "st") == (2.0, True)
    assert row("real_time", "st") == (2800 / (20 * 2.0 + 16), True)  # of 25 frames/s
    assert row("train", "st") == (70.0, False)
    assert row("written", "st") == (None, None)
    assert row("grey_levels", "st cuda") == (0.5, True)
    assert row("grey_levels", "st tensorrt") == (None, None)
    assert all(r["met"] is None for r in gpu.judge({}, 3))


def test_what_matters_most_comes_first(gpu: Any) -> None:
    made = gpu.make_plan(gpu.parse([]), {})
    checks = [job for job in made.run if job.endswith("check") or job.startswith("agree")]
    assert made.run[: len(checks)] == checks
    order = [made.run.index(job) for job in ("step st cuda auto fp16", "torch st", "train st")]
    assert order == sorted(order) and order[-1] < made.run.index("step st cuda none fp32")
    steps = [job for job in made.run if job.startswith("step")]
    assert len(steps) == len(set(steps)) == 2 * 2 * 3 * 2  # network, backend, lowering, precision
    assert gpu.make_plan(gpu.parse([]), {"av": "no av"}).left_out == {
        "written st": "no av",
        "written fc-s": "no av",
    }


def test_learning_is_timed_and_extrapolated_honestly(gpu: Any) -> None:
    layers = [{"filters": 4, "kernel": [4, 4, 4], "stride": [2, 2, 2], "padding": [1, 1, 1]}]
    small = {"data.size": [16, 16], "data.frames": 12, "data.window": 8, "network.layers": layers}
    learning = {"device": "cpu", "langevin.chains": 1, "langevin.n_steps": 2}
    found = gpu.train("fc-s", 3, 60.0, ways=("eager",), **small, **learning)
    row = found["eager"]
    assert row["updates"] == 3 and row["extrapolated"]
    expected = row["first_s"] + 999 * row["update_ms"] / 1e3
    assert found["thousand_s"] == pytest.approx(expected)


def test_the_minutes_are_kept_and_a_later_run_goes_on(
    gpu: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu, "find_missing", dict)
    monkeypatch.setattr(gpu, "open_device", lambda index: object())
    monkeypatch.setattr(gpu, "check_kernel", lambda device: ["right"])
    monkeypatch.setattr(gpu, "check_spot", lambda device: ["right"])
    monkeypatch.setattr(gpu, "export", lambda *arguments: (Path("m"), None))
    monkeypatch.setattr(gpu, "agree", lambda *arguments: {"20": 0.1})
    monkeypatch.setattr(gpu, "kernel_speed", lambda *arguments: {"ratio": 1.1})
    monkeypatch.setattr(gpu, "first", lambda *arguments: {"device_ms": 1.0})
    target = tmp_path / "gpu.json"
    options = ["--json", str(target), "--minutes", "0"]
    assert gpu.main(options) == 0
    found = json.loads(target.read_text()) if target.exists() else {"results": {}}
    assert found["results"] == {} and "minutes were over" in found["left_out"]["first st"]

    def cut_off(*arguments: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(gpu, "open_gpu", cut_off)
    with pytest.raises(KeyboardInterrupt):
        gpu.main(["--json", str(target)])
    kept = json.loads(target.read_text())["results"]
    assert list(kept)[-1] == "first st"  # nothing that was measured is lost
    monkeypatch.setattr(gpu, "first", cut_off)  # is not measured again
    monkeypatch.setattr(gpu, "work", lambda made, *rest: iter([(made.run[-1], {"a": 1})]))
    assert gpu.main(["--json", str(target), "--go-on"]) == 0
    assert {"first st", "search fc-s"} <= set(json.loads(target.read_text())["results"])


@needs_no_driver
def test_without_a_gpu_nothing_is_measured(gpu: Any, tmp_path: Path, capsys: Any) -> None:
    target = tmp_path / "gpu.json"
    assert gpu.main(["--json", str(target)]) == 1
    assert not target.exists()
    assert "no NVIDIA driver" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        gpu.parse(["--chains", "0"])
