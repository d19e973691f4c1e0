"""Every field of a training config with its default, and what a parsed config must satisfy.

A file in `configs/` starts from `defaults()` and sets what it changes. Fields without a value
(`placeholder`) leave the choice to the network preset, the path, or whatever takes them.
"""

import json
import math
from collections.abc import Iterator
from typing import Any

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from guidedflow.registry import nearest

# Fields that may change when a run is resumed: they move no parameter, or only the run's end.
_FREE = (
    "steps",
    "accumulate",
    "nonfinite",
    "parallel",
    "input",
    "log",
    "checkpoint",
    "sample",
    "held_out",
    "dataset.data_dir",
    "network.attention",
    "network.kernels",
    "network.remat",
)


# Fields that runs were made with before they had their present names.
_RENAMED = {"network.products": "network.kernels"}


def defaults() -> ConfigDict:
    """Return a config with every field, set for the digits."""
    return ConfigDict(
        {
            "task": "flow",  # what is trained: a row of tasks.TASKS
            "seed": 0,
            "steps": 2000,
            "batch": 128,  # examples a step, over all devices and processes
            "accumulate": 1,  # micro-batches a step, one after another
            "nonfinite": "stop",  # or "skip": leave the update out, count it, go on
            "path": {
                "name": "linear",
                "beta_min": placeholder(float),
                "beta_max": placeholder(float),
                "sigma_min": placeholder(float),
                "sigma_max": placeholder(float),
                "rho": placeholder(float),
                "steps": placeholder(int),
            },
            "predicts": "velocity",
            "time": {  # how t is drawn
                "name": "uniform",
                "mean": placeholder(float),
                "std": placeholder(float),
                "factor": placeholder(float),
            },
            "weighting": {  # of the loss over t
                "name": "none",
                "gamma": placeholder(float),
                "soft": placeholder(bool),
                "sigma_data": placeholder(float),
                "bias": placeholder(float),
            },
            "distillation": {  # of task "distillation"
                "teacher": "",  # workdir of the run that is learnt from
                "guidance": "classifier-free",  # how it is guided
                "low": 0.0,  # scales that the student learns; 0 makes it unconditional too
                "high": 5.0,
            },
            "guidance_free": {"low": 0.0},  # least beta = 1 / w of task "guidance_free"
            "drop_rate": 0.1,  # of conditions, which trains the null branch
            "dataset": {
                "name": "digits",
                "split": "train",
                "held_out": "test",
                "image_size": placeholder(int),
                "flip": False,
                "data_dir": "",
            },
            "network": {
                "preset": "digits",
                "dtype": "auto",  # of compute: bfloat16 on accelerators, float32 on CPU
                "patch": placeholder(int),
                "width": placeholder(int),
                "depth": placeholder(int),
                "heads": placeholder(int),
                "mlp_ratio": placeholder(float),
                "time_scale": placeholder(float),
                "double_channels": placeholder(bool),
                "attention": placeholder(str),
                "kernels": placeholder(str),  # "native": float32 by kernels compiled for this CPU
                "scan_layers": placeholder(bool),
                "remat": placeholder(str),
            },
            "optimizer": {
                "name": "adamw",
                "learning_rate": 1e-3,
                "warm_up": 200,  # steps of linear growth from 0
                "schedule": "cosine",  # to `final` × learning_rate at the last step; or "constant"
                "final": 0.01,
                "b1": 0.9,
                "b2": 0.999,
                "weight_decay": 0.0,  # of matrices, not of biases
                "clip": 1.0,  # global norm of the gradient; 0 for none
            },
            "ema": {"decay": 0.999, "warm_up": True},
            "parallel": {
                "strategy": "auto",  # pmap | data | fsdp | mesh; auto: pmap on several devices
                "data": 0,  # sizes of the mesh, for "mesh"; 0 fits the devices
                "fsdp": 1,
            },
            "input": {"depth": 3, "threads": 1, "processes": 0},
            "log": {
                "every": 50,
                "tensorboard": True,
                "wandb": "",  # a project's name
                "profile": (0, 0),  # first step and number of steps of a profiler trace
            },
            "checkpoint": {"every": 500, "keep_last": 3, "keep_every": 0, "keep_best": 0},
            "held_out": {"every": 500, "batches": 2},  # loss on held-out data; 0 for never
            "sample": {
                "every": 500,  # steps between grids; 0 for never
                "rows": 4,  # images a class
                "classes": 10,
                "scale": 2.0,
                "steps": 16,
            },
        }
    )


def leaves(config: ConfigDict, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (`section.field`, value) for every field."""
    for name, value in config.items():
        if isinstance(value, ConfigDict):
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def resolved(config: ConfigDict) -> dict[str, Any]:
    """Return the config as plain JSON values."""
    return json.loads(json.dumps(config.to_dict()))


def identity(config: ConfigDict) -> dict[str, Any]:
    """Return the fields that must stay as they are for a run to be the same run."""
    free = tuple(f"{name}." for name in _FREE)
    flat = {name: value for name, value in leaves(config) if not f"{name}.".startswith(free)}
    return json.loads(json.dumps(flat))


def from_resolved(raw: dict[str, Any]) -> ConfigDict:
    """Return the config that `resolved` was made of.

    Raises:
      ValueError: it has a field that this version does not know.
    """
    config = defaults()
    known = dict(leaves(config))
    for name, value in leaves(ConfigDict(raw)):
        name = _RENAMED.get(name, name)
        if name not in known:
            raise ValueError(f"unknown config field {name!r}{nearest(name, list(known))}")
        section, _, last = name.rpartition(".")
        target = config[section] if section else config
        target[last] = tuple(value) if isinstance(value, list | tuple) else value
    return config


# Field to its least and greatest value; None for no bound.
_RANGES: dict[str, tuple[float | None, float | None]] = {
    "seed": (0, 2**31 - 1),
    "steps": (1, None),
    "batch": (1, None),
    "accumulate": (1, None),
    "drop_rate": (0, 1),
    "guidance_free.low": (0, 1),
    "optimizer.learning_rate": (0, None),
    "optimizer.warm_up": (0, None),
    "optimizer.final": (0, 1),
    "optimizer.b1": (0, 1),
    "optimizer.b2": (0, 1),
    "optimizer.weight_decay": (0, None),
    "optimizer.clip": (0, None),
    "ema.decay": (0, 1),
    "parallel.data": (0, None),
    "parallel.fsdp": (0, None),
    "input.depth": (1, None),
    "input.threads": (1, None),
    "input.processes": (0, None),
    "log.every": (1, None),
    "checkpoint.every": (1, None),
    "checkpoint.keep_last": (1, None),
    "checkpoint.keep_every": (0, None),
    "checkpoint.keep_best": (0, None),
    "held_out.every": (0, None),
    "held_out.batches": (1, None),
    "sample.every": (0, None),
    "sample.rows": (1, None),
    "sample.classes": (1, None),
    "sample.steps": (1, None),
}
_CHOICES = {
    "nonfinite": ("stop", "skip"),
    "optimizer.schedule": ("cosine", "constant"),
    "network.dtype": ("auto", "float32", "bfloat16", "float16"),
}


def check(config: ConfigDict) -> None:
    """Refuse values that parse and yet cannot be meant: NaN, tuples of another length, ranges.

    Raises:
      ValueError: names the field, what it must be and what it is.
    """
    known = dict(leaves(defaults()))
    values = dict(leaves(config))
    for name, value in values.items():
        if name not in known:
            raise ValueError(f"unknown config field {name!r}{nearest(name, list(known))}")
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"config.{name} must be a finite number, got {value}")
        default = known[name]
        if isinstance(default, tuple) and len(value) != len(default):
            raise ValueError(f"config.{name} must have {len(default)} values, got {value}")
        if name in _CHOICES and value not in _CHOICES[name]:
            hint = nearest(value, list(_CHOICES[name]))
            raise ValueError(f"config.{name} must be one of {_CHOICES[name]}, got {value!r}{hint}")
        low, high = _RANGES.get(name, (None, None))
        if (low is not None and value < low) or (high is not None and value > high):
            bound = f"at least {low}" if high is None else f"in [{low}, {high}]"
            raise ValueError(f"config.{name} must be {bound}, got {value}")
    for name in known:
        if name not in values:
            raise ValueError(f"config.{name} is missing; start the config from defaults()")
    if config.optimizer.warm_up > config.steps:
        raise ValueError(
            f"config.optimizer.warm_up must not exceed config.steps={config.steps}, "
            f"got {config.optimizer.warm_up}"
        )
    if min(config.log.profile) < 0:
        raise ValueError(f"config.log.profile must hold no negative step, got {config.log.profile}")
