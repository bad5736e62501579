"""TensorRT engines: built from the .onnx file, kept in a cache that says what each is made of.

An engine is machine code for one GPU. The .onnx is what travels; engines are local, each with a
JSON record beside it. One is run only when its SHA-256 stands in the record of the user's own
cache, and the record says this model, shape, precision, TensorRT, GPU and driver.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import json
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Final

from stg_runtime.artifact import VIDEO
from stg_runtime.backends.cuda.compile import cache_folder
from stg_runtime.errors import InputError, StgError
from stg_runtime.files import atomic_write_bytes, atomic_write_text

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
            raise InputError(
                f"{name} does not load ({' '.join(str(error).split())[:200]}): "
                "pip install --force-reinstall 'stg[tensorrt]'"
            ) from None
    if not set(modules) - set(RTX):
        raise InputError(
            "TensorRT for RTX is not installed; pip install tensorrt-rtx-cu13-libs "
            "tensorrt-rtx-cu13-bindings"
        )
    raise InputError(
        "TensorRT is not installed: pip install 'stg[tensorrt]', or pass --device cuda"
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

    def to_json(self) -> str:
        """The sidecar's text."""
        return json.dumps({"stg_engine": 1, **asdict(self)}, indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Record:
        """The inverse of `to_json`.

        Raises:
            ValueError: not such a text.
        """
        value = json.loads(text)
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
    """Engines of this user on this machine.

    Args:
        folder: `engines` in `cache_folder()` by default.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder or cache_folder() / "engines"

    def place(self, wanted: Record) -> Path:
        """Where the engine for this model, shape, precision and kind of GPU lies."""
        shape = "x".join(str(extent) for extent in wanted.shapes[1])
        kind = f"{wanted.precision}{'' if wanted.tf32 else '-exact'}"
        (capability,) = wanted.capabilities
        return self.folder / f"{wanted.model[:16]}-{shape}-{kind}-{capability}.engine"

    def find(self, wanted: Record) -> tuple[bytes | None, str]:
        """The engine, or None and why not ("" when there never was one)."""
        path = self.place(wanted)
        if not path.is_file() and not sidecar(path).is_file():
            return None, ""
        try:
            record = Record.from_json(sidecar(path).read_text(encoding="utf-8"))
        except (OSError, ValueError, TypeError):
            return None, "its record is missing or damaged"
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
        """Store an engine with its record; a cache that cannot be written is done without."""
        path = self.place(wanted)
        with suppress(OSError, StgError):
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            # The engine first: a record without its engine, or with another one, is never run.
            atomic_write_bytes(path, engine)
            atomic_write_text(sidecar(path), stamped(wanted, engine).to_json())

    def adopt(self, model: Path, engine: Path, wanted: Record) -> None:
        """Trust an engine that was built elsewhere: the user says that it is theirs.

        Raises:
            InputError: its record is missing, or says another engine, model, size or GPU.
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
            raise InputError(f"{engine}: not an engine of {model} for this machine: {changed}")
        path = self.place(wanted)
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        atomic_write_bytes(path, data)
        atomic_write_text(sidecar(path), record.to_json())

    def timing(self, trt: Any, gpu: str) -> Path:
        """The file of TensorRT's timing cache."""
        name = "".join(c if c.isalnum() else "-" for c in f"{product(trt)} {gpu}".lower())
        return self.folder / f"timing-{name}.cache"


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
            "pip install tensorrt-rtx-cu13-libs tensorrt-rtx-cu13-bindings"
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
