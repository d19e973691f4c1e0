"""A config's strings to objects: names of paths, draws, weightings, networks, optimisers."""

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from jax.sharding import Mesh
from jaxtyping import Array, PyTree
from ml_collections import ConfigDict

from guidedflow import losses, models, paths, predictions, times
from guidedflow.conditions import Condition
from guidedflow.models.kernels import operations_for
from guidedflow.nn.capabilities import capabilities, check_takes
from guidedflow.registry import choose, nearest
from guidedflow.training.config import settled
from guidedflow.training.step import Schedule

PATHS: Mapping[str, Callable[..., paths.Path]] = {
    "linear": paths.Linear,
    "trigonometric": paths.Trigonometric,
    "vp": paths.VariancePreserving,
    "ve": paths.VarianceExploding,
    "edm": paths.EDM,
    "ddpm_linear": partial(paths.DiscreteBeta, paths.linear_betas),
    "ddpm_scaled_linear": partial(paths.DiscreteBeta, paths.scaled_linear_betas),
    "ddpm_cosine": partial(paths.DiscreteBeta, paths.cosine_betas),
    "ddpm_linear_zero_snr": partial(paths.DiscreteBeta, paths.zero_snr(paths.linear_betas)),
    "ddpm_scaled_linear_zero_snr": partial(
        paths.DiscreteBeta, paths.zero_snr(paths.scaled_linear_betas)
    ),
    "ddpm_cosine_zero_snr": partial(paths.DiscreteBeta, paths.zero_snr(paths.cosine_betas)),
}
PREDICTIONS: Mapping[str, predictions.Prediction] = {
    "velocity": predictions.velocity,
    "score": predictions.score,
    "noise": predictions.noise,
    "data": predictions.data,
    "v": predictions.v,
}
DRAWS: Mapping[str, Callable[..., Array]] = {
    "uniform": times.draw_uniform,
    "stratified": times.draw_stratified,
    "logit_normal": times.draw_logit_normal,
    "cosmap": times.draw_cosmap,
    "shifted": times.draw_shifted,
}
WEIGHTINGS: Mapping[str, Callable[..., losses.Weighting | None]] = {
    "none": lambda: None,
    "unit": lambda: losses.unit,
    "min_snr": losses.min_snr,
    "truncated_snr": losses.truncated_snr,
    "edm": losses.edm,
    "sigmoid": losses.sigmoid,
}
OPTIMIZERS: Mapping[str, Callable[..., optax.GradientTransformation]] = {
    "adamw": optax.adamw,
    "lion": optax.lion,
}


def make(kind: str, table: Mapping[str, Callable[..., Any]], section: ConfigDict) -> Any:
    """Call `table[section.name]` with the section's other fields, those that have a value.

    Raises:
      ValueError: an unknown name, or a field that the named thing does not take.
    """
    constructor = choose(kind, section.name, table)
    given = {key: value for key, value in section.items() if key != "name" and value is not None}
    taken = list(inspect.signature(constructor).parameters)
    for key in given:
        if key not in taken:
            fields = ", ".join(taken) or "no fields"
            raise ValueError(
                f"{kind} {section.name!r} does not take {key!r}{nearest(key, taken)}; "
                f"it takes {fields}"
            )
    return constructor(**given)


def time_draw(section: ConfigDict) -> times.Draw:
    """Return the draw of t with its parameters bound."""
    draw = choose("time draw", section.name, DRAWS)
    taken = list(inspect.signature(draw).parameters)[2:]
    bound = {key: value for key, value in section.items() if key != "name" and value is not None}
    for key in bound:
        if key not in taken:
            fields = ", ".join(taken) or "no fields"
            raise ValueError(f"time draw {section.name!r} does not take {key!r}; it takes {fields}")
    return partial(draw, **bound)


_TEXT_FIELDS = ("vocabulary", "end", "positions")
_NOT_FIELDS = ("preset", "dtype", "attention", "kernels")


def network_for(
    config: ConfigDict,
    image_shape: tuple[int, int, int],
    condition: Condition,
    scalars: tuple[str, ...],
    platform: str,
    *,
    devices: int = 1,
    mesh: Mesh | None = None,
) -> nn.Module:
    """Return the configured network for images of this shape, told this condition.

    Args:
      scalars: numbers that it takes beside the condition, as ("scale",).
      platform, devices, mesh: that it is for, see `nn.operations.XLA`.
    Returns:
      the network; with a text encoder, where it takes features of text and the condition gives prompts.
    Raises:
      ValueError: fields that do not fit, or a condition that the network cannot be told.
    """
    section = config.network
    own = models.fields_of(section.preset)
    fields = {
        key: tuple(value) if isinstance(value, list) else value
        for key, value in section.items()
        if key not in _NOT_FIELDS and value is not None
    }
    if "operations" in own:
        fields["operations"] = operations_for(
            section.kernels or "xla", section.attention or "auto", platform, devices, mesh
        )
    if "label" not in condition.gives and "num_classes" in own:
        fields["num_classes"] = None
    told = condition.network_fields()
    # What the network has no field for belongs to the encoder of its prompts.
    of_text = {name: told.pop(name) for name in _TEXT_FIELDS if name in told and name not in own}
    fields.update(told)
    if of_text and "token_width" in own:
        fields.setdefault("token_width", config.text.width)
    if scalars:
        fields["scalars"] = (*fields.get("scalars", ()), *scalars)
    height, width, channels = image_shape
    dtype = section.dtype
    if dtype == "auto":
        dtype = "float32" if platform == "cpu" else "bfloat16"
    network = models.create(
        section.preset,
        image_size=(height, width),
        channels=channels,
        dtype=jnp.dtype(dtype),
        **fields,
    )
    if of_text and capabilities(network).takes & {"tokens", "vector"}:
        encoder = models.TextEncoder(**of_text, **config.text, dtype=jnp.dtype(dtype))
        network = models.TextConditioned(network, encoder)
    check_takes(network, condition.gives)
    return network


def learning_rate_schedule(config: ConfigDict) -> Schedule:
    """Linear growth over `warm_up` steps, then cosine to `final` of the peak, or constant.

    The cosine ends at `decay_steps`; from there on the rate stays at `final` of the peak.
    """
    options = settled(config).optimizer
    peak = options.learning_rate
    if options.schedule == "constant":
        if not options.warm_up:
            return optax.constant_schedule(peak)
        return optax.linear_schedule(0.0, peak, options.warm_up)
    return optax.warmup_cosine_decay_schedule(
        0.0 if options.warm_up else peak,
        peak,
        options.warm_up,
        max(options.decay_steps, options.warm_up + 1),
        peak * options.final,
    )


def optimizer_for(config: ConfigDict, schedule: Schedule) -> optax.GradientTransformation:
    """Return clipping by global norm, then the configured optimiser, decaying matrices only."""
    options = config.optimizer
    make = choose("optimizer", options.name, OPTIMIZERS)

    def matrices(params: PyTree) -> PyTree:
        return jax.tree.map(lambda leaf: leaf.ndim > 1, params)

    update = make(
        schedule,
        b1=options.b1,
        b2=options.b2,
        weight_decay=options.weight_decay,
        mask=matrices,
    )
    return optax.chain(optax.clip_by_global_norm(options.clip), update) if options.clip else update
