"""The functional core of guidedflow: paths, predictions, adapters, losses, guidance, samplers.

Importing it loads JAX and nothing heavier; each module loads when it is first named. Networks, data
and training are imported by name (`guidedflow.models`, `guidedflow.data`, `guidedflow.training`).
"""

import importlib
from typing import TYPE_CHECKING, Any

from guidedflow.types import Evaluation, ModelFn, Scale

if TYPE_CHECKING:
    from guidedflow import (
        adapters,
        distillation,
        guidance,
        losses,
        paths,
        predictions,
        samplers,
        times,
    )

__version__ = "0.1.0"

__all__ = [
    "Evaluation",
    "ModelFn",
    "Scale",
    "adapters",
    "distillation",
    "guidance",
    "losses",
    "paths",
    "predictions",
    "samplers",
    "times",
]


def __getattr__(name: str) -> Any:
    if name in __all__:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
