"""A config to everything that a run is made of."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from jaxtyping import Array, PyTree
from ml_collections import ConfigDict

from guidedflow import data, paths, predictions
from guidedflow.bundle import Bundle, model_fn
from guidedflow.nn.capabilities import capabilities, over_devices, unfused
from guidedflow.nn.microbatching import micro_batches_for_device
from guidedflow.registry import choose
from guidedflow.scales import TakesScale
from guidedflow.target import Target, attached
from guidedflow.training import parallel, registries, state
from guidedflow.training.config import identity, settled
from guidedflow.training.config_check import check
from guidedflow.training.flops import counted
from guidedflow.training.load import load_bundle
from guidedflow.training.step import Batch, LossFn, Schedule, StepFn, ema_schedule, make_step
from guidedflow.training.tasks import TASKS, Parts, Task
from guidedflow.training.tasks.task import network_inputs
from guidedflow.training.telling import told
from guidedflow.types import Cond, ModelFn


@dataclass(frozen=True)
class Setup:
    """Everything a run is made of, from its config.

    Attributes:
      parts: what the loss is made of: config, network, path, prediction, condition, teacher.
      task: what is trained.
      takes_scale: how the network is guided.
      dataset, held_out: training and held-out examples.
      loss_fn: (params, batch, key) to one loss per example.
      optimizer, learning_rate, ema_decay: of the step.
      strategy: over devices.
      target: the devices.
      identity: what a checkpoint must agree with.
    """

    parts: Parts
    task: Task
    takes_scale: TakesScale
    dataset: data.Dataset
    held_out: data.Dataset | None
    loss_fn: LossFn
    optimizer: optax.GradientTransformation
    learning_rate: Schedule
    ema_decay: Schedule
    strategy: parallel.Strategy
    target: Target
    identity: dict[str, Any]

    @property
    def config(self) -> ConfigDict:
        """The config, as checked and settled."""
        return self.parts.config

    @property
    def network(self) -> nn.Module:
        """What is trained."""
        return self.parts.network

    @property
    def path(self) -> paths.Path:
        """From noise to data."""
        return self.parts.path

    @property
    def predicts(self) -> predictions.Prediction:
        """What the network predicts."""
        return self.parts.predicts

    def init(self, key: Array) -> state.TrainState:
        """Return the state before the first step; pure, to be jitted or shaped."""
        cond = self.parts.condition.example(1)
        inputs = network_inputs(self.task, self.takes_scale, cond)
        return state.fresh(self.network, self.dataset.image_shape, inputs, self.optimizer, key)

    def step(self) -> StepFn:
        """Return the pure training step, its micro-batches cut further where that suits the device."""
        inside = 1 if self.strategy.mesh_inside is None else self.target.count
        rows = self.config.batch * inside // (self.target.count * self.config.accumulate)
        parts = self.config.accumulate * micro_batches_for_device(self.network, rows)
        return make_step(
            self.loss_fn,
            self.optimizer,
            ema_decay=self.ema_decay,
            learning_rate=self.learning_rate,
            accumulate=parts,
            axis_name=self.strategy.axis_name,
            in_turn=self.target.platform == "cpu",
        )

    def model(self, params: PyTree) -> ModelFn:
        """Return the velocity field of these parameters, for a batch spread over all devices."""
        network = over_devices(self.network, self.target.count)
        return model_fn(network, params, self.path, self.predicts)

    def guided(self, params: PyTree, scale: float, null: Cond | None = None) -> ModelFn:
        """Return the velocity field guided as it was trained for: by its null branch, or by itself.

        Args:
          null: in place of the condition's own, as the network has encoded it.
        """
        number = self.takes_scale.number(scale)
        null = self.parts.condition.null() if null is None else null
        return self.takes_scale.guided(self.model(params), null, number)

    def measures(self, params: PyTree, batch: Batch, key: Array) -> dict[str, Array]:
        """Return what is taken of held-out examples: the loss and what the task adds."""
        loss = {"held_out_loss": self.loss_fn(params, batch, key)}
        return {**loss, **self.task.measures(self.parts, params, batch, key)}

    def flops(self) -> float:
        """Return the operations of one step's matrix products, over the whole batch and all devices.

        Forward and backward pass, without what a remat policy computes a second time: those are the
        operations that model FLOP utilisation counts.
        """
        plain = unfused(self.network)
        loss = self.task.loss(replace(self.parts, network=plain))
        key = jax.random.key(0)
        fresh = jax.eval_shape(self.init, key)
        rows = self.config.batch
        # Texts stay on the host, see `batches.Numbered`.
        example = {k: v for k, v in self.dataset.take(1).items() if v.dtype != object}
        batch = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct((rows, *leaf.shape[1:]), leaf.dtype),
            {**example, "index": jnp.zeros(1, jnp.int32)},
        )

        def mean(params: PyTree, batch: Batch) -> Array:
            return jnp.mean(loss(params, batch, key))

        return counted(jax.grad(mean), fresh.params, batch)

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


def _check_output(network: nn.Module, config: ConfigDict, task: Task) -> None:
    """Raise ValueError unless the network gives what the task trains."""
    given, preset = capabilities(network).output, config.network.preset
    if given == task.output:
        return
    if given == "logits":
        raise ValueError(
            f"config.network.preset={preset!r} is a classifier; config.task='classifier' trains it"
        )
    raise ValueError(
        f"config.task={config.task!r} needs a classifier as config.network.preset, "
        f"'digits-classifier' for one, got a {type(network).__name__}"
    )


def _teacher(config: ConfigDict, task: Task, target: Target) -> Bundle | None:
    folder = task.teacher(config)
    return load_bundle(Path(folder), target=target) if folder else None


def build(
    config: ConfigDict, *, target: Target | None = None, dataset: data.Dataset | None = None
) -> Setup:
    """Return everything a run is made of.

    Args:
      config: from a file or from `from_resolved`.
      target: the devices; by default what is attached.
      dataset: in place of the configured one; the held-out one is then not opened either.
    Raises:
      ValueError: a field out of range, an unknown name (the message says the nearest), or parts
        that do not fit one another or the devices.
    """
    check(config)
    config = settled(config)
    target = target or attached()
    make_strategy = choose("strategy", config.parallel.strategy, parallel.STRATEGIES)
    strategy = make_strategy(target, config.parallel.data, config.parallel.fsdp)
    if config.batch % (target.count * config.accumulate):
        raise ValueError(
            f"config.batch={config.batch} does not divide over {target.count} devices × "
            f"config.accumulate={config.accumulate}"
        )
    task = choose("task", config.task, TASKS)
    takes_scale = task.takes_scale(config)
    held_out = None
    if dataset is None:
        dataset = load_dataset(config, config.dataset.split)
        if config.dataset.held_out:
            held_out = load_dataset(config, config.dataset.held_out, dataset.class_names)
    dataset, held_out = told(config, dataset, held_out)
    if config.dataset.flip and dataset.decoder is not None:
        raise ValueError(
            "config.dataset.flip mirrors pixels, and these are latents; mirror the images when they "
            "are encoded, guidedflow encode --mirrored"
        )
    condition = dataset.condition
    network = registries.network_for(
        config,
        dataset.image_shape,
        condition,
        takes_scale.scalars,
        target.platform,
        devices=1 if strategy.mesh_inside is None else target.count,
        mesh=strategy.mesh_inside,
    )
    _check_output(network, config, task)
    parts = Parts(
        config=config,
        network=network,
        path=registries.make("path", registries.PATHS, config.path),
        predicts=choose("prediction", config.predicts, registries.PREDICTIONS),
        condition=condition,
        image_shape=dataset.image_shape,
        teacher=_teacher(config, task, target),
    )
    schedule = registries.learning_rate_schedule(config)
    facts = {**dataset.identity, **condition.identity()}
    about_data = {f"dataset.{key}": value for key, value in facts.items()}
    return Setup(
        parts=parts,
        task=task,
        takes_scale=takes_scale,
        dataset=dataset,
        held_out=held_out,
        loss_fn=task.loss(parts),
        optimizer=registries.optimizer_for(config, schedule),
        learning_rate=schedule,
        ema_decay=ema_schedule(config.ema.decay, config.ema.warm_up),
        strategy=strategy,
        target=target,
        identity={**identity(config), **about_data},
    )
