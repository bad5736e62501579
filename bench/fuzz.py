"""Damaged and hostile files, by the thousand: is each read, or refused in one line?

Real files are edited (bytes set, cut out, doubled, moved, replaced by extreme numbers, spliced with
another file; for text also its tokens), drawn by Hypothesis, and given to the readers. Anything but
a result or an `InputError` of one line is a fault: another exception, a crash, more than ten
seconds, or more memory than the bound.

    python bench/fuzz.py --seconds 600 -o bench/results/fuzz.json
    python bench/fuzz.py --targets video --replay fault.bin
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import resource
import signal
import struct
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from stg_runtime.errors import InputError
from stg_runtime.files import atomic_write_text

HANG = 10  # seconds
MEMORY = 5 << 30  # bytes of address space beyond what the process starts with
EXTREMES = [0, 1, -1, 2**15, 2**16, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, -(2**63)]
WORDS = ["true", "false", "null", "nan", "inf", "-1", "0", "1e400", "1e18", "9" * 20, "{}", "[]"]
WORDS += ["'x'", "]]", '""', "[[", "[" * 5000, "{" * 5000, "a=" * 50, "\x00", "9" * 5000, "\u2028"]


def videos() -> dict[str, bytes]:
    """A few frames in every container that we write, and those of others."""
    import av

    from stg_runtime.video_write import write_video

    frames = np.random.default_rng(0).integers(0, 256, (4, 16, 16, 3), dtype=np.uint8)
    found = {}
    with tempfile.TemporaryDirectory() as name:
        for suffix in (".mp4", ".mkv", ".webm", ".gif", ".npy"):
            path = Path(name) / f"a{suffix}"
            write_video(path, frames, 25)
            found[suffix] = path.read_bytes()
        for suffix, codec in ((".avi", "mjpeg"), (".mov", "mpeg4"), (".ts", "mpeg2video")):
            path = Path(name) / f"a{suffix}"
            with av.open(str(path), "w") as container:
                stream = container.add_stream(codec, rate=25)
                stream.width = stream.height = 16
                stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
                for frame in frames:
                    for packet in stream.encode(av.VideoFrame.from_ndarray(frame, "rgb24")):
                        container.mux(packet)
                for packet in stream.encode():
                    container.mux(packet)
            found[suffix] = path.read_bytes()
        from PIL import Image

        for suffix in (".png", ".jpg", ".bmp", ".tif", ".webp"):
            path = Path(name) / f"b{suffix}"
            Image.fromarray(frames[0]).save(path)
            found[suffix] = path.read_bytes()
    return found


def masks() -> dict[str, bytes]:
    """Black and white, in the forms that a mask may have."""
    from PIL import Image

    from stg_runtime.video_write import write_video

    hidden = np.zeros((4, 16, 16), bool)
    hidden[:, 4:9, 4:9] = True
    found = {}
    with tempfile.TemporaryDirectory() as name:
        np.save(Path(name) / "a.npy", hidden)
        np.save(Path(name) / "f.npy", hidden.astype(np.float32))
        white = np.repeat(hidden[..., None], 3, -1).astype(np.uint8) * 255
        write_video(Path(name) / "a.mp4", white, 25)
        write_video(Path(name) / "a.gif", white, 25)
        Image.fromarray(white[0]).save(Path(name) / "a.png")
        for path in Path(name).iterdir():
            found[path.name] = path.read_bytes()
    return found


def models() -> dict[str, bytes]:
    """A small model with metadata, mean image and spot clips."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    from stg_runtime.artifact import METADATA_KEY, Metadata, Size, pack_mean_image, pack_spot

    clips = np.random.default_rng(1).integers(0, 256, (1, 4, 6, 6, 3), dtype=np.uint8)
    size = Size(frames=4, height=6, width=6)
    metadata = Metadata(
        recipe="st", reference_std=1.0, step_size=0.3, noise_scale=1.0, n_steps=3, init_std=1.0,
        first_noise="time", spot=pack_spot(clips), spot_shape=clips.shape[:4],
        pixel_mean=(1.0, 2.0, 3.0), mean_image=pack_mean_image(np.zeros((3, 6, 6), np.float32)),
        pixel_scale=40.0, size=size, margin_frames=0, fps=25.0, free_axes=("N", "T"),
        graph_size=size, min_size=size, stride=(1, 1, 1), receptive_field=(1, 1, 1),
        padding=(0, 0, 0), clips=("ab",), precision="fp32", opset=18, lowering="none",
        versions={"stg": "0"}, parity=(),
    )  # fmt: skip
    value = helper.make_tensor_value_info
    shape = ["N", 3, "T", 6, 6]
    graph = helper.make_graph(
        [
            helper.make_node("Mul", ["video", "w"], ["energy_grad"]),
            helper.make_node("ReduceSum", ["energy_grad", "axes"], ["energy"], keepdims=0),
        ],
        "g",
        [value("video", TensorProto.FLOAT, shape)],
        [value("energy", TensorProto.FLOAT, ["N"]), value("energy_grad", TensorProto.FLOAT, shape)],
        [
            numpy_helper.from_array(np.ones((3, 1, 1, 1), np.float32), "w"),
            numpy_helper.from_array(np.array([1, 2, 3, 4], np.int64), "axes"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    helper.set_model_props(model, {METADATA_KEY: metadata.to_json()})
    onnx.checker.check_model(model)
    return {"model.onnx": model.SerializeToString(), "metadata.json": metadata.to_json().encode()}


def recipes() -> dict[str, bytes]:
    """The built-in ones."""
    from importlib import resources

    files = list(resources.files("stg_train.recipes").iterdir())
    return {file.name: file.read_bytes() for file in files if file.name.endswith(".toml")}


def checkpoints() -> dict[str, bytes]:
    """One with a real header and small tensors."""
    import torch
    from safetensors.torch import save

    from stg_train.recipe import load_recipe

    chosen = load_recipe("fc-s", overrides={"pixels.mean": "channel"})
    recipe = chosen.model_dump(mode="json", exclude_none=True)
    header = {
        "schema_version": 1, "recipe": recipe, "update": 1, "kept": None, "returns": 0,
        "norm_mean": 1.0, "response_mean": 1.0, "fps": 25.0, "scale": 40.0, "clips": ["ab"],
        "versions": {"stg": "0"},
    }  # fmt: skip
    tensors = {"mean": torch.zeros(3, 1, 1), "energy.a": torch.ones(4, 4), "chains": torch.ones(2)}
    return {"c.safetensors": save(tensors, {"stg_checkpoint": json.dumps(header)})}


def read_model(path: Path) -> None:
    from stg_runtime.artifact import parse_metadata
    from stg_runtime.backends.onnxruntime_cpu import open_session
    from stg_runtime.synthesize import plan

    if path.suffix == ".json":
        metadata = parse_metadata(path.read_bytes().decode(errors="replace"), str(path))
    else:
        metadata = open_session(path, 1, optimize=False)[1]
    plan(metadata)
    _ = metadata.mean(), metadata.spot_noise


def read_recipe(path: Path) -> None:
    from stg_train.recipe import load_recipe

    load_recipe(str(path)).to_toml()


def read_video(path: Path) -> None:
    from stg_runtime.video import frame_rate, read_clip

    read_clip(path)
    frame_rate(path)


def read_a_mask(path: Path) -> None:
    from stg_runtime.mask import read_mask

    read_mask(path, (4, 16, 16), resize=True)


def read_a_checkpoint(path: Path) -> None:
    from stg_train.checkpoint import read_checkpoint

    read_checkpoint(path)


TARGETS: dict[str, tuple[Callable[[], dict[str, bytes]], Callable[[Path], None]]] = {
    "model": (models, read_model),
    "recipe": (recipes, read_recipe),
    "mask": (masks, read_a_mask),
    "video": (videos, read_video),
    "checkpoint": (checkpoints, read_a_checkpoint),
}

_EDIT = st.tuples(
    st.integers(0, 11), st.floats(0, 1, exclude_max=True), st.floats(0, 1), st.integers(0, 255)
)


def edited(data: bytes, other: bytes, edits: list[tuple[int, float, float, int]]) -> bytes:
    """Apply edits: kind, place and length as shares of the file, and a value."""
    out = bytearray(data)
    for kind, place, length, value in edits:
        begin = int(place * len(out))
        # Most faults sit in headers: half of all places lie in the first 256 bytes.
        if value % 2:
            begin = min(begin, int(place * 256))
        end = min(len(out), begin + 1 + int(length**4 * len(out)))
        if kind == 0:
            out[begin : begin + 1] = bytes([value])
        elif kind == 1:
            out[begin : begin + 1] = bytes([out[begin] ^ (1 << value % 8)]) if out else b""
        elif kind == 2:
            del out[begin:end]
        elif kind == 3:
            out[begin:begin] = out[begin:end]
        elif kind == 4:
            del out[begin:]
        elif kind in (5, 6):
            form = "<>"[value % 2] + "HIQ"[value % 3]
            number = EXTREMES[value % len(EXTREMES)] % 2 ** (8 * struct.calcsize(form))
            out[begin : begin + struct.calcsize(form)] = struct.pack(form, number)
        elif kind == 7:
            source = int(length * len(other))
            out[begin:end] = other[source : source + end - begin]
        elif kind == 8:
            out[begin:begin] = bytes([value]) * (1 + int(length * 64))
        else:
            tokens = list(re.finditer(rb"[\w.+-]+|\"[^\"]*\"|[\[\]{}=,:]", bytes(out[:100_000])))
            if tokens:
                token = tokens[int(place * len(tokens))]
                word = WORDS[value % len(WORDS)].encode()
                new = word if kind < 11 else tokens[int(length * (len(tokens) - 1))][0]
                out[token.start() : token.end()] = new
    return bytes(out)


def work(target: str, seconds: float, first: int, folder: Path) -> None:
    """Read edited files until the time is up; prints a JSON line of counts at the end."""
    corpus_of, read = TARGETS[target]
    corpus = list(corpus_of().items())
    contents = [data for _, data in corpus]
    read_all(corpus, read, folder)
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY, size + MEMORY))
    counts: Counter[str] = Counter()
    end = time.monotonic() + seconds

    @settings(
        max_examples=200, database=None, deadline=None, phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(
        st.integers(0, len(corpus) - 1),
        st.integers(0, len(corpus) - 1),
        st.lists(_EDIT, min_size=1, max_size=6),
    )
    def once(index: int, other: int, edits: list[tuple[int, float, float, int]]) -> None:
        if time.monotonic() > end:
            return
        data = edited(contents[index], contents[other], edits)
        path = folder / f"current-{corpus[index][0].lstrip('.')}"
        if "." not in path.name or corpus[index][0].startswith("."):
            path = folder / f"current{corpus[index][0]}"
        path.write_bytes(data)
        signal.alarm(HANG)
        try:
            read(path)
            counts["read"] += 1
        except InputError as error:
            counts["refused"] += 1
            assert "\n" not in str(error), f"a message of several lines: {error}"
        except BaseException as error:
            counts[f"fault: {type(error).__name__}: {' '.join(str(error).split())[:120]}"] += 1
            kept = folder / f"fault-{len(counts)}{path.suffix}"
            if not kept.exists():
                kept.write_bytes(data)
            if isinstance(error, KeyboardInterrupt):
                raise
        finally:
            signal.alarm(0)
            path.unlink(missing_ok=True)

    number = first
    while time.monotonic() < end:
        seed(number)(once)()
        number += 1
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
    print(json.dumps({"counts": counts, "peak_mib": peak, "seeds": [first, number]}))


def read_all(corpus: list[tuple[str, bytes]], read: Callable[[Path], None], folder: Path) -> None:
    """The unedited files read, or the fuzzing would say nothing."""
    for name, data in corpus:
        path = folder / (f"whole{name}" if name.startswith(".") else f"whole-{name}")
        path.write_bytes(data)
        read(path)
        path.unlink()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=600, help="for each target")
    parser.add_argument("--targets", nargs="+", default=list(TARGETS), choices=list(TARGETS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="folder for files that showed a fault")
    parser.add_argument("--replay", type=Path, help="read this file only")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("-o", "--output", type=Path)
    arguments = parser.parse_args()
    if arguments.replay:
        TARGETS[arguments.targets[0]][1](arguments.replay)
        return
    if arguments.worker:
        work(arguments.targets[0], arguments.seconds, arguments.seed, arguments.worker)
        return
    result: dict[str, Any] = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": f"{os.cpu_count()} cores, {platform.machine()}, shared",
        "seconds_each": arguments.seconds,
        "targets": {},
    }
    faults = 0
    for target in arguments.targets:
        with tempfile.TemporaryDirectory(
            dir="/dev/shm" if Path("/dev/shm").is_dir() else None
        ) as f:
            call = [sys.executable, __file__, "--targets", target, "--worker", f]
            call += ["--seconds", str(arguments.seconds), "--seed", str(arguments.seed)]
            done = subprocess.run(call, capture_output=True, text=True)
            if done.returncode:
                found: dict[str, Any] = {
                    "counts": {f"fault: the process ended with {done.returncode}": 1},
                    "stderr": done.stderr[-600:],
                }
            else:
                found = json.loads(done.stdout.splitlines()[-1])
            if arguments.keep:
                arguments.keep.mkdir(parents=True, exist_ok=True)
                for path in Path(f).iterdir():
                    (arguments.keep / f"{target}-{path.name}").write_bytes(path.read_bytes())
        found["executions"] = sum(found["counts"].values())
        found["faults"] = sum(n for key, n in found["counts"].items() if key.startswith("fault"))
        faults += found["faults"]
        result["targets"][target] = found
        print(target, json.dumps(found), flush=True)
        if arguments.output:
            atomic_write_text(arguments.output, json.dumps(result, indent=1) + "\n")
    raise SystemExit(1 if faults else 0)


if __name__ == "__main__":
    main()
