"""benchmarks/training_loop.py: what it measures is what it says."""

import importlib.util
from pathlib import Path

import numpy as np
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
    assert np.isfinite(overhead)
    assert "3 are counted" in capsys.readouterr().out
