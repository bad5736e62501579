"""How long a Langevin step takes in PyTorch, to compare an exported model with."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from typing import Any

import torch

from stg_runtime.langevin import langevin_step
from stg_runtime.threads import usable_threads
from stg_train.chains import energy_and_grad

_WARM = 3  # steps before the clock runs: algorithm search, compilation


def time_energy(
    energy: Any,
    shape: Sequence[int],
    step_size: float,
    noise_scale: float,
    *,
    where: str,
    repeats: int,
) -> dict[str, Any]:
    """A Langevin step in PyTorch: eager autograd and, on a GPU, compiled; TF32 where there is.

    Returns:
        `torch_ms`, of each way; `torch_step_ms` and `torch_how`, of the faster; `torch_failed`.
    """
    gpu = where != "cpu"
    if gpu:
        torch.cuda.set_device(where)
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
        torch.backends.cudnn.benchmark = True
    else:
        torch.set_num_threads(usable_threads())
    # As `stg-train` walks: exemplars keep what they are compared with from step to step.
    energy = energy.to(where).train().requires_grad_(False)

    def timed(function: Any) -> float:
        x = torch.randn(shape, device=where)
        found = []
        for index in range(_WARM + repeats):
            if gpu:
                torch.cuda.synchronize()
            began = time.perf_counter()
            _, grad = energy_and_grad(function, x)
            noise = torch.randn_like(x)
            x = langevin_step(x, grad, noise, step_size=step_size, noise_scale=noise_scale)
            if gpu:
                torch.cuda.synchronize()
            if index >= _WARM:
                found.append(time.perf_counter() - began)
        return 1e3 * statistics.median(found)

    times, failed = {"eager": timed(energy)}, ""
    if gpu:
        try:
            times["torch.compile"] = timed(torch.compile(energy))
        except Exception as error:  # a compiler that is missing or refuses is not our figure
            failed = f"torch.compile: {' '.join(str(error).split())[:200]}"
    how = min(times, key=lambda name: times[name])
    return {
        "torch_step_ms": times[how],
        "torch_how": how,
        "torch_ms": times,
        "torch_failed": failed,
    }
