"""What a class-conditional flow or diffusion model is trained on: its loss, from a config."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, PyTree
from ml_collections import ConfigDict

from guidedflow import data, losses, paths, predictions
from guidedflow.keys import fold_each
from guidedflow.training.named import WEIGHTINGS, make, time_draw
from guidedflow.training.step import Batch, LossFn


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
        keys = fold_each(key_noise, index)
        return t, jax.vmap(lambda k: jax.random.normal(k, image.shape[1:]))(keys)

    return draw_both


def flow_loss(
    config: ConfigDict,
    network: nn.Module,
    path: paths.Path,
    predicts: predictions.Prediction,
    dataset: data.Dataset,
) -> LossFn:
    """Return the loss of a class-conditional flow or diffusion model whose condition is dropped."""
    weighting = make("weighting", WEIGHTINGS, config.weighting)
    draw, null = draw_time_and_noise(config), jnp.int32(dataset.num_classes)

    def loss_fn(params: PyTree, batch: Batch, key: Array) -> Array:
        key_t, key_noise, key_drop = jax.random.split(key, 3)
        image = batch["image"]
        t, noise = draw(key_t, key_noise, batch)
        coins = fold_each(key_drop, batch["index"])
        cond = losses.drop_condition(coins, batch["label"], null, config.drop_rate)

        def apply(x: Array, t: Array, cond: Any) -> Array:
            output: Any = network.apply({"params": params}, x, t, cond)
            return output[..., : x.shape[-1]]  # a learned variance has no part in these losses

        if predicts is predictions.velocity and weighting is None:
            return losses.flow_matching(apply, path, image, noise, t, cond)
        return losses.denoising(
            apply, path, image, noise, t, cond, predicts=predicts, weighting=weighting
        )

    return loss_fn
