"""From a picture's bytes to the configured size: decode, resize the short side, centre crop."""

import io
import os
from typing import BinaryIO

import numpy as np
from jaxtyping import UInt8
from PIL import Image

_MODES = {1: "L", 3: "RGB"}

# What Pillow and the file system raise for files that are not, or no longer, pictures.
DECODE_ERRORS = (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError)


def size_of(image_size: int | tuple[int, int] | list[int]) -> tuple[int, int]:
    """Return (height, width) from a side or a pair.

    Raises:
      ValueError: not one or two positive integers.
    """
    pair = (image_size, image_size) if isinstance(image_size, int) else tuple(image_size)
    if len(pair) != 2 or not all(isinstance(side, int) and side > 0 for side in pair):
        raise ValueError(f"expected image_size as a side or (height, width), got {image_size!r}")
    return pair


def check_channels(channels: int) -> None:
    """Raise ValueError where `channels` is neither 1 (grey) nor 3 (red, green, blue)."""
    if channels not in _MODES:
        raise ValueError(f"expected 1 or 3 channels, got {channels}")


def decode_file(
    file: bytes | os.PathLike, size: tuple[int, int], channels: int
) -> UInt8[np.ndarray, "h w c"]:
    """Decode a picture, scale it to cover `size`, and cut out the centre.

    Bicubic with the support widened by the scale, so that shrinking does not alias.

    Args:
      file: the bytes of the file, or its path.
      size: (height, width) of the result.
      channels: 1 for grey, 3 for colour; transparency is dropped.
    Raises:
      OSError, SyntaxError, ValueError, EOFError: the file is not a whole picture.
    """
    opened: BinaryIO | os.PathLike = io.BytesIO(file) if isinstance(file, bytes) else file
    with Image.open(opened) as picture:
        # JPEG decodes at 1/2, 1/4 or 1/8 scale for a fraction of the work; twice the target is
        # kept so that the filter below still decides what is seen.
        picture.draft(_MODES[channels], (2 * size[1], 2 * size[0]))
        return cover(picture.convert(_MODES[channels]), size, channels)


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
    """Scale a picture until it just covers `size`, and cut out the centre."""
    height, width = size
    if picture.size != (width, height):
        scale = max(height / picture.height, width / picture.width)
        scaled = (
            max(width, round(picture.width * scale)),
            max(height, round(picture.height * scale)),
        )
        picture = picture.resize(scaled, Image.Resampling.BICUBIC)
        left, top = (scaled[0] - width) // 2, (scaled[1] - height) // 2
        picture = picture.crop((left, top, left + width, top + height))
    return np.asarray(picture, np.uint8).reshape(height, width, channels)
