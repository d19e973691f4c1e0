"""The benchmark of a preset on a bare machine: the core and Flax, and nothing else."""

import json
import os
import subprocess
import sys

# What of guidedflow[train] neither the core nor Flax brings along.
ABSENT = [
    "ml_collections", "grain", "array_record", "tensorflow_datasets", "tensorflow", "sklearn",
    "matplotlib", "PIL", "tensorboardX", "tqdm", "torch", "diffusers", "diffrax",
]  # fmt: skip
CODE = """
import importlib.abc, sys

class Absent(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if any(name == absent or name.startswith(absent + ".") for absent in {absent}):
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Absent())
from guidedflow.cli import main
code = main(sys.argv[1:])
data = [m for m in sys.modules if m.startswith("guidedflow.data") or m.endswith("training.config")]
assert not data, data
sys.exit(code)
"""


def bench(*arguments, absent=ABSENT):
    return subprocess.run(
        [sys.executable, "-c", CODE.format(absent=absent), "bench", *arguments],
        env={**os.environ, "JAX_COMPILATION_CACHE_DIR": ""},
        capture_output=True,
        text=True,
    )


def test_a_preset_is_measured_without_data_config_or_plotting_libraries(tmp_path):
    done = bench(
        "--preset=tiny", "--batch=4", "--steps=2", "--repeats=1", "--modes=none,vmapped",
        "--training", "--strategy=pmap", f"--out={tmp_path}",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "no pictures: matplotlib is not installed" in done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bench.json"]
    figures = json.loads((tmp_path / "bench.json").read_text())
    assert {"rows", "training", "machine"} <= set(figures)
    # The batch really is on all devices, and the training step too.
    assert figures["workload"]["devices"] == 4
    assert figures["training"]["strategy"] == "Pmap"
    assert figures["training"]["mesh"] == {"data": 4}


def test_the_block_is_one_that_blocks():
    done = bench("--preset=tiny", "--batch=1", "--steps=1", "--repeats=1", absent=["optax", "flax"])
    assert done.returncode != 0
    assert "No module named 'flax'" in done.stderr
