"""Images as a condition: one an example, of a fixed shape."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from guidedflow.conditions.condition import PartRates


@dataclasses.dataclass(frozen=True)
class Images:
    """One image an example, float (b, h, w, c).

    Attributes:
      shape: (h, w, c); c is 1 or 3 where files are to be read.
      field: its name in a batch of data.
      blank: the null: one value for all, or an image as nested tuples.
    Raises:
      ValueError: a shape that is none, or a `blank` that does not fit it.
    """

    shape: tuple[int, int, int]
    field: str = "source"
    blank: Any = 0.0

    def __post_init__(self) -> None:
        shape = tuple(self.shape)
        if len(shape) != 3 or min(shape) < 1:
            raise ValueError(f"expected a shape (h, w, c), got {self.shape}")
        blank = np.asarray(self.blank, np.float32)
        if blank.shape not in ((), shape):
            raise ValueError(
                f"expected the null as a number or of shape {shape}, got {blank.shape}"
            )
        object.__setattr__(self, "shape", shape)
        object.__setattr__(self, "blank", _tuples(blank.tolist()))

    @property
    def fields(self) -> tuple[str, ...]:
        """A batch of data has the images by one name."""
        return (self.field,)

    @property
    def gives(self) -> frozenset[str]:
        """A network must take an image beside x."""
        return frozenset({"image"})

    @property
    def part_rates(self) -> PartRates:
        """An image is dropped whole."""
        return ()

    def from_batch(self, batch: Mapping[str, Any]) -> Float[Array, "b h w c"]:
        """Return the images of a batch of data."""
        return batch[self.field]

    def parse(self, asked: Sequence[Any]) -> Float[np.ndarray, "b h w c"]:
        """Return images; an entry is an array in [-1, 1], or the name of a file, cut to the shape.

        Raises:
          ValueError: an array of another shape, or a file that is no picture.
        """
        return np.stack([self._image(entry) for entry in asked])

    def _image(self, entry: Any) -> Float[np.ndarray, "h w c"]:
        if isinstance(entry, str | Path):
            return self._read(Path(entry))
        image = np.asarray(entry, np.float32)
        if image.shape != self.shape:
            raise ValueError(f"expected an image of shape {self.shape}, got {image.shape}")
        return image

    def _read(self, file: Path) -> Float[np.ndarray, "h w c"]:
        from PIL import Image, ImageOps

        height, width, channels = self.shape
        if channels not in (1, 3):
            raise ValueError(f"a file is an image of 1 or 3 channels, and this one has {channels}")
        try:
            with Image.open(file) as picture:
                wanted = picture.convert("L" if channels == 1 else "RGB")
                fitted = ImageOps.fit(wanted, (width, height))
        except OSError as error:
            raise ValueError(f"cannot read the image {file}: {error}") from error
        return (np.asarray(fitted, np.float32) / np.float32(127.5) - 1).reshape(self.shape)

    def null(self) -> Float[Array, "h w c"]:
        """Return the blank image."""
        return jnp.broadcast_to(jnp.asarray(self.blank, jnp.float32), self.shape)

    def example(self, batch: int) -> Float[Array, "b h w c"]:
        """Return the blank image for all."""
        return jnp.broadcast_to(self.null(), (batch, *self.shape))

    def every(self) -> list[Any]:
        """Images have no list."""
        return []

    def say(self, cond: Float[np.ndarray, "b h w c"]) -> list[str]:
        """Return "image 1", "image 2" and so on, equal images by one name."""
        names: dict[bytes, str] = {}
        rows = [np.asarray(image).tobytes() for image in cond]
        return [names.setdefault(row, f"image {len(names) + 1}") for row in rows]

    def identity(self) -> dict[str, Any]:
        """A checkpoint must have images of the same shape."""
        return {"condition_shape": list(self.shape)}

    def network_fields(self) -> dict[str, Any]:
        """A network sees the shape from the condition itself."""
        return {}

    def description(self) -> dict[str, Any]:
        """Return the fields."""
        return {"shape": list(self.shape), "field": self.field, "blank": self.blank}


def _tuples(nested: Any) -> Any:
    return tuple(map(_tuples, nested)) if isinstance(nested, list) else nested
