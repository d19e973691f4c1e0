"""What a class-conditional flow or diffusion model is trained on: its loss, from a config."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, PyTree
from ml_collections import ConfigDict

from guidedflow import losses, paths, predictions
from guidedflow.training.named import WEIGHTINGS, make, time_draw
from guidedflow.training.step import Batch, LossFn


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
    weighting = make("weighting", WEIGHTINGS, config.weighting)
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
