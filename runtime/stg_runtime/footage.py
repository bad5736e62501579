"""Given video that a synthesis begins from, or that its ends are held to."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from stg_runtime.artifact import Metadata, Size
from stg_runtime.errors import InputError
from stg_runtime.spot import NO_WRAP, Wrap
from stg_runtime.video import Frames, iter_frames, no_frames, read_clip, to_model
from stg_runtime.windows import locked, reach

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from stg_runtime.backends.base import Chains
    from stg_runtime.langevin import Float32


@dataclass(frozen=True)
class Footage:
    """Given video, model units.

    Attributes:
        init: that the walk begins from, (C, T, H, W) of the walk; None for noise alone.
        strength: share of noise in the beginning, above 0, at most 1; see `begin`.
        before, after: frames that the ends of the walk are held to, (C, T, H, W); None for free
            ends.
    """

    init: Float32 | None = None
    strength: float = 1.0
    before: Float32 | None = None
    after: Float32 | None = None

    @property
    def context(self) -> tuple[int, int]:
        """Frames held at the beginning and at the end."""
        before, after = (0 if x is None else x.shape[1] for x in (self.before, self.after))
        return before, after


def first_step(metadata: Metadata, n_steps: int, strength: float) -> int:
    """The Langevin step that a walk from given video begins with.

    The reference alone leaves (1 - a)^j of the first noise after j steps, a = step_size^2 / (2
    reference_std^2). A start with `strength` of the noise therefore stands where a walk from noise
    stands after log(strength) / log(1 - a) steps, and those are skipped. A walk that keeps more of
    its first noise than that (spot noise, small a) skips at most 1 - strength of its steps.

    Args:
        metadata: of the model.
        n_steps: of the walk from noise, K.
        strength: share of noise in the beginning, above 0, at most 1.

    Returns:
        1 (strength 1) to K.
    """
    kept = 1 - metadata.step_size**2 / (2 * metadata.reference_std**2)
    if kept <= 0:
        return 1
    skipped = min(math.log(strength) / math.log(kept), (1 - strength) * n_steps)
    return 1 + min(n_steps - 1, round(skipped))


def begin(
    chains: Chains,
    metadata: Metadata,
    footage: Footage,
    n_steps: int,
    wrap: Wrap = NO_WRAP,
) -> int:
    """Bring started chains, which hold their first noise, to where their walk begins.

    From given video V the beginning is (1 - strength) V + strength Z, Z the first noise; steps that
    a walk from noise would have behind it then are skipped (`first_step`). At strength 1 nothing of
    V is left, and the video is that of the same seed without V. Between given ends spot noise is
    drawn given them (`Spot.between`). `wrap`: for T, H, W, does the axis go round?

    Returns:
        The number of the first step.
    """
    step = 1
    if footage.init is not None:
        share = np.float32(footage.strength)
        x = chains.read()
        for t in range(x.shape[2]):  # a frame at a time: what is made meanwhile is small
            x[:, :, t] *= share
            x[:, :, t] += footage.init[:, t] * (1 - share)
        chains.write(x)
        step = first_step(metadata, n_steps, footage.strength)
    before, after = footage.context
    if before or after:
        values = np.zeros(chains.shape, np.float32)
        known = np.zeros((chains.shape[2], 1, 1), bool)
        if footage.before is not None:
            values[:, :, :before] = footage.before
            known[:before] = True
        if footage.after is not None:
            values[:, :, -after:] = footage.after
            known[-after:] = True
        if metadata.spot_noise is not None:
            ends = values[:, :, :before], values[:, :, chains.shape[2] - after :]
            made = [
                metadata.spot_noise.between(x, first, last, wrap)
                for x, first, last in zip(chains.read(), *ends, strict=True)
            ]
            chains.write(np.stack(made))
        chains.clamp(values, np.broadcast_to(known, chains.shape))
    return step


def read_init(
    path: Path, metadata: Metadata, size: Size, margin: int, margin_size: int = 0
) -> Float32:
    """The first frames of a video as a beginning, (C, T, H, W), model units.

    Args:
        path: any video that `read_clip` reads; brought to the size.
        metadata: of the model.
        size: of the finished video.
        margin: frames added at each end, which repeat the first and the last one.
        margin_size: pixels added at each edge, which repeat those there.

    Raises:
        InputError: see `read_clip`.
    """
    frames = read_clip(path, size=(size.height, size.width), frames=size.frames).frames
    if margin or margin_size:
        # Pixels, not what is left of them without the mean: that may be of the whole walk.
        edge = (margin_size, margin_size)
        frames = np.pad(frames, [(margin, margin), edge, edge, (0, 0)], mode="edge")
    return to_model(frames, metadata.mean(), metadata.pixel_scale)


def read_ends(
    paths: Sequence[Path], metadata: Metadata, size: tuple[int, int]
) -> tuple[Float32, Float32]:
    """The end of a first and the beginning of a second clip, as far as the network looks.

    No more than these frames are in memory at a time.

    Args:
        paths: of the two clips, brought to the size.
        metadata: of the model.
        size: (height, width), pixels.

    Returns:
        Two arrays, (C, T, H, W), model units.

    Raises:
        InputError: see `iter_frames`; the length of the model is fixed.
    """
    known = reach(metadata, "T")
    if known is None:
        raise InputError(f"--between: {locked(metadata, 'T')}")
    first, second = (iter_frames(path, size=size) for path in paths)
    before = _stack(deque(first, maxlen=known.overlap), paths[0])
    after = _stack(islice(second, known.overlap), paths[1])
    mean, scale = metadata.mean(), metadata.pixel_scale
    return to_model(before, mean, scale), to_model(after, mean, scale)


def _stack(frames: Iterable[Frames], path: Path) -> Frames:
    kept = list(frames)
    if not kept:
        raise no_frames(path)
    return np.stack(kept)


def check_strength(strength: float) -> None:
    """Refuse a strength out of range.

    Raises:
        InputError: not above 0 and at most 1.
    """
    if not 0 < strength <= 1:
        raise InputError(f"--strength {strength:g}: above 0 (the video) and at most 1 (noise)")
