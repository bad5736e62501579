"""Every command of the README works, in the order a reader types them."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from stg_runtime.video import read_clip
from stg_runtime.video_write import write_video
from stg_train.sea import Sea

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


VARIANTS = ("fire-again", "many", "windows", "repair")
"""Runs that are like the first one but for an option; made small, for the time that they take."""


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.DOTALL | re.MULTILINE)


def commands() -> list[str]:
    lines = [line for block in blocks("sh") for line in block.splitlines()]
    return [line.split("  #")[0].strip() for line in lines if line.strip()]


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("readme")
    sea = Sea(height=64, width=64, seed=0).render(64)
    for name in ("fire.mp4", "sea.mp4"):
        write_video(folder / name, sea, 25)
    for phase in (0, 4):  # a bar that swings, on black
        turn = 2 * np.pi * (np.arange(64)[:, None, None] + phase) / 14
        y, x = np.mgrid[0:48, 0:96]
        bar = (np.abs(x - 48 - (y - 24) * np.sin(turn)) < 5) & (np.abs(y - 24) < 18)
        video = np.repeat((200 * bar[..., None]).astype(np.uint8), 3, axis=-1)
        write_video(folder / f"walk-{1 if phase == 0 else 2}.mp4", video, 25)
    write_video(folder / "pebbles.png", sea[:1], 25)
    (folder / "runs").mkdir()
    return folder


def shell(command: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = dict(os.environ)
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
    return subprocess.run(
        shlex.split(command), cwd=cwd, env=environment, capture_output=True, text=True, timeout=600
    )


def test_every_command(workplace: Path) -> None:
    seen = []
    for command in commands():
        program = command.split()[0]
        if program in ("make", "pip"):
            continue  # make: below and in CI; pip: test_wheel.py installs the extras
        if program == "stg-train" and "--resume" not in command:
            command += " --updates 2"  # that it starts, learns and ends is what is tested here
            if any(f"runs/{name} " in command for name in VARIANTS):
                command += " --size 32x32"
        result = shell(command, workplace)
        assert result.returncode == 0, (command, result.stderr)
        seen.append(program)
    assert {"stg-train", "stg-export", "stg-run"} <= set(seen) and len(seen) >= 13
    assert read_clip(workplace / "fire-new.mp4").frames.shape == (64, 64, 64, 3)
    assert len(list((workplace / "frames").iterdir())) == 64
    assert np.abs(np.diff(read_clip(workplace / "fire-new.mp4").frames.astype(int), axis=0)).max()


def test_the_python_example(tmp_path: Path) -> None:
    (code,) = blocks("python")
    (tmp_path / "example.py").write_text(code)
    result = shell(f"{shlex.quote(sys.executable)} example.py", tmp_path)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "double-well.onnx").stat().st_size > 0


def test_commands_that_are_not_run_here_are_known() -> None:
    others = {line for line in commands() if line.split()[0] in ("make", "pip")}
    assert others == {
        "make demo",
        "make test",
        "pip install '.[cpu,train]'",
        "pip install '.[cpu]'",
        "pip install '.[gpu]'",
    }


def test_make_demo_names_what_it_wrote(tmp_path: Path) -> None:
    """The demo with hardly any training: every step runs, every named file is there."""
    out = tmp_path / "my demo's"  # names may hold spaces and quotes
    command = f"make demo UPDATES=2 {shlex.quote(f'OUT={out}')}"
    # The demo runs in the environment that the tests run in; setting it up is what CI did.
    venv = Path(sys.executable).parents[1]
    command += f" VENV={shlex.quote(str(venv))}"
    for stamp in (".ready", ".ready-dev"):
        if not (venv / stamp).exists():
            pytest.skip(f"{venv} was not set up by make")
    result = shell(command, ROOT)
    assert result.returncode == 0, result.stderr
    for name in ("synthesized.mp4", "sheet.png", "model.onnx"):
        assert (out / name).exists()
        assert str(out / name) in result.stdout


def test_links_lead_somewhere() -> None:
    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")]
    for page in pages:
        for link in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text(encoding="utf-8")):
            assert (page.parent / link).exists(), (page, link)
