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
            "task": "flow",  # what is trained: flow, classifier, distillation or guidance_free
            "seed": 0,  # of the parameters, the batches and the noise
            "steps": 2000,  # optimiser steps of the run
            "batch": 128,  # examples a step, over all devices and processes
            "accumulate": 1,  # micro-batches a step, one after another
            "nonfinite": "stop",  # at a loss that is not finite; or "skip": count it, leave the update out
            "path": {  # from noise to data, x_t = alpha(t) data + sigma(t) noise
                # linear, trigonometric, vp, ve, edm, ddpm_linear, ddpm_scaled_linear or ddpm_cosine
                "name": "linear",
                "beta_min": placeholder(float),  # of vp: beta where the noise begins
                "beta_max": placeholder(float),  # of vp: beta where only noise is left
                "sigma_min": placeholder(float),  # of ve: deviation of the noise at the data end
                "sigma_max": placeholder(float),  # of ve and edm: deviation at the noise end
                "rho": placeholder(float),  # of edm: sigma = sigma_max (1 - t)^rho
                "steps": placeholder(int),  # of the ddpm tables: number of betas
            },
            "predicts": "velocity",  # what the network gives: velocity, score, noise, data or v
            "time": {  # how t is drawn
                "name": "uniform",  # uniform, stratified, logit_normal, cosmap or shifted
                "mean": placeholder(float),  # of logit_normal: mean of the logit of t
                "std": placeholder(float),  # of logit_normal: its standard deviation
                "factor": placeholder(float),  # of shifted: how much t moves towards the noise
            },
            "weighting": {  # of the loss over t
                "name": "none",  # none, unit, min_snr, truncated_snr, edm or sigmoid
                "gamma": placeholder(float),  # of min_snr: where the weight is cut
                "soft": placeholder(bool),  # of min_snr: its smooth form
                "sigma_data": placeholder(float),  # of edm: standard deviation of the data
                "bias": placeholder(float),  # of sigmoid: a larger one weighs low noise more
            },
            "distillation": {  # of task "distillation"
                "teacher": "",  # workdir of the run that is learnt from
                "guidance": "classifier-free",  # how the teacher is guided
                "low": 0.0,  # least scale that the student learns; 0 makes it unconditional too
                "high": 5.0,  # greatest scale that the student learns
            },
            "guidance_free": {  # of task "guidance_free"
                "low": 0.0,  # least beta = 1 / w
            },
            "drop_rate": 0.1,  # share of conditions left out, which trains the null branch
            "dataset": {  # where examples come from
                "name": "digits",  # digits, a tensorflow-datasets name, folder:PATH or latents:PATH
                "split": "train",  # part that is trained on
                "held_out": "test",  # part that is only measured on; empty for none
                "image_size": placeholder(int),  # side that pictures are scaled and cropped to
                "flip": False,  # mirror half of the pictures at random
                "data_dir": "",  # folder of prepared sets; empty for the user's cache
            },
            "condition": {  # what the network is told of an example
                # labels, prompts or both; empty: what the data set says, the labels of most
                "kind": "",
                "tokenizer": "",  # folder of CLIP's vocab.json and merges.txt; empty: units are learned
                "vocabulary": 2048,  # most units that are learned from the training captions
                "length": 32,  # positions of a prompt, with its start and end
                "drop_label": 0.0,  # of both: share of labels left out alone, beside drop_rate
                "drop_prompt": 0.0,  # of both: share of prompts left out alone, beside drop_rate
            },
            "text": {  # the encoder of prompts, learned with the network
                "width": 128,  # channels of a unit
                "depth": 2,  # number of blocks
                "heads": 4,  # of attention
            },
            "network": {  # unset fields are as the preset has them
                "preset": "digits",  # a network by name, as DiT-B/2
                "dtype": "auto",  # of compute: bfloat16 on accelerators, float32 on CPU
                "patch": placeholder(int),  # side of the squares that become tokens
                "width": placeholder(int),  # channels of a token
                "depth": placeholder(int),  # number of blocks
                "heads": placeholder(int),  # of attention
                "mlp_ratio": placeholder(float),  # hidden channels of a block's MLP over its width
                "time_scale": placeholder(float),  # factor of t before its sinusoidal embedding
                "double_channels": placeholder(bool),  # for a learned variance
                "attention": placeholder(str),  # auto, xla, cudnn or cpu
                "kernels": placeholder(str),  # "native": float32 by kernels compiled for this CPU
                "scan_layers": placeholder(bool),  # compile one block and loop over all of them
                "remat": placeholder(str),  # what the backward pass computes again to save memory
            },
            "optimizer": {  # and its learning rate over the steps
                "name": "adamw",  # adamw or lion
                "learning_rate": 1e-3,  # at its peak
                "warm_up": 200,  # steps of linear growth from 0
                "schedule": "cosine",  # to `final` × learning_rate at the last step; or "constant"
                "final": 0.01,  # share of learning_rate that "cosine" ends at
                "b1": 0.9,  # decay of the mean of gradients
                "b2": 0.999,  # decay of the mean of their squares
                "weight_decay": 0.0,  # of matrices, not of biases
                "clip": 1.0,  # global norm of the gradient; 0 for none
            },
            "ema": {  # averaged parameters, which `sample` takes
                "decay": 0.999,  # share of the average that stays at each step
                "warm_up": True,  # a smaller decay in the first steps
            },
            "parallel": {  # over devices
                "strategy": "auto",  # pmap, data, fsdp or mesh; auto: pmap on several devices
                "data": 0,  # of the mesh: copies of the parameters; 0 fits the devices
                "fsdp": 1,  # of the mesh: devices that share one copy
            },
            "input": {  # reading of batches
                "depth": 3,  # batches ready ahead of the step
                "threads": 1,  # that read
                "processes": 0,  # that read in place of threads; 0 for none
            },
            "log": {  # what is written beside checkpoints
                "every": 50,  # steps between lines
                "tensorboard": True,  # also to WORKDIR/tensorboard
                "wandb": "",  # a Weights & Biases project; empty for none
                "profile": (0, 0),  # first step and number of steps of a profiler trace
            },
            "checkpoint": {  # which states of the run are kept
                "every": 500,  # steps between checkpoints
                "keep_last": 3,  # newest ones that stay
                "keep_every": 0,  # steps whose multiples stay for good; 0 for none
                "keep_best": 0,  # best ones by held-out loss that stay
            },
            "held_out": {  # the loss on held-out data
                "every": 500,  # steps between measurements; 0 for never
                "batches": 2,  # of each measurement
            },
            "sample": {  # grids drawn while training
                "every": 500,  # steps between grids; 0 for never
                "rows": 4,  # images a class
                "classes": 10,  # drawn, from the first; or the first examples' conditions
                "prompts": (),  # drawn in place of the classes
                "scale": 2.0,  # guidance scale
                "steps": 16,  # of the solver
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
    "condition.vocabulary": (514, None),
    "condition.length": (3, None),
    "condition.drop_label": (0, 1),
    "condition.drop_prompt": (0, 1),
    "text.width": (1, None),
    "text.depth": (1, None),
    "text.heads": (1, None),
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
    "condition.kind": ("", "labels", "prompts", "both"),
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
