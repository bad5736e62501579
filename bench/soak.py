"""Does synthesis in a loop stay as it was? Memory, descriptors, threads, and the files themselves.

Most videos are made in this process, by the library, one after the other; every tenth time also as
a user would, by `stg-run synthesize`. Equal seeds must give equal files at the start and at the
end, and resident memory of this process must stay flat: its mean over the last fifth is held
against the mean over the second fifth (the first fills caches).

    python bench/soak.py MODEL.onnx --minutes 40 -o bench/results/soak.json
"""

from __future__ import annotations

import argparse
import gc
import hashlib
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from stg_runtime.backends import open_backend
from stg_runtime.files import atomic_write_text
from stg_runtime.memory import resident_memory
from stg_runtime.synthesize import fitted_chains, plan, synthesize
from stg_runtime.video_write import write_video

BIN = Path(sys.executable).parent
FIRST = ("a.mp4", "a.npy", "a.gif")


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def threads() -> int:
    return len(list(Path("/proc/self/task").iterdir()))


class Worker:
    """In this process: one backend for all videos, and a new one every so often."""

    def __init__(self, model: Path, folder: Path) -> None:
        self.model, self.folder = model, folder
        self.open()

    def open(self) -> None:
        self.backend = open_backend(self.model, "cpu", 1)
        self.job = plan(self.backend.metadata, seed=11)
        self.chains = fitted_chains(self.backend, self.job)

    def make(self, number: int, name: str) -> Path:
        video = synthesize(self.chains, self.backend.metadata, self.job, number=number)
        path = self.folder / name
        write_video(path, video, self.backend.metadata.fps, overwrite=True)
        return path


def command(model: Path, path: Path, seed: int) -> None:
    call = [str(BIN / "stg-run"), "synthesize", str(model), "-o", str(path), "--seed", str(seed)]
    done = subprocess.run([*call, "--overwrite", "--threads", "1"], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)


def mean_of(samples: list[dict[str, float]], begin: float, end: float, key: str) -> float:
    part = samples[int(begin * len(samples)) : max(int(end * len(samples)), 1)]
    return float(np.mean([sample[key] for sample in part]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--minutes", type=float, default=40)
    parser.add_argument("--command-every", type=int, default=10, help="videos between two commands")
    parser.add_argument("-o", "--output", type=Path, required=True)
    arguments = parser.parse_args()
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        worker = Worker(arguments.model, folder)
        start = {file: digest(worker.make(0, file)) for file in FIRST}
        command(arguments.model, folder / "user.mp4", 5)
        start["user.mp4"] = digest(folder / "user.mp4")
        samples: list[dict[str, float]] = []
        videos = commands = reopened = 0
        wrong: list[str] = []
        while time.monotonic() - began < 60 * arguments.minutes:
            videos += 1
            worker.make(videos, FIRST[videos % len(FIRST)].replace("a.", "b."))
            if videos % arguments.command_every == 0:
                commands += 1
                command(arguments.model, folder / "user.mp4", 5)
                if digest(folder / "user.mp4") != start["user.mp4"]:
                    wrong.append(f"command {commands}")
                gc.collect()
                samples.append(
                    {
                        "minute": (time.monotonic() - began) / 60,
                        "resident": resident_memory(),
                        "descriptors": descriptors(),
                        "threads": threads(),
                        "files": len(list(folder.iterdir())),
                    }
                )
            if videos % (20 * arguments.command_every) == 0:
                reopened += 1
                worker.open()
        end = {file: digest(worker.make(0, file)) for file in FIRST}
        command(arguments.model, folder / "user.mp4", 5)
        end["user.mp4"] = digest(folder / "user.mp4")
    early, late = mean_of(samples, 0.2, 0.4, "resident"), mean_of(samples, 0.8, 1.0, "resident")
    first, last = samples[len(samples) // 5], samples[-1]
    result = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": f"{os.cpu_count()} cores, {platform.processor() or platform.machine()}, shared",
        "minutes": round((time.monotonic() - began) / 60, 1),
        "videos_in_process": videos,
        "videos_by_command": commands + 2,
        "models_opened_again": reopened,
        "resident_early_mib": round(early / 2**20, 1),
        "resident_late_mib": round(late / 2**20, 1),
        "resident_growth": round(late / early - 1, 4),
        "descriptors": [first["descriptors"], last["descriptors"]],
        "threads": [first["threads"], last["threads"]],
        "files_left": [first["files"], last["files"]],
        "equal_files": start == end and not wrong,
        "differing": wrong,
        "samples": samples[:: max(1, len(samples) // 200)],
    }
    result["passed"] = bool(
        result["equal_files"]
        and abs(late / early - 1) <= 0.02
        and first["descriptors"] == last["descriptors"]
        and first["threads"] == last["threads"]
    )
    atomic_write_text(arguments.output, json.dumps(result, indent=1) + "\n")
    print(json.dumps({key: value for key, value in result.items() if key != "samples"}, indent=1))
    raise SystemExit(0 if result["passed"] else 1)


if __name__ == "__main__":
    main()
