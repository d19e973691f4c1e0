"""What a parsed config must satisfy: ranges, choices, and fields that its network has."""

import math
import types
import typing
from typing import Any

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from guidedflow import models
from guidedflow.registry import nearest
from guidedflow.training.config import defaults, leaves

# Field to its least and greatest value; None for no bound.
_RANGES: dict[str, tuple[float | None, float | None]] = {
    "seed": (0, 2**31 - 1),
    "steps": (1, None),
    "batch": (1, None),
    "accumulate": (1, None),
    "drop_rate": (0, 1),
    "guidance_free.low": (0, 1),
    "condition.vocabulary": (514, None),
    "condition.length": (3, None),
    "condition.drop_label": (0, 1),
    "condition.drop_prompt": (0, 1),
    "text.width": (1, None),
    "text.depth": (1, None),
    "text.heads": (1, None),
    "optimizer.learning_rate": (0, None),
    "optimizer.warm_up": (0, None),
    "optimizer.decay_steps": (1, None),
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
    "condition.kind": ("", "labels", "prompts", "both"),
    "optimizer.schedule": ("cosine", "constant"),
    "network.dtype": ("auto", "float32", "bfloat16", "float16"),
}


def open_network(config: ConfigDict, names: list[str], preset: str) -> None:
    """Make place in `config.network` for fields that a network has and `defaults` does not list.

    Raises:
      ValueError: the network of that name has no such field (the message says the nearest).
    """
    section = config.network
    for name in names:
        if name not in section:
            own = models.settable(preset)
            _check_network_field(preset, name)
            with config.unlocked():
                section[name] = placeholder(_plain_type(own[name]))


def _check_network_field(preset: str, name: str) -> None:
    own = list(models.settable(preset))
    if name not in own:
        raise ValueError(
            f"config.network.{name}: {preset} has no such field{nearest(name, own)}; "
            f"it takes {', '.join(own)}"
        )


def _plain_type(annotation: Any) -> type:
    """Return int of `int` and of `int | None`, tuple of `tuple[int, ...]`; object of what is neither."""
    origin, parts = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (typing.Union, types.UnionType):
        return _plain_type(parts[0])
    known = origin or annotation
    return known if isinstance(known, type) and known is not Any else object


def _check_network(values: dict[str, Any], preset: str) -> None:
    """Refuse fields that the preset's network does not have, and values of another type."""
    own = models.settable(preset)
    for name, value in values.items():
        if name in ("preset", "dtype", "attention", "kernels") or value is None:
            continue
        _check_network_field(preset, name)
        expected = _plain_type(own[name])
        items = list(value) if expected is tuple and isinstance(value, list | tuple) else [value]
        if expected is tuple and isinstance(value, list | tuple):
            expected = _plain_type(typing.get_args(own[name])[0])
        kinds = (int, float) if expected is float else (expected,)
        for item in items:
            if not isinstance(item, kinds) or (isinstance(item, bool) and expected is not bool):
                many = "values of type " if items != [value] else "of type "
                raise ValueError(
                    f"config.network.{name} must be {many}{expected.__name__}, got {value!r}"
                )


def check(config: ConfigDict) -> None:
    """Refuse values that parse and yet cannot be meant: NaN, tuples of another length, ranges.

    Raises:
      ValueError: names the field, what it must be and what it is.
    """
    known, values = dict(leaves(defaults())), dict(leaves(config))
    for name in known:
        if name not in values:
            raise ValueError(f"config.{name} is missing; start the config from defaults()")
    for name, value in values.items():
        if name not in known and not name.startswith("network."):
            raise ValueError(f"unknown config field {name!r}{nearest(name, list(known))}")
        if value is not None:
            _check_value(name, value, known.get(name))
    _check_network(dict(config.network.items()), config.network.preset)
    optimizer = config.optimizer
    for end in ("steps", "optimizer.decay_steps"):
        if None not in (optimizer.warm_up, values[end]) and optimizer.warm_up > values[end]:
            raise ValueError(
                f"config.optimizer.warm_up must not exceed config.{end}={values[end]}, "
                f"got {optimizer.warm_up}"
            )
    if min(config.log.profile) < 0:
        raise ValueError(f"config.log.profile must hold no negative step, got {config.log.profile}")


def _check_value(name: str, value: Any, default: Any) -> None:
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"config.{name} must be a finite number, got {value}")
    # A tuple that is empty by default may have any length.
    if isinstance(default, tuple) and default and len(value) != len(default):
        raise ValueError(f"config.{name} must have {len(default)} values, got {value}")
    if name in _CHOICES and value not in _CHOICES[name]:
        hint = nearest(value, list(_CHOICES[name]))
        raise ValueError(f"config.{name} must be one of {_CHOICES[name]}, got {value!r}{hint}")
    low, high = _RANGES.get(name, (None, None))
    if (low is not None and value < low) or (high is not None and value > high):
        bound = f"at least {low}" if high is None else f"in [{low}, {high}]"
        raise ValueError(f"config.{name} must be {bound}, got {value}")
