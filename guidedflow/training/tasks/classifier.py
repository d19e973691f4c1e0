"""Task "classifier": a classifier of noised images, whose gradient guides a generator."""

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PyTree

from guidedflow.bundle import Apply
from guidedflow.keys import fold_each
from guidedflow.training.step import Batch, LossFn
from guidedflow.training.tasks.task import Parts, Task, draw_time_and_noise, noised

# Where on the way from noise to data its accuracy is taken.
TIMES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.7, 1.0)
ACCURACY = "accuracy_at_"


def classifier_loss(parts: Parts) -> LossFn:
    """Return the cross-entropy of a classifier of noised images at random times.

    L_i = -log p(y_i given x_t, t),   x_t = alpha(t) data + sigma(t) noise.

    At its least it is the posterior whose gradient `guidance.classifier` adds.

    Source: Dhariwal & Nichol 2021, section 4.
    """
    draw, network = draw_time_and_noise(parts.config), Apply(parts.network)

    def loss_fn(params: PyTree, batch: Batch, key: Array) -> Array:
        key_t, key_noise = jax.random.split(key)
        t, noise = draw(key_t, key_noise, batch)
        logits = network(params, noised(parts.path, batch["image"], noise, t), t)
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])

    return loss_fn


def accuracies(
    parts: Parts, params: PyTree, batch: Batch, key: Array
) -> dict[str, Float[Array, " b"]]:
    """Return, by name, whether each example's class is told rightly at each of `TIMES`.

    The same noise at every time, example i drawing from fold_in(key, i).
    """
    image, label, network = batch["image"], batch["label"], Apply(parts.network)
    keys = fold_each(key, batch["index"])
    noise = jax.vmap(lambda k: jax.random.normal(k, image.shape[1:]))(keys)

    def right(time: Array) -> Float[Array, " b"]:
        t = jnp.full(label.shape, time)
        logits = network(params, noised(parts.path, image, noise, t), t)
        return (jnp.argmax(logits, axis=-1) == label).astype(jnp.float32)

    told = jax.lax.map(right, jnp.asarray(TIMES))
    return {f"{ACCURACY}{time:g}": told[i] for i, time in enumerate(TIMES)}


TASK = Task(classifier_loss, output="logits", measures=accuracies)
