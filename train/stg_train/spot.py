"""Spot noise in PyTorch, on the device that the chains live on; `stg_runtime.spot` says what it is.

The same function of the same noise, up to rounding. Nothing is copied to the host, not even the
choice of a clip, so that a GPU is not waited for.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from stg_runtime.kriging import smooth_size
from stg_runtime.spot import LEAST_DEVIATION, NO_WRAP, Shape, Spot, cell_weights, luminance_weights


class TorchSpot:
    """Makes first noise from training clips on a device.

    Args:
        spot: what is made; its clips are held on the device.
        device: of the noise.
    """

    def __init__(self, spot: Spot, device: torch.device) -> None:
        self._spot = spot

        def stacked(arrays: list[NDArray[np.float32]]) -> Tensor:
            return torch.from_numpy(np.stack(arrays)).to(device)

        indices = range(spot.count)
        self._means = stacked([spot.clip(i)[0] for i in indices])
        self._clips = stacked([spot.clip(i)[1] for i in indices])  # (M, C, frames, H, W)
        if spot.axes == "time":
            down, across = (cell_weights(size, spot.cells) for size in self._clips.shape[3:])
            self._windows = stacked([np.multiply.outer(a, b) for a in down for b in across])
            self._colours = stacked([spot.colours(i) for i in indices])
            least = np.float32(LEAST_DEVIATION)
            self._deviations = stacked([np.maximum(spot.deviation(i), least) for i in indices])
            self._weights = torch.from_numpy(luminance_weights(self._clips.shape[1])).to(device)
            equalizer = spot.equalizer
            self._taps = None if equalizer is None else stacked([equalizer.time])
            self._kernel = None if equalizer is None else stacked([equalizer.space])

    def noise_size(self, shape: Shape) -> int:
        """See `Spot.noise_size`; a chain in training never goes round."""
        return self._spot.noise_size(shape)

    def make(self, noise: Tensor, shape: Shape) -> Tensor:
        """See `Spot.make`.

        Args:
            noise: standard normal, (`noise_size`,), on the device.
            shape: (C, T, H, W) of the chain.
        """
        count = self._spot.count
        clip, rest = noise[:count].argmax(0, keepdim=True), noise[count:]
        mean = self._means.index_select(0, clip)[0]
        spot = self._clips.index_select(0, clip)[0]
        if self._spot.axes == "space-time":
            torus = self._spot.torus(shape, NO_WRAP)
            spectrum = torch.fft.rfftn(rest.view(torus), dim=(0, 1, 2))
            spectra = torch.fft.rfftn(spot, s=torus, dim=(1, 2, 3)) * spectrum
            made = torch.fft.irfftn(spectra, s=torus, dim=(1, 2, 3))
            inside: Tensor = made[:, : shape[1], : shape[2], : shape[3]]
            return inside + mean
        made = self._along_time(spot, rest, shape)
        colours = self._colours.index_select(0, clip)[0]
        made = self._coloured(made, colours, self._deviations.index_select(0, clip)[0])
        return made if self._taps is None else self._equalized(made - mean) + mean

    def _equalized(self, x: Tensor) -> Tensor:
        """See `stg_runtime.equalizer`; (C, T, H, W)."""
        assert self._taps is not None and self._kernel is not None
        (C, T, H, W), time, space = x.shape, self._taps.shape[1] // 2, self._kernel.shape[1] // 2
        along = F.pad(x.reshape(C, 1, T, H * W), (0, 0, time, time), mode="replicate")
        x = F.conv2d(along, self._taps.view(1, 1, -1, 1))
        frames = F.pad(x.reshape(C * T, 1, H, W), (space,) * 4, mode="replicate")
        made: Tensor = F.conv2d(frames, self._kernel[None]).reshape(C, T, H, W)
        return made

    def _along_time(self, spot: Tensor, noise: Tensor, shape: Shape) -> Tensor:
        """Without the mean, (C, T, H, W)."""
        before = spot.shape[1] - 1
        size = smooth_size(shape[1] + before)  # around the end comes nothing that is kept
        around = noise.view(len(self._windows), -1).T @ self._windows.flatten(1)  # (frames, H W)
        spectra = torch.fft.rfft(spot.flatten(2), n=size, dim=1)
        spectra = spectra * torch.fft.rfft(around, n=size, dim=0)
        made = torch.fft.irfft(spectra, n=size, dim=1)[:, before : before + shape[1]]
        drawn: Tensor = made.reshape(shape)
        return drawn

    def _coloured(self, x: Tensor, colours: Tensor, deviation: Tensor) -> Tensor:
        """The colour that the clip has at each place at the rank of the value there."""
        frames = colours.shape[1]
        if frames == 1:
            return colours.expand(x.shape)
        level = torch.tensordot(self._weights, x, 1) / deviation
        rank = (torch.special.ndtr(level) * frames - 0.5).clamp_(0, frames - 1)
        below = rank.long().clamp_(max=frames - 2)  # (T, H, W)
        share = rank - below
        index = below.expand(x.shape)
        low, high = colours.gather(1, index), colours.gather(1, index + 1)
        coloured: Tensor = low + (high - low) * share
        return coloured
