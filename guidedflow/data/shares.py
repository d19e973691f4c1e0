"""Shares of a split: "train[:90%]" and "train[90%:]" of sets that lie in one piece."""

import dataclasses
import re

import numpy as np
from jaxtyping import Int

from guidedflow.data.dataset import Dataset, Indices, Source
from guidedflow.data.draws import permutation

_FORM = re.compile(r"([^\[\]]+)\[(?:(\d+)%)?:(?:(\d+)%)?\]")


def parse(split: str) -> tuple[str, tuple[int, int] | None]:
    """Return the name of a split and the percentages that a share of it lies between, or None.

    Raises:
      ValueError: a share that is not written as "train[:90%]", or that holds nothing.
    """
    if "[" not in split:
        return split, None
    form = _FORM.fullmatch(split)
    low, high = (int(form[2] or 0), int(form[3] or 100)) if form else (0, 0)
    if form is None or not low < high <= 100:
        raise ValueError(
            f"expected a split like 'train', 'train[:90%]' or 'train[90%:]', got {split!r}"
        )
    return form[1], (low, high)


@dataclasses.dataclass(frozen=True, eq=False)
class _Part:
    whole: Source
    chosen: Int[np.ndarray, "n"]

    def __len__(self) -> int:
        return len(self.chosen)

    def gather(self, indices: Indices) -> dict[str, np.ndarray]:
        return self.whole.gather(self.chosen[indices])


def share(dataset: Dataset, split: str, percent: tuple[int, int] | None) -> Dataset:
    """Return the examples between two percentages of an order that mixes the classes.

    The order is a fixed function of the number of examples, so shares that meet have no example in
    common and leave none out.

    Args:
      split: as it was asked for, which becomes part of the identity.
      percent: (low, high); None for all of them.
    Raises:
      ValueError: no example lies between them.
    """
    if percent is None:
        return dataset
    low, high = (round(dataset.length * percentage / 100) for percentage in percent)
    chosen = np.sort(permutation(0, 0, dataset.length)[low:high])
    if not len(chosen):
        raise ValueError(f"the split {split!r} of {dataset.length} examples holds none")
    return dataclasses.replace(
        dataset,
        source=_Part(dataset.source, chosen),
        identity={**dataset.identity, "split": split, "length": len(chosen)},
    )
