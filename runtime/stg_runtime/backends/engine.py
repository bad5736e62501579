"""TensorRT engines: built from the .onnx file, kept in a cache that says what each is made of.

An engine is machine code for one GPU. The .onnx is what travels; engines are local. One is run only
when the index of the user's own cache names it with its SHA-256, and says this model, shape,
precision, TensorRT, GPU and driver.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib
import importlib.util
import json
import os
import stat
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Final

from stg_runtime.artifact import VIDEO
from stg_runtime.backends.cuda.compile import cache_folder
from stg_runtime.errors import InputError, StgError
from stg_runtime.files import atomic_path, atomic_write_bytes

MODULES: Final = ("tensorrt", "tensorrt_rtx", "tensorrt_rtx_bindings")
"""Modules with TensorRT's API, the first that is installed is used."""

RTX: Final = ("tensorrt_rtx", "tensorrt_rtx_bindings")
"""Those of TensorRT for RTX, whose builder needs no GPU."""

Say = Callable[[str], None]
Shapes = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]


def load_tensorrt(modules: Sequence[str] = MODULES) -> Any:
    """TensorRT's Python module.

    Raises:
        InputError: none is installed, or the one that is does not load.
    """
    for name in modules:
        if importlib.util.find_spec(name) is None:
            continue
        try:
            return importlib.import_module(name)
        except (ImportError, OSError) as error:
            extra = "tensorrt-rtx" if name in RTX else "tensorrt"
            raise InputError(
                f"{name} does not load ({' '.join(str(error).split())[:200]}): "
                f"pip install --force-reinstall 'stg[{extra}]'"
            ) from None
    if not set(modules) - set(RTX):
        raise InputError("TensorRT for RTX is not installed: pip install 'stg[tensorrt-rtx]'")
    raise InputError(
        "TensorRT is not installed: pip install 'stg[gpu,tensorrt]' (or 'stg[gpu,tensorrt-rtx]', "
        "TensorRT for RTX), or pass --device cuda"
    )


def product(trt: Any) -> str:
    """Name and version of a TensorRT module."""
    return f"{'TensorRT-RTX' if trt.__name__ in RTX else 'TensorRT'} {trt.__version__}"


@dataclass(frozen=True)
class Record:
    """What an engine is made of and runs on.

    Attributes:
        model: SHA-256 of the .onnx file.
        shapes: smallest, usual and largest (N, C, T, H, W).
        precision: the graph's own, "fp32" or "fp16".
        tf32: may float32 products use tensor cores?
        tensorrt: product and version that built it.
        gpu: name of the GPU; for engines built without one, "".
        capabilities: compute capabilities it runs on, e.g. ("sm90",).
        driver: newest CUDA that the driver runs; for engines built without one, "".
        engine: SHA-256 of the engine.
    """

    model: str
    shapes: tuple[tuple[int, ...], ...]
    precision: str
    tf32: bool
    tensorrt: str
    gpu: str
    capabilities: tuple[str, ...]
    driver: str
    engine: str = ""

    def to_value(self) -> dict[str, Any]:
        """For JSON."""
        return {"stg_engine": 1, **asdict(self)}

    def to_json(self) -> str:
        """The sidecar's text."""
        return json.dumps(self.to_value(), indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Record:
        """The inverse of `to_json`.

        Raises:
            ValueError: not such a text.
        """
        return cls.from_value(json.loads(text))

    @classmethod
    def from_value(cls, value: Any) -> Record:
        """The inverse of `to_value`.

        Raises:
            ValueError: not such a value.
        """
        value = dict(value) if isinstance(value, dict) else None
        names = {field.name for field in fields(cls)}
        if not isinstance(value, dict) or value.pop("stg_engine", None) != 1 or set(value) != names:
            raise ValueError("not a record of stg")
        value["shapes"] = tuple(tuple(shape) for shape in value["shapes"])
        value["capabilities"] = tuple(value["capabilities"])
        return cls(**value)

    def differences(self, wanted: Record) -> str:
        """How this one differs from what is wanted, for people; "" when it will do."""
        found = []
        for name, what in (
            ("model", "the model"),
            ("shapes", "the size"),
            ("precision", "the precision"),
            ("tf32", "TF32"),
            ("tensorrt", "TensorRT"),
            ("gpu", "the GPU"),
            ("driver", "the driver"),
        ):
            have, want = getattr(self, name), getattr(wanted, name)
            portable = name in ("gpu", "driver") and have == ""  # built for capabilities alone
            if have != want and not portable:
                told = "" if name == "model" else f" (was {have}, is {want})"
                found.append(f"{what} changed{told}")
        if not set(wanted.capabilities) <= set(self.capabilities):
            found.append(
                f"it is for {', '.join(self.capabilities)}, this GPU is "
                f"{', '.join(wanted.capabilities)}"
            )
        return "; ".join(found)


def sha256(path: Path) -> str:
    """Of a file's contents."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sidecar(engine: Path) -> Path:
    """The record's place beside an engine."""
    return engine.with_name(engine.name + ".json")


class EngineCache:
    """Engines of this user on this machine, and one index that says which of them may run.

    An engine runs only when the index names it with its SHA-256. The folder, the one above and the
    index must be this user's (or the system's) and closed to writing by others; files that were put
    there side by side are not trusted for that.

    Args:
        folder: `engines` in `cache_folder()` by default.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder or cache_folder() / "engines"
        self.index = self.folder / "index.json"

    def place(self, wanted: Record) -> Path:
        """Where the engine for this model, shape, precision and kind of GPU lies."""
        shape = "x".join(str(extent) for extent in wanted.shapes[1])
        kind = f"{wanted.precision}{'' if wanted.tf32 else '-exact'}"
        (capability,) = wanted.capabilities
        return self.folder / f"{wanted.model[:16]}-{shape}-{kind}-{capability}.engine"

    def find(self, wanted: Record) -> tuple[bytes | None, str]:
        """The engine, or None and why not ("" when there never was one)."""
        path = self.place(wanted)
        if not path.is_file() and not self.index.is_file():
            return None, ""
        open_to = self._open_to_others()
        if open_to:
            return None, open_to
        try:
            entry = self._read().get(path.name)
            record = None if entry is None else Record.from_value(entry)
        except (OSError, ValueError, TypeError):
            return None, f"{self.index} is damaged"
        if record is None:
            return None, f"{self.index} does not name it" if path.is_file() else ""
        changed = record.differences(wanted)
        if changed:
            return None, changed
        try:
            engine = path.read_bytes()
        except OSError as error:
            return None, f"it cannot be read ({error.strerror})"
        if hashlib.sha256(engine).hexdigest() != record.engine:
            return None, "it is damaged (its SHA-256 is not the recorded one)"
        return engine, ""

    def keep(self, wanted: Record, engine: bytes) -> None:
        """Store an engine; a cache that cannot be written, or is another's, is done without."""
        with suppress(OSError, StgError):
            self._store(wanted, engine, stamped(wanted, engine))

    def adopt(self, model: Path, engine: Path, wanted: Record) -> None:
        """Trust an engine that was built elsewhere: the user says that it is theirs.

        Raises:
            InputError: its record is missing, or says another engine, model, size or GPU; the cache
                is not this user's.
            StgError: the cache cannot be written.
        """
        try:
            data = engine.read_bytes()
            record = Record.from_json(sidecar(engine).read_text(encoding="utf-8"))
        except OSError as error:
            raise InputError(
                f"{error.filename}: {error.strerror}; an engine needs the .json that stg-export "
                "wrote beside it"
            ) from None
        except (ValueError, TypeError):
            raise InputError(f"{sidecar(engine)}: not a record of stg-export --tensorrt") from None
        if hashlib.sha256(data).hexdigest() != record.engine:
            raise InputError(f"{engine}: damaged (its SHA-256 is not the one in its .json)")
        changed = record.differences(wanted)
        if changed:
            way = _install(record.tensorrt, wanted.tensorrt)
            raise InputError(f"{engine}: not an engine of {model} for this machine: {changed}{way}")
        try:
            self._store(wanted, data, record)
        except OSError as error:
            raise StgError(f"{self.folder}: cannot be written: {error.strerror}") from None

    def _store(self, wanted: Record, engine: bytes, record: Record) -> None:
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        if self._open_to_others():
            self._close()
        path = self.place(wanted)
        with (self.folder / "index.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            try:
                entries = self._read()
            except (OSError, ValueError):
                entries = {}
            # The engine first: an entry without its engine, or with another one, is never run.
            _write_private(path, engine)
            entries[path.name] = record.to_value()
            text = json.dumps({"stg_engines": 1, "engines": entries}, indent=1) + "\n"
            _write_private(self.index, text.encode())

    def _read(self) -> dict[str, Any]:
        """The index's entries.

        Raises:
            OSError: it cannot be read.
            ValueError: it is not an index.
        """
        if not self.index.exists():
            return {}
        value = json.loads(self.index.read_text(encoding="utf-8"))
        if not isinstance(value, dict) or value.get("stg_engines") != 1:
            raise ValueError("not an index of stg")
        entries = value.get("engines")
        if not isinstance(entries, dict):
            raise ValueError("not an index of stg")
        return entries

    def _open_to_others(self) -> str:
        """Which of folder and index somebody else may write, and what to do; "" when none."""
        for path in (self.folder.parent, self.folder, self.index):
            if not path.exists():
                continue
            state = path.stat()
            if state.st_uid not in (os.getuid(), 0):
                return f"{path} is another user's; set STG_CACHE to a folder of your own"
            # A sticky folder, as /tmp is, keeps others from replacing what is ours in it.
            sticky = path == self.folder.parent and state.st_mode & stat.S_ISVTX
            if state.st_mode & 0o022 and not sticky:
                return f"{path} could be written by others"
        return ""

    def _close(self) -> None:
        """Shut the folder to others and forget what may be theirs.

        Raises:
            InputError: it belongs to another user.
        """
        for path in (self.folder.parent, self.folder):
            if path.stat().st_uid not in (os.getuid(), 0):
                raise InputError(self._open_to_others())
            if path.stat().st_uid == os.getuid():
                path.chmod(path.stat().st_mode & ~0o022)
        self.index.unlink(missing_ok=True)

    def timing(self, trt: Any, gpu: str) -> Path:
        """The file of TensorRT's timing cache."""
        name = "".join(c if c.isalnum() else "-" for c in f"{product(trt)} {gpu}".lower())
        return self.folder / f"timing-{name}.cache"


def _install(built_by: str, here: str) -> str:
    """How to get the TensorRT that an engine was built by; "" where it is here."""
    if built_by == here:
        return ""
    name, _, number = built_by.partition(" ")
    if name == "TensorRT-RTX":
        return (
            ". Engines of TensorRT for RTX run on that alone, not on TensorRT: pip uninstall -y "
            f"tensorrt && pip install 'stg[gpu,tensorrt-rtx]' 'tensorrt-rtx-cu13-libs=={number}.*' "
            f"'tensorrt-rtx-cu13-bindings=={number}.*'"
        )
    return f". Run it on {built_by} (pip install 'tensorrt=={number}'), or build it here"


def _write_private(path: Path, data: bytes) -> None:
    """Whole or not at all, and for this user alone.

    Raises:
        OSError: it cannot be written.
        StgError: it cannot be moved into place.
    """
    with atomic_path(path) as temporary:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
        with os.fdopen(os.open(temporary, flags, 0o600), "wb") as file:
            file.write(data)


def stamped(record: Record, engine: bytes) -> Record:
    """The record with the engine's own hash."""
    values = {field.name: getattr(record, field.name) for field in fields(record)}
    return Record(**(values | {"engine": hashlib.sha256(engine).hexdigest()}))


def build(
    trt: Any,
    path: Path,
    *,
    shapes: Shapes | None,
    targets: Sequence[str] = (),
    tf32: bool = True,
    timing_cache: Path | None = None,
    say: Say | None = None,
) -> bytes:
    """Parse an exported file and build an engine of it.

    Args:
        trt: from `load_tensorrt`.
        path: the .onnx file.
        shapes: smallest, usual and largest shape of the input, for a file with free axes.
        targets: compute capabilities to build for without a GPU, TensorRT for RTX only; none:
            this machine's GPU.
        tf32: allow TF32 in float32 products.
        timing_cache: read before, and written after, the build.
        say: told of the builder's progress, at most every two seconds.

    Raises:
        InputError: the file is missing, a target is unknown, or the shapes do not fit the file.
        StgError: TensorRT does not take the graph.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file; write one with stg-export")
    if targets:
        check_targets(trt, targets)
    log = error_log(trt)
    builder = trt.Builder(log)
    # Precision is the graph's own. TensorRT for RTX and TensorRT 11 know nothing else.
    flag: Any = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    untyped = flag is None or trt.__name__ in RTX
    network = builder.create_network(0 if untyped else 1 << int(flag))
    parser = trt.OnnxParser(network, log)
    if not parser.parse(path.read_bytes()):
        first = parser.get_error(0)
        raise StgError(
            f"{path}: TensorRT's ONNX parser refuses it: {first.node_operator()} "
            f"{first.node_name()}: {' '.join(first.desc().split())}"
        )
    config = builder.create_builder_config()
    if targets:
        config.num_compute_capabilities = len(targets)
        for index, target in enumerate(targets):
            config.set_compute_capability(getattr(trt.ComputeCapability, target.upper()), index)
    if not tf32:
        config.clear_flag(trt.BuilderFlag.TF32)
    _add_profile(path, builder, network, config, shapes)
    cache = _read_timing(config, timing_cache)
    monitor = _monitor(trt, say) if say is not None else None
    if monitor is not None:
        config.progress_monitor = monitor
    engine = builder.build_serialized_network(network, config)
    if engine is None:
        reason = log.errors[-1] if log.errors else "no reason given"
        raise StgError(f"{path}: {product(trt)} cannot build it: {reason}")
    if cache is not None and timing_cache is not None:
        with suppress(OSError, StgError):
            timing_cache.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            atomic_write_bytes(timing_cache, bytes(memoryview(cache.serialize())))
    return bytes(engine)


def check_targets(trt: Any, targets: Sequence[str]) -> None:
    """Refuse a target that this TensorRT does not build for.

    Raises:
        InputError: lists those that it does.
    """
    if not hasattr(trt, "ComputeCapability"):
        raise InputError(
            f"{product(trt)} builds for the GPU it runs on; targets need TensorRT for RTX: "
            "pip install 'stg[tensorrt-rtx]'"
        )
    known = [n for n in dir(trt.ComputeCapability) if n.startswith("SM")]
    unknown = [target for target in targets if target.upper() not in known]
    if unknown:
        valid = ", ".join(sorted((n.lower() for n in known), key=lambda n: int(n[2:])))
        raise InputError(f"target {', '.join(unknown)}: unknown; choose among {valid}")


def _add_profile(path: Path, builder: Any, network: Any, config: Any, shapes: Any) -> None:
    taken = tuple(network.get_input(0).shape)
    if -1 not in taken:
        if shapes is not None and any(tuple(shape) != taken for shape in shapes):
            raise InputError(f"{path}: takes shape {taken} alone; leave the shapes out")
        return
    if shapes is None:
        raise InputError(
            f"{path}: its size is free (-1) on some axes, {taken}; give the smallest, the usual "
            "and the largest shape"
        )
    for shape in shapes:
        if len(shape) != len(taken) or any(
            t not in (-1, s) for t, s in zip(taken, shape, strict=True)
        ):
            raise InputError(f"{path}: takes shape {taken} (-1: free); got {tuple(shape)}")
    profile = builder.create_optimization_profile()
    profile.set_shape(VIDEO, *(tuple(shape) for shape in shapes))
    config.add_optimization_profile(profile)


def _read_timing(config: Any, path: Path | None) -> Any:
    """Attach the timing cache; one that TensorRT does not take is begun anew."""
    if path is None:
        return None
    data = b""
    with suppress(OSError):
        data = path.read_bytes()
    for stored in (data, b""):
        cache = config.create_timing_cache(stored)
        if cache is not None and config.set_timing_cache(cache, False):
            return cache
    return None


def _monitor(trt: Any, say: Say) -> Any:
    """Progress lines of the phases that take long."""

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.began = self.told = time.monotonic()
            self.phases: dict[str, int] = {}

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self.phases[phase_name] = num_steps

        def step_complete(self, phase_name: str, step: int) -> bool:
            now = time.monotonic()
            if now - self.told >= 2:
                self.told = now
                total = self.phases.get(phase_name, 0)
                say(f"{phase_name}: {step + 1} of {total} ({now - self.began:.0f} s)")
            return True

        def phase_finish(self, phase_name: str) -> None:
            self.phases.pop(phase_name, None)

    return Monitor()


def error_log(trt: Any) -> Any:
    """A logger that keeps the errors and prints nothing."""

    class Log(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
                self.errors.append(" ".join(message.split()))

    return Log()
