"""The size of an image, as one number or two."""


def height_and_width(image_size: int | tuple[int, int]) -> tuple[int, int]:
    """Return (height, width); one number means a square.

    Raises:
      ValueError: not one or two positive integers.
    """
    size = (image_size, image_size) if isinstance(image_size, int) else tuple(image_size)
    if len(size) != 2 or not all(isinstance(side, int) and side > 0 for side in size):
        raise ValueError(f"image_size: expected one or two positive integers, got {image_size}")
    return size
