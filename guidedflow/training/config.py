"""Every field of a training config with its default, and what a parsed config must satisfy.

A file in `configs/` starts from `defaults()` and sets what it changes. Fields without a value
(`placeholder`) leave the choice to the network preset, the path, or whatever takes them. Of `network`
the fields that most networks share are listed; a file or a flag may set any other field that the
preset's network has.
"""

import copy
import json
from collections.abc import Iterator
from typing import Any

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from guidedflow import models
from guidedflow.registry import nearest

# Fields that may change when a run is resumed: they move no parameter, or only the run's end. The
# learning rate does not follow `steps`: it follows `optimizer.decay_steps`, set at the run's start.
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
    "dataset.held_out",
    "dataset.data_dir",
    "network.attention",
    "network.kernels",
    "network.remat",
)


# Fields that runs were made with before they had their present names.
_RENAMED = {"network.products": "network.kernels"}


def defaults() -> ConfigDict:
    """Return a config with every field."""
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
                "held_out": "",  # part that is only measured on; empty for none
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
            "network": {  # unset fields are as the preset has them; every field of its network can be set
                "preset": "DiT-S/2",  # a network by name, as DiT-B/2 or UNet-M
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
                # steps of linear growth from 0; unset: 5% of the steps, at most 1000
                "warm_up": placeholder(int),
                "schedule": "cosine",  # to `final` × learning_rate at `decay_steps`; or "constant"
                # where "cosine" ends; unset: `steps` at the start, which a longer run keeps
                "decay_steps": placeholder(int),
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
                "classes": placeholder(int),  # drawn, from the first; unset: all, at most 16
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


def settled(config: ConfigDict, run: ConfigDict | None = None) -> ConfigDict:
    """Return a config with values for those unset fields that follow from the length of the run.

    Args:
      config: is left as it is.
      run: the settled config of the run that is gone on with, whose values are kept: a run that is
        made longer keeps its learning rates.
    """
    whole = copy.deepcopy(config)
    optimizer = whole.optimizer
    if optimizer.decay_steps is None:
        optimizer.decay_steps = run.optimizer.decay_steps if run else whole.steps
    if optimizer.warm_up is None:
        optimizer.warm_up = run.optimizer.warm_up if run else min(whole.steps // 20, 1000)
    return whole


def identity(config: ConfigDict) -> dict[str, Any]:
    """Return the fields that must stay as they are for a run to be the same run."""
    # A field of the network that is not set differs from one that is.
    unset = dict.fromkeys(f"network.{name}" for name in models.settable(config.network.preset))
    flat = {
        name: value
        for name, value in {**unset, **dict(leaves(config))}.items()
        if not _is_free(name)
    }
    return json.loads(json.dumps(flat))


def _is_free(name: str) -> bool:
    """Return whether a field may change when a run is resumed."""
    return f"{name}.".startswith(tuple(f"{free}." for free in _FREE))


def completed(identity: dict[str, Any], resolved: dict[str, Any]) -> dict[str, Any]:
    """Return a checkpoint's identity as this version writes it.

    Before the end of the cosine was a field, it was the last step. Fields that an older version held
    fixed, and that may change now, are left out.
    """
    fixed = {name: value for name, value in identity.items() if not _is_free(name)}
    if "optimizer.schedule" not in fixed:
        return fixed
    return {"optimizer.decay_steps": resolved["steps"], **fixed}


def from_resolved(raw: dict[str, Any]) -> ConfigDict:
    """Return the config that `resolved` was made of.

    Before the end of the cosine was a field it was the last step.

    Raises:
      ValueError: it has a field that this version does not know.
    """
    config = defaults()
    config.optimizer.decay_steps = raw.get("steps")
    known = dict(leaves(config))
    own = models.settable(raw.get("network", {}).get("preset", config.network.preset))
    for name, value in leaves(ConfigDict(raw)):
        name = _RENAMED.get(name, name)
        section, _, last = name.rpartition(".")
        if name not in known and section == "network" and last in own and value is None:
            continue
        if name not in known and not (section == "network" and last in own):
            raise ValueError(f"unknown config field {name!r}{nearest(name, list(known))}")
        target = config[section] if section else config
        target[last] = tuple(value) if isinstance(value, list | tuple) else value
    return config
