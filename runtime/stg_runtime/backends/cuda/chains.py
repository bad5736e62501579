"""Chains in device memory: a step is one gradient and one kernel, replayed as one CUDA graph."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from contextlib import suppress
from math import prod
from typing import Any, Final, Protocol
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from stg_runtime.artifact import Metadata
from stg_runtime.backends.base import Shape
from stg_runtime.backends.cuda.device import CudaDevice, Graph, blocks, pointer, total
from stg_runtime.backends.cuda.spot import DeviceSpot, device_bytes
from stg_runtime.errors import StgError
from stg_runtime.langevin import Float32
from stg_runtime.spot import NO_WRAP, Spot, Wrap

WALK: Final = np.dtype(
    [
        ("seed", "<u8"),
        ("step", "<u4"),
        ("row", "<u4"),
        ("arrived", "<u4"),
        ("drift", "<f4"),
        ("spread", "<f4"),
        ("reserved", "<u4"),
    ]
)
"""`Walk` of langevin.cu."""

ROWS: Final = 4096
"""Steps whose energies the device keeps; a longer walk is read out this often."""


class DeviceGradient(Protocol):
    """An energy gradient on device memory.

    Attributes:
        device: that it runs on.
        metadata: of the model.
        description: of device and engine, for people.
        in_graph: may `run` be captured in a CUDA graph of the device's stream?
    """

    device: CudaDevice
    metadata: Metadata
    description: str
    in_graph: bool

    def bind(self, shape: Shape, x: int, energy: int, energy_grad: int) -> None:
        """Fix the buffers' addresses: float32, (N, C, T, H, W), (N,) and (N, C, T, H, W).

        Raises:
            StgError: the model does not take the shape, or the device has not the memory.
        """

    def run(self) -> None:
        """Enqueue E and dE/dx at x on the device's stream."""


_bound_to: WeakKeyDictionary[Any, list[int]] = WeakKeyDictionary()
"""Whose buffers each gradient works on: the list of their addresses, by identity."""


class DeviceChains:
    """The `Chains` of a `DeviceGradient`.

    From its second step on, a walk is one graph launch per step: what changes from step to step is
    counted in device memory by the kernel itself. Nothing is copied to the host until `energies`
    or `read` is called.

    Args:
        gradient: bound to these chains' memory until another `DeviceChains` binds it.
        shape: (N, C, T, H, W).
        graph: False launches step by step; for comparison.

    Attributes:
        device: that they live on.
        graph_note: why no graph is used, or "".

    Raises:
        StgError: the device has not the memory.
    """

    def __init__(self, gradient: DeviceGradient, shape: Shape, *, graph: bool = True) -> None:
        self.shape = shape
        self._gradient = gradient
        self.device = gradient.device
        self._size = prod(shape[1:])
        self._owned: list[int] = []
        values = 4 * prod(shape)
        check_memory(self.device, shape, buffer_bytes(shape))
        self._x, self._grad = self._allocate(values), self._allocate(values)
        self._energy = self._allocate(4 * shape[0])
        self._rows = self._allocate(4 * shape[0] * ROWS)
        self._walk = self._allocate(WALK.itemsize)
        self._numbers = self._allocate(8 * shape[0])
        self._known = self._values = 0  # allocated by the first clamp
        self._spot: DeviceSpot | None = None  # of the last start that asked for spot noise
        self._held = False
        self._state = np.zeros(1, WALK)  # what the device's own will be when the stream is there
        self._kept: list[Float32] = []  # energies read out of a walk longer than ROWS
        self._graph: Graph | None = None
        self._warm = False
        self.graph_note = "" if graph and gradient.in_graph else "launched step by step"

    @property
    def silent(self) -> Sequence[int]:
        """See `Chains.silent`; not looked for on a device."""
        return [0] * self.shape[0]

    def _allocate(self, size: int) -> int:
        address = self.device.allocate(size)
        self._owned.append(address)
        return address

    def close(self) -> None:
        """Give the memory back."""
        self._forget_graph()
        if self._spot is not None:
            self._spot.close()
            self._spot = None
        while self._owned:
            self.device.free(self._owned.pop())

    def __del__(self) -> None:
        with suppress(Exception):  # at the interpreter's end the driver may be gone
            self.close()

    def start(
        self,
        *,
        seed: int,
        numbers: Sequence[int],
        init_std: float,
        spot: Spot | None = None,
        wrap: Wrap = NO_WRAP,
    ) -> None:
        """See `Chains.start`; spot noise is made on the device, too."""
        assert len(numbers) == self.shape[0]
        self.device.activate()
        if _bound_to.get(self._gradient) is not self._owned:
            # Other chains had it, or none: their memory is not ours, nor is a graph of ours good.
            self._forget_graph()
            self._warm = False
            self._gradient.bind(self.shape, self._x, self._energy, self._grad)
            _bound_to[self._gradient] = self._owned
        self._set_held(False)
        self._kept = []
        self._state[:] = 0
        self._state["seed"], self._state["step"] = seed, 1
        self.device.upload(self._walk, self._state)
        self.device.upload(self._numbers, np.array(numbers, np.uint64))
        if spot is not None:
            self._spot_noise(spot, wrap).fill(self._x, seed, numbers)
            return
        self._launch(
            "stg_start",
            *(pointer(self._x), pointer(self._walk), pointer(self._numbers)),
            *(ctypes.c_float(init_std), ctypes.c_uint64(self._size)),
        )

    def _spot_noise(self, spot: Spot, wrap: Wrap) -> DeviceSpot:
        made = self._spot
        if made is None or made.spot is not spot or made.wrap != wrap:
            if made is not None:
                made.close()
                self._spot = None
            check_memory(self.device, self.shape, device_bytes(spot, self.shape[1:], wrap))
            self._spot = made = DeviceSpot(self.device, spot, self.shape[1:], wrap)
        return made

    def write(self, x: Float32) -> None:
        """See `Chains.write`."""
        assert x.shape == self.shape
        self.device.upload(self._x, np.ascontiguousarray(x, np.float32))
        self._hold()

    def clamp(self, values: Float32, known: NDArray[np.bool_]) -> None:
        """See `Chains.clamp`."""
        assert values.shape == known.shape == self.shape
        if not self._known:
            check_memory(self.device, self.shape, 5 * prod(self.shape))
            self._known = self._allocate(prod(self.shape))
            self._values = self._allocate(4 * prod(self.shape))
        self.device.upload(self._known, np.ascontiguousarray(known, np.bool_).view(np.uint8))
        self.device.upload(self._values, np.ascontiguousarray(values, np.float32))
        self._set_held(True)
        self._hold()

    def step(self, number: int, *, step_size: float, noise_scale: float) -> None:
        """See `Chains.step`; returns at once, with None."""
        state = self._state
        if state["row"][0] == ROWS:
            self._kept.append(self._read_rows())
            state["row"] = 0
            self.device.upload(self._walk, state)
        # As the CPU's update rounds them.
        want = (number, np.float32(step_size**2 / 2), np.float32(step_size * noise_scale))
        if tuple(state[["step", "drift", "spread"]][0]) != want:
            state["step"], state["drift"], state["spread"] = want
            self.device.upload(self._walk, state)
        if self._graph is None and self._warm and not self.graph_note:
            try:
                self._graph = self.device.capture(self._enqueue)
            except StgError as error:
                self.graph_note = f"launched step by step: {error}"
        if self._graph is not None:
            self.device.replay(self._graph)
        else:
            self._enqueue()
            self._warm = True  # engines settle their memory in a first run outside a graph
        state["step"] += 1
        state["row"] += 1

    def energies(self) -> Float32:
        """See `Chains.energies`."""
        return np.concatenate([*self._kept, self._read_rows()])

    def read(self) -> Float32:
        """See `Chains.read`."""
        x = np.empty(self.shape, np.float32)
        self.device.download(self._x, x)
        return x

    def run_part(self, part: str) -> None:
        """Enqueue "gradient", "update" or "step" (both) once, for measurement."""
        if part != "update":
            self._gradient.run()
        if part != "gradient":
            self._update()

    def _enqueue(self) -> None:
        self._gradient.run()
        self._update()

    def _update(self) -> None:
        held = self._held
        self._launch(
            "stg_step",
            *(pointer(self._x), pointer(self._grad)),
            *(pointer(self._known if held else 0), pointer(self._values if held else 0)),
            *(pointer(self._energy), pointer(self._rows), pointer(self._walk)),
            *(pointer(self._numbers), ctypes.c_uint64(self._size), ctypes.c_uint32(ROWS)),
        )

    def _launch(self, kernel: str, *arguments: Any) -> None:
        self.device.launch(kernel, (blocks(self._size), self.shape[0]), *arguments)

    def _hold(self) -> None:
        if self._held:
            self._launch(
                "stg_hold",
                *(pointer(self._x), pointer(self._known), pointer(self._values)),
                ctypes.c_uint64(self._size),
            )

    def _set_held(self, held: bool) -> None:
        if held != self._held:
            self._forget_graph()  # the addresses are part of it
        self._held = held

    def _forget_graph(self) -> None:
        if self._graph is not None:
            self.device.drop(self._graph)
            self._graph = None

    def _read_rows(self) -> Float32:
        rows = np.empty((int(self._state["row"][0]), self.shape[0]), np.float32)
        if rows.size:
            self.device.download(self._rows, rows)
        return rows


def buffer_bytes(shape: Shape) -> int:
    """Device memory of chains that nothing clamps, without the gradient's own, bytes."""
    values, chains = 4 * prod(shape), shape[0]
    return total([values, values, 4 * chains, 4 * chains * ROWS, WALK.itemsize, 8 * chains])


def check_memory(device: CudaDevice, shape: Shape, needed: int) -> None:
    """Refuse what will not fit, before the walk starts.

    Raises:
        StgError: says how much is needed, how much is free, and how many chains would fit.
    """
    free, _ = device.memory()
    if needed > free:
        raise too_large(device, shape, needed, free)


def too_large(device: CudaDevice, shape: Shape, needed: int, free: int) -> StgError:
    """The error of a job that needs more memory than there is, bytes."""
    fit = free * shape[0] // max(needed, 1)
    what = "x".join(str(extent) for extent in shape)
    way = f"{fit} would fit" if fit else "not even one fits; make the video smaller"
    return StgError(
        f"{device.name}: chains of {what} need {needed / 2**30:.1f} GiB and {free / 2**30:.1f} GiB "
        f"are free: {way}"
    )
