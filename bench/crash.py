"""Kill -9 at random moments: is anything lost, half written, or not to be gone on with?

The commands run as they are, in processes forked from one that has imported everything (an import
of PyTorch per kill would take most of the time), and are killed at a random moment. After each kill

* no file stands half written under its final name: each reads, or is byte for byte the old one;
* training goes on with --resume, is killed again, and in the end its checkpoint, metrics, samples
  and measures equal those of a run that nobody disturbed, byte for byte;
* an interrupted export, synthesis or engine leaves the old file or the whole new one;
* a run that is replaced with --overwrite is there as it was, or the new one is, to be gone on with.

    python bench/crash.py --kills 200 -o bench/results/crash.json
    python bench/crash.py --kills 60 --kinds replacement --add -o bench/results/crash.json
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import os
import platform
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

import stg_cli.export as export_command
import stg_cli.run as run_command
import stg_cli.train as train_command
import stg_runtime.backends.onnxruntime_cpu
import stg_runtime.measures
import stg_runtime.report  # noqa: F401
from stg_runtime.backends.engine import Record
from stg_runtime.backends.onnxruntime_cpu import read_model
from stg_runtime.errors import StgError
from stg_runtime.files import TEMPORARY_PREFIX, atomic_write_text
from stg_runtime.lock import LOCK
from stg_runtime.onnx_check import check_onnx
from stg_runtime.video import read_clip
from stg_train.checkpoint import read_checkpoint
from stg_train.recipe import load_recipe
from stg_train.run import CHECKPOINT, RECIPE

MAINS = {
    "stg-train": train_command.main,
    "stg-export": export_command.main,
    "stg-run": run_command.main,
}
SHARES = {
    "training": 0.42,
    "replacement": 0.16,
    "synthesis": 0.3,
    "engine": 0.06,
    "export": 0.06,
}
Case = tuple[Path, Callable[[str], list[object]]]
"""What is replaced, and the command that makes its "old" or its "new" contents."""

UPDATES = 30
MOST_ROUNDS = 9  # kills of one training run before it may end


def start(*arguments: object, log: Path) -> int:
    """One of our commands in a forked process; its number."""
    sys.stdout.flush()
    child = os.fork()
    if child:
        return child
    code = 99
    try:
        os.setpgid(0, 0)
        file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, 1)
        os.dup2(file, 2)
        sys.argv = [str(argument) for argument in arguments]
        MAINS[sys.argv[0]]()
    except SystemExit as leave:
        code = leave.code if isinstance(leave.code, int) else 0
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def finish(child: int, after: float | None = None, writing: Path | None = None) -> int | None:
    """Wait for a process, or kill it; its exit code, None where killed.

    Args:
        child: its number.
        after: seconds of processor time, which a busy machine does not stretch.
        writing: kill it then, while a file under a temporary name lies in this folder.
    """
    if after is not None:
        while True:
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                return os.waitstatus_to_exitcode(status)
            reached = spent(child) >= after
            if reached and (writing is None or any(writing.glob(f"{TEMPORARY_PREFIX}*"))):
                break
            time.sleep(0.0005 if reached else 0.005)
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    return None if code == -signal.SIGKILL else code


def spent(child: int) -> float:
    """Seconds of processor time of a process that runs."""
    fields = Path(f"/proc/{child}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def digest(path: Path) -> str:
    if path.is_dir():
        parts = [f"{item.name} {digest(item)}" for item in sorted(path.iterdir())]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()
    return hashlib.sha256(path.read_bytes()).hexdigest()


class Trials:
    """What was tried and what became of it."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder, self.random = folder, random.Random(seed)
        self.counts: dict[str, Counter[str]] = {}
        self.faults: list[str] = []
        self.learned: float | None = None
        self.log = folder / "log.txt"
        frames = np.random.default_rng(0).integers(0, 255, (12, 16, 16, 3), dtype=np.uint8)
        np.save(folder / "clip.npy", frames)
        layers = [
            {"filters": 4, "kernel": [4, 4, 4], "stride": [2, 2, 2], "padding": [1, 1, 1]},
            {"filters": 3, "kernel": [3, 3, 3], "stride": [1, 1, 1], "padding": [1, 1, 1]},
        ]
        recipe = load_recipe(
            "fc-s",
            overrides={
                "data.videos": [str(folder / "clip.npy")],
                "data.size": [16, 16],
                "data.frames": 12,
                "data.window": 8,
                "pixels.mean": "channel",
                "network.layers": layers,
                "langevin.first_noise": "white",
                "langevin.step_size": 0.01,
                "langevin.n_steps": 3,
                "learning.regime": "rejuvenated",
                "learning.updates": UPDATES,
                "output.checkpoint_every": 4,
                "output.sheet_every": 10,
                "device": "cpu",
                "precision": "fp32",
                "threads": 1,
            },
        )
        recipe.save(folder / "tiny.toml")

    def run(self, *arguments: object) -> float:
        """A command to its end; the seconds of processor time that it took."""
        child = start(*arguments, log=self.log)
        _, status, usage = os.wait4(child, 0)
        code = os.waitstatus_to_exitcode(status)
        if code != 0:
            raise SystemExit(f"{arguments}: exit {code}: {self.log.read_text()}")
        return usage.ru_utime + usage.ru_stime

    def moment(self, seconds: float, folder: Path) -> tuple[float, Path | None]:
        """When to kill: at any time, and half the times while something is being written."""
        after = self.random.uniform(0, seconds)
        return after, folder if self.random.random() < 0.5 else None

    def fault(self, kind: str, what: str) -> None:
        self.faults.append(f"{kind}: {what}")
        print(f"FAULT {kind}: {what}", flush=True)

    def count(self, kind: str, what: str) -> None:
        self.counts.setdefault(kind, Counter())[what] += 1

    def whole_run(self, run: Path) -> None:
        """Every file of a run's folder that stands under its final name reads to its end."""
        for item in run.rglob("*"):
            if item.name.startswith(TEMPORARY_PREFIX) or item.is_dir() or item.name == LOCK:
                continue
            try:
                self.read(item)
            except Exception as error:
                self.fault("training", f"{item.name} is not whole: {error!r}"[:300])

    @staticmethod
    def read(path: Path) -> None:
        if path.name == CHECKPOINT:
            read_checkpoint(path)
        elif path.name == RECIPE:
            load_recipe(str(path))
        elif path.suffix == ".npy":
            np.array(np.load(path, allow_pickle=False))
        elif path.suffix == ".json":
            json.loads(path.read_text())
        elif path.suffix == ".png":
            with Image.open(path) as image:
                image.load()
        elif path.suffix == ".mp4":
            read_clip(path)
        elif path.suffix == ".html":
            assert path.read_text().rstrip().endswith("</html>")
        elif path.suffix == ".jsonl":  # a log: its last line may be cut, and is made again
            for line in path.read_text().splitlines()[:-1]:
                json.loads(line)
        else:
            raise AssertionError("a file that no run has")

    def compared(self, run: Path) -> dict[str, str]:
        names = (CHECKPOINT, "metrics.jsonl", "synthesized.npy", "measures.json", "path.npy")
        return {name: digest(run / name) for name in names}

    def undisturbed(self) -> float:
        """Make the run "whole", once; the seconds that it took."""
        if self.learned is None:
            recipe = ("--recipe", self.folder / "tiny.toml")
            self.learned = self.run("stg-train", "-o", self.folder / "whole", *recipe)
        return self.learned

    def training(self) -> Iterator[None]:
        cut = self.folder / "cut"
        recipe = ("--recipe", self.folder / "tiny.toml")
        seconds = self.undisturbed()
        expected = self.compared(self.folder / "whole")
        while True:
            rounds = 0
            while True:
                resume = (cut / CHECKPOINT).exists()
                child = start(
                    "stg-train", "-o", cut, *(["--resume"] if resume else recipe), log=self.log
                )
                last = rounds >= MOST_ROUNDS
                code = finish(child) if last else finish(child, *self.moment(seconds, cut))
                if code is not None:
                    if code != 0:
                        self.fault("training", f"exit {code}: {self.log.read_text()[-300:]}")
                        return
                    break
                rounds += 1
                self.count("training", "killed")
                self.count("training", "resumable" if resume else "before its first checkpoint")
                if list(cut.glob(f"{TEMPORARY_PREFIX}*")):
                    self.count("training", "left a temporary file")
                self.whole_run(cut)
                yield
            # A run that was killed after its last update still owes its samples.
            if self.compared(cut) != expected:
                self.fault("training", "a resumed run differs from the undisturbed one")
            if list(cut.glob(f"{TEMPORARY_PREFIX}*")) or (cut / LOCK).exists():
                self.fault("training", "a temporary file or a lock outlived the resumed run")
            self.count("training", "finished equal to undisturbed, bit for bit")
            shutil.rmtree(cut)

    def replacement(self) -> Iterator[None]:
        """One run put in another's place by --overwrite; its first checkpoint comes early."""
        self.undisturbed()
        run, recipe = self.folder / "replaced", ("--recipe", self.folder / "tiny.toml")
        command = ["stg-train", "-o", run, *recipe, "--overwrite", "--updates", 1, "--seed", 1]
        seconds = self.run(*command)
        for which in itertools.cycle(("over a finished run", "over a run as it started")):
            if which == "over a finished run":
                shutil.rmtree(run)
                shutil.copytree(self.folder / "whole", run)
            else:
                self.run(*command)
            before = self.contents(run)
            child = start(*command[:-1], 2, log=self.log)
            code = finish(child, *self.moment(seconds, run))
            if code is None:
                self.count("replacement", "killed")
                self.whole_run(run)
                if not (run / CHECKPOINT).exists():  # between the renames: no run at all
                    self.count("replacement", "between the two, to be started again")
                elif read_checkpoint(run / CHECKPOINT).recipe.seed == 2:
                    self.count("replacement", "new run, gone on with")
                    self.run("stg-train", "-o", run, "--resume")  # to its end, or that is the end
                elif self.contents(run) == before:
                    self.count("replacement", "old run, byte for byte")
                else:
                    self.fault("replacement", f"{which}: the old run changed")
            elif code != 0:
                self.fault("replacement", f"exit {code}: {self.log.read_text()[-300:]}")
                return
            yield

    @staticmethod
    def contents(run: Path) -> dict[str, str]:
        """Digests of a run's files, without the lock and what a kill left."""
        return {
            str(item.relative_to(run)): digest(item)
            for item in sorted(run.rglob("*"))
            if item.is_file() and item.name != LOCK and not item.name.startswith(TEMPORARY_PREFIX)
        }

    def replaced(self, kind: str, cases: list[Case]) -> Iterator[None]:
        """Kill programs that replace a file."""
        made = []
        for path, command in cases:
            hashes, seconds = {}, 0.0
            for which in ("old", "new"):
                seconds = self.run(*command(which))
                hashes[which] = digest(path)
            made.append((path, command, hashes, seconds))
        for path, command, hashes, seconds in itertools.cycle(made):
            before = digest(path)
            which = "old" if before == hashes["new"] else "new"
            child = start(*command(which), log=self.log)
            code = finish(child, *self.moment(seconds, path.parent))
            after = digest(path) if path.exists() else "nothing"
            if code is None:
                self.count(kind, "killed")
                self.count(kind, "old file" if after == before else "whole new file")
                if after not in hashes.values():
                    self.fault(
                        kind, f"{path.name} is neither the old file nor the new one: {after}"
                    )
            elif code != 0 or after != hashes[which]:
                self.fault(kind, f"exit {code}: {self.log.read_text()[-300:]}")
                return
            for item in path.parent.glob(f"{TEMPORARY_PREFIX}*"):
                self.count(kind, "left a temporary file")
                shutil.rmtree(item) if item.is_dir() else item.unlink()
            yield

    def synthesis(self) -> Iterator[None]:
        out = self.folder / "videos"
        out.mkdir()

        def case(name: str) -> Case:
            def command(which: str) -> list[object]:
                seed = 1 if which == "old" else 2
                target = ["-o", out / name, "--seed", seed, "--overwrite", "--threads", 1]
                return ["stg-run", "synthesize", self.model(), *target]

            return out / name, command

        names = ("a.mp4", "a.npy", "frames", "a.gif")
        return self.replaced("synthesis", [case(name) for name in names])

    def model(self) -> Path:
        path = self.folder / "model.onnx"
        if not path.exists():
            self.undisturbed()
            self.run("stg-export", self.folder / "whole", "-o", path)
        return path

    def export(self) -> Iterator[None]:
        """Files differ by the parity figures of fresh inputs, so they are read, not compared."""
        self.model()
        path = self.folder / "exported.onnx"
        seconds = self.run("stg-export", self.folder / "whole", "-o", path)
        while True:
            before = path.read_bytes()
            command = ["stg-export", self.folder / "whole", "-o", path, "--overwrite"]
            child = start(*command, log=self.log)
            code = finish(child, *self.moment(seconds, path.parent))
            try:
                check_onnx(path.read_bytes(), "exported")
            except (StgError, OSError) as error:
                self.fault("export", f"{error}")
            if code is None:
                self.count("export", "killed")
                same = path.read_bytes() == before
                self.count("export", "old file" if same else "whole new file")
            elif code != 0:
                self.fault("export", f"exit {code}: {self.log.read_text()[-300:]}")
                return
            for item in self.folder.glob(f"{TEMPORARY_PREFIX}*"):
                self.count("export", "left a temporary file")
                item.unlink()
            yield

    def engine(self) -> Iterator[None]:
        """Engines by TensorRT for RTX, which needs no GPU; with the record beside each."""
        self.model()
        folder = self.folder / "engines"
        folder.mkdir()
        model, engine = folder / "m.onnx", folder / "m.engine"
        options = ["--tensorrt", engine, "--target", "sm89", "--overwrite"]
        command = ["stg-export", self.folder / "whole", "-o", model, "--static", *options]
        seconds = self.run(*command)
        while True:
            before = engine.read_bytes()
            child = start(*command, log=self.log)
            code = finish(child, *self.moment(seconds, folder))
            data = engine.read_bytes()
            record = Record.from_json(engine.with_name("m.engine.json").read_text())
            check_onnx(read_model(model), "m")
            matches = hashlib.sha256(data).hexdigest() == record.engine
            if code is None:
                self.count("engine", "killed")
                self.count("engine", "old file" if data == before else "whole new file")
                if not matches:  # between the two renames: the engine would be refused
                    self.count("engine", "engine and record apart (refused by its hash)")
            elif code != 0:
                self.fault("engine", f"exit {code}: {self.log.read_text()[-300:]}")
                return
            elif not matches:
                self.fault("engine", "a finished engine does not match its record")
            for item in folder.glob(f"{TEMPORARY_PREFIX}*"):
                self.count("engine", "left a temporary file")
                item.unlink()
            yield


def commit() -> str:
    call = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"]
    done = subprocess.run(call, capture_output=True, text=True)
    return done.stdout.strip() or os.environ.get("STG_COMMIT", "unknown")


def share(text: str) -> tuple[str, float]:
    """A kind, or a kind and how often it comes: "export", "export=4"."""
    kind, _, weight = text.partition("=")
    if kind not in SHARES or (weight and float(weight) <= 0):
        raise argparse.ArgumentTypeError(f"{text}: expected one of {', '.join(SHARES)}, or KIND=N")
    return kind, float(weight) if weight else SHARES[kind]


def added(earlier: dict[str, Any], part: dict[str, Any]) -> dict[str, Any]:
    """What stands in the file: the sums of all parts, and what each part was."""
    kinds: dict[str, Counter[str]] = {}
    for run in (earlier, part):
        for kind, counts in run.get("kinds", {}).items():
            kinds.setdefault(kind, Counter()).update(counts)
    return {
        "date": part["date"],
        "machine": part["machine"],
        "kills": earlier.get("kills", 0) + part["kills"],
        "lost_or_half_written": earlier.get("lost_or_half_written", 0) + len(part["faults"]),
        "faults": [*earlier.get("faults", []), *part["faults"]],
        "kinds": {kind: dict(counts) for kind, counts in kinds.items()},
        "parts": [*earlier.get("parts", []), part],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument(
        "--kinds", nargs="+", type=share, metavar="KIND[=N]", default=list(SHARES.items()),
        help="what is killed, and how often each comes beside the others",
    )  # fmt: skip
    parser.add_argument("--add", action="store_true", help="to what OUTPUT holds already")
    parser.add_argument("--minutes", type=float, default=1e9, help="stop then, whatever was done")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("-o", "--output", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    began = time.monotonic()
    earlier = json.loads(arguments.output.read_text()) if arguments.add else {}
    shares = dict(arguments.kinds)
    result: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        trials = Trials(Path(name), arguments.seed)
        work = {kind: getattr(trials, kind)() for kind in shares}

        def killed(kind: str) -> int:
            return trials.counts.get(kind, Counter())["killed"]

        while sum(map(killed, work)) < arguments.kills and not trials.faults:
            if time.monotonic() - began > 60 * arguments.minutes:
                break
            kind = min(work, key=lambda kind: killed(kind) / shares[kind])
            next(work[kind], None)
            part = {
                "date": datetime.now(UTC).isoformat(timespec="seconds"),
                "commit": commit(),
                "machine": f"{os.cpu_count()} cores, {platform.machine()}, shared",
                "seconds": round(time.monotonic() - began),
                "kills": sum(map(killed, work)),
                "faults": trials.faults,
                "kinds": {kind: dict(counts) for kind, counts in trials.counts.items()},
            }
            result = added(earlier, part)
            if arguments.output is not None:
                atomic_write_text(arguments.output, json.dumps(result, indent=1) + "\n")
    print(json.dumps(result))
    raise SystemExit(1 if trials.faults else 0)


if __name__ == "__main__":
    main()
