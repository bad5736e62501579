"""One run on several processes: chains and clips shared out, gradients summed.

`torchrun` starts the processes and says who is who; each holds all parameters, walks its share of
the chains, and after summing the gradients makes the same Adam step as the others. Noise is keyed
by chain, not by process, so the number of processes changes results by rounding only.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from stg_runtime.errors import StgError

T = TypeVar("T")


@dataclass(frozen=True)
class World:
    """The processes of a run, and which of them this is.

    Attributes:
        rank: of this process, from 0; rank 0 reads the videos and writes the run's folder.
        size: how many there are.
        local_rank: of this process on its machine; the GPU it uses.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @property
    def first(self) -> bool:
        """Is this the process that reads and writes?"""
        return self.rank == 0

    def share(self, count: int) -> list[int]:
        """Which of `count` chains or clips are this process's: every `size`-th, from `rank` on."""
        return list(range(self.rank, count, self.size))

    def sum_(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by its sum over the processes; one message for all of them."""
        if self.size == 1 or not tensors:
            return
        flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
        dist.all_reduce(flat)
        parts = torch.split(flat, [tensor.numel() for tensor in tensors])
        for tensor, part in zip(tensors, parts, strict=True):
            tensor.copy_(part.view(tensor.shape))

    def max_(self, tensor: Tensor) -> None:
        """Replace a tensor by its largest over the processes."""
        if self.size > 1:
            dist.all_reduce(tensor, dist.ReduceOp.MAX)

    def any(self, flag: bool) -> bool:
        """Is the flag set in any process?"""
        if self.size == 1:
            return flag
        return any(self._exchange(flag))

    def on_first(self, work: Callable[[], T]) -> T | None:
        """Run `work` in rank 0 while the others wait; its result there, None in the others.

        Raises:
            StgError: what it raised, in rank 0.
            SystemExit: in the others, with that error's exit code; rank 0 says what was wrong.
        """
        if self.size == 1:
            return work()
        if self.first:
            try:
                result = work()
            except Exception as error:
                # The others must not wait for ever.
                self._exchange(error.exit_code if isinstance(error, StgError) else 1)
                raise
            self._exchange(0)
            return result
        code = self._exchange(None)[0]
        if code:
            raise SystemExit(code)
        return None

    def from_first(self, work: Callable[[], T]) -> T:
        """Run `work` in rank 0 and give its result, which must pickle, to all processes.

        Raises:
            StgError, SystemExit: see `on_first`.
        """
        result = self.on_first(work)
        if self.size == 1:
            assert result is not None
            return result
        found: T = self._exchange(result)[0]
        return found

    def _exchange(self, value: Any) -> list[Any]:
        """The values of all processes, by rank."""
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values


ALONE = World()


def join() -> World:
    """Meet the other processes that `torchrun` started; alone without it."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or "RANK" not in os.environ:
        return ALONE
    world = World(
        rank=int(os.environ["RANK"]),
        size=int(os.environ["WORLD_SIZE"]),
        local_rank=int(os.environ.get("LOCAL_RANK", "0")),
    )
    if torch.cuda.is_available():
        torch.cuda.set_device(world.local_rank % torch.cuda.device_count())
        dist.init_process_group("cpu:gloo,cuda:nccl")
    else:
        dist.init_process_group("gloo")
    return world
