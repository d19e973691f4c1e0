"""The functional core of guidedflow: paths, predictions, times, losses, guidance and samplers.

Importing it loads JAX and nothing heavier; networks, data and training are imported by name
(`guidedflow.models`, `guidedflow.data`, `guidedflow.training`).
"""

from guidedflow import guidance, losses, paths, predictions, samplers, times
from guidedflow.types import Evaluation, ModelFn, Scale

__version__ = "0.1.0"

__all__ = [
    "Evaluation",
    "ModelFn",
    "Scale",
    "guidance",
    "losses",
    "paths",
    "predictions",
    "samplers",
    "times",
]
