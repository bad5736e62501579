"""Is what a chain came to worth delivering? Not finite, dead or saturated chains are reported.

Nothing here replaces a value: a chain that went wrong is an error that says where, and no file.
"""

from __future__ import annotations

import math
from typing import Final

import numpy as np
from numpy.typing import NDArray

from stg_runtime.artifact import Metadata
from stg_runtime.errors import DivergenceError
from stg_runtime.langevin import Float32
from stg_runtime.video import Frames

SATURATED: Final = 0.99
"""Share of values beyond 0..255 from which on a video is clipping, no longer a picture."""

_FEW = 64  # values; a video of fewer may well be of one colour
_SAMPLE = 4096  # values that are looked at first
_ROUNDING = 1e-6  # of x / sigma^2 in float32, relative; a network that is on differs by more


def is_silent(x: Float32, energy_grad: Float32, reference_std: float) -> bool:
    """Is the gradient the Gaussian reference's alone, x / sigma^2: every top ReLU off?

    Args:
        x: one chain, model units, any shape.
        energy_grad: dE/dx there, same shape.
        reference_std: sigma, model units.
    """
    flat, grad = x.reshape(-1), energy_grad.reshape(-1)
    every = max(1, flat.size // _SAMPLE)
    return _same(flat[::every], grad[::every], reference_std) and (
        every == 1 or _same(flat, grad, reference_std)
    )


def _same(x: Float32, grad: Float32, reference_std: float) -> bool:
    error = np.abs(grad * np.float32(reference_std**2) - x)
    return bool((error <= _ROUNDING * np.abs(x)).all())


def silent(who: str, since: int, n_steps: int, energy: float) -> DivergenceError:
    """The error of a chain whose network says nothing any more."""
    return DivergenceError(
        f"{who}: the network is silent from step {since} of {n_steps} on (all ReLUs off, the "
        f"gradient is the Gaussian reference's alone; energy {energy:.4g}), so this is noise and "
        "not delivered; take fewer --steps, or train the model longer or at a smaller step"
    )


def check_levels(x: Float32, mean: NDArray[np.float32], scale: float, who: str, doing: str) -> None:
    """Refuse values nearly all of which lie beyond black and white.

    Args:
        x: (C, T, H, W), model units, finite.
        mean: see `to_pixels`.
        scale: grey levels per model unit.
        who: the chain and its seed.
        doing: where it stands, for the message.

    Raises:
        DivergenceError: it is saturated.
    """
    beyond = 0
    for t in range(x.shape[1]):
        levels = x[:, t] * np.float32(scale) + (mean[:, t] if mean.ndim == 4 else mean)
        beyond += int(np.count_nonzero((levels < -0.5) | (levels > 255.5)))
    check_share(beyond, x.size, who, doing)


def check_share(beyond: int, count: int, who: str, doing: str) -> None:
    """Refuse a share of values beyond 0..255; see `check_levels`."""
    if count >= _FEW and beyond >= SATURATED * count:
        raise DivergenceError(
            f"{who} is saturated {doing}: {beyond / count:.1%} of its values lie beyond black and "
            "white; not delivered. Take fewer --steps, or train the model at a smaller step"
        )


def check_pixels(video: Frames, who: str, doing: str) -> None:
    """Refuse a video of one colour.

    Args:
        video: uint8, (T, H, W, C).
        who: the chain and its seed.
        doing: where it stands, for the message.

    Raises:
        DivergenceError: all pixels are equal.
    """
    if video.size >= _FEW and (video == video[:1, :1, :1]).all():
        colour = ", ".join(map(str, video[0, 0, 0]))
        raise DivergenceError(
            f"{who} is dead {doing}: all pixels are ({colour}); not delivered. Train the model "
            "longer, or with a larger noise_scale"
        )


def not_finite(
    who: str, step: int, energy: float, before: float | None, metadata: Metadata
) -> DivergenceError:
    """The error of a chain that left the finite numbers, with its step and energies.

    Args:
        who: the chain and its seed.
        step: whose energy is not finite, or the last one.
        energy: of that step.
        before: energy of the step before, or None.
        metadata: of the model.
    """
    earlier = "" if before is None else f", the one before {before:.4g}"
    way_out = (
        "the model computes in float16, which overflows at 65504: export the run again with "
        "--precision fp32"
        if metadata.precision == "fp16" and (before is None or math.isfinite(before))
        else f"the model was trained for {metadata.n_steps} steps of size {metadata.step_size:g}"
    )
    return DivergenceError(
        f"{who} became non-finite at step {step} (energy {energy}{earlier}); {way_out}"
    )
