"""Image files to arrays of the configured size: decode, turn upright, crop at the centre, resize."""

import io
import os
from pathlib import Path
from typing import BinaryIO

import numpy as np
from jaxtyping import UInt8
from PIL import Image

_MODES = {1: "L", 3: "RGB"}

# The formats that are decoded, whatever the suffix of a file. For others Pillow would run Ghostscript.
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "DIB", "GIF", "TIFF")

# Errors of Pillow and the file system for files that are not images or are damaged.
DECODE_ERRORS = (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError)

# EXIF tag 0x0112 says how to turn the stored image upright; 1 means no turn.
_ORIENTATION = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SWAP_SIDES = {_UPRIGHT[number] for number in (5, 6, 7, 8)}
_EIGHT_BITS = {"1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr"}
_WHITE = (255, 255, 255, 255)


def size_of(image_size: int | tuple[int, int] | list[int]) -> tuple[int, int]:
    """Return (height, width) from a side or a pair.

    Raises:
      ValueError: it is not one or two positive integers.
    """
    pair = (image_size, image_size) if isinstance(image_size, int) else tuple(image_size)
    if len(pair) != 2 or not all(isinstance(side, int) and side > 0 for side in pair):
        raise ValueError(f"expected image_size as a side or (height, width), got {image_size!r}")
    return pair


def check_channels(channels: int) -> None:
    """Raise ValueError unless `channels` is 1 (grey) or 3 (red, green, blue)."""
    if channels not in _MODES:
        raise ValueError(f"expected 1 or 3 channels, got {channels}")


def decode_file(
    file: bytes | os.PathLike, size: tuple[int, int], channels: int
) -> UInt8[np.ndarray, "h w c"]:
    """Decode an image upright, scale it to cover `size`, and crop it at the centre.

    The filter is bicubic; its support grows with the scale, so that shrinking does not alias. Of an
    animation or several pages the first is decoded. Transparent parts are drawn over white. Of 16 bits
    the high 8 are used. Colour profiles are not applied.

    Args:
      file: the bytes of the file, or its path.
      size: (height, width) of the result.
      channels: 1 for grey, 3 for colour.
    Raises:
      OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError: the file is not a
        complete image, its pixel format has no known white level, or it exceeds Pillow's size limit.
    """
    opened: BinaryIO | os.PathLike = io.BytesIO(file) if isinstance(file, bytes) else file
    with Image.open(opened, formats=FORMATS) as picture:
        _check_mode(picture)
        if picture.format in ("JPEG", "MPO"):
            # JPEG can decode at 1/2, 1/4 or 1/8 scale with much less work. At least twice the target
            # size is kept, so that the filter below determines the result.
            target = (2 * size[1], 2 * size[0])
            swapped = _orientation(picture) in _SWAP_SIDES
            picture.draft(_MODES[channels], target[::-1] if swapped else target)
        picture.load()
        turn = _orientation(picture)  # None for TIFF, which Pillow has already turned.
        plain = _eight_bits(picture).convert(_MODES[channels])
        return cover(plain if turn is None else plain.transpose(turn), size, channels)


def check_header(file: Path) -> None:
    """Raise one of `DECODE_ERRORS` unless a file begins like an image that `decode_file` can read."""
    with Image.open(file, formats=FORMATS) as picture:
        _check_mode(picture)


def _check_mode(picture: Image.Image) -> None:
    """Raise ValueError if the white level of an image's pixel format is not known."""
    known = picture.mode in _EIGHT_BITS or picture.mode == "F" or _is_16_bits(picture)
    if not known:
        raise ValueError(f"pixels of mode {picture.mode} in {picture.format} are not supported")


def _is_16_bits(picture: Image.Image) -> bool:
    # Older versions of Pillow read 16-bit PNG as 32-bit integers.
    return picture.mode.startswith("I;16") or (picture.mode, picture.format) == ("I", "PNG")


def _orientation(picture: Image.Image) -> Image.Transpose | None:
    try:
        return _UPRIGHT.get(picture.getexif().get(_ORIENTATION, 1))
    except Exception:
        # Damaged EXIF raises many kinds of errors, but the pixels are complete.
        return None


def _eight_bits(picture: Image.Image) -> Image.Image:
    """Return an opaque image of 8 bits per channel: deeper grey is scaled, transparent parts are white."""
    if _is_16_bits(picture):
        values = np.asarray(picture).astype(np.int64)
        grey = ((values + 128) // 257).astype(np.uint8)
        clear = picture.info.get("transparency")
        return Image.fromarray(grey if clear is None else np.where(values == clear, 255, grey))
    if picture.mode == "F":
        values = np.asarray(picture)
        low, high = float(np.min(values)), float(np.max(values))
        if not (low >= 0 and high <= 1):
            raise ValueError(f"floating-point pixels lie from {low:g} to {high:g}, expected 0 to 1")
        return Image.fromarray(np.rint(values * 255).astype(np.uint8))
    if not picture.has_transparency_data:
        return picture
    ground = Image.new("RGBA", picture.size, _WHITE)
    ground.alpha_composite(picture.convert("RGBA"))
    return ground


def resize_array(
    image: UInt8[np.ndarray, "h w c"], size: tuple[int, int]
) -> UInt8[np.ndarray, "H W c"]:
    """Resize and centre-crop stored bytes, as `decode_file` does."""
    if image.shape[:2] == size:
        return image
    channels = image.shape[2]
    picture = Image.fromarray(image[..., 0] if channels == 1 else image)
    return cover(picture, size, channels)


def cover(picture: Image.Image, size: tuple[int, int], channels: int) -> UInt8[np.ndarray, "h w c"]:
    """Scale an image until it just covers `size`, and crop it at the centre.

    The image is cropped first and only the rest is scaled, so memory is bounded by the image and by
    `size` for every aspect ratio.
    """
    height, width = size
    if picture.size != (width, height):
        scale = max(height / picture.height, width / picture.width)
        across = max(width, round(picture.width * scale))
        down = max(height, round(picture.height * scale))
        left, top = (across - width) // 2, (down - height) // 2
        x, y = picture.width / across, picture.height / down
        right, bottom = (
            min((left + width) * x, picture.width),
            min((top + height) * y, picture.height),
        )
        picture = picture.resize(
            (width, height), Image.Resampling.BICUBIC, (left * x, top * y, right, bottom)
        )
    return np.asarray(picture, np.uint8).reshape(height, width, channels)
