"""Batches as a pure function of (seed, step): a grain MapDataset that is indexed, never iterated.

There is no iterator state, so a resumed run needs only the step, and any process can compute its
own rows of any batch.  A batch may span two epochs: positions [k * length, (k + 1) * length) of the
stream contain every example exactly once, in the k-th order.
"""

import dataclasses
import functools
import operator
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, Int, UInt64

from guidedflow.data.dataset import Batch, Dataset
from guidedflow.data.draws import coins, hash64, permutation

if TYPE_CHECKING:
    import grain

Transform = Callable[
    [Float[np.ndarray, "n h w c"], UInt64[np.ndarray, "n"]], Float[np.ndarray, "n h w c"]
]

# Different uses of one seed must have different draws.
_ORDER, _EXAMPLE, _FLIP = 0, 1, 2


def random_flip(
    image: Float[np.ndarray, "n h w c"], draws: UInt64[np.ndarray, "n"]
) -> Float[np.ndarray, "n h w c"]:
    """Mirror each image left to right with probability 1/2, independently."""
    flip = coins(draws, _FLIP)
    flipped = image.copy()
    flipped[flip] = image[flip, :, ::-1]
    return flipped


@dataclasses.dataclass(frozen=True, eq=False)
class _Positions:
    """Grain source: element k is the k-th block of `local` positions in the endless stream."""

    local: int

    def __len__(self) -> int:
        return sys.maxsize // self.local

    def __getitem__(self, block: int) -> Int[np.ndarray, "local"]:
        return np.arange(block * self.local, (block + 1) * self.local)


@dataclasses.dataclass(frozen=True, eq=False)
class _Order:
    """Stream positions to example indices, through the order of each epoch."""

    seed: int
    length: int
    shuffle: bool

    def __call__(self, positions: Int[np.ndarray, "n"]) -> Int[np.ndarray, "n"]:
        epochs, within = np.divmod(positions, self.length)
        if not self.shuffle:
            return within
        indices = np.empty_like(within)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            indices[here] = _epoch_order(self.seed, int(epoch), self.length)[within[here]]
        return indices


# More than one, because a batch may span two epochs and prefetching threads may read either.
@functools.lru_cache(maxsize=4)
def _epoch_order(seed: int, epoch: int, length: int) -> Int[np.ndarray, "length"]:
    order = permutation(int(hash64(seed, _ORDER)[0]), epoch, length)
    order.flags.writeable = False
    return order


@dataclasses.dataclass(frozen=True, eq=False)
class _Read:
    """Stream positions to decoded, transformed examples."""

    dataset: Dataset
    order: _Order
    transform: Transform | None

    def __call__(self, positions: Int[np.ndarray, "n"]) -> Batch:
        draws = hash64(self.order.seed, _EXAMPLE, positions)
        batch = self.dataset.read(self.order(positions), draws)
        if self.transform is not None:
            batch["image"] = self.transform(batch["image"], draws)
        return batch


@dataclasses.dataclass(frozen=True, eq=False)
class Batches:
    """`batches[step]` is this process's rows of the global batch of that step, for any step >= 0.

    Attributes:
      batch: rows of the global batch.
      local: rows of this process: process p holds rows [p * local, (p + 1) * local).
    """

    blocks: "grain.MapDataset"
    batch: int
    local: int
    process_index: int

    def __getitem__(self, step: int) -> Batch:
        step = operator.index(step)
        if not 0 <= step < sys.maxsize // self.batch:
            raise ValueError(f"expected a step from 0 on, got {step}")
        return self.blocks[step * (self.batch // self.local) + self.process_index]


def pipeline(
    dataset: Dataset,
    seed: int,
    batch: int,
    *,
    process_index: int = 0,
    process_count: int = 1,
    transform: Transform | None = None,
    shuffle: bool = True,
) -> Batches:
    """Return the endless shuffled stream of batches of a data set.

    batches[s] row r  =  example order_k(i),  k * length + i = s * batch + r

    The global batch depends on (seed, step) alone: concatenating the rows of all processes gives
    the same array for any number of them.

    Args:
      dataset: what to read.
      seed: determines the order of every epoch and every draw of `transform`; 0 <= seed < 2^63.
      batch: rows of the global batch, over all processes; may exceed the data set's length.
      process_index, process_count: select the rows that this process reads.
      transform: image augmentation such as `random_flip`; it takes a 64-bit draw per example, which is
        new in every epoch.
      shuffle: False keeps the stored order in every epoch.
    Raises:
      ValueError: the batch is not divisible by the number of processes, or a number is out of range.
    """
    for name, value, low in (
        ("seed", seed, 0),
        ("batch", batch, 1),
        ("process_count", process_count, 1),
        ("process_index", process_index, 0),
    ):
        if not isinstance(value, int | np.integer) or not low <= value < 2**63:
            raise ValueError(f"expected {name} as an integer from {low} on, got {value!r}")
    if process_index >= process_count:
        raise ValueError(
            f"expected process_index < process_count, got {process_index} of {process_count}"
        )
    if batch % process_count:
        raise ValueError(
            f"a global batch of {batch} does not divide over {process_count} processes"
        )
    if not dataset.length:
        raise ValueError(f"the data set {dataset.identity.get('name')!r} has no examples")
    local = batch // process_count
    order = _Order(int(seed), dataset.length, shuffle)
    # The pipeline carries whole blocks of positions, so a batch costs one gather instead of `local`
    # Python calls.
    # The import is here because sampling loads this module but never calls this function.
    import grain

    blocks = grain.MapDataset.source(_Positions(local)).map(_Read(dataset, order, transform))
    return Batches(blocks, int(batch), local, int(process_index))
