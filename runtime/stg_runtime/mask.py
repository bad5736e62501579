"""Masks: which pixels of a video are given, from files or generated patterns.

A mask that a user hands in marks what is to be removed and filled: white, or nonzero in an .npy.
In memory it is the opposite, an `observed_mask`, bool (T, H, W), True where the pixel is given.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from stg_runtime import cdnet
from stg_runtime.errors import InputError
from stg_runtime.fill import pull_push
from stg_runtime.video import (
    MAX_BYTES,
    Frames,
    count_clips,
    load_array,
    read_clip,
    resize_frames,
)

Mask = NDArray[np.bool_]

THRESHOLD = 128
"""Grey level from which on a pixel of a mask's picture is white: hidden."""

# A mask that went through a lossy codec has grey seams along its edges; more grey than this share
# of all pixels, between a quarter and three quarters of the range, is no mask.
_GREY = (64, 192)
_MOST_GREY = 0.02

_PATTERN = re.compile(r"(region|fixed-region|frames|salt-pepper):(.*)", re.DOTALL)

LABELS = "cdnet"
"""As a mask: what moves, by the labels of the scene in CDnet's layout that the video is."""

PATTERNS = "region:PX, fixed-region:PX, frames:SHARE, salt-pepper:SHARE"


@dataclass(frozen=True)
class MaskedClip:
    """A prepared clip of which some pixels are hidden.

    Attributes:
        frames: uint8, (T, H, W, 3); hidden pixels are 0.
        observed_mask: True where the pixel is given, (T, H, W).
        fps: frames per second.
        truth: what the hidden pixels were, uint8 like `frames`, where a generated pattern hid them;
            None of a user's mask, whose hidden pixels are nobody's truth.
    """

    frames: Frames
    observed_mask: Mask
    fps: float
    truth: Frames | None


def is_pattern(mask: str) -> bool:
    """Does this name a generated pattern, not a file?"""
    return _PATTERN.fullmatch(mask) is not None


def generate(pattern: str, shape: tuple[int, int, int], seed: int) -> Mask:
    """A mask of one of the paper's kinds.

    `region:60` hides a square of 60 pixels, at another random place in every frame;
    `fixed-region:60` at one place in all frames; `frames:0.5` hides that share of the frames, whole
    ones, at random; `salt-pepper:0.5` each pixel with that chance.

    Args:
        pattern: as above.
        shape: (T, H, W) of the prepared clip.
        seed: of the choice.

    Returns:
        observed_mask: False where hidden.

    Raises:
        InputError: not such a pattern, or out of range for the shape.

    Source: "Synthesizing Dynamic Patterns by Spatial-Temporal Generative ConvNet", CVPR 2017,
    section on learning from incomplete data: single region, missing frames, salt and pepper.
    """
    match = _PATTERN.fullmatch(pattern)
    if match is None:
        raise InputError(f"--mask {pattern}: expected a file or one of {PATTERNS}")
    kind, text = match[1], match[2]
    length, height, width = shape
    rng = np.random.default_rng(seed)
    hidden = np.zeros(shape, bool)
    if kind.endswith("region"):
        if not re.fullmatch(r"[0-9]{1,5}", text):
            raise InputError(f"--mask {pattern}: expected a side in pixels, for instance {kind}:20")
        side = int(text)
        if not 1 <= side <= min(height, width) or side == height == width:
            raise InputError(
                f"--mask {pattern}: the square must fit into the clip's {height}x{width} pixels "
                f"and leave some; give 1 to {min(height, width) - (height == width)}"
            )
        places = 1 if kind == "fixed-region" else length
        top = rng.integers(height - side + 1, size=places)
        left = rng.integers(width - side + 1, size=places)
        for t in range(length):
            y, x = top[t % places], left[t % places]
            hidden[t, y : y + side, x : x + side] = True
        return ~hidden
    try:
        share = float(text)
    except ValueError:
        share = -1.0
    if not 0 < share < 1:
        raise InputError(
            f"--mask {pattern}: expected a share above 0 and below 1, for instance {kind}:0.5"
        )
    if kind == "frames":
        count = round(share * length)
        if not 0 < count < length:
            raise InputError(
                f"--mask {pattern}: hides {count} of {length} frames; give a share that hides "
                "some and leaves some, or more --frames"
            )
        hidden[rng.permutation(length)[:count]] = True
    else:
        hidden = rng.random(shape) < share
    return _check_some(~hidden, f"--mask {pattern}")


def read_mask(
    path: Path,
    shape: tuple[int, int, int],
    *,
    start: int = 0,
    resize: bool = False,
    video: str = "the video",
    length: int | None = None,
) -> Mask:
    """A user's mask for a video: a video, an image, a folder of images, or an .npy.

    White, or nonzero in an .npy, is hidden. One picture serves for all frames.

    Args:
        path: the file or folder.
        shape: (T, H, W) that is wanted: the part of the video that is used, at the video's own
            size, before any crop.
        start: first frame of that part.
        resize: bring a mask of another size or length to the video's, by nearest neighbours in
            space and time.
        video: name of the video, for messages.
        length: frames of the whole video; None when `shape` reaches its end.

    Returns:
        observed_mask, (T, H, W): False where hidden.

    Raises:
        InputError: not a readable mask, not two-valued, of another size or length, or it hides
            everything or nothing.
    """
    whole = (length or start + shape[0], *shape[1:])

    def check(found: tuple[int, ...]) -> None:
        if found[1:] != whole[1:] and not resize:
            raise InputError(
                f"{path}: the mask is {found[1]}x{found[2]}, {video} is {whole[1]}x{whole[2]} "
                "(height x width); pass --mask-resize to bring it to that size"
            )
        if found[0] not in (1, whole[0]) and not resize:
            raise InputError(
                f"{path}: the mask has {found[0]} frames, {video} has {whole[0]}; one frame serves "
                "for all, or pass --mask-resize to stretch it"
            )

    hidden = _two_valued(path, check)
    index = [
        (np.arange(new) * old // new) if old != new else np.arange(new)
        for old, new in zip(hidden.shape, whole, strict=True)
    ]
    part = hidden[index[0][start : start + shape[0]]]
    observed: Mask = ~part[:, index[1][:, None], index[2]]
    return observed


def _check_some(observed_mask: Mask, name: str) -> Mask:
    """Refuse a mask with nothing to do or nothing to go by."""
    if observed_mask.all():
        raise InputError(
            f"{name}: nothing is hidden in the part of the video that is used; white (nonzero) "
            "marks what is to be filled"
        )
    if not observed_mask.any():
        raise InputError(
            f"{name}: everything is hidden in the part of the video that is used; white (nonzero) "
            "marks what is to be filled, black what is kept"
        )
    return observed_mask


def _two_valued(path: Path, check: Callable[[tuple[int, ...]], None]) -> Mask:
    """True where a mask file is white, (T, H, W).

    Args:
        path: of the mask.
        check: refuses a wrong shape; of an array before its values are read.
    """
    if path.suffix.lower() == ".npy" and path.is_file() and path.stat().st_size:
        array = load_array(path)
        if array.ndim == 5 and array.shape[0] == 1:
            array = array[0]
        if array.ndim == 2:
            array = array[None]
        coloured = array.ndim == 4 and array.shape[-1] in (1, 3)
        if array.ndim != 3 + coloured or array.dtype.kind not in "buif" or 0 in array.shape:
            raise InputError(
                f"{path}: {array.dtype} of shape {array.shape}; expected a mask of T x H x W or "
                "H x W, nonzero where hidden"
            )
        if array.nbytes > MAX_BYTES:
            raise InputError(f"{path}: a mask of more than {MAX_BYTES >> 30} GiB")
        check(array.shape[:3])
        hidden: Mask = np.empty(array.shape[:3], bool)
        values = np.empty(0, array.dtype)
        for place, frame in enumerate(array):  # one at a time: they are sorted on the way
            if coloured:
                frame = frame.max(-1) if array.dtype.kind in "bui" else frame[..., 0]
            values = np.unique(np.append(values, np.unique(frame)))
            if len(values) > 2:
                raise InputError(
                    f"{path}: not two-valued, it holds {len(values)} different values or more; "
                    "nonzero means hidden: threshold it first, for instance mask > 127"
                )
            hidden[place] = frame != 0
        return hidden
    levels = read_clip(path).frames if count_clips(path) == 1 else None
    assert levels is not None  # several clips: an .npy, read above
    check(levels.shape[:3])
    grey = np.stack([frame.max(-1) if _coloured(frame) else frame[..., 0] for frame in levels])
    between = float(((grey > _GREY[0]) & (grey < _GREY[1])).mean())
    if between > _MOST_GREY:
        raise InputError(
            f"{path}: not two-valued, {between:.0%} of its pixels lie between grey levels "
            f"{_GREY[0]} and {_GREY[1]}; a mask is black (kept) and white (hidden), and the "
            f"threshold is {THRESHOLD}"
        )
    white: Mask = grey >= THRESHOLD
    return white


def _coloured(frame: Frames) -> bool:
    return bool((frame != frame[..., :1]).any())


def conceal(frames: Frames, observed_mask: Mask) -> Frames:
    """A copy with zeros where hidden; what was there is read by nothing after this."""
    return np.where(observed_mask[..., None], frames, np.uint8(0))


def read_masked_clip(
    path: Path,
    mask: str,
    *,
    size: tuple[int, int] | None = None,
    frames: int | None = None,
    start: int = 0,
    crop: tuple[int, int, int, int] | None = None,
    clip: int | None = None,
    mask_resize: bool = False,
    mask_grow: int = 0,
    seed: int = 0,
) -> MaskedClip:
    """Read and prepare a clip and its mask together, so that hidden pixels touch nothing.

    A pattern is laid over the prepared clip. A user's mask fits the video as it is stored; what it
    hides is first replaced by a smooth fill from its surroundings (`pull_push`), and only then is
    the video cropped and resized: the filter, which mixes neighbours, finds no hidden value. The
    mask is cropped alike and resized to the nearest pixel.

    Args:
        path: the video; see `read_clip`, also for `size`, `frames`, `start`, `crop` and `clip`.
        mask: file name, a pattern (see `generate`), or `LABELS` or the folder of a scene in CDnet's
            layout: what its labels say moves, and the edges of that.
        size: see `read_clip`.
        frames: see `read_clip`.
        start: see `read_clip`.
        crop: see `read_clip`.
        clip: see `read_clip`.
        mask_resize: see `read_mask`.
        mask_grow: pixels, of the video as it is stored, by which a user's mask hides more on every
            side: codecs smear an object's colours over its edge.
        seed: of a pattern.

    Raises:
        InputError: see `read_clip`, `generate` and `read_mask`.
    """
    if is_pattern(mask):
        if mask_resize or mask_grow:
            raise InputError(
                f"--mask {mask}: a pattern is drawn to fit; leave --mask-resize and --mask-grow out"
            )
        whole = read_clip(path, size=size, frames=frames, start=start, crop=crop, clip=clip)
        height, width = whole.frames.shape[1:3]
        observed = generate(mask, (len(whole.frames), height, width), seed)
        return MaskedClip(conceal(whole.frames, observed), observed, whole.fps, whole.frames)
    scene = path if mask == LABELS else Path(mask)
    if mask == LABELS and not cdnet.is_cdnet(path):
        raise InputError(
            f"--mask {LABELS}: {path} is no scene in CDnet's layout (a folder with input/, and "
            "groundtruth/ beside it); give a mask file"
        )
    if not scene.exists():
        raise InputError(f"--mask {mask}: no such file or folder, nor one of {PATTERNS}, {LABELS}")
    if cdnet.is_cdnet(scene):
        source = read_clip(path, frames=frames, start=start, clip=clip)
        kept = source.frames
        observed = ~cdnet.hidden_mask(scene, start=start, frames=len(kept))
        if observed.shape != kept.shape[:3]:
            raise InputError(
                f"--mask {mask}: the labels of {scene} are "
                f"{observed.shape[1]}x{observed.shape[2]}, {path} is "
                f"{kept.shape[1]}x{kept.shape[2]} (height x width); they must fit"
            )
    else:
        # The whole video: the mask must be as long, and only decoding says how long that is.
        source = read_clip(path, clip=clip)
        length = len(source.frames)
        end = length if frames is None else start + frames
        if start >= length or end > length:
            read_clip(path, frames=frames, start=start, clip=clip)  # says what is wrong
            raise AssertionError("the clip was long enough")
        kept = source.frames[start:end]
        observed = read_mask(
            Path(mask),
            (len(kept), *kept.shape[1:3]),
            start=start,
            resize=mask_resize,
            video=str(path),
            length=length,
        )
    if mask_grow:
        observed = np.stack([~dilate(~frame, mask_grow) for frame in observed])
    kept = soften(kept, observed)
    if crop is not None:
        x, y, width, height = crop
        if x + width > kept.shape[2] or y + height > kept.shape[1]:
            read_clip(path, frames=1, crop=crop, clip=clip)  # says what is wrong
        kept = kept[:, y : y + height, x : x + width]
        observed = observed[:, y : y + height, x : x + width]
    if size is not None and size != kept.shape[1:3]:
        kept, observed = resize_frames(kept, size), resize_mask(observed, size)
    _check_some(observed, f"--mask {mask}")
    return MaskedClip(conceal(kept, observed), observed, source.fps, None)


def soften(frames: Frames, observed_mask: Mask) -> Frames:
    """A copy whose hidden pixels are filled smoothly from the same frame; never from themselves."""
    out = conceal(frames, observed_mask)
    for frame, observed in zip(out, observed_mask, strict=True):
        if observed.any() and not observed.all():
            smooth = pull_push(frame.transpose(2, 0, 1).astype(np.float32), observed)
            levels = np.clip(np.rint(smooth), 0, 255).astype(np.uint8).transpose(1, 2, 0)
            frame[~observed] = levels[~observed]
    return out


def resize_mask(observed_mask: Mask, size: tuple[int, int]) -> Mask:
    """Cut at the centre to the aspect ratio of `size`, as `resize_frames` does, nearest pixel."""
    height, width = observed_mask.shape[1:]
    scale = min(width / size[1], height / size[0])
    top, left = (height - scale * size[0]) / 2, (width - scale * size[1]) / 2
    rows = np.clip((top + scale * (np.arange(size[0]) + 0.5)).astype(int), 0, height - 1)
    columns = np.clip((left + scale * (np.arange(size[1]) + 0.5)).astype(int), 0, width - 1)
    return observed_mask[:, rows[:, None], columns]


def dilate(mask: Mask, by: int) -> Mask:
    """True within `by` pixels of a True one along each axis, (H, W)."""
    for axis in (0, 1):
        count = np.cumsum(mask, axis=axis, dtype=np.int64)
        size = mask.shape[axis]
        high = np.minimum(np.arange(size) + by, size - 1)
        low = np.arange(size) - by - 1
        below = np.where(
            (low >= 0).reshape((-1, 1) if axis == 0 else (1, -1)),
            count.take(np.maximum(low, 0), axis),
            0,
        )
        mask = count.take(high, axis) > below
    return mask
