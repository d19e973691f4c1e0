"""What a task is: its loss, what it measures, and how what it trains is guided."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, PyTree
from ml_collections import ConfigDict

from guidedflow import losses, paths, predictions
from guidedflow.bundle import Bundle
from guidedflow.conditions import Condition
from guidedflow.keys import fold_each
from guidedflow.scales import ByNull, TakesScale, beside
from guidedflow.training.registries import time_draw
from guidedflow.training.step import Batch, LossFn
from guidedflow.types import Cond


@dataclass(frozen=True)
class Parts:
    """What a loss is made of.

    Attributes:
      config: as checked.
      network: what is trained.
      path, predicts: what it predicts, on which path.
      condition: what it is told.
      image_shape: (h, w, c) of an example.
      teacher: what it learns from, for tasks that have one.
    """

    config: ConfigDict
    network: nn.Module
    path: paths.Path
    predicts: predictions.Prediction
    condition: Condition
    image_shape: tuple[int, int, int]
    teacher: Bundle | None = None


Measures = Callable[[Parts, PyTree, Batch, Array], dict[str, Float[Array, " b"]]]


def _no_measures(parts: Parts, params: PyTree, batch: Batch, key: Array) -> dict[str, Array]:
    return {}


def _by_null(config: ConfigDict) -> TakesScale:
    return ByNull()


def _no_teacher(config: ConfigDict) -> str:
    return ""


@dataclass(frozen=True)
class Task:
    """One kind of training.

    Attributes:
      loss: parts -> loss.
      output: what the network must give, see `nn.capabilities`.
      takes_scale: config -> how the network is guided.
      teacher: config -> the workdir of what it learns from, or "".
      measures: what is taken of held-out examples beside the loss, one number an example.
    """

    loss: Callable[[Parts], LossFn]
    output: str = "field"
    takes_scale: Callable[[ConfigDict], TakesScale] = _by_null
    teacher: Callable[[ConfigDict], str] = _no_teacher
    measures: Measures = _no_measures


def network_inputs(task: Task, takes_scale: TakesScale, cond: Cond) -> tuple[Any, ...]:
    """Return what the network takes after x and t."""
    if task.output == "logits":
        return ()
    numbers = {name: jnp.ones(jax.tree.leaves(cond)[0].shape[0]) for name in takes_scale.scalars}
    return (beside(cond, numbers),)


def draw_time_and_noise(
    config: ConfigDict,
) -> Callable[[Array, Array, Batch], tuple[Float[Array, " b"], Array]]:
    """Return (key of t, key of noise, batch) -> (t, noise), one an example.

    Example i of the global batch draws its noise from fold_in(key, i), and the times of the whole
    batch are drawn at once and then indexed, so neither depends on how the batch is spread over
    devices.
    """
    draw, batch_size = time_draw(config.time), config.batch

    def draw_both(key_t: Array, key_noise: Array, batch: Batch) -> tuple[Array, Array]:
        image, index = batch["image"], batch["index"]
        t = draw(key_t, batch_size)[index]
        return t, jax.vmap(lambda k: jax.random.normal(k, image.shape[1:]))(
            fold_each(key_noise, index)
        )

    return draw_both


def dropped_condition(parts: Parts, key: Array, batch: Batch) -> Cond:
    """Return the batch's condition, each example's replaced by the null at the config's rate.

    The parts of a condition that has parts are dropped alone too, each at its own rate.
    """
    condition = parts.condition
    cond, null = condition.from_batch(batch), condition.null()
    coins = fold_each(key, batch["index"])
    return losses.drop_condition(coins, cond, null, parts.config.drop_rate, condition.part_rates)


def noised(
    path: paths.Path, image: Float[Array, "b *d"], noise: Float[Array, "b *d"], t: Array
) -> Float[Array, "b *d"]:
    """Return x_t = alpha(t) data + sigma(t) noise, one time an example."""

    def one(image: Array, noise: Array, t: Array) -> Array:
        return path.alpha(t) * image + path.sigma(t) * noise

    return jax.vmap(one)(image, noise, t)


def check_unweighted(config: ConfigDict) -> None:
    """Raise ValueError if a weighting is set, for tasks that take none."""
    if config.weighting.name != "none":
        raise ValueError(
            f"config.task={config.task!r} takes no weighting, got {config.weighting.name!r}"
        )
