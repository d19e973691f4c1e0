"""Shares of a split that lies in one piece."""

import numpy as np
import pytest

from guidedflow.data import shares
from guidedflow.data.dataset import Dataset


class Numbered:
    """A hundred pictures a class, sorted by class; a picture is its number."""

    def __len__(self):
        return 200

    def gather(self, indices):
        images = np.broadcast_to(indices[:, None, None, None], (len(indices), 2, 2, 1))
        label = (indices // 100).astype(np.int32)
        return {"image": images.astype(np.uint8), "label": label}


WHOLE = Dataset(
    source=Numbered(), image_shape=(2, 2, 1), num_classes=2, identity={"split": "train"}
)


def numbers(split):
    part = shares.share(WHOLE, split, shares.parse(split)[1]).take()
    return np.rint((part["image"][:, 0, 0, 0] + 1) * 127.5).astype(int), part["label"]


def test_shares_that_meet_divide_the_split_and_mix_the_classes():
    (most, _), (rest, labels) = numbers("train[:90%]"), numbers("train[90%:]")
    assert (len(most), len(rest)) == (180, 20)
    assert sorted([*most, *rest]) == list(range(200))
    # Both classes have as many: a draw without replacement misses 4 to 16 of 20 once in 10^3.
    assert 4 <= np.sum(labels) <= 16
    assert set(numbers("train[10%:20%]")[0]) < set(most)
    part = shares.share(WHOLE, "train[90%:]", (90, 100))
    assert (part.identity["split"], part.identity["length"]) == ("train[90%:]", 20)


def test_without_a_share_the_split_is_whole():
    assert shares.parse("train") == ("train", None)
    assert shares.share(WHOLE, "train", None) is WHOLE


@pytest.mark.parametrize(
    "split", ["train[", "train[90]", "train[:101%]", "train[50%:50%]", "train[:0%]", "[:5%]"]
)
def test_what_is_no_share_is_refused(split):
    with pytest.raises(ValueError, match="expected a split like"):
        shares.parse(split)


def test_a_share_without_examples_is_refused():
    with pytest.raises(ValueError, match="of 200 examples holds none"):
        shares.share(WHOLE, "train[:0%]", (0, 0))
