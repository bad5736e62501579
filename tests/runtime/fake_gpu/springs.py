"""What the checks share: a gradient that enqueues on the device, and the log of driver calls."""

import ctypes
import os
from pathlib import Path

import numpy as np

from stg_runtime.backends.base import Shape
from stg_runtime.backends.cuda.device import CudaDevice

LOG = Path(os.environ.get("FAKE_CUDA_LOG", "/dev/null"))


def calls() -> list[str]:
    """Driver calls since the last time, in order."""
    lines = LOG.read_text().splitlines() if LOG.exists() else []
    LOG.write_text("")
    return lines


class Spring:
    """E = |x|^2 / 2, enqueued as a library would."""

    metadata = None
    description = "spring"
    in_graph = True

    def __init__(self, device: CudaDevice) -> None:
        self.device = device
        self.library = ctypes.CDLL("libcuda.so.1")

    def bind(self, shape: Shape, x: int, energy: int, energy_grad: int) -> None:
        size = int(np.prod(shape[1:]))
        pointers = (ctypes.c_void_p(address) for address in (x, energy, energy_grad))
        self.arguments = (*pointers, ctypes.c_uint64(size), shape[0])

    def run(self) -> None:
        assert self.library.fake_spring(*self.arguments) == 0
