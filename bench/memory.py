"""How close is the memory that is foreseen to the memory that is used?

For every model and size two processes: one says what is foreseen for `stg-run synthesize`
(`stg_runtime.memory.foresee`), the other is that command, for two steps; its largest resident
memory is what the system says of it at its end.

    python bench/memory.py st.onnx fc-s.onnx -o bench/results/memory-cpu.json
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from stg_runtime.backends.onnxruntime_cpu import open_session
from stg_runtime.files import atomic_write_text

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
print(foresee(backend, job.graph[2:], finished=job.size))
"""


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
    parser.add_argument("models", nargs="+", type=Path)
    parser.add_argument("-o", "--output", type=Path)
    arguments = parser.parse_args()
    rows: list[dict[str, Any]] = []
    program = str(Path(sys.executable).parent / "stg-run")
    with tempfile.TemporaryDirectory() as name:
        for model in arguments.models:
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
    result = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": f"{os.cpu_count()} cores, {platform.machine()}, shared",
        "worst": max(abs(row["ratio"] - 1) for row in rows),
        "rows": rows,
    }
    print("worst", result["worst"])
    if arguments.output:
        atomic_write_text(arguments.output, json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
