"""Training a classifier of noised images, and its log-probability as guidance takes it."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from jaxtyping import Array, Float, Int, PyTree
from ml_collections import ConfigDict

from guidedflow import data, models, paths, predictions
from guidedflow.guidance.gradients import LogProb
from guidedflow.keys import fold_each
from guidedflow.training.flow import draw_time_and_noise
from guidedflow.training.step import Batch, LossFn
from guidedflow.training.velocity import Apply

# Where on the way from noise to data its accuracy is taken.
TIMES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.7, 1.0)
ACCURACY = "accuracy_at_"


def _noised(path: paths.Path, image: Array, noise: Array, t: Array) -> Array:
    def one(image: Array, noise: Array, t: Array) -> Array:
        return path.alpha(t) * image + path.sigma(t) * noise

    return jax.vmap(one)(image, noise, t)


def check_classifier(network: nn.Module) -> None:
    """Raise ValueError unless the network gives logits."""
    if not isinstance(network, models.Classifier):
        raise ValueError(
            "config.task='classifier' needs a classifier as config.network.preset, "
            f"'digits-classifier' for one, got a {type(network).__name__}"
        )


def classifier_loss(
    config: ConfigDict,
    network: nn.Module,
    path: paths.Path,
    predicts: predictions.Prediction,
    dataset: data.Dataset,
) -> LossFn:
    """Return the cross-entropy of a classifier of noised images at random times.

    L_i = -log p(y_i given x_t, t),   x_t = alpha(t) data + sigma(t) noise.

    At its least it is the posterior whose gradient `guidance.classifier` adds.

    Raises:
      ValueError: the network gives no logits.
    Source: Dhariwal & Nichol 2021, section 4.
    """
    check_classifier(network)
    draw = draw_time_and_noise(config)

    def loss_fn(params: PyTree, batch: Batch, key: Array) -> Array:
        key_t, key_noise = jax.random.split(key)
        t, noise = draw(key_t, key_noise, batch)
        logits = Apply(network)(params, _noised(path, batch["image"], noise, t), t)
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])

    return loss_fn


def accuracies(
    network: nn.Module, path: paths.Path, params: PyTree, batch: Batch, key: Array
) -> dict[str, Float[Array, " b"]]:
    """Return, by name, whether each example's class is told rightly at each of `TIMES`.

    The same noise at every time, example i drawing from fold_in(key, i).
    """
    image, label = batch["image"], batch["label"]
    keys = fold_each(key, batch["index"])
    noise = jax.vmap(lambda k: jax.random.normal(k, image.shape[1:]))(keys)

    def right(time: Array) -> Float[Array, " b"]:
        t = jnp.full(label.shape, time)
        logits = Apply(network)(params, _noised(path, image, noise, t), t)
        return (jnp.argmax(logits, axis=-1) == label).astype(jnp.float32)

    told = jax.lax.map(right, jnp.asarray(TIMES))
    return {f"{ACCURACY}{time:g}": told[i] for i, time in enumerate(TIMES)}


@dataclass(frozen=True)
class ClassLogProb:
    """log p(label given x, t) of a classifier, as a function of its parameters."""

    network: nn.Module

    def __call__(
        self, params: PyTree, x: Array, t: Float[Array, " b"], label: Int[Array, " b"]
    ) -> Float[Array, " b"]:
        log_probs = jax.nn.log_softmax(Apply(self.network)(params, x, t))
        return jnp.take_along_axis(log_probs, label[:, None], axis=1)[:, 0]


def log_prob(network: nn.Module, params: PyTree) -> LogProb:
    """Return (x, t, label) -> log p(label given x, t); the parameters are leaves of it."""
    return jax.tree_util.Partial(ClassLogProb(network), params)
