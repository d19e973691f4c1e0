"""A config to everything that a run is made of."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from jaxtyping import Array, PyTree
from ml_collections import ConfigDict

from guidedflow import data, models, paths, predictions
from guidedflow.models.grouping import micro_batches_for_device
from guidedflow.registry import choose
from guidedflow.training import named, parallel
from guidedflow.training.config import check, identity
from guidedflow.training.flops import counted
from guidedflow.training.kinds import KINDS, Kind
from guidedflow.training.state import TrainState, create
from guidedflow.training.step import Batch, LossFn, Schedule, StepFn, ema_schedule, make_step
from guidedflow.training.velocity import model_fn
from guidedflow.types import ModelFn


@dataclass(frozen=True)
class Task:
    """Everything a run is made of, from its config.

    Attributes:
      config: as checked.
      kind: what is trained.
      dataset, held_out: training and held-out examples.
      network: Flax module, `network.apply({"params": p}, x, t, cond)`.
      path, predicts: what the network was trained to predict, on which path.
      loss_fn: (params, batch, key) to one loss per example.
      optimizer, learning_rate, ema_decay: of the step.
      strategy: over devices.
      identity: what a checkpoint must agree with.
    """

    config: ConfigDict
    kind: Kind
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
        inputs = self.kind.inputs(jnp.zeros(1, jnp.int32))
        return init_state(self.network, self.dataset.image_shape, inputs, self.optimizer, key)

    def step(self) -> StepFn:
        """Return the pure training step, its micro-batches cut further where that suits the device."""
        rows = self.config.batch // (jax.device_count() * self.config.accumulate)
        parts = self.config.accumulate * micro_batches_for_device(self.network, rows)
        return make_step(
            self.loss_fn,
            self.optimizer,
            ema_decay=self.ema_decay,
            learning_rate=self.learning_rate,
            accumulate=parts,
            axis_name=self.strategy.axis_name,
        )

    def model(self, params: PyTree) -> ModelFn:
        """Return the velocity field of these parameters."""
        return model_fn(self.network, params, self.path, self.predicts)

    def guided(self, params: PyTree, scale: float) -> ModelFn:
        """Return the velocity field guided as it was trained for: by its null branch, or by itself."""
        null = jnp.int32(self.dataset.num_classes)
        number = self.kind.number(self.config, scale)
        return self.kind.guided(self.model(params), null, number)

    def measures(self, params: PyTree, batch: Batch, key: Array) -> dict[str, Array]:
        """Return what is taken of held-out examples: the loss and what the kind of run adds."""
        loss = {"held_out_loss": self.loss_fn(params, batch, key)}
        return {**loss, **self.kind.measures(self.network, self.path, params, batch, key)}

    def flops(self) -> float:
        """Return the operations of one step's matrix products, over the whole batch and all devices.

        Forward and backward pass, without what a remat policy computes a second time: those are the
        operations that model FLOP utilisation counts.
        """
        loss = self.loss_fn
        plain = _plain(self.network)
        if plain != self.network:
            loss = self.kind.loss(self.config, plain, self.path, self.predicts, self.dataset)
        key = jax.random.key(0)
        state = jax.eval_shape(self.init, key)
        rows = self.config.batch
        batch = {
            "image": jax.ShapeDtypeStruct((rows, *self.dataset.image_shape), jnp.float32),
            "label": jax.ShapeDtypeStruct((rows,), jnp.int32),
            "index": jax.ShapeDtypeStruct((rows,), jnp.int32),
        }

        def mean(params: PyTree, batch: Batch) -> Array:
            return jnp.mean(loss(params, batch, key))

        return counted(jax.grad(mean), state.params, batch)

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
    inputs: tuple[Any, ...],
    optimizer: optax.GradientTransformation,
    key: Array,
) -> TrainState:
    """Return the state with fresh parameters for images of this shape and these further inputs."""
    x, t = jnp.zeros((1, *image_shape)), jnp.zeros(1)
    params = network.init(key, x, t, *inputs)["params"]
    return create(params, optimizer)


def _plain(network: nn.Module) -> Any:
    """Return the network so that each of its operations is seen once: nothing recomputed or fused."""
    plain: Any = network
    if getattr(plain, "remat", "none") != "none":
        plain = plain.clone(remat="none")
    if hasattr(plain, "attention") and jax.default_backend() != "cpu":
        plain = plain.clone(attention="xla")
    return plain


def load_dataset(
    config: ConfigDict, split: str, class_names: Sequence[str] | None = None
) -> data.Dataset:
    """Return one split of the configured data set, its classes numbered as `class_names`."""
    section = config.dataset
    return data.load(
        section.name,
        split=split,
        image_size=section.image_size,
        data_dir=section.data_dir or None,
        class_names=class_names,
    )


def _no_loss(params: PyTree, batch: Batch, key: Array) -> Array:
    raise ValueError("this task was built to draw samples, without its loss")


def build(config: ConfigDict, *, trains: bool = True) -> Task:
    """Return everything a run is made of.

    Args:
      config: from a file or from `from_resolved`.
      trains: whether the loss is wanted; a student draws samples where its teacher is gone.
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
    kind = choose("task", config.task, KINDS)
    dataset = load_dataset(config, config.dataset.split)
    held_out = None
    if config.dataset.held_out:
        held_out = load_dataset(config, config.dataset.held_out, dataset.class_names)
    if config.dataset.flip and dataset.decoder is not None:
        raise ValueError(
            "config.dataset.flip mirrors pixels, and these are latents; mirror the pictures when they "
            "are encoded, guidedflow encode --mirrored"
        )
    network = named.network_for(config, dataset.image_shape, dataset.num_classes, kind.scalars)
    if kind.generates and isinstance(network, models.Classifier):
        raise ValueError(
            f"config.network.preset={config.network.preset!r} is a classifier; "
            "config.task='classifier' trains it"
        )
    schedule = named.learning_rate_schedule(config)
    facts = {**dataset.identity, "num_classes": dataset.num_classes}
    about_data = {f"dataset.{key}": value for key, value in facts.items()}
    return Task(
        config=config,
        kind=kind,
        dataset=dataset,
        held_out=held_out,
        network=network,
        path=path,
        predicts=predicts,
        loss_fn=kind.loss(config, network, path, predicts, dataset) if trains else _no_loss,
        optimizer=named.optimizer_for(config, schedule),
        learning_rate=schedule,
        ema_decay=ema_schedule(config.ema.decay, config.ema.warm_up),
        strategy=strategy,
        identity={**identity(config), **about_data},
    )
