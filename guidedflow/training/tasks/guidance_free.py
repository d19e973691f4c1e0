"""Task "guidance_free": a network that takes beta = 1/w and learns guided sampling from data."""

import jax
from jaxtyping import Array, PyTree
from ml_collections import ConfigDict

from guidedflow import distillation
from guidedflow.bundle import model_fn
from guidedflow.scales import ByInverse, TakesScale, student
from guidedflow.training.step import Batch, LossFn
from guidedflow.training.tasks.task import (
    Parts,
    Task,
    check_unweighted,
    draw_time_and_noise,
    dropped_condition,
)


def takes_scale(config: ConfigDict) -> TakesScale:
    """Return the scales that the network learns, beta in [config.guidance_free.low, 1]."""
    return ByInverse(config.guidance_free.low)


def guidance_free_loss(parts: Parts) -> LossFn:
    """Return the loss of a network that takes beta = 1 / w and learns guided sampling from data.

    `distillation.guidance_free` with beta even over [config.guidance_free.low, 1), conditions dropped.

    Raises:
      ValueError: no condition is dropped, or a weighting is set.
    """
    config = parts.config
    check_unweighted(config)
    if config.drop_rate == 0:
        raise ValueError("config.drop_rate must be above 0: guidance-free training needs the null")
    draw, null = draw_time_and_noise(config), parts.condition.null()

    def loss_fn(params: PyTree, batch: Batch, key: Array) -> Array:
        key_t, key_noise, key_drop, key_beta = jax.random.split(key, 4)
        t, noise = draw(key_t, key_noise, batch)
        cond = dropped_condition(parts, key_drop, batch)
        low = config.guidance_free.low
        beta = distillation.draw_scale(key_beta, config.batch, low, 1.0)[batch["index"]]
        network = model_fn(parts.network, params, parts.path, parts.predicts, whole=True)
        learner = student(network, "beta")
        return distillation.guidance_free(
            learner, parts.path, batch["image"], noise, t, cond, null, beta
        )

    return loss_fn


TASK = Task(guidance_free_loss, takes_scale=takes_scale)
