"""benchmarks/training_loop.py: what it measures is what it says."""

import importlib.util
from pathlib import Path

import pytest

from guidedflow.training import loop

FILE = Path(__file__).parents[2] / "benchmarks" / "training_loop.py"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("training_loop", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def task(script, tiny):
    tiny.log.every = 4
    return lambda: loop.build(script.only_training(tiny, rounds=3))


def test_the_loop_is_compared_with_its_step_alone(script, task, capsys):
    wait, overhead = script.measure(task(), "tiny")
    assert 0 <= wait < 1
    assert overhead > -1
    assert "3 are counted" in capsys.readouterr().out


def test_a_loop_that_dawdles_is_found_out(script, task, monkeypatch):
    """A step takes some tenths of a millisecond here, and milliseconds of work are put beside each."""
    after = loop.Run._after_step

    def dawdles(self, *arguments):
        sum(range(200_000))
        after(self, *arguments)

    monkeypatch.setattr(loop.Run, "_after_step", dawdles)
    assert script.measure(task(), "tiny")[1] > script.AIMS["host overhead"]


def test_an_input_that_dawdles_is_found_out(script, task, monkeypatch):
    slow = task()
    read = type(slow.dataset.source).gather

    def dawdles(self, indices):
        sum(range(5_000_000))
        return read(self, indices)

    monkeypatch.setattr(type(slow.dataset.source), "gather", dawdles)
    assert script.measure(slow, "tiny")[0] > script.AIMS["waiting for input"]
