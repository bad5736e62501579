"""Contact sheets: evenly spaced frames of several videos in one picture."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from stg_runtime.errors import InputError
from stg_runtime.files import atomic_path, write_failed
from stg_runtime.video import MAX_PIXELS, Frames

_LABEL_HEIGHT = 16
_GAP = 4
_LONGEST_JPEG = 65_500  # pixels of a side that Pillow writes


def contact_sheet(
    rows: Sequence[tuple[str, Frames]], *, columns: int = 8, width: int = 1280
) -> Frames:
    """Draw one row of frames per video, each row with its label above.

    Args:
        rows: label and video, uint8, (T, H, W, 3), of one size; lengths may differ.
        columns: frames per row, evenly spaced from the first to the last.
        width: of the sheet at most, pixels; small frames are enlarged by a whole factor, as far as
            the sheet has no more than `MAX_PIXELS` then.

    Returns:
        The sheet, uint8, (height, width, 3).

    Raises:
        InputError: it would have more than `MAX_PIXELS` even so.
    """
    from PIL import Image, ImageDraw, ImageFont

    height, frame_width = rows[0][1].shape[1:3]
    columns = min(columns, max(len(video) for _, video in rows))

    def extent(factor: int) -> tuple[int, int]:
        row_height = _LABEL_HEIGHT + height * factor + _GAP
        return columns * (frame_width * factor + _GAP) + _GAP, len(rows) * row_height

    factor = max(1, ((width - _GAP) // columns - _GAP) // frame_width)
    while factor > 1 and math.prod(extent(factor)) > MAX_PIXELS:
        factor -= 1
    across, down = extent(factor)
    if across * down > MAX_PIXELS:
        raise InputError(
            f"a sheet of {len(rows)} rows of {columns} frames of {height}x{frame_width} would be "
            f"{across}x{down} pixels, more than {MAX_PIXELS}; pass fewer videos or --columns"
        )
    cell_width, cell_height = frame_width * factor, height * factor
    row_height = down // len(rows)
    sheet = Image.new("RGB", (across, down), (24, 24, 24))
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(12)
    for row, (label, video) in enumerate(rows):
        top = row * row_height
        draw.text((_GAP, top), label, fill=(230, 230, 230), font=font)
        for column, t in enumerate(np.linspace(0, len(video) - 1, columns).round().astype(int)):
            frame = Image.fromarray(video[t]).resize(
                (cell_width, cell_height), Image.Resampling.BICUBIC
            )
            sheet.paste(frame, (_GAP + column * (cell_width + _GAP), top + _LABEL_HEIGHT))
    return np.asarray(sheet)


def save_image(path: Path, image: Frames) -> None:
    """Write an image, (H, W, 3), in the format of the suffix, whole or not at all.

    Raises:
        InputError: it is too long or wide for the format.
        StgError: it could not be written.
    """
    from PIL import Image

    if path.suffix.lower() in (".jpg", ".jpeg") and max(image.shape[:2]) > _LONGEST_JPEG:
        raise InputError(
            f"{path}: a picture of {image.shape[1]}x{image.shape[0]} pixels is more than JPEG "
            f"holds, {_LONGEST_JPEG} a side; write .png"
        )
    with atomic_path(path) as temporary:
        try:
            Image.fromarray(image).save(temporary)
        except OSError as error:
            raise write_failed(path, error) from error
