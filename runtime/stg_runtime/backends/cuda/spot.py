"""Spot noise made on the device: the first noise of chains never passes through the host.

The same counted stream as `stg_runtime.spot`, and the same formulas, so that one seed gives one
video everywhere, up to rounding. Only what the clip itself is goes to the device, once.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence
from functools import cache
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from stg_runtime.backends.cuda.device import MOST_ROWS, THREADS, CudaDevice, pointer, total
from stg_runtime.langevin import INITIAL, Float32, standard_normal
from stg_runtime.spot import Shape, Spot, Wrap, cell_weights, folded, luminance_weights

_RADICES: Final = (9, 8, 5, 4, 3, 2)
"""Those that langevin.cu has a butterfly in registers for."""

KEPT_BYTES: Final = 1 << 29
"""Of clips that stay on the device; a model of many clips may lose the oldest."""


class _Along(ctypes.Structure):
    """`Along` of langevin.cu."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("noise", "spot", "colours", "mean", "spread")),
        *((name, ctypes.c_void_p) for name in ("rows", "columns", "weights")),
        *((name, ctypes.c_uint32) for name in ("channels", "T", "H", "W", "frames", "grid")),
        *((name, ctypes.c_uint32) for name in ("length", "reserved")),
    )


class _Filter(ctypes.Structure):
    """`Filter` of langevin.cu."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("source", "to", "mean", "taps")),
        *((name, ctypes.c_uint32) for name in ("channels", "T", "H", "W", "reach", "wrap")),
    )


class _Pass(ctypes.Structure):
    """`Pass` of langevin.cu."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("source", "to", "roots")),
        *((name, ctypes.c_uint32) for name in ("n", "radix", "done", "inner", "count")),
        ("sign", ctypes.c_float),
    )


class _Taken(ctypes.Structure):
    """`Taken` of langevin.cu."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("source", "to")),
        *((name, ctypes.c_uint32) for name in ("T", "H", "W", "torus_h", "torus_w", "channels")),
        ("scale", ctypes.c_float),
        ("mean", ctypes.c_float * 2),
    )


def device_bytes(spot: Spot, shape: Shape, wrap: Wrap) -> int:
    """Device memory that a `DeviceSpot` takes, without what it keeps of further clips."""
    clip = 4 * math.prod(spot.clip(0)[1].shape)
    if spot.axes == "time":
        made = 0 if spot.equalizer is None else 4 * math.prod(shape)
        noise = 4 * spot.noise_size(shape, wrap=wrap)
        return total([clip, clip, made, noise, *_still(clip, shape)])
    torus = 8 * math.prod(spot.torus(shape, wrap))
    return total([torus] * (3 + -(-shape[0] // 2)))


def _still(clip: int, shape: Shape) -> list[int]:
    """Means, deviations and weights of the cells: no more than a frame of the clip each."""
    return [4 * shape[0] * shape[2] * shape[3], 4 * shape[2] * shape[3], 12 * sum(shape[2:])]


class DeviceSpot:
    """Makes the first noise of chains in device memory; nothing is waited for.

    Args:
        device: that the chains live on.
        spot: of the model.
        shape: (C, T, H, W) of a chain.
        wrap: see `Spot.make`.

    Raises:
        DeviceMemoryError: the device has not the memory.
    """

    def __init__(self, device: CudaDevice, spot: Spot, shape: Shape, wrap: Wrap) -> None:
        self.spot, self.wrap = spot, wrap
        self._device, self._shape = device, shape
        self._owned: list[int] = []
        # What each clip has there: its addresses, and how many bytes in all.
        self._clips: dict[int, tuple[list[int], int]] = {}
        try:
            if spot.axes == "time":
                self._prepare_cells()
            else:
                self._prepare_torus()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Give the memory back."""
        while self._owned:
            self._device.free(self._owned.pop())
        for number in list(self._clips):
            self._forget(number)

    def fill(self, x: int, seed: int, numbers: Sequence[int]) -> None:
        """Enqueue the first noise of chains.

        Args:
            x: address of (N, C, T, H, W) float32.
            seed: of the noise.
            numbers: of the chains.
        """
        make = self._along_time if self.spot.axes == "time" else self._along_space_time
        for row, number in enumerate(numbers):
            clip = 0
            if self.spot.count > 1:
                drawn = standard_normal(self.spot.count, seed=seed, chain=number, step=INITIAL)
                clip = int(np.argmax(drawn))
            make(x + 4 * math.prod(self._shape) * row, seed, number, clip)

    # --- along time

    def _prepare_cells(self) -> None:
        _, _, H, W = self._shape
        length = self.spot.noise_size(self._shape, wrap=self.wrap) - self.spot.count
        self._noise = self._allocate(4 * length)
        self._length = length // self.spot.cells**2
        corners = (_corners(extent, self.spot.cells) for extent in (H, W))
        self._rows, self._columns = (self._uploaded(corner) for corner in corners)
        self._weights = self._uploaded(luminance_weights(self._shape[0]))
        if self.spot.equalizer is not None:
            self._filtered = self._allocate(4 * math.prod(self._shape))
            filters = (self.spot.equalizer.time, self.spot.equalizer.space)
            self._taps = [self._uploaded(np.ascontiguousarray(taps)) for taps in filters]

    def _along_time(self, x: int, seed: int, number: int, clip: int) -> None:
        C, T, H, W = self._shape
        spot, colours, mean, spread = self._loaded(clip)
        self._draw(self._noise, seed, number, self._length * self.spot.cells**2, stride=1)
        frames = self.spot.clip(clip)[1].shape[1]
        addresses = (self._noise, spot, colours, mean, spread, self._rows, self._columns)
        along = _Along(
            *addresses, self._weights, C, T, H, W, frames, self.spot.cells, self._length, 0
        )
        self._device.launch("stg_along", self._rows_of(C * -(-T // 8)), pointer(x), along)
        self._device.launch("stg_colour", self._rows_of(T), pointer(x), along)
        equalizer = self.spot.equalizer
        if equalizer is not None:
            sizes = (C, T, H, W)
            way, back = self._taps
            time = _Filter(x, self._filtered, mean, way, *sizes, equalizer.reach, self.wrap[0])
            self._device.launch("stg_filter_time", self._rows_of(C * T), time)
            reach = len(equalizer.space) // 2
            space = _Filter(self._filtered, x, mean, back, *sizes, reach, 0)
            self._device.launch("stg_filter_space", self._rows_of(C * T), space)

    # --- along space and time

    def _prepare_torus(self) -> None:
        self._torus = self.spot.torus(self._shape, self.wrap)
        self._size = math.prod(self._torus)
        assert self._size < 1 << 32, "the kernels count places in 32 bits"
        self._spaces = [self._allocate(8 * self._size) for _ in range(3)]
        tables = {extent: _roots(extent) for extent in self._torus if extent > 1}
        self._roots = {extent: self._uploaded(table) for extent, table in tables.items()}

    def _along_space_time(self, x: int, seed: int, number: int, clip: int) -> None:
        C, T, H, W = self._shape
        spectra = self._loaded(clip)
        mean = self.spot.clip(clip)[0].ravel()
        noise, product, spare = self._spaces
        self._draw(noise, seed, number, self._size, stride=2)
        noise, product = self._transform(noise, product, 1)
        for pair, spectrum in enumerate(spectra):
            # A real signal's spectrum times that of a + i b, both real: back come both results.
            places = (pointer(product), pointer(noise), pointer(spectrum))
            size = ctypes.c_uint64(self._size)
            self._device.launch("stg_times", self._grid(self._size), *places, size)
            made, spare = self._transform(product, spare, -1)
            channels = min(2, C - 2 * pair)
            offset = (ctypes.c_float * 2)(*mean[2 * pair : 2 * pair + channels])
            to = x + 4 * 2 * pair * T * H * W
            sizes = (T, H, W, *self._torus[1:], channels)
            taken = _Taken(made, to, *sizes, 1 / self._size, offset)
            self._device.launch("stg_take", self._grid(T * H * W), taken)
            product = made  # free again

    def _transform(self, a: int, b: int, sign: int) -> tuple[int, int]:
        """Fourier transform of the torus at `a`; its address, and the other one's."""
        for axis, extent in enumerate(self._torus):
            done = 1
            for radix in factors(extent):
                count = self._size // radix
                inner = math.prod(self._torus[axis + 1 :])
                step = _Pass(a, b, self._roots[extent], extent, radix, done, inner, count, sign)
                self._device.launch("stg_fourier", self._grid(count), step)
                a, b = b, a
                done *= radix
        return a, b

    # --- both

    def _loaded(self, clip: int) -> list[int]:
        """Addresses of what a clip has on the device; uploaded at its first use."""
        if clip not in self._clips:
            arrays = self._arrays(clip)
            size = sum(array.nbytes for array in arrays)
            while self._clips and sum(own for _, own in self._clips.values()) + size > KEPT_BYTES:
                self._forget(next(iter(self._clips)))
            addresses: list[int] = []
            self._clips[clip] = addresses, size
            for array in arrays:
                addresses.append(self._device.allocate(array.nbytes))
                self._device.upload(addresses[-1], array)
            if self.spot.axes == "space-time":
                for address in addresses:
                    made, _ = self._transform(address, self._spaces[0], 1)
                    if made != address:
                        self._device.copy(address, made, 8 * self._size)
        return self._clips[clip][0]

    def _arrays(self, clip: int) -> list[NDArray[Any]]:
        mean, spot = self.spot.clip(clip)
        if self.spot.axes == "time":
            arrays = [spot, self.spot.colours(clip), mean, self.spot.deviation(clip)]
            return [np.ascontiguousarray(array) for array in arrays]
        around = folded(spot, self._torus)
        return [
            np.ascontiguousarray(
                around[c] + np.complex64(1j) * (around[c + 1] if c + 1 < len(around) else 0),
                np.complex64,
            )
            for c in range(0, len(around), 2)
        ]

    def _forget(self, clip: int) -> None:
        for address in self._clips.pop(clip)[0]:
            self._device.free(address)

    def _draw(self, to: int, seed: int, number: int, size: int, *, stride: int) -> None:
        skip = self.spot.count
        self._device.launch(
            "stg_draw",
            self._grid(-(-(size + skip) // 8)),
            *(pointer(to), ctypes.c_uint64(seed), ctypes.c_uint64(number)),
            *(ctypes.c_uint32(skip), ctypes.c_uint64(size), ctypes.c_uint32(stride)),
        )

    def _rows_of(self, count: int) -> tuple[int, int]:
        """Blocks for the places of a frame, and for rows of which each may take several in turn."""
        return -(-self._shape[2] * self._shape[3] // THREADS), min(count, MOST_ROWS)

    @staticmethod
    def _grid(count: int) -> tuple[int, int]:
        return -(-count // THREADS), 1

    def _allocate(self, size: int) -> int:
        address = self._device.allocate(size)
        self._owned.append(address)
        return address

    def _uploaded(self, array: NDArray[Any]) -> int:
        address = self._allocate(array.nbytes)
        self._device.upload(address, array)
        return address


def factors(n: int) -> list[int]:
    """Radices whose product is n, largest first; primes above 5 last."""
    found = []
    for radix in _RADICES:
        while n % radix == 0:
            found.append(radix)
            n //= radix
    divisor = 7
    while n > 1:
        if n % divisor == 0:
            found.append(divisor)
            n //= divisor
        elif divisor * divisor > n:
            divisor = n
        else:
            divisor += 2
    return found


@cache
def _roots(n: int) -> Float32:
    """exp(-2 pi i k / n), k < n, (n, 2)."""
    turns = np.exp(-2j * np.pi * np.arange(n) / n)
    return np.ascontiguousarray(np.stack([turns.real, turns.imag], 1), np.float32)


def _corners(extent: int, cells: int) -> Float32:
    """For each place of a row the first of the two cells it lies in, and their weights."""
    weights = cell_weights(extent, cells)
    if cells == 1:  # the kernel takes it twice
        weights = np.concatenate([weights, np.zeros_like(weights)])
    first = np.minimum((weights > 0).argmax(0), len(weights) - 2)
    place = np.arange(extent)
    return np.stack([first, weights[first, place], weights[first + 1, place]], 1).astype(np.float32)
