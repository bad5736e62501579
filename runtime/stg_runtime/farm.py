"""Many videos on many machines, by Ray (extra `ray`): the same files whatever the workers."""

from __future__ import annotations

import importlib.util
import logging
import os
import socket
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from stg_runtime.errors import InputError, StgError

if TYPE_CHECKING:
    from stg_runtime.footage import Footage
    from stg_runtime.synthesize import Plan
    from stg_runtime.video import Frames

_PATIENCE = 5.0  # seconds for an address to answer; Ray itself tries for minutes
RETRIES = 8  # how often a video is made again whose worker died


@dataclass(frozen=True)
class Order:
    """What all videos of a farm have in common; a worker needs nothing else, not even files.

    Attributes:
        model: the bytes of the .onnx file.
        device: "cpu", or "cuda" or "tensorrt": then each task asks the cluster for a GPU.
        threads: processor threads of each worker.
        job: from `plan`.
        pieces: how the walk is cut, the same on every worker, since rounding depends on it.
        footage: given video, or None.
    """

    model: bytes
    device: str
    threads: int
    job: Plan
    pieces: tuple[int, int, int]
    footage: Footage | None


def connect(address: str) -> Any:
    """Join a Ray cluster, or start one on this machine ("local").

    Raises:
        InputError: Ray is not installed, or no cluster answers.
    """
    if importlib.util.find_spec("ray") is None:
        raise InputError("--ray needs Ray, which is not installed: pip install 'stg[ray]'")
    _check_reachable(address)
    import ray

    options: dict[str, Any] = {"address": address}
    if address == "local":
        options["include_dashboard"] = False
    try:
        ray.init(
            **options, log_to_driver=False, logging_level=logging.ERROR, configure_logging=False
        )
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise InputError(f"--ray {address}: {' '.join(str(error).split())[:200]}") from None
    return ray


def _check_reachable(address: str) -> None:
    """Refuse an address at which nobody listens; "local" and "auto" name none."""
    try:
        place = urlsplit(address if "://" in address else f"//{address}")
        host, port = place.hostname, place.port
    except ValueError as error:
        raise InputError(f"--ray {address}: expected local or HOST:PORT ({error})") from None
    if host is None or port is None:
        return
    try:
        socket.create_connection((host, port), _PATIENCE).close()
    except OSError as error:
        reason = error.strerror or error
        raise InputError(
            f"--ray {address}: nobody answers there ({reason}); start Ray with `ray start --head "
            "--port PORT`, or pass local"
        ) from None


def check_room(ray: Any, threads: int, device: str) -> None:
    """Refuse what no machine of a cluster can make: Ray would wait for one for ever.

    Args:
        ray: from `connect`.
        threads: processors that a task asks for.
        device: see `Order`.

    Raises:
        InputError: says what the cluster has.
    """
    found = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if device != "cpu":
        found = [each for each in found if each.get("GPU", 0) >= 1]
        if not found:
            raise InputError(
                f"--device {device}: no machine of the Ray cluster has a GPU; pass --device cpu"
            )
    most = int(max((each.get("CPU", 0) for each in found), default=0))
    if most < threads:
        way = f"pass --threads {most} or less" if most else "add a machine to it"
        raise InputError(
            f"--threads {threads}: no machine of the Ray cluster has so many processors, the "
            f"largest has {most}; {way}"
        )


def make_on_farm(
    ray: Any, order: Order, numbers: Sequence[int]
) -> Iterator[tuple[int, Frames, int]]:
    """Make videos on the workers of a cluster; a video whose worker dies is made again.

    Args:
        ray: from `connect`.
        order: what the videos have in common.
        numbers: of the videos.

    Yields:
        Number, frames and the worker's process id, in the order in which they are finished.

    Raises:
        StgError: a video failed, or its workers died again and again.
    """
    shared = ray.put(order)
    # Ray shows a task the GPU that it gave it, and no other; without one it waits for it.
    task = ray.remote(_make).options(
        num_cpus=order.threads,
        num_gpus=0 if order.device == "cpu" else 1,
        max_retries=RETRIES,
        retry_exceptions=False,
    )
    waiting = {task.remote(shared, number): number for number in numbers}
    while waiting:
        done, _ = ray.wait(list(waiting), num_returns=1)
        number = waiting.pop(done[0])
        try:
            frames, worker = ray.get(done[0])
        except ray.exceptions.RayTaskError as error:
            cause = error.cause if isinstance(error.cause, StgError) else error
            raise StgError(f"video {number}: {' '.join(str(cause).split())[-400:]}") from None
        except ray.exceptions.RayError as error:
            raise StgError(f"video {number}: {' '.join(str(error).split())[:400]}") from None
        yield number, frames, worker


_opened: dict[int, Any] = {}  # of a worker: the backend and chains of the order it works on


def _make(order: Order, number: int) -> tuple[Frames, int]:
    from stg_runtime.backends import open_backend
    from stg_runtime.synthesize import fitted_chains, synthesize

    key = hash((order.model, order.device, order.threads, order.job, order.pieces))
    if key not in _opened:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.onnx"
            path.write_bytes(order.model)
            backend = open_backend(path, order.device, order.threads)
            chains = fitted_chains(backend, order.job, pieces=order.pieces)
            # GPUs read the file when their first chains begin.
            chains.start(seed=0, numbers=[0], init_std=1.0)
        _opened.clear()
        _opened[key] = (backend, chains)
    backend, chains = _opened[key]
    video = synthesize(chains, backend.metadata, order.job, number=number, footage=order.footage)
    return video, os.getpid()
