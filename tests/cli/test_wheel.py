"""The wheel, installed with [cpu] alone, synthesizes where PyTorch is not installed."""

import json
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[2]


def test_the_wheel_synthesizes_without_torch(trained: Path, tmp_path: Path) -> None:
    def run(*command: object) -> str:
        result = subprocess.run(
            [str(part) for part in command],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            timeout=900,
            check=False,
        )
        assert result.returncode == 0, (command, result.stdout[-2000:], result.stderr[-2000:])
        return result.stdout

    run(sys.executable, "-m", "build", "--wheel", "--outdir", tmp_path / "dist", ROOT)
    (wheel,) = (tmp_path / "dist").glob("stg-*.whl")
    assert "stg_runtime/backends/cuda/langevin.cu" in zipfile.ZipFile(wheel).namelist()
    venv.create(tmp_path / "env", with_pip=True)
    bin_ = tmp_path / "env" / "bin"
    run(bin_ / "python", "-m", "pip", "install", "-q", f"{wheel}[cpu]")
    code = (
        "import importlib.util, json;"
        "names = ('torch', 'onnx', 'onnxscript', 'safetensors', 'tomli_w', 'onnxruntime');"
        "print(json.dumps([n for n in names if importlib.util.find_spec(n)]))"
    )
    assert json.loads(run(bin_ / "python", "-c", code)) == ["onnxruntime"]
    model = trained / "model.onnx"
    run(bin_ / "stg-run", "synthesize", model, "-o", tmp_path / "o.mp4", "--seed", 2)
    run(bin_ / "stg-run", "synthesize", model, "-o", tmp_path / "there.npy", "--seed", 2)
    run(
        Path(sys.executable).with_name("stg-run"),
        "synthesize",
        model,
        "-o",
        "here.npy",
        "--seed",
        2,
    )
    assert (tmp_path / "o.mp4").stat().st_size > 1000
    assert np.array_equal(np.load(tmp_path / "there.npy"), np.load(tmp_path / "here.npy"))
    assert "not installed" in run(bin_ / "stg-run", "doctor")
    # The commands that need PyTorch say so, in one line.
    trains = subprocess.run(
        [bin_ / "stg-train", "x.mp4", "-o", "run"], capture_output=True, text=True, cwd=tmp_path
    )
    assert trains.returncode == 2
    assert "pip install 'stg[train]'" in trains.stderr
    assert len(trains.stderr.splitlines()) == 1
