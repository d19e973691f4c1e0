"""The README tells the truth: its example runs, its functions, files and commands exist."""

import importlib
import re
import subprocess
import sys
from pathlib import Path

import numpy as np

import guidedflow
from guidedflow.cli import COMMANDS

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "README.md").read_text()


def test_the_example_runs_without_a_network_library():
    code = re.search(r"```python\n(.*?)```", TEXT, re.DOTALL).group(1)
    check = "\nimport sys\nassert not {'flax', 'optax', 'orbax'} & set(sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code + check], capture_output=True, text=True, check=True
    )
    values = np.array([float(number) for number in re.findall(r"-?\d+\.\d+", done.stdout)])
    # Guided samples of class i % 2 lie on its side, beyond what 8 draws of N(+-2, 0.5) reach.
    assert np.all(np.sign(values) == np.tile([-1, 1], len(values) // 2))


def test_every_function_of_the_tables_exists():
    rows = [line.split("|") for line in TEXT.splitlines() if line.startswith("| ")]
    names = [
        name
        for row in rows
        if len(row) > 3 and "function" not in row[2]
        for name in re.findall(r"`([a-z_.]+)", row[2])
    ]
    assert len(names) > 40
    for name in names:
        if name.endswith("_") or name in ("guidedflow.guidance", "times."):
            continue  # a family, written with an ellipsis
        *modules, last = name.split(".")
        home = importlib.import_module(".".join(["guidedflow", *(modules or ["guidance"])]))
        if not modules and not hasattr(home, last):
            home = guidedflow
        assert hasattr(home, last), name


def test_every_file_it_points_to_is_there():
    for target in re.findall(r"\]\(([^)#]+)\)", TEXT):
        assert (ROOT / target).exists(), target


def test_every_command_exists():
    named = set(re.findall(r"^guidedflow +(\w+)", TEXT, re.MULTILINE))
    assert named <= set(COMMANDS)
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"^make ([\w-]+)", TEXT, re.MULTILINE)) <= targets
