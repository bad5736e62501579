"""Contact sheets: evenly spaced frames of several videos in one picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from stg_runtime.files import atomic_path
from stg_runtime.video import Frames

_LABEL_HEIGHT = 16
_GAP = 4


def contact_sheet(
    rows: Sequence[tuple[str, Frames]], *, columns: int = 8, width: int = 1280
) -> Frames:
    """Draw one row of frames per video, each row with its label above.

    Args:
        rows: label and video, uint8, (T, H, W, 3), of one size; lengths may differ.
        columns: frames per row, evenly spaced from the first to the last.
        width: of the sheet at most, pixels; small frames are enlarged by a whole factor.

    Returns:
        The sheet, uint8, (height, width, 3).
    """
    from PIL import Image, ImageDraw, ImageFont

    height, frame_width = rows[0][1].shape[1:3]
    columns = min(columns, max(len(video) for _, video in rows))
    factor = max(1, ((width - _GAP) // columns - _GAP) // frame_width)
    cell_width, cell_height = frame_width * factor, height * factor
    row_height = _LABEL_HEIGHT + cell_height + _GAP
    sheet = Image.new(
        "RGB", (columns * (cell_width + _GAP) + _GAP, len(rows) * row_height), (24, 24, 24)
    )
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
    """Write an image, (H, W, 3), in the format of the suffix, whole or not at all."""
    from PIL import Image

    with atomic_path(path) as temporary:
        Image.fromarray(image).save(temporary)
