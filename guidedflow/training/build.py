"""A config's strings to objects: the one place where names of paths, draws and so on are read."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from jaxtyping import Array, PyTree
from ml_collections import ConfigDict

from guidedflow import data, losses, models, paths, predictions, times
from guidedflow.registry import choose, nearest
from guidedflow.training import parallel
from guidedflow.training.config import check, identity
from guidedflow.training.state import TrainState, create
from guidedflow.training.step import Batch, LossFn, Schedule, StepFn, ema_schedule, make_step
from guidedflow.types import ModelFn

PATHS: Mapping[str, Callable[..., paths.Path]] = {
    "linear": paths.Linear,
    "trigonometric": paths.Trigonometric,
    "vp": paths.VariancePreserving,
    "ve": paths.VarianceExploding,
    "edm": paths.EDM,
    "ddpm_linear": partial(paths.DiscreteBeta, paths.linear_betas),
    "ddpm_scaled_linear": partial(paths.DiscreteBeta, paths.scaled_linear_betas),
    "ddpm_cosine": partial(paths.DiscreteBeta, paths.cosine_betas),
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
STRATEGIES: Mapping[str, Callable[[int, int], parallel.Strategy]] = {
    "auto": lambda *_: parallel.Pmap() if jax.device_count() > 1 else parallel.data(),
    "pmap": lambda *_: parallel.Pmap(),
    "data": lambda *_: parallel.data(),
    "fsdp": lambda *_: parallel.fsdp(),
    "mesh": lambda data, fsdp: parallel.Sharded(parallel.make_mesh(data, fsdp)),
}


@dataclass(frozen=True)
class Task:
    """Everything a run is made of, from its config.

    Attributes:
      config: as checked.
      dataset, held_out: training and held-out examples.
      network: Flax module, `network.apply({"params": p}, x, t, cond)`.
      path, predicts: what the network was trained to predict, on which path.
      loss_fn: (params, batch, key) to one loss per example.
      optimizer, learning_rate, ema_decay: of the step.
      strategy: over devices.
      identity: what a checkpoint must agree with.
    """

    config: ConfigDict
    dataset: data.Dataset
    held_out: data.Dataset | None
    network: nn.Module
    path: paths.Path
    predicts: predictions.Prediction
    loss_fn: LossFn
    optimizer: optax.GradientTransformation
    learning_rate: Schedule
    ema_decay: Schedule
    strategy: parallel.Strategy
    identity: dict[str, Any]

    def init(self, key: Array) -> TrainState:
        """Return the state before the first step; pure, to be jitted or shaped."""
        return init_state(self.network, self.dataset.image_shape, self.optimizer, key)

    def step(self) -> StepFn:
        """Return the pure training step."""
        return make_step(
            self.loss_fn,
            self.optimizer,
            ema_decay=self.ema_decay,
            learning_rate=self.learning_rate,
            accumulate=self.config.accumulate,
            axis_name=self.strategy.axis_name,
        )

    def model(self, params: PyTree) -> ModelFn:
        """Return the velocity field of these parameters."""
        return model_fn(self.network, params, self.path, self.predicts)

    def batches(self, dataset: data.Dataset | None = None) -> data.Batches:
        """Return this process's part of the batch of any step."""
        flip = self.config.dataset.flip and dataset is None
        return data.pipeline(
            dataset or self.dataset,
            self.config.seed,
            self.config.batch,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
            transform=data.random_flip if flip else None,
        )


def init_state(
    network: nn.Module,
    image_shape: tuple[int, ...],
    optimizer: optax.GradientTransformation,
    key: Array,
) -> TrainState:
    """Return the state with fresh parameters for images of this shape."""
    x, t = jnp.zeros((1, *image_shape)), jnp.zeros(1)
    params = network.init(key, x, t, jnp.zeros(1, jnp.int32))["params"]
    return create(params, optimizer)


@dataclass(frozen=True)
class Apply:
    """A network as a function of its parameters; equal for equal networks, as `jit` wants it."""

    network: nn.Module

    def __call__(self, params: PyTree, x: Array, t: Array, cond: Any) -> Array:
        output: Any = self.network.apply({"params": params}, x, t, cond)
        return output


def model_fn(
    network: nn.Module, params: PyTree, path: paths.Path, predicts: predictions.Prediction
) -> ModelFn:
    """Return the velocity field (x, t, cond) of a network with these parameters.

    The parameters are leaves of it, so that a sampler takes them as arguments of one program.
    """
    bound = jax.tree_util.Partial(Apply(network), params)
    return predictions.as_velocity(bound, path, predicts)


def named(kind: str, table: Mapping[str, Callable[..., Any]], section: ConfigDict) -> Any:
    """Call `table[section.name]` with the section's other fields, those that have a value.

    Raises:
      ValueError: an unknown name, or a field that the named thing does not take.
    """
    make = choose(kind, section.name, table)
    given = {key: value for key, value in section.items() if key != "name" and value is not None}
    taken = list(inspect.signature(make).parameters)
    for key in given:
        if key not in taken:
            fields = ", ".join(taken) or "no fields"
            raise ValueError(
                f"{kind} {section.name!r} does not take {key!r}{nearest(key, taken)}; "
                f"it takes {fields}"
            )
    return make(**given)


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


def network_for(
    config: ConfigDict, image_shape: tuple[int, int, int], num_classes: int
) -> nn.Module:
    """Return the configured network for images of this shape, in so many classes."""
    fields = {
        key: value
        for key, value in config.network.items()
        if key not in ("preset", "dtype") and value is not None
    }
    height, width, channels = image_shape
    dtype = config.network.dtype
    if dtype == "auto":
        dtype = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    return models.create(
        config.network.preset,
        image_size=(height, width),
        channels=channels,
        num_classes=num_classes,
        dtype=jnp.dtype(dtype),
        **fields,
    )


def flow_loss(
    config: ConfigDict,
    network: nn.Module,
    path: paths.Path,
    predicts: predictions.Prediction,
    num_classes: int,
) -> LossFn:
    """Return the loss of a class-conditional flow or diffusion model whose condition is dropped.

    Example i of the global batch draws from fold_in(key, i), and the times of the whole batch are
    drawn at once and then indexed, so neither depends on how the batch is spread over devices.
    """
    weighting = named("weighting", WEIGHTINGS, config.weighting)
    draw, batch_size, drop_rate = time_draw(config.time), config.batch, config.drop_rate

    def loss_fn(params: PyTree, batch: Batch, key: Array) -> Array:
        key_t, key_noise, key_drop = jax.random.split(key, 3)
        image, index = batch["image"], batch["index"]
        fold = jax.vmap(jax.random.fold_in, (None, 0))
        t = draw(key_t, batch_size)[index]
        draw_noise = jax.vmap(lambda k: jax.random.normal(k, image.shape[1:]))
        noise = draw_noise(fold(key_noise, index))
        cond = losses.drop_condition(
            fold(key_drop, index), batch["label"], jnp.int32(num_classes), drop_rate
        )

        def apply(x: Array, t: Array, cond: Any) -> Array:
            output: Any = network.apply({"params": params}, x, t, cond)
            return output[..., : x.shape[-1]]  # a learned variance has no part in these losses

        if predicts is predictions.velocity and weighting is None:
            return losses.flow_matching(apply, path, image, noise, t, cond)
        return losses.denoising(
            apply, path, image, noise, t, cond, predicts=predicts, weighting=weighting
        )

    return loss_fn


TASKS: Mapping[str, Callable[..., LossFn]] = {"flow": flow_loss}


def learning_rate_schedule(config: ConfigDict) -> Schedule:
    """Linear growth over `warm_up` steps, then cosine to `final` of the peak, or constant."""
    options = config.optimizer
    peak = options.learning_rate
    if options.schedule == "constant":
        if not options.warm_up:
            return optax.constant_schedule(peak)
        return optax.linear_schedule(0.0, peak, options.warm_up)
    return optax.warmup_cosine_decay_schedule(
        0.0 if options.warm_up else peak,
        peak,
        options.warm_up,
        max(config.steps, options.warm_up + 1),
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


def load_dataset(config: ConfigDict, split: str) -> data.Dataset:
    """Return one split of the configured data set."""
    section = config.dataset
    return data.load(
        section.name,
        split=split,
        image_size=section.image_size,
        data_dir=section.data_dir or None,
    )


def build(config: ConfigDict) -> Task:
    """Return everything a run is made of.

    Raises:
      ValueError: a field out of range, an unknown name (the message says the nearest), or parts
        that do not fit one another or the devices.
    """
    check(config)
    strategy = choose("strategy", config.parallel.strategy, STRATEGIES)(
        config.parallel.data, config.parallel.fsdp
    )
    if config.batch % (jax.device_count() * config.accumulate):
        raise ValueError(
            f"config.batch={config.batch} does not divide over {jax.device_count()} devices × "
            f"config.accumulate={config.accumulate}"
        )
    path = named("path", PATHS, config.path)
    predicts = choose("prediction", config.predicts, PREDICTIONS)
    loss = choose("task", config.task, TASKS)
    dataset = load_dataset(config, config.dataset.split)
    held_out = load_dataset(config, config.dataset.held_out) if config.dataset.held_out else None
    network = network_for(config, dataset.image_shape, dataset.num_classes)
    schedule = learning_rate_schedule(config)
    facts = {**dataset.identity, "num_classes": dataset.num_classes}
    about_data = {f"dataset.{key}": value for key, value in facts.items()}
    return Task(
        config=config,
        dataset=dataset,
        held_out=held_out,
        network=network,
        path=path,
        predicts=predicts,
        loss_fn=loss(config, network, path, predicts, dataset.num_classes),
        optimizer=optimizer_for(config, schedule),
        learning_rate=schedule,
        ema_decay=ema_schedule(config.ema.decay, config.ema.warm_up),
        strategy=strategy,
        identity={**identity(config), **about_data},
    )
