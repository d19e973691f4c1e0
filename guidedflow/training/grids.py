"""Grids of samples as PNG, drawn without a plotting library, because importing one takes longer."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw, ImageFont

from guidedflow.conditions import Condition
from guidedflow.files import replacing

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

# Pixels of the image: side of one image at least, size of letters, and space around them.
_CELL, _LETTERS, _SMALLEST, _SPACE = 60, 15, 8, 8


def to_uint8(images: Float[np.ndarray, "n h w c"]) -> UInt8[np.ndarray, "n h w c"]:
    """Round images in [-1, 1] to bytes; values outside are clipped."""
    return np.clip(np.rint((images + 1) * 127.5), 0, 255).astype(np.uint8)


def draw_grid(
    images: np.ndarray,
    rows: int,
    title: str,
    path: Path,
    *,
    columns: Sequence[str] = (),
    row_names: Sequence[str] = (),
    row_title: str = "draw",
    column_title: str = "class",
) -> None:
    """Write a grid of images as PNG, one condition per column.

    Args:
      images: n h w c in [-1, 1], row after row; of latents the first channel is shown.
      columns, row_names: labels of columns and rows; if empty, numbers from 0.
      row_title, column_title: titles of the rows and the columns.
    """
    across = len(images) // rows
    sheet, (height, width) = _sheet(images, rows)
    names = [list(columns) or [str(i) for i in range(across)]]
    names.append(list(row_names) or [str(i) for i in range(rows)])
    across_font, down_font = _fitting(names[0], width), _fitting(names[1], None)
    letters = ImageFont.load_default(_LETTERS)
    left = 3 * _SPACE + _LETTERS + round(max(down_font.getlength(name) for name in names[1]))
    top, bottom = _LETTERS + 2 * _SPACE, 2 * _LETTERS + 4 * _SPACE
    inner = left + sheet.width + _SPACE
    # A title may be wider than a narrow grid.
    full = max(inner, round(letters.getlength(title)) + 2 * _SPACE)
    page = Image.new("RGB", (full, top + sheet.height + bottom), "white")
    page.paste(sheet, (left, top))
    draw = ImageDraw.Draw(page)
    end = top + sheet.height
    middle = left + sheet.width / 2
    draw.text((full / 2, top / 2), title, "black", letters, anchor="mm")
    draw.text((middle, end + _LETTERS + 3 * _SPACE), column_title, "black", letters, anchor="mt")
    for index, name in enumerate(names[0]):
        at = (left + (index + 0.5) * width, end + _SPACE)
        draw.text(at, _cut(name, across_font, width), "black", across_font, anchor="mt")
    for index, name in enumerate(names[1]):
        draw.text(
            (left - _SPACE, top + (index + 0.5) * height), name, "black", down_font, anchor="rm"
        )
    side = _upright(row_title, letters)
    page.paste(side, (_SPACE // 2, top + (sheet.height - side.height) // 2))
    with replacing(path) as temporary:
        page.save(temporary, format="png")


def column_title(condition: Condition) -> str:
    """Return what the columns of a condition's grid are."""
    words = {"label": "class", "prompts": "prompt", "scalars": "numbers"}
    return " and ".join(words.get(name, name) for name in sorted(condition.gives))


def _sheet(images: np.ndarray, rows: int) -> tuple[Image.Image, tuple[float, float]]:
    """Return the images side by side, enlarged by an integer factor, and the spacing of rows and columns."""
    pixels = to_uint8(images if images.shape[-1] in (1, 3) else images[..., :1])
    gap = max(1, pixels.shape[1] // 16)
    pixels = np.pad(pixels, ((0, 0), (gap, 0), (gap, 0), (0, 0)), constant_values=255)
    height, width = pixels.shape[1:3]
    grid = pixels.reshape(rows, -1, height, width, pixels.shape[-1]).transpose(0, 2, 1, 3, 4)
    sheet = grid.reshape(rows * height, -1, pixels.shape[-1])[gap:, gap:]
    times = max(1, round(_CELL / min(height, width)))
    large = np.repeat(np.repeat(sheet, times, axis=0), times, axis=1)
    picture = Image.fromarray(large.squeeze(-1) if large.shape[-1] == 1 else large)
    return picture.convert("RGB"), (times * height, times * width)


def _fitting(names: Sequence[str], room: float | None) -> Font:
    """Return the largest font in which every name fits, or the smallest font."""
    for size in range(_LETTERS, _SMALLEST - 1, -1):
        font = ImageFont.load_default(size)
        if room is None or max(font.getlength(name) for name in names) <= room - 2:
            break
    return font


def _cut(name: str, font: Font, room: float) -> str:
    """Return the name, shortened to fit."""
    while name and font.getlength(name) > room - 2:
        name = name[:-1]
    return name


def _upright(text: str, font: Font) -> Image.Image:
    """Return text that runs from bottom to top."""
    tile = Image.new("RGB", (round(font.getlength(text)) + 2, _LETTERS + 5), "white")
    ImageDraw.Draw(tile).text((1, tile.height / 2), text, "black", font, anchor="lm")
    return tile.rotate(90, expand=True)
