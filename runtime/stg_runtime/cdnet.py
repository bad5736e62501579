"""Folders in the layout of the CDnet 2014 change detection benchmark: scenes and their masks.

input/in000001.jpg ...         the frames
groundtruth/gt000001.png ...   one label per pixel: 0 static, 50 hard shadow, 85 outside the region
                               of interest, 170 unknown motion (the edges of what moves), 255 moving
ROI.bmp                        the region of interest: pixels above 0
temporalROI.txt                "first last": the frames, counted from 1, that were labelled

Frames are counted from 0 here, in the order of `input/`, as everywhere in stg.

Source: Y. Wang et al., "CDnet 2014: An Expanded Change Detection Benchmark Dataset", CVPR Workshops
2014; changedetection.net.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from stg_runtime.errors import InputError
from stg_runtime.files import check_regular

Mask = NDArray[np.bool_]

STATIC, SHADOW, OUTSIDE, UNKNOWN, MOVING = 0, 50, 85, 170, 255
LABELS: Final = (STATIC, SHADOW, OUTSIDE, UNKNOWN, MOVING)


def is_cdnet(folder: Path) -> bool:
    """Is this a scene in CDnet's layout, by its `input/` folder and what stands beside it?"""
    beside = ("groundtruth", "ROI.bmp", "temporalROI.txt")
    return (folder / "input").is_dir() and any((folder / name).exists() for name in beside)


def frame_paths(folder: Path) -> list[Path]:
    """The frames of a scene, in order.

    Raises:
        InputError: there are none, or one is missing between the first and the last.
    """
    return _numbered(folder / "input", "in")


def labelled_frames(folder: Path) -> range:
    """Numbers, from 0, of the frames that have labels: those of temporalROI.txt, or all.

    Raises:
        InputError: temporalROI.txt is not two rising frame numbers.
    """
    total = len(frame_paths(folder))
    path = folder / "temporalROI.txt"
    if not path.exists():
        return range(total)
    check_regular(path)
    text = path.read_text(encoding="utf-8", errors="replace").split()
    try:
        first, last = (int(part) for part in text)
    except ValueError:
        first, last = 0, 0
    if not 1 <= first <= last:
        raise InputError(
            f"{path}: expected two frame numbers counted from 1, first and last; got "
            f"{' '.join(text)[:60]!r}"
        )
    return range(first - 1, min(last, total))


def region_of_interest(folder: Path) -> Mask | None:
    """True where pixels belong to the region of interest, (H, W); None without ROI.bmp."""
    path = folder / "ROI.bmp"
    return _levels(path) > 0 if path.exists() else None


def labels(folder: Path, *, start: int = 0, frames: int | None = None) -> NDArray[np.uint8]:
    """The ground truth of some frames, uint8, (T, H, W), values of `LABELS`.

    Args:
        folder: of the scene.
        start: first frame, counted from 0 in `input/`.
        frames: how many; None for all from there on that are labelled.

    Raises:
        InputError: frames without labels, images that cannot be read, or of different sizes.
    """
    known = labelled_frames(folder)
    stop = known.stop if frames is None else start + frames
    if start not in known or stop - 1 not in known:
        raise InputError(
            f"{folder}: frames {start} to {stop - 1} are asked for, and {known.start} to "
            f"{known.stop - 1} are labelled (temporalROI.txt); pass --start {known.start} and at "
            f"most --frames {len(known)}"
        )
    paths = _numbered(folder / "groundtruth", "gt")
    if len(paths) < stop:
        raise InputError(
            f"{folder}: groundtruth/ ends at frame {len(paths) - 1}, before {stop - 1}"
        )
    found: list[NDArray[np.uint8]] = []
    for path in paths[start:stop]:
        levels = _levels(path)
        if found and levels.shape != found[0].shape:
            raise InputError(
                f"{path}: {levels.shape[0]}x{levels.shape[1]}, the ones before are "
                f"{found[0].shape[0]}x{found[0].shape[1]} (height x width)"
            )
        strange = np.setdiff1d(levels, LABELS)
        if strange.size:
            raise InputError(
                f"{path}: holds the level {strange[0]}; CDnet's labels are "
                f"{', '.join(map(str, LABELS))}"
            )
        found.append(levels)
    return np.stack(found)


def hidden_mask(
    folder: Path, *, start: int = 0, frames: int | None = None, shadows: bool = False
) -> Mask:
    """What moves in front of the background, as the mask of what is to be filled in.

    Args:
        folder: of the scene.
        start: first frame, counted from 0 in `input/`.
        frames: how many; None for all from there on that are labelled.
        shadows: hide hard shadows too.

    Returns:
        bool, (T, H, W), at the scene's own size: True where the pixel is hidden, that is, labelled
        moving or unknown (the edges of what moves). Pixels outside the region of interest were
        not labelled and count as given; see `unlabelled_mask`.

    Raises:
        InputError: see `labels`.
    """
    found = labels(folder, start=start, frames=frames)
    hidden: Mask = (found == MOVING) | (found == UNKNOWN)
    return hidden | (found == SHADOW) if shadows else hidden


def unlabelled_mask(folder: Path, *, start: int = 0, frames: int | None = None) -> Mask:
    """True where nobody said what moves: outside the region of interest; bool, (T, H, W).

    Raises:
        InputError: see `labels`; ROI.bmp is of another size.
    """
    found: Mask = labels(folder, start=start, frames=frames) == OUTSIDE
    region = region_of_interest(folder)
    if region is None:
        return found
    if region.shape != found.shape[1:]:
        raise InputError(
            f"{folder / 'ROI.bmp'}: {region.shape[0]}x{region.shape[1]}, the labels are "
            f"{found.shape[1]}x{found.shape[2]} (height x width)"
        )
    return found | ~region


def _numbered(folder: Path, prefix: str) -> list[Path]:
    """`PREFIX000001.*`, `PREFIX000002.*`, ... of a folder, without a gap."""
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder, in a scene of CDnet's layout")
    numbered = {}
    for item in folder.iterdir():
        match = re.fullmatch(rf"{prefix}(\d+)\.(jpg|jpeg|png|bmp)", item.name.lower())
        if match:
            numbered[int(match[1])] = item
    if not numbered:
        raise InputError(f"{folder}: holds no {prefix}000001.*, the names that CDnet's frames have")
    for number in range(1, max(numbered) + 1):
        if number not in numbered:
            raise InputError(
                f"{folder}: {prefix}{number:06d} is missing, and others come after it; unpack the "
                "scene again"
            )
    return [numbered[number] for number in sorted(numbered)]


def _levels(path: Path) -> NDArray[np.uint8]:
    """Grey levels of an image, (H, W)."""
    from stg_runtime.video import open_image  # which imports this module

    with open_image(path) as image:
        return np.asarray(image.convert("L"))
