"""What `stg-run synthesize` does: check the whole request first, then make, write and report."""

from __future__ import annotations

import math
import os
import signal
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from stg_cli.common import check_no_build, printable, progress_bar
from stg_runtime.backends import open_backend
from stg_runtime.backends.base import Backend, HostGradient
from stg_runtime.endless import GROUP, Endless, block_frames, stream_voxels
from stg_runtime.errors import InputError, StgError
from stg_runtime.files import check_name
from stg_runtime.footage import Footage, check_strength, read_ends, read_init
from stg_runtime.memory import budget, plan_windows
from stg_runtime.synthesize import (
    Plan,
    fitted_chains,
    fitted_windows,
    plan,
    synthesize_together,
)
from stg_runtime.video import Frames, cut_edges, tile
from stg_runtime.video_write import (
    VIDEO_SUFFIXES,
    check_rate,
    check_stream,
    check_video_output,
    open_stream,
    write_video,
)
from stg_runtime.windows import Windowed

_STRENGTH = 0.5  # of --init, when nothing is said
_IMPATIENT = 1.0  # seconds: signals that come within it count as one


@dataclass(frozen=True)
class Request:
    """The options of the command; its `--help` says what they mean."""

    model: Path
    output: Path
    count: int
    frames: int | None
    size: tuple[int, int] | None
    steps: int | None
    seed: int
    seed_drawn: bool
    loop: bool
    tile: bool
    stream_format: str | None
    init: Path | None
    strength: float | None
    between: tuple[Path, Path] | None
    fps: float | None
    speed: float | None
    first: int
    only: int | None
    skip_existing: bool
    batch: int
    ray: str | None
    max_memory: str | None
    device: str
    grid: bool
    threads: int | None
    overwrite: bool
    no_build: bool

    def rate(self, model_fps: float) -> float:
        """Frames per second of the output."""
        fps = self.fps
        if fps is None:
            fps = model_fps * (1.0 if self.speed is None else self.speed)
        check_rate(self.output, fps)
        return fps

    @property
    def together(self) -> bool:
        """Do all videos go into one file?"""
        return self.grid or self.output.suffix.lower() == ".npy"


def make_many(request: Request) -> dict[str, Any]:
    """Make the videos of a request.

    Returns:
        The report, as `--json` prints it.

    Raises:
        InputError: something in the request cannot be done; nothing was written.
        StgError: a video failed; those before it are there, whole.
    """
    _check(request)
    check_name(request.output, VIDEO_SUFFIXES)  # before it becomes that of many
    wanted = _numbers(request)
    together = request.together
    names = dict(zip(wanted, output_names(request), strict=False))
    if request.skip_existing:
        there = {number for number, name in names.items() if _is_finished(name)}
        wanted = [] if together and there else [n for n in wanted if n not in there]
    for number in wanted[:1] if together else wanted:
        check_video_output(names[number], request.overwrite)
    host_only = "--loop" if request.loop else "--tile" if request.tile else ""
    backend = _open(request, host_only=host_only)
    metadata = backend.metadata
    fps = request.rate(metadata.fps)
    job, ends = _prepare(request, backend)
    limit = budget(request.max_memory)
    finished = 3.0 * job.size.frames * job.size.height * job.size.width
    held = finished * (2 * len(wanted) if together else min(request.batch, len(wanted)))
    if request.init is not None:
        held += 4.0 * math.prod(job.graph)
    held += sum(x.nbytes for x in (ends.before, ends.after) if x is not None)
    began = time.perf_counter()
    if not wanted:
        pass
    elif request.ray is not None:
        _farm(request, backend, job, ends, wanted, names, fps, limit)
    else:
        videos = _videos(request, backend, job, ends, wanted, limit, held)
        if together:
            stack = np.stack([video for _, video in videos])
            grid = tile(stack) if request.grid else stack
            write_video(names[wanted[0]], grid, fps, overwrite=request.overwrite)
        else:
            for number, video in videos:
                write_video(names[number], video, fps, overwrite=request.overwrite)
    seconds = time.perf_counter() - began
    return {
        "files": [str(names[number]) for number in (wanted[:1] if together else wanted)],
        "videos": len(wanted),
        "size": str(job.size),
        "steps": job.n_steps,
        "seed": request.seed,
        "device": backend.description,
        "seconds": round(seconds, 3),
        "frames_per_second": round(len(wanted) * job.size.frames / seconds, 2),
    }


def _open(request: Request, *, host_only: str) -> Backend:
    return open_backend(
        request.model,
        request.device,
        request.threads,
        may_build=not request.no_build,
        host_only=host_only,
    )


def _check_rate(request: Request) -> None:
    for option, value in (("--fps", request.fps), ("--speed", request.speed)):
        kind = _without_rate(request)
        if kind and value is not None:
            raise InputError(f"{option}: {kind} has no rate; leave it out")
    if request.fps is not None and request.speed is not None:
        raise InputError("--fps and --speed exclude each other: --speed multiplies the model's fps")
    if request.speed is not None and not request.speed > 0:
        raise InputError(f"--speed {request.speed:g}: must be above 0")


def _check(request: Request) -> None:
    _check_rate(request)
    _check_common(request)
    if request.strength is not None:
        check_strength(request.strength)
    if request.init is not None and request.between is not None:
        raise InputError("--init and --between exclude each other")
    if request.between is not None and request.loop:
        raise InputError("--between and --loop exclude each other: a loop has no ends")
    if str(request.output) == "-" or request.stream_format is not None:
        raise InputError("-o - and --format stream video: add --endless (--frames T ends it)")
    if request.skip_existing and request.overwrite:
        raise InputError("--skip-existing and --overwrite exclude each other")
    if request.skip_existing and request.seed_drawn:
        raise InputError(
            "--skip-existing needs --seed, that of the videos that are there: without it the rest "
            "would be of another"
        )
    if request.ray is not None and request.together:
        raise InputError("--ray writes a file per video; leave --grid out and do not write .npy")
    if request.ray is not None and request.batch > 1:
        raise InputError("--ray and --batch exclude each other: a worker walks one video at a time")
    if request.ray is not None and ":" in request.device:
        raise InputError(
            f"--device {request.device}: Ray chooses each task's GPU; pass --device "
            f"{request.device.partition(':')[0]}"
        )
    last = request.first + request.count - 1
    if request.only is not None and not request.first <= request.only <= last:
        raise InputError(
            f"--only {request.only}: the videos are {request.first} to {last}; see -n and --first"
        )


def _check_common(request: Request) -> None:
    """Refuse options that would do nothing, whatever is made."""
    check_no_build(request.no_build, request.device)
    if request.strength is not None and request.init is None:
        raise InputError("--strength is for --init VIDEO; leave it out or name the video")


def _without_rate(request: Request) -> str:
    """What an output is called that has no frames per second, or nothing."""
    if str(request.output) == "-":
        return "" if request.stream_format == "matroska" else "raw video"
    kinds = {"": "a folder of PNGs", ".png": "a .png", ".npy": "an .npy"}
    return kinds.get(request.output.suffix.lower(), "")


def _tell_seed(request: Request) -> None:
    """Say at the beginning which seed was drawn, so that a run that is stopped can go on."""
    if request.seed_drawn:
        print(f"seed {request.seed}", file=sys.stderr)


def _is_finished(path: Path) -> bool:
    """Is a video there? An empty folder is none; an empty file is nothing that we write."""
    if path.is_dir():
        return any(path.iterdir())
    if path.is_file() and not path.stat().st_size:
        raise InputError(
            f"{path}: is empty and no video that --skip-existing could keep; remove it"
        )
    return path.exists()


def _numbers(request: Request) -> list[int]:
    if request.only is not None:
        return [request.only]
    return list(range(request.first, request.first + request.count))


def output_names(request: Request) -> list[Path]:
    """`fire.mp4` for one video; `fire-000.mp4`, `fire-001.mp4`, ... for several.

    A video's name does not depend on how many there are, so that more can be made later.
    """
    output, last = request.output, request.first + request.count - 1
    if request.together or last == 0:
        return [output]
    return [
        output.with_name(f"{output.stem}-{number:03d}{output.suffix}")
        for number in _numbers(request)
    ]


def _prepare(request: Request, backend: Backend) -> tuple[Plan, Footage]:
    """What is to be walked, and the clips that its ends are held to."""
    metadata = backend.metadata
    asked: dict[str, Any] = {
        "size": request.size,
        "n_steps": request.steps,
        "seed": request.seed,
        "loop": request.loop,
        "tile": request.tile,
    }
    if request.between is not None:
        if request.frames is None:
            raise InputError("--between needs --frames: how many lie between the two clips")
        size = request.size or (metadata.size.height, metadata.size.width)
        before, after = read_ends(request.between, metadata, size)
        footage = Footage(before=before, after=after)
        return plan(metadata, frames=request.frames, context=footage.context, **asked), footage
    return plan(metadata, frames=request.frames, **asked), Footage()


def _footage(request: Request, backend: Backend, job: Plan, ends: Footage) -> Footage:
    """All that is given; the video of --init is as long as the walk, so only once that fits."""
    if request.init is None:
        return ends
    init = read_init(request.init, backend.metadata, job.size, job.margin, job.margin_size)
    return Footage(init=init, strength=request.strength or _STRENGTH)


def _endless_hint(request: Request, backend: Backend, job: Plan) -> str:
    """Where --endless makes the same in less memory: what to say of it."""
    metadata = backend.metadata
    streams = metadata.scales == 1 and "T" in metadata.free_axes and not _not_endless(request)
    if not streams or stream_voxels(metadata, job.n_steps, *job.graph[3:]) > math.prod(
        job.graph[2:]
    ):
        return ""
    return "--endless streams any length in constant memory"


def _videos(
    request: Request,
    backend: Backend,
    job: Plan,
    ends: Footage,
    numbers: Sequence[int],
    limit: int | None,
    held: float,
) -> Iterator[tuple[int, Frames]]:
    if request.batch > 1 and "N" not in backend.metadata.free_axes:
        raise InputError("--batch: this model takes one video at a time; export without --static")
    batch = min(request.batch, len(numbers))
    hint = _endless_hint(request, backend, job)
    chains = fitted_chains(backend, job, count=batch, limit=limit, held=held, hint=hint)
    footage = _footage(request, backend, job, ends)
    if len(numbers) > 1:
        _tell_seed(request)
    with progress_bar() as bar:
        task = bar.add_task("steps", total=len(numbers) * job.n_steps) if bar else None
        done = 0
        for place in range(0, len(numbers), batch):
            group = numbers[place : place + batch]
            if len(group) < batch:
                chains = fitted_chains(
                    backend, job, count=len(group), limit=limit, held=held, hint=hint
                )

            def told(step: int, energy: float, done: int = done) -> None:
                if bar is not None and task is not None:
                    bar.figures = f"video {done + 1} of {len(numbers)}, energy {energy:.5g}"
                    bar.update(task, completed=done * job.n_steps + step * batch)

            videos = synthesize_together(
                chains, backend.metadata, job, numbers=group, footage=footage, progress=told
            )
            yield from zip(group, videos, strict=True)
            done += len(group)  # and written: the caller asks for the next one
            if bar is None and len(numbers) > 1:
                print(f"video {done} of {len(numbers)}", file=sys.stderr)


def _farm(
    request: Request,
    backend: Backend,
    job: Plan,
    ends: Footage,
    numbers: Sequence[int],
    names: dict[int, Path],
    fps: float,
    limit: int | None,
) -> None:
    from stg_runtime.farm import Order, check_room, connect, make_on_farm

    assert request.ray is not None
    threads = request.threads or 1
    pieces, device = (1, 1, 1), request.device
    if isinstance(backend, HostGradient):
        pieces, device = fitted_windows(backend, job, limit=limit), "cpu"
    elif device == "auto":  # what it is here, on every worker
        device = "cuda"
    footage = _footage(request, backend, job, ends)
    model = request.model.read_bytes()
    ray = connect(request.ray)
    try:
        check_room(ray, threads, device)
        _tell_seed(request)
        order = Order(model, device, threads, job, pieces, footage)
        for done, (number, video, _) in enumerate(make_on_farm(ray, order, numbers), 1):
            write_video(names[number], video, fps, overwrite=request.overwrite)
            print(f"video {done} of {len(numbers)}: {names[number]}", file=sys.stderr)
    finally:
        ray.shutdown()


def stream(request: Request) -> dict[str, Any]:
    """Stream an endless video until --frames are written or the user stops it.

    Ctrl-C and SIGTERM end it as --frames does: the file is closed whole. A second signal leaves at
    once, for a reader of stdout may stall for ever.

    Returns:
        The report, as `--json` prints it.

    Raises:
        InputError: something in the request cannot be done; nothing was written.
        StgError: the walk failed; what was made is in the file, which is whole. Or the disk is
            full; then the end of the file may be cut. Or nothing was made before the signal.
    """
    for option in _not_endless(request):
        raise InputError(f"--endless and {option} exclude each other")
    _check_rate(request)
    _check_common(request)
    check_stream(request.output, request.stream_format, request.overwrite)
    backend = _open(request, host_only="--endless")
    metadata = backend.metadata
    fps = request.rate(metadata.fps)
    block = block_frames(metadata)
    job = plan(
        metadata,
        size=request.size,
        n_steps=request.steps,
        seed=request.seed,
        tile=request.tile,
        frames=(GROUP + 2) * block,
    )
    assert isinstance(backend, HostGradient)
    height, width = job.graph[3:]
    window = (GROUP + 2) * block
    held = 4.0 * metadata.channels * stream_voxels(metadata, job.n_steps, height, width)
    if metadata.spot_noise is not None:
        held += metadata.spot_noise.stream_bytes((metadata.channels, block, height, width))
    windows = plan_windows(
        backend,
        (window, height, width),
        limit=budget(request.max_memory),
        periodic=job.periodic,
        held=held,
        per_voxel=2 * 4 * metadata.channels,
        is_stream=True,
    )
    gradient: HostGradient = backend
    if windows.pieces != (1, 1, 1) or job.periodic:
        gradient = Windowed(backend, pieces=windows.pieces, periodic=job.periodic)
    source = Endless(gradient, (height, width), n_steps=job.n_steps, seed=request.seed)
    _tell_seed(request)
    written, began = 0, time.perf_counter()
    with (
        _stoppable(request.output) as stop,
        open_stream(
            request.output, fps, form=request.stream_format, overwrite=request.overwrite
        ) as writer,
    ):
        for frames in stop.until_asked(source):
            left = len(frames) if request.frames is None else request.frames - written
            writer.write(cut_edges(frames[:left], job.margin_size))
            written += min(left, len(frames))
            if request.frames is not None and written >= request.frames:
                break
    if not written:
        raise _NothingMadeError(stop.number)
    seconds = time.perf_counter() - began
    return {
        "files": [str(request.output)],
        "videos": 1,
        "size": f"{written}x{job.size.height}x{job.size.width}",
        "steps": job.n_steps,
        "seed": request.seed,
        "device": backend.description,
        "seconds": round(seconds, 3),
        "frames_per_second": round(written / seconds, 2),
    }


def _not_endless(request: Request) -> list[str]:
    """The options of a request that --endless cannot have."""
    given = {
        "--loop": request.loop,
        "--init": request.init is not None,
        "--between": request.between is not None,
        "--grid": request.grid,
        "--ray": request.ray is not None,
        "-n": request.count > 1,
        "--first": request.first > 0,
        "--skip-existing": request.skip_existing,
        "--only": request.only is not None,
        "--batch": request.batch > 1,
    }
    return [option for option, is_given in given.items() if is_given]


class _NothingMadeError(StgError):
    """A stream that was stopped before its first frames."""

    def __init__(self, number: int) -> None:
        super().__init__("interrupted before the first frames: nothing was made or replaced")
        self.exit_code = 128 + number


class _Stop:
    """Ctrl-C and SIGTERM: at once while frames are computed, afterwards while they are written.

    Args:
        output: what a second signal leaves cut, for the message.
    """

    def __init__(self, output: Path) -> None:
        self._output = output
        self._computing = False
        self._asked: float | None = None  # when
        self.number = 0  # of the signal

    def ask(self, number: int, _frame: object) -> None:
        """The signals' handler."""
        now = time.monotonic()
        if self._asked is None:
            self._asked, self.number = now, number
            if self._computing:
                raise KeyboardInterrupt
        elif now - self._asked > _IMPATIENT:
            # Without any clean-up, which would wait for the reader, too.
            where = "stdout" if str(self._output) == "-" else printable(str(self._output))
            os.write(2, f"error: stopped while writing; the end of {where} is cut\n".encode())
            os._exit(128 + number)

    def until_asked(self, blocks: Iterable[Frames]) -> Iterator[Frames]:
        """Blocks of frames, until a signal comes."""
        source = iter(blocks)
        while True:
            self._computing = True
            try:
                if self._asked is not None:
                    return
                frames = next(source)
            except KeyboardInterrupt:
                return
            finally:
                self._computing = False
            yield frames


@contextmanager
def _stoppable(output: Path) -> Iterator[_Stop]:
    """A block that the signals end, quietly."""
    stop = _Stop(output)
    signals = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, stop.ask) for number in signals]
    try:
        with suppress(KeyboardInterrupt):
            yield stop
    finally:
        for number, handler in zip(signals, before, strict=True):
            signal.signal(number, handler)
