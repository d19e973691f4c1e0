"""The data set type: examples by index, in order, as NHWC images with labels and further arrays."""

import dataclasses
import operator
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from jaxtyping import Float, Int, Shaped, UInt64
from numpy.typing import DTypeLike

from guidedflow.conditions import Condition, Labels, Prompts
from guidedflow.conditions.tokenizer import Tokenize
from guidedflow.data.draws import hash64

Indices = Int[np.ndarray, "n"]
Draws = UInt64[np.ndarray, "n"]
Decode = Callable[[Shaped[np.ndarray, "n h w k"], Draws], Float[np.ndarray, "n h w c"]]


# "image" in [-1, 1] (or scaled latents), "label", and any other array of the set or from a map.
Batch = dict[str, Shaped[np.ndarray, "n ..."]]
Map = Callable[[Batch, Draws], Batch]


class Decoder(Protocol):
    """Decodes latents, as sampled from a network, to images in [-1, 1]."""

    def __call__(self, drawn: Float[np.ndarray, "n h w c"]) -> Float[np.ndarray, "n H W C"]: ...

    def save(self, file: Path) -> dict[str, Any]:
        """Write it to a file; return the values that are needed besides the file to load it again."""


class Source(Protocol):
    """Random access to stored examples; safe to call from several threads at once."""

    def __len__(self) -> int: ...

    def gather(self, indices: Indices) -> Batch:
        """Return these examples as they are stored: "image", "label" (int32), and further arrays.

        All calls return the same names.  Texts are arrays of dtype object.
        """


def decode_pixels(
    stored: Shaped[np.ndarray, "n h w c"], draws: Draws
) -> Float[np.ndarray, "n h w c"]:
    """Convert stored bytes to floats:   x = byte / 127.5 - 1,  in [-1, 1].  `draws` is not used."""
    image = stored.astype(np.float32)
    image /= np.float32(127.5)
    image -= np.float32(1)
    return image


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Dataset:
    """A finite, ordered set of images, with labels and, in some sets, captions.

    Attributes:
      source: the stored examples.
      image_shape: (h, w, c) of one decoded image.
      num_classes: labels are 0 .. num_classes - 1; an unlabelled set has one class.
      identity: plain JSON values that a checkpoint stores and compares, so that a run cannot go on
        with other data; at least name, version, split, length and image_shape.
      class_names: one name per class, or empty.
      decode: stored form to float32, given one 64-bit draw per example.
      decoder: decodes samples of a model of this set, if it is a set of latents; otherwise None.
      maps: applied in order to every batch that is read, with one 64-bit draw per example.
      captions: iterates over the captions of all examples, in order; None if there are none.
      told: the condition of a model of this set, if it is not the one that `condition` finds.
    """

    source: Source
    image_shape: tuple[int, int, int]
    num_classes: int
    identity: Mapping[str, object]
    class_names: tuple[str, ...] = ()
    decode: Decode = decode_pixels
    decoder: Decoder | None = None
    maps: tuple[Map, ...] = ()
    captions: Callable[[], Iterator[tuple[str, ...]]] | None = None
    told: Condition | None = None

    def map(self, change: Map) -> "Dataset":
        """Return this set with `change` applied to every batch, after the existing maps."""
        return dataclasses.replace(self, maps=(*self.maps, change))

    @property
    def condition(self) -> Condition:
        """The condition of a model: `told`, prompts if a tokenizer maps the set, else its labels."""
        if self.told is not None:
            return self.told
        for change in self.maps:
            if isinstance(change, Tokenize):
                return Prompts(change.tokenizer)
        return Labels(self.num_classes, self.class_names)

    def images(self, drawn: Float[np.ndarray, "n h w c"]) -> Float[np.ndarray, "n H W C"]:
        """Return samples of a model as images in [-1, 1]; without a decoder, latents are unchanged."""
        return drawn if self.decoder is None else self.decoder(drawn)

    @property
    def length(self) -> int:
        """The number of examples."""
        return len(self.source)

    def __len__(self) -> int:
        return self.length

    def read(self, indices: Indices, draws: Draws | None = None) -> Batch:
        """Return the examples at `indices`, decoded and mapped.

        Args:
          indices: integers in [0, length).
          draws: one 64-bit word per example for random choices (sampled latents, one of several
            captions); by default a fixed function of the index.
        Raises:
          ValueError: an index is outside the set, or an example cannot be read; the message names it.
        """
        indices = np.asarray(indices)
        if indices.ndim != 1 or not np.issubdtype(indices.dtype, np.integer):
            raise ValueError(
                f"expected a vector of integers as indices, got {indices.dtype}{indices.shape}"
            )
        if indices.size and not (indices.min() >= 0 and indices.max() < self.length):
            raise ValueError(
                f"index out of range: expected 0 to {self.length - 1}, "
                f"got {indices.min()} to {indices.max()}"
            )
        if draws is None:
            draws = hash64(indices)
        batch = dict(self.source.gather(indices))
        batch["image"] = self.decode(batch["image"], draws)
        for change in self.maps:
            batch = change(batch, draws)
        return batch

    def take(self, count: int | None = None) -> Batch:
        """Return the first `count` examples in order (all of them by default), as one batch."""
        count = self.length if count is None else operator.index(count)
        if not 0 < count <= self.length:
            raise ValueError(f"expected 1 to {self.length} examples, got {count}")
        return self.read(np.arange(count))


def remember(
    source: Source, stored_shape: tuple[int, int, int], dtype: DTypeLike, cache_bytes: int
) -> Source:
    """Return a source that keeps the examples it has read if all fit in memory; else the source itself."""
    size = len(source) * int(np.prod(stored_shape)) * np.dtype(dtype).itemsize
    return Remembered(source) if size <= cache_bytes else source


class Remembered:
    """A source that keeps every example it has read, so that later epochs read from memory.

    Memory is used as examples are read.  Two threads may read the same example. Both write the same
    bytes, and the example counts as read only afterwards.
    """

    def __init__(self, source: Source):
        self._source = source
        self._allocate()

    def _allocate(self) -> None:
        self._columns: Batch = {}
        self._known = np.zeros(len(self._source), bool)
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._source)

    def gather(self, indices: Indices) -> Batch:
        fresh = np.unique(indices[~self._known[indices]])
        if fresh.size or not self._columns:
            for name, values in self._source.gather(fresh).items():
                self._column(name, values)[fresh] = values
            self._known[fresh] = True
        return {name: column[indices] for name, column in self._columns.items()}

    def _column(self, name: str, like: np.ndarray) -> np.ndarray:
        with self._lock:
            if name not in self._columns:
                self._columns[name] = np.empty((len(self), *like.shape[1:]), like.dtype)
            return self._columns[name]

    def __getstate__(self) -> dict[str, Any]:
        return {"_source": self._source}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._allocate()
