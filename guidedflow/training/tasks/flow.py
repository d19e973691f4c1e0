"""Task "flow": a conditional flow or diffusion model, its condition dropped at random."""

from typing import Any

import jax
from jaxtyping import Array, PyTree

from guidedflow import losses, predictions
from guidedflow.bundle import Apply
from guidedflow.training.registries import WEIGHTINGS, make
from guidedflow.training.step import Batch, LossFn
from guidedflow.training.tasks.task import Parts, Task, draw_time_and_noise, dropped_condition


def flow_loss(parts: Parts) -> LossFn:
    """Return the loss of a conditional flow or diffusion model whose condition is dropped.

    `losses.flow_matching`, or `losses.denoising` with a weighting or another prediction.
    """
    path, predicts = parts.path, parts.predicts
    weighting = make("weighting", WEIGHTINGS, parts.config.weighting)
    draw, network = draw_time_and_noise(parts.config), Apply(parts.network)

    def loss_fn(params: PyTree, batch: Batch, key: Array) -> Array:
        key_t, key_noise, key_drop = jax.random.split(key, 3)
        image = batch["image"]
        t, noise = draw(key_t, key_noise, batch)
        cond = dropped_condition(parts, key_drop, batch)

        def apply(x: Array, t: Array, cond: Any) -> Array:
            # A learned variance has no part in these losses.
            return network(params, x, t, cond)[..., : x.shape[-1]]

        if predicts is predictions.velocity and weighting is None:
            return losses.flow_matching(apply, path, image, noise, t, cond)
        return losses.denoising(
            apply, path, image, noise, t, cond, predicts=predicts, weighting=weighting
        )

    return loss_fn


TASK = Task(flow_loss)
