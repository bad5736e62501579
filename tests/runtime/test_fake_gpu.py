"""Runs the checks of `fake_gpu/` where libcuda.so.1 is a driver of host memory.

The real bindings, `CudaDevice`, `DeviceChains` and backends run there; only the driver, and the
libraries that need one, are stand-ins. In processes of their own: a driver cannot be unloaded.
"""

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from stg_runtime.backends.cuda.compile import SOURCE, kernels

HERE = Path(__file__).parent / "fake_gpu"
pytestmark = [
    pytest.mark.skipif(
        importlib.util.find_spec("cuda") is None or importlib.util.find_spec("cuda.core") is None,
        reason="cuda-core is not installed (extra: dev)",
    ),
    pytest.mark.skipif(shutil.which("g++") is None, reason="no g++"),
]


@pytest.fixture(scope="session")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("driver")
    options = ["-O2", "-ffp-contract=off", "-shared", "-fPIC", "-Wl,-soname,libcuda.so.1"]
    source = ["-x", "c++", f"-I{SOURCE.parent}", HERE / "driver.cpp", "-ldl"]
    command = ["g++", *options, *source, "-o", folder / "libcuda.so.1"]
    subprocess.run(command, check=True)
    # cuda-core asks a driver for more than this one has; with the kernels cached it is not asked.
    kernels("sm_90", folder / "cache")
    found = os.environ.get("LD_LIBRARY_PATH", "")
    return os.environ | {
        "LD_LIBRARY_PATH": f"{folder}:{found}" if found else str(folder),
        "FAKE_CUDA_LOG": str(folder / "log"),
        "STG_CACHE": str(folder / "cache"),
        "PYTHONPATH": os.pathsep.join(sys.path),
    }


@pytest.mark.parametrize("checks", sorted(HERE.glob("check_*.py")), ids=lambda path: path.stem)
def test_on_a_fake_gpu(checks: Path, environment: dict[str, str]) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(checks)]
    result = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert result.returncode == 0, result.stdout[-6000:] + result.stderr[-2000:]
    assert " passed" in result.stdout
