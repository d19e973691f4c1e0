"""A config to everything that a run is made of."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from jaxtyping import Array, PyTree
from ml_collections import ConfigDict

from guidedflow import data, paths, predictions
from guidedflow.registry import choose
from guidedflow.training import named, parallel
from guidedflow.training.config import check, identity
from guidedflow.training.flow import flow_loss
from guidedflow.training.state import TrainState, create
from guidedflow.training.step import LossFn, Schedule, StepFn, ema_schedule, make_step
from guidedflow.types import ModelFn

TASKS: Mapping[str, Callable[..., LossFn]] = {"flow": flow_loss}


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
    strategy = choose("strategy", config.parallel.strategy, named.STRATEGIES)(
        config.parallel.data, config.parallel.fsdp
    )
    if config.batch % (jax.device_count() * config.accumulate):
        raise ValueError(
            f"config.batch={config.batch} does not divide over {jax.device_count()} devices × "
            f"config.accumulate={config.accumulate}"
        )
    path = named.make("path", named.PATHS, config.path)
    predicts = choose("prediction", config.predicts, named.PREDICTIONS)
    loss = choose("task", config.task, TASKS)
    dataset = load_dataset(config, config.dataset.split)
    held_out = load_dataset(config, config.dataset.held_out) if config.dataset.held_out else None
    network = named.network_for(config, dataset.image_shape, dataset.num_classes)
    schedule = named.learning_rate_schedule(config)
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
        optimizer=named.optimizer_for(config, schedule),
        learning_rate=schedule,
        ema_decay=ema_schedule(config.ema.decay, config.ema.warm_up),
        strategy=strategy,
        identity={**identity(config), **about_data},
    )
