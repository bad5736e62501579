"""stg-run compare, as a user types it."""

import json
from pathlib import Path

import numpy as np
from support import run

from stg_runtime.video_write import write_video


def videos(folder: Path) -> tuple[Path, Path]:
    generator = np.random.default_rng(0)
    t, y, x = np.mgrid[0:20, 0:24, 0:24]
    wave = 120 + 50 * np.sin(0.7 * x - 0.9 * t + 0.3 * y)
    clip = wave[..., None] + generator.normal(0, 9, (3, 20, 24, 24, 3))
    stack = clip.clip(0, 255).astype(np.uint8)
    np.save(folder / "clip.npy", stack[0])
    np.save(folder / "new.npy", stack[1:])
    return folder / "clip.npy", folder / "new.npy"


def test_a_table_for_people(tmp_path: Path) -> None:
    clip, new = videos(tmp_path)
    result = run("stg-run", "compare", clip, new, clip)
    assert result.returncode == 0, result.stderr
    head, *rows = result.stdout.splitlines()
    assert head.split()[:5] == ["new.npy", "0", "new.npy", "1", "clip.npy"]
    motion = next(row for row in rows if row.startswith("motion energy"))
    assert motion.split()[4] == "1.00"
    assert any(row.startswith("diversity") for row in rows)


def test_json_for_programs(tmp_path: Path) -> None:
    clip, new = videos(tmp_path)
    result = run("stg-run", "compare", clip, new, clip, "--json")
    found = json.loads(result.stdout, parse_constant=lambda name: 1 / 0)  # NaN is not JSON
    first, second, same = found["synthesized"]
    assert same["video"] == str(clip) and same["difference"] == 0 == same["spatial_db"]
    assert first["difference"] > 0.05 and second["video"].endswith("new.npy 1")
    assert 0 < found["diversity"] < 1 and found["halves"]["motion"] > 0.5
    one = json.loads(run("stg-run", "compare", clip, clip, "--json").stdout)
    assert one["diversity"] is None


def test_rates_are_pointed_out(tmp_path: Path) -> None:
    clip, _ = videos(tmp_path)
    write_video(tmp_path / "fast.mp4", np.load(clip), 50)
    result = run("stg-run", "compare", clip, tmp_path / "fast.mp4")
    assert result.returncode == 0 and "25, 50 frames/s" in result.stderr


def test_bad_input_is_one_line_and_exit_2(tmp_path: Path) -> None:
    clip, _ = videos(tmp_path)
    np.save(tmp_path / "small.npy", np.load(clip)[:, :16])
    np.save(tmp_path / "still.npy", np.repeat(np.load(clip)[:1], 20, 0))
    for arguments, says in (
        ([clip, tmp_path / "small.npy"], "small.npy is 16x24, the observed one 24x24"),
        ([tmp_path / "still.npy", clip], "does not move"),
        ([clip, tmp_path / "none.mp4"], "none.mp4: no such file"),
        ([clip], "SYNTHESIZED"),
    ):
        result = run("stg-run", "compare", *arguments)
        assert result.returncode == 2, result
        assert says in result.stderr and "Traceback" not in result.stderr
        assert len(result.stderr.strip().splitlines()) == 1
