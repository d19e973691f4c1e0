"""The CPU kernels are one folder and one row: without both everything else works.

`make without-kernels` runs every other test on such a copy; here its modules are imported and a network
is trained and sampled.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROW = r"^    \*\*dict\.fromkeys\(\(.*\), _native\),\n"
CODE = """
import importlib, pkgutil, guidedflow
for module in pkgutil.walk_packages(guidedflow.__path__, "guidedflow."):
    importlib.import_module(module.name)
assert "guidedflow.native" not in importlib.sys.modules
from guidedflow import cli
from guidedflow.training import loop
from guidedflow.training.config import defaults
config = defaults()
config.network.preset, config.batch, config.steps, config.optimizer.warm_up = "tiny", 4, 1, 1
config.held_out.every = config.sample.every = 0
loop.train(config, __import__("pathlib").Path("run"), display=False)
assert cli.main(["sample", "--workdir=run", "--steps=1", "--each=1", "--out=grid.png"]) == 0
"""


def copy_without_kernels(folder):
    """Copy the package, the tests and what they read; then take the kernels out."""
    for name in ("guidedflow", "tests", "configs", "docs", "experiments", "benchmarks"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("README.md", "Makefile", "pyproject.toml"):
        shutil.copy(ROOT / name, folder / name)
    shutil.rmtree(folder / "guidedflow" / "native")
    shutil.rmtree(folder / "tests" / "native")
    table = folder / "guidedflow" / "training" / "registries.py"
    text, rows = re.subn(ROW, "", table.read_text(), flags=re.MULTILINE)
    assert rows == 1
    table.write_text(text)


@pytest.mark.slow
def test_without_the_folder_and_its_row_the_rest_works(tmp_path):
    copy_without_kernels(tmp_path)
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "JAX_COMPILATION_CACHE_DIR": ""}
    done = subprocess.run(
        [sys.executable, "-c", CODE], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


if __name__ == "__main__":
    copy_without_kernels(Path(sys.argv[1]))
