"""The short form of `make torture`: one kill, three flips."""

import random
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))
import torture
from compiling import QUICKLY

pytestmark = pytest.mark.slow


def test_a_killed_run_ends_bit_identical_and_flipped_bits_are_found(tmp_path, monkeypatch):
    monkeypatch.setitem(torture.FIELDS, "steps", 60)
    monkeypatch.setattr(torture, "STEPS", 60)
    monkeypatch.setattr(torture, "FLAGS", QUICKLY)
    dice = random.Random(0)
    assert torture.torture_kills(tmp_path, 1, dice)
    assert torture.torture_flips(tmp_path, 3, dice)
