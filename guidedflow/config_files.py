"""Config files: guidedflow's own are found by name, the user's by path."""

import ast
import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING

from guidedflow.registry import nearest

if TYPE_CHECKING:
    from ml_collections import ConfigDict


def folder() -> Path:
    """Return the folder of the configs that come with guidedflow.

    In a wheel it is inside the package; in a checkout it is next to the package.
    """
    package = Path(__file__).parent
    inside = package / "configs"
    return inside if inside.is_dir() else package.parent / "configs"


def descriptions() -> dict[str, str]:
    """Return the name of every config and the first line of its docstring, without running the files."""
    return {
        file.stem: (ast.get_docstring(ast.parse(file.read_text())) or "").partition("\n")[0]
        for file in sorted(folder().glob("*.py"))
    }


def find(text: str | Path) -> Path:
    """Return the config file that `--config=text` means: a path, or the name of a config of guidedflow.

    Raises:
      ValueError: it is neither; the message has the nearest name.
    """
    file = Path(text).expanduser()
    if file.is_file():
        return file
    names = list(descriptions())
    if text in names:
        return folder() / f"{text}.py"
    raise ValueError(
        f"there is no config file {text} and no config of that name{nearest(file.stem, names)}; "
        "`guidedflow configs` lists the names"
    )


def load(text: str | Path) -> "ConfigDict":
    """Return the config that `get_config()` of a config file returns.

    Args:
      text: the path of a file, or the name of a config that comes with guidedflow.
    Raises:
      ValueError: no such file or name, or it is not a config file.
    """
    from ml_collections import ConfigDict  # listing the configs needs no extra

    file = find(text)
    spec = importlib.util.spec_from_file_location(file.stem, file)
    if spec is None or spec.loader is None:
        raise ValueError(f"a config file is a Python file, got {file}")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = module.get_config() if hasattr(module, "get_config") else None
    if not isinstance(config, ConfigDict):
        raise ValueError(f"{file} must have a get_config() that returns a ConfigDict")
    return config
