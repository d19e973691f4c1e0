"""The order of the layers, read from the imports; and what importing the core costs."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import guidedflow

ROOT = Path(guidedflow.__file__).parent

# Each part may import the parts after its name, and itself; the others may import anything.
CORE = {
    "types", "keys", "loops", "betas", "paths", "predictions", "times", "losses", "distillation",
    "scales", "guidance", "samplers", "adapters", "registry", "sizes", "target",
}  # fmt: skip
_BASE = {"types", "keys", "loops", "betas", "registry", "sizes", "target", "files"}
_CORE = _BASE | {"paths", "predictions", "times", "losses", "distillation", "scales"}
_CORE |= {"guidance", "samplers", "adapters"}
_NETWORKS = {"conditions", "nn", "models"}
_DRAWING = {"bundle", "pipelines"}
MAY_IMPORT = {
    "types": set(),
    "keys": set(),
    "loops": set(),
    "registry": set(),
    "sizes": set(),
    "files": set(),
    "target": {"types", "registry"},
    "betas": {"types"},
    "paths": {"types", "betas"},
    "predictions": {"types", "paths"},
    "adapters": {"types", "paths", "predictions"},
    "times": {"types", "keys", "paths"},
    "losses": {"types", "keys", "paths", "predictions", "times"},
    "guidance": {"types", "loops", "paths", "predictions", "times"},
    "samplers": {"types", "keys", "loops", "betas", "paths", "predictions", "times"},
    "distillation": {"types", "keys", "paths", "losses"},
    "scales": {"types", "guidance", "distillation"},
    "conditions": {"types", "registry"},
    "nn": _BASE | {"conditions"},
    "models": _BASE | {"conditions", "nn"},
    "native": {"registry", "nn"},
    "data": {"registry", "sizes", "files", "conditions"},
    "bundle": _CORE | {"conditions", "nn"},
    "pipelines": _CORE | _NETWORKS | {"bundle"},
    "training": _CORE | _NETWORKS | _DRAWING | {"data"},
    "evaluation": _CORE | _NETWORKS | _DRAWING | {"data", "training"},
    "benchmark": _CORE | _NETWORKS | _DRAWING | {"data", "training"},
    "plan": _CORE | _NETWORKS | _DRAWING | {"data", "training"},
}
HEAVY = {
    "flax", "optax", "orbax", "grain", "tensorflow_datasets", "tensorflow", "diffrax", "matplotlib",
    "ml_collections", "sklearn", "PIL", "scipy.stats",
}  # fmt: skip
FILES = sorted(ROOT.rglob("*.py"))


def imports(file):
    """Every module that `file` names in an import, also inside functions."""
    found = []
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file} imports relatively"
            found.append(node.module)
            found += [f"{node.module}.{alias.name}" for alias in node.names]
    return found


def part(file):
    first = file.relative_to(ROOT).parts[0]
    return first.removesuffix(".py")


def parts_imported(file):
    """The parts of guidedflow that `file` imports."""
    known = {part(f) for f in FILES}
    names = (name.split(".") for name in imports(file))
    return {name[1] for name in names if name[0] == "guidedflow" and len(name) > 1} & known


@pytest.mark.parametrize("name", sorted(MAY_IMPORT))
def test_imports_point_downwards(name):
    allowed = MAY_IMPORT[name] | {name}
    files = [f for f in FILES if part(f) == name]
    assert files
    for file in files:
        assert parts_imported(file) <= allowed, file


def test_nothing_needs_the_command_line():
    for file in FILES:
        if part(file) not in ("cli", "__main__"):
            assert "cli" not in parts_imported(file), file
        if part(file) not in ("cli", "__main__", "commands", "config_files", "extras"):
            assert "commands" not in parts_imported(file), file


def test_every_part_but_the_program_is_in_the_table():
    assert {part(f) for f in FILES} - {
        "__init__",
        "__main__",
        "cli",
        "commands",
        "config_files",
        "extras",
    } <= set(MAY_IMPORT)


def modules():
    """Every module of the package, and those that it imports from the package."""
    files = {".".join(f.relative_to(ROOT.parent).with_suffix("").parts): f for f in FILES}
    files = {name.removesuffix(".__init__"): file for name, file in files.items()}
    return {name: set(imports(file)) & set(files) - {name} for name, file in files.items()}


def test_no_circle_of_imports():
    """Modules are taken away as soon as all that they import is gone; none may be left."""
    left = modules()
    packages = {name for name in left if any(other.startswith(f"{name}.") for other in left)}
    while left:
        free = {name for name, needs in left.items() if not needs & set(left) - packages}
        assert free, f"a circle among {sorted(left)}"
        left = {name: needs for name, needs in left.items() if name not in free}


ASKS = {"default_backend", "devices", "device_count", "local_devices", "local_device_count"}


def test_the_device_is_asked_for_in_one_place():
    """Elsewhere a target says it, so that a program can be built for devices that are not there."""
    for file in FILES:
        if part(file) in ("target", "commands", "cli"):
            continue
        asked = [
            node.func.attr
            for node in ast.walk(ast.parse(file.read_text()))
            if isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and node.func.attr in ASKS
            and isinstance(node.func.value, ast.Name)
            and node.func.value.id == "jax"
        ]
        assert not asked, f"{file} asks {asked}"


def test_a_network_declares_what_it_can_do():
    """No `isinstance` or `hasattr` on a network: `nn.capabilities` is where it is read."""
    for file in FILES:
        if part(file) in ("nn", "models", "types", "conditions"):
            continue
        text = file.read_text()
        assert "isinstance(network" not in text, file
        assert "hasattr(network" not in text, file


@pytest.mark.parametrize("name", sorted(CORE))
def test_the_core_names_no_network_library(name):
    light = {"jax", "numpy", "jaxtyping", "einops", "guidedflow"} | set(sys.stdlib_module_names)
    # Adaptive steps come from an optional extra, imported where they are called.
    optional = {"samplers/adaptive.py": {"diffrax"}}
    for file in FILES:
        if part(file) == name:
            extra = optional.get(str(file.relative_to(ROOT)), set())
            assert {i.split(".")[0] for i in imports(file)} <= light | extra, file


def test_importing_the_core_loads_jax_and_nothing_heavier():
    code = "import sys, guidedflow; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    assert "jax" in loaded
    assert not HEAVY & set(loaded)


def test_users_are_never_met_by_an_assert():
    for file in FILES:
        found = [
            n.lineno for n in ast.walk(ast.parse(file.read_text())) if isinstance(n, ast.Assert)
        ]
        assert not found, f"{file}:{found}"


def test_importing_sets_no_flag_and_no_environment():
    code = (
        "import os, jax; env = dict(os.environ); values = dict(jax.config.values)\n"
        "import guidedflow\n"
        "assert env == dict(os.environ) and values == dict(jax.config.values)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_public_name_is_there():
    for module in (guidedflow, guidedflow.guidance, guidedflow.samplers):
        for name in module.__all__:
            assert hasattr(module, name), name
