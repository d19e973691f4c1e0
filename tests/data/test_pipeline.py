"""A batch is a function of (seed, step), the same for any number of processes."""

import time

import numpy as np
import pytest

from guidedflow.data import load, pipeline, random_flip


def same(one, other):
    return all(np.array_equal(one[key], other[key]) for key in ("image", "label"))


def numbers(batch):
    """Which examples of the `numbered` set a batch holds."""
    return np.rint((batch["image"][:, 0, 0, 0] + 1) * 127.5).astype(int)


@pytest.mark.parametrize("processes", [1, 2, 4])
def test_the_global_batch_is_the_same_for_any_number_of_processes(digits_dir, processes):
    digits = load("digits", data_dir=digits_dir)
    whole = pipeline(digits, 7, 32, transform=random_flip)
    parts = [
        pipeline(digits, 7, 32, process_index=p, process_count=processes, transform=random_flip)
        for p in range(processes)
    ]
    for step in (0, 46, 47, 1000):
        rows = [part[step] for part in parts]
        joined = {key: np.concatenate([r[key] for r in rows]) for key in ("image", "label")}
        assert same(joined, whole[step])


def test_a_batch_does_not_depend_on_what_was_asked_before(digits_dir):
    digits = load("digits", data_dir=digits_dir)
    forwards = [pipeline(digits, 1, 100, transform=random_flip)[step] for step in range(40)]
    stream = pipeline(digits, 1, 100, transform=random_flip)
    for step in reversed(range(40)):
        assert same(stream[step], forwards[step])


@pytest.mark.parametrize("batch", [1, 7, 20, 64])
def test_each_epoch_holds_every_example_once(numbered, batch):
    """Also where batches straddle epochs, or hold several of them."""
    stream = pipeline(numbered(20), 3, batch)
    seen = np.concatenate([numbers(stream[step]) for step in range(3 * 20 // batch + 1)])
    for epoch in range(3 if len(seen) >= 60 else len(seen) // 20):
        assert sorted(seen[20 * epoch : 20 * (epoch + 1)]) == list(range(20))


def test_epochs_and_seeds_are_ordered_differently(numbered):
    orders = [
        tuple(numbers(pipeline(numbered(50), seed, 50)[epoch]))
        for seed in range(5)
        for epoch in range(5)
    ]
    assert len(set(orders)) == 25


def test_orders_are_uniform(numbered):
    """Each example comes first equally often: chi-squared with 9 degrees, mean 9, sd 4.2."""
    stream = pipeline(numbered(10), 0, 10)
    first = np.bincount([numbers(stream[epoch])[0] for epoch in range(2000)], minlength=10)
    assert np.sum((first - 200) ** 2 / 200) < 9 + 5 * 4.25


def test_without_shuffling_the_order_is_the_stored_one(numbered):
    stream = pipeline(numbered(6), 0, 4, shuffle=False)
    assert numbers(stream[0]).tolist() == [0, 1, 2, 3]
    assert numbers(stream[1]).tolist() == [4, 5, 0, 1]


def test_seeking_to_step_one_million_costs_one_batch(digits_dir):
    """A reader that stepped through a million batches would need minutes."""
    stream = pipeline(load("digits", data_dir=digits_dir), 0, 128)
    stream[0]
    began = time.perf_counter()
    batch = stream[10**6]
    assert batch["image"].shape == (128, 8, 8, 1)
    assert time.perf_counter() - began < 5


def test_flips_are_half_of_all_and_new_in_each_epoch(digits_dir):
    digits = load("digits", data_dir=digits_dir)
    plain = pipeline(digits, 0, 1497)
    flipped = pipeline(digits, 0, 1497, transform=random_flip)
    marks = []
    for epoch in range(2):
        before, after = plain[epoch]["image"], flipped[epoch]["image"]
        kept = np.all(before == after, axis=(1, 2, 3))
        mirrored = np.all(before[:, :, ::-1] == after, axis=(1, 2, 3))
        assert np.all(kept | mirrored)
        # Five standard deviations of 1,497 fair coins.
        assert abs(np.mean(~kept) - 0.5) < 5 * 0.5 / np.sqrt(1497)
        order = np.lexsort(before.reshape(1497, -1).T)
        marks.append(kept[order])
    assert 0.4 < np.mean(marks[0] == marks[1]) < 0.6


def test_each_process_reads_only_its_rows(numbered):
    asked = []
    dataset = numbered(100)
    source = dataset.source
    original = type(source).gather
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            type(source), "gather", lambda self, i: (asked.append(len(i)), original(self, i))[1]
        )
        pipeline(dataset, 0, 40, process_index=3, process_count=4)[5]
    assert asked == [10]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch": 10, "process_count": 4}, "batch of 10 does not divide over 4 processes"),
        ({"batch": 0}, "expected batch as an integer from 1 on, got 0"),
        ({"batch": 2.0}, "expected batch as an integer"),
        ({"seed": -1}, "expected seed as an integer from 0 on, got -1"),
        ({"seed": 2**63}, "expected seed"),
        ({"process_index": 2, "process_count": 2}, "process_index < process_count, got 2 of 2"),
    ],
)
def test_numbers_out_of_range_are_refused(numbered, arguments, message):
    with pytest.raises(ValueError, match=message):
        pipeline(numbered(20), **{"seed": 0, "batch": 8, **arguments})


def test_a_negative_step_is_refused(numbered):
    with pytest.raises(ValueError, match="expected a step from 0 on, got -1"):
        pipeline(numbered(20), 0, 4)[-1]


@pytest.mark.parametrize("indices", [[-1], [20], [[0]], [0.5]])
def test_indices_outside_the_set_are_refused(numbered, indices):
    with pytest.raises(ValueError, match=r"ind(ex|ices)"):
        numbered(20).read(np.array(indices))
