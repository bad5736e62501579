"""Every installed dependency has a permissive licence, or is named with its reason."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "bench" / "licences.py"


def test_every_licence_is_permissive_or_named() -> None:
    done = subprocess.run([sys.executable, SCRIPT, "--check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_list_names_every_direct_dependency() -> None:
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    text = (ROOT / "docs" / "licences.md").read_text()
    extras = project["optional-dependencies"]
    for requirement in [*project["dependencies"], *extras["cpu"], *extras["train"]]:
        name = requirement.split(">")[0].split("[")[0]
        assert f"| {name} |" in text, name


def test_everything_that_is_installed_by_make_is_pinned() -> None:
    pinned = {
        line.split("==")[0]
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if "==" in line and not line.startswith("#")
    }
    assert {"torch", "numpy", "onnx", "onnxruntime", "av", "pydantic", "typer"} <= pinned
