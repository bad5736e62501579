"""How close is the memory that is foreseen to the memory that is used?

For every model and size two processes: one says what is foreseen for `stg-run synthesize`
(`stg_runtime.memory.foresee`), the other is that command, for two steps; its largest resident
memory is what the system says of it at its end.

    python bench/memory.py st.onnx fc-s.onnx -o bench/results/memory-cpu.json

With --inpaint it is `stg-run inpaint`, of a generated clip whose middle is hidden.

    python bench/memory.py st.onnx fc-s.onnx --inpaint -o bench/results/memory-inpaint-cpu.json

With --train it is `stg-train` (`stg_train.memory.foresee`): two updates of two steps, samples,
measures and report, of generated clips. More steps change nothing but the time; ten updates and
more keep one more copy of the weights. The prepared clips, which are mapped from their file, are
added to what is foreseen, as the system counts them as used.

    python bench/memory.py --train -o bench/results/memory-train-cpu.json
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from stg_runtime.backends.onnxruntime_cpu import open_session
from stg_runtime.files import atomic_write_text

MATTERS = 600  # MiB: below it the program's own share decides

FORESEE = """
import sys, json
from pathlib import Path
from stg_runtime.backends import open_backend
from stg_runtime.memory import foresee
from stg_runtime.synthesize import plan
from stg_runtime.video_write import check_video_output
model, out, frames, height, width = sys.argv[1:]
backend = open_backend(Path(model), "cpu", 1)
job = plan(backend.metadata, frames=int(frames), size=(int(height), int(width)))
check_video_output(Path(out), True)
print(foresee(backend, job.graph[2:], finished=(job.size.frames, job.size.height, job.size.width)))
"""


FORESEE_INPAINTING = """
import sys
from pathlib import Path
import stg_cli.inpaint
from stg_runtime.backends import open_backend
from stg_runtime.inpaint import held_bytes, plan, seam, start_bytes
from stg_runtime.mask import read_masked_clip
from stg_runtime.memory import foresee
from stg_runtime.video_write import check_video_output
model, video, mask, crop, out = sys.argv[1:]
check_video_output(Path(out), True)
backend = open_backend(Path(model), "cpu", 1)
clip = read_masked_clip(Path(video), mask, start=0, frames=None, seed=1)
job = plan(backend.metadata, clip.observed_mask, crop=crop, seed=1)
known = clip.observed_mask
start = start_bytes(backend.metadata, job, int((~known).sum()))
need = foresee(backend, job.graph[2:], start=start, finished=known.shape) + held_bytes(job)
print(need, *job.graph[2:])
"""


FORESEE_TRAINING = """
import sys
import torch
import stg_cli.train
from stg_train.memory import foresee
from stg_train.recipe import load_recipe
from stg_train.run import resolve
recipe = resolve(load_recipe(sys.argv[1]))
torch.set_num_threads(1)
need = foresee(recipe, int(sys.argv[2]))
print(need.total + need.mapped, need.stage)
"""

# Recipe, and what is other than in it.
TRAININGS: list[tuple[str, dict[str, Any]]] = [
    ("st", {}),
    ("st", {"data.size": (160, 160), "data.frames": 48}),
    ("st", {"data.size": (192, 192), "data.frames": 48, "langevin.chains": 4}),
    ("fc-s", {}),
    ("fc-s", {"data.size": (96, 96)}),
    ("fc-s", {"data.size": (96, 96), "data.window": 60, "langevin.chains": 4}),
    ("fc-s", {"data.size": (128, 128)}),
    ("st", {"data.size": (160, 160), "data.frames": 48, "learning.regime": "multi-grid"}),
    ("action", {"data.size": (64, 128)}),
    ("fc-s", {"data.size": (96, 96), "data.mask": "region:20"}),
    ("fc-s", {"data.mask": "salt-pepper:0.5"}),
    ("st", {"data.mask": "region:20"}),
    ("exemplars", {}),
    ("exemplars", {"data.size": (96, 96)}),
    ("exemplars", {"data.frames": 100, "data.window": 50}),
]


def trainings(
    folder: Path, cases: Iterable[tuple[int, str]], known: dict[tuple[int, str], float]
) -> Iterator[dict[str, Any]]:
    """Rows of what training is foreseen to take, and takes; `known`: MiB, of rows run before."""
    # Not above: a process that is started counts what this one held then, and PyTorch is large.
    from stg_train.recipe import load_recipe

    program = str(Path(sys.executable).parent / "stg-train")
    for number, precision in cases:
        name, changes = TRAININGS[number]
        said = {**changes, "langevin.n_steps": 2, "learning.updates": 2, "threads": 1}
        recipe = load_recipe(name, overrides={**said, "device": "cpu", "precision": precision})
        clips = 3 if name == "action" else 1
        length, size = recipe.data.frames, recipe.data.size
        videos = [make_clip(folder / f"{i}.npy", length, size, i) for i in range(clips)]
        data = recipe.data.model_copy(update={"videos": tuple(map(str, videos))})
        path, run = folder / "recipe.toml", folder / "run"
        recipe.model_copy(update={"data": data}).save(path)
        foresee = [sys.executable, "-c", FORESEE_TRAINING, str(path), str(clips)]
        done = subprocess.run(foresee, check=True, capture_output=True, text=True)
        foreseen, _, stage = done.stdout.strip().partition(" ")
        if (number, precision) in known:
            peak = int(known[number, precision] * 2**20)
        else:
            peak = used([program, "-o", str(run), "--recipe", str(path), "--overwrite"])
        yield {
            "row": number,
            "recipe": f"{name}, {recipe.learning.regime}" + (", masked" if data.mask else ""),
            "size": "x".join(map(str, (data.frames, *data.size))),
            "window": data.trained_frames,
            "chains": recipe.langevin.chains,
            "precision": precision,
            "stage": stage,
            "foreseen_mib": round(int(foreseen) / 2**20, 1),
            "used_mib": round(peak / 2**20, 1),
            "ratio": round(int(foreseen) / peak, 3),
        }


def make_clip(path: Path, length: int, size: tuple[int, int], seed: int) -> Path:
    """Moving stripes and noise."""
    rng = np.random.default_rng(seed)
    _, x = np.mgrid[: size[0], : size[1]]
    clip = np.empty((length, *size, 3), np.uint8)  # a command's memory begins with this program's
    for t, frame in enumerate(clip):
        waves = 120 + 50 * np.sin(0.3 * x - 0.7 * t + seed)
        frame[:] = (waves[..., None] + rng.normal(0, 10, (*x.shape, 3))).clip(0, 255)
    np.save(path, clip)
    return path


def inpaintings(folder: Path, model: Path) -> Iterator[dict[str, Any]]:
    """Rows of what filling the middle of a video is foreseen to take, and takes."""
    program = str(Path(sys.executable).parent / "stg-run")
    metadata = open_session(model, 1, optimize=False)[1]
    height, width = metadata.size.height, metadata.size.width
    for crop in ("none", "auto"):
        for frames, scale in ((0.5, 1), (1, 1.5), (2, 2)):
            if "H" not in metadata.free_axes:
                frames, scale = 2 * frames, 1 if crop == "none" else 2
            length = int(frames * metadata.size.frames)
            size = (int(height * scale), int(width * scale))
            video = make_clip(folder / "video.npy", length, size, 1)
            hidden = np.zeros((length, *size), np.uint8)
            hidden[:, size[0] // 3 : size[0] // 3 + 20, size[1] // 3 : size[1] // 3 + 20] = 1
            np.save(folder / "mask.npy", hidden)
            out, mask = folder / "o.mp4", folder / "mask.npy"
            words = [str(model), str(video), str(mask), crop, str(out)]
            said = subprocess.run(
                [sys.executable, "-c", FORESEE_INPAINTING, *words],
                check=True, capture_output=True, text=True,
            ).stdout.split()  # fmt: skip
            call = [program, "inpaint", str(model), str(video), "--mask", str(mask), "-o", str(out)]
            call += ["--crop", crop, "--steps", "2", "--threads", "1", "--seed", "1", "--overwrite"]
            foreseen, peak = int(said[0]), used(call)
            yield {
                "model": f"{metadata.recipe}, {metadata.lowering}",
                "video": "x".join(map(str, (length, *size))),
                "crop": crop,
                "walk": "x".join(said[1:]),
                "foreseen_mib": round(foreseen / 2**20, 1),
                "used_mib": round(peak / 2**20, 1),
                "ratio": round(foreseen / peak, 3),
            }


def used(command: list[str]) -> int:
    """Largest resident memory of a command, bytes."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    assert process.stderr is not None
    said = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    if os.waitstatus_to_exitcode(status):
        raise SystemExit(said.decode())
    return usage.ru_maxrss << 10


def cases(model: Path) -> list[tuple[int, int, int]]:
    """Sizes around the model's own: T, H, W."""
    metadata = open_session(model, 1, optimize=False)[1]
    size = metadata.size
    found = []
    for frames, scale in ((0.5, 1), (1, 1), (2, 1), (4, 1), (1, 2), (2, 2), (4, 2)):
        if scale != 1 and "H" not in metadata.free_axes:
            continue
        if frames != 1 and "T" not in metadata.free_axes:
            continue
        found.append((int(size.frames * frames), size.height * scale, size.width * scale))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", type=Path)
    parser.add_argument("--train", action="store_true", help="of training, not of models")
    parser.add_argument("--inpaint", action="store_true", help="of inpainting, not of synthesis")
    parser.add_argument("--precisions", nargs="+", default=["fp32", "bf16"])
    parser.add_argument("--rows", nargs="+", type=int, default=range(len(TRAININGS)))
    parser.add_argument("--add", action="store_true", help="to the rows that OUTPUT holds")
    parser.add_argument(
        "--again", action="store_true", help="foresee the rows of OUTPUT anew, and run none"
    )
    parser.add_argument("-o", "--output", type=Path)
    arguments = parser.parse_args()
    rows: list[dict[str, Any]] = (
        json.loads(arguments.output.read_text())["rows"] if arguments.add or arguments.again else []
    )
    program = str(Path(sys.executable).parent / "stg-run")
    with tempfile.TemporaryDirectory() as name:
        known = {(row["row"], row["precision"]): row["used_mib"] for row in rows if "row" in row}
        wanted = list(itertools.product(arguments.rows, arguments.precisions))
        if arguments.again:
            wanted, rows = list(known), []
        for row in trainings(Path(name), wanted, known) if arguments.train else ():
            rows.append(row)
            print(row, flush=True)
            if arguments.output:  # a run may be cut off
                save(arguments.output, rows)
        for model in arguments.models:
            for row in inpaintings(Path(name), model) if arguments.inpaint else ():
                rows.append(row)
                print(row, flush=True)
            if arguments.inpaint:
                continue
            metadata = open_session(model, 1, optimize=False)[1]
            for frames, height, width in cases(model):
                for suffix in (".npy", ".mp4"):
                    out = Path(name) / f"o{suffix}"
                    words = [str(model), str(out), str(frames), str(height), str(width)]
                    said = subprocess.run(
                        [sys.executable, "-c", FORESEE, *words],
                        check=True, capture_output=True, text=True,
                    )  # fmt: skip
                    call = [program, "synthesize", str(model), "-o", str(out), "--overwrite"]
                    call += ["--frames", str(frames), "--size", f"{height}x{width}"]
                    call += ["--steps", "2", "--threads", "1", "--seed", "1"]
                    foreseen, peak = int(said.stdout), used(call)
                    row = {
                        "model": f"{metadata.recipe}, {metadata.lowering}",
                        "size": f"{frames}x{height}x{width}",
                        "output": suffix,
                        "foreseen_mib": round(foreseen / 2**20, 1),
                        "used_mib": round(peak / 2**20, 1),
                        "ratio": round(foreseen / peak, 3),
                    }
                    rows.append(row)
                    print(row, flush=True)
    print("worst", summary(rows)["worst"])
    if arguments.output:
        save(arguments.output, rows)


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    matter = [row for row in rows if row["used_mib"] >= MATTERS] or rows
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": f"{os.cpu_count()} cores, {platform.machine()}, shared",
        "worst": max(abs(row["ratio"] - 1) for row in rows),
        f"worst_from_{MATTERS}_mib": max(abs(row["ratio"] - 1) for row in matter),
        "rows": rows,
    }


def save(path: Path, rows: list[dict[str, Any]]) -> None:
    atomic_write_text(path, json.dumps(summary(rows), indent=1) + "\n")


if __name__ == "__main__":
    main()
