"""A module that an extra brings and that is missing is one line with the extra, for every command."""

import ast
import importlib
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import guidedflow
from guidedflow import cli, extras

PACKAGE = Path(guidedflow.__file__).parent
PROJECT = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text())["project"]
# Distributions whose modules have another name.
MODULES = {
    "absl_py": "absl",
    "orbax_checkpoint": "orbax",
    "pillow": "PIL",
    "scikit_learn": "sklearn",
    "jax": "jax",
}
# Modules that come with a distribution of another name.
WITH = {"google": "tensorflow_datasets", "threadpoolctl": "sklearn"}


def modules_of(requirements):
    names = [re.match(r"[\w-]+", one).group().replace("-", "_") for one in requirements]
    return {MODULES.get(name, name) for name in names}


def imported():
    """Every module outside guidedflow that the package imports, also inside functions."""
    for file in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                yield from (alias.name.split(".")[0] for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                yield node.module.split(".")[0]


def test_every_optional_module_has_the_extra_that_brings_it():
    given = sys.stdlib_module_names | modules_of(PROJECT["dependencies"])
    optional = set(imported()) - given - {"guidedflow"}
    assert optional <= set(extras.EXTRAS)


def test_every_extra_brings_the_modules_that_are_said_to_come_with_it():
    for module, extra in extras.EXTRAS.items():
        brings = modules_of(PROJECT["optional-dependencies"][extra])
        assert WITH.get(module, module) in brings, module


COMMANDS = {
    "configs": [],
    "prepare": ["mnist"],
    "encode": ["--dataset=digits", "--out=latents"],
    "train": ["--config=digits", "--workdir=run"],
    "sample": ["--workdir=run", "--out=grid.png"],
    "evaluate": ["--workdir=run"],
    "bench": ["--preset=DiT-S/2"],
}


def test_without_extras_every_command_says_which_one_it_needs(tmp_path):
    """Where nothing but the core's own dependencies can be imported."""
    assert set(COMMANDS) == set(cli.COMMANDS)
    code = (
        "import sys; from guidedflow import cli, extras\n"
        "sys.modules.update(dict.fromkeys(extras.EXTRAS))\n"
        f"print([cli.main([name, *rest]) for name, rest in {COMMANDS!r}.items()])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=True
    )
    codes = ast.literal_eval(done.stdout.splitlines()[-1])
    assert dict(zip(COMMANDS, codes, strict=True)) == dict.fromkeys(COMMANDS, 2) | {"configs": 0}
    lines = done.stderr.splitlines()
    assert len(lines) == len(COMMANDS) - 1
    for line in lines:
        assert re.fullmatch(
            r"guidedflow: \w+ is not installed: pip install 'guidedflow\[train\]'", line
        )
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("module", extras.EXTRAS)
def test_a_missing_module_is_said_with_its_extra(module, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ModuleNotFoundError) as caught:
        importlib.import_module(f"{module}.part")
    assert cli.explain(caught.value) == (
        f"{module} is not installed: pip install 'guidedflow[{extras.EXTRAS[module]}]'"
    )


def test_a_part_that_an_installed_package_lacks_keeps_its_traceback():
    with pytest.raises(ModuleNotFoundError) as caught:
        importlib.import_module("optax.nothing_of_that_name")
    assert cli.explain(caught.value) is None
