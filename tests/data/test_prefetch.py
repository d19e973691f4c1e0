"""Batches loaded ahead: the same batches, errors where they belong, nothing left running."""

import dataclasses
import threading

import jax
import numpy as np
import pytest

from guidedflow.data import load, pipeline, prefetch


@dataclasses.dataclass(frozen=True)
class FailsAt:
    step: int

    def __getitem__(self, step):
        if step == self.step:
            raise ValueError(f"record of step {step} is bad")
        return np.full(3, step)


def input_threads():
    return [t for t in threading.enumerate() if t.name.startswith("guidedflow-input")]


@pytest.mark.parametrize("options", [{}, {"depth": 5, "threads": 3}, {"depth": 1}])
def test_steps_come_in_order_with_their_batches_on_device(digits_dir, options):
    stream = pipeline(load("digits", data_dir=digits_dir), 0, 16)
    with prefetch(stream, 90, **options) as ahead:
        for expected, (step, batch) in zip(range(90, 100), ahead, strict=False):
            assert step == expected
            assert isinstance(batch["image"], jax.Array)
            assert np.array_equal(batch["image"], stream[step]["image"])


def test_worker_processes_give_the_same_batches(digits_dir):
    stream = pipeline(load("digits", data_dir=digits_dir), 0, 16)
    with prefetch(stream, 3, processes=1) as ahead:
        for _ in range(3):
            step, batch = next(ahead)
            assert np.array_equal(batch["image"], stream[step]["image"])


def test_an_error_is_raised_at_its_step_and_ends_the_threads():
    ahead = prefetch(FailsAt(4), 2, depth=3)
    assert [next(ahead)[0], next(ahead)[0]] == [2, 3]
    with pytest.raises(ValueError, match="record of step 4 is bad"):
        next(ahead)
    assert not input_threads()


def test_an_error_in_putting_on_devices_reaches_the_reader():
    def full(batch):
        raise MemoryError("device is full")

    with prefetch(FailsAt(-1), 0, full) as ahead, pytest.raises(MemoryError, match="full"):
        next(ahead)


def test_closing_ends_every_thread_and_the_iteration():
    ahead = prefetch(FailsAt(-1), depth=4, threads=2)
    next(ahead)
    assert input_threads()
    ahead.close()
    ahead.close()
    assert not input_threads()
    assert list(ahead) == []


def test_batches_are_loaded_before_they_are_asked_for():
    """With depth 3 the fourth batch is not touched until the first is taken."""
    loaded, ready = [], threading.Event()

    class Watched:
        def __getitem__(self, step):
            loaded.append(step)
            if step == 2:
                ready.set()
            return step

    with prefetch(Watched(), device_put=lambda batch: batch, depth=3) as ahead:
        assert ready.wait(10)
        assert loaded == [0, 1, 2]
        assert next(ahead) == (0, 0)


def test_waiting_is_measured():
    gate = threading.Event()

    class Gated:
        def __getitem__(self, step):
            gate.wait(10)
            return step

    with prefetch(Gated(), device_put=lambda batch: batch) as ahead:
        threading.Timer(0.05, gate.set).start()
        next(ahead)
        first = ahead.waited
        assert first > 0.01
        assert next(ahead)[0] == 1
        assert ahead.waited >= first


@pytest.mark.parametrize(
    "wrong", [{"start": -1}, {"depth": 0}, {"threads": 0}, {"processes": -1}, {"depth": 1.5}]
)
def test_numbers_out_of_range_are_refused(wrong):
    (name,) = wrong
    with pytest.raises(ValueError, match=f"expected {name} as an integer"):
        prefetch(FailsAt(-1), **wrong)
