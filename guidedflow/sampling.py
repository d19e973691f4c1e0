"""Sampling jobs: a trained run's parameters and a list of labels in, images out.

A job runs in chunks of one compiled program, spread over all devices of all processes; image i depends
on the seed and on i, not on how large a chunk is.
"""

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int, PRNGKeyArray

from guidedflow import samplers
from guidedflow.guidance import classifier as classifier_guidance
from guidedflow.guidance import extrapolate
from guidedflow.keys import fold_each
from guidedflow.methods import GRIDS, GUIDANCE, SOLVERS, WEAKER, Method
from guidedflow.paths import Path as NoisePath
from guidedflow.training.trained import Trained, all_devices, load, load_classifier
from guidedflow.types import ModelFn

__all__ = ["Trained", "guided_model", "load", "load_classifier", "sample"]


def guided_model(
    trained: Trained,
    method: Method,
    weaker: Trained | None = None,
    classifier: Trained | None = None,
) -> ModelFn:
    """Return a run's model guided as a method says.

    Args:
      trained: a run that draws images; one that guides itself takes the scale as a number.
      method: names and numbers.
      weaker: what autoguidance leads away from.
      classifier: from `load_classifier`; its gradient is added to whatever the method makes.
    Raises:
      ValueError: the run and the method do not go together.
    """
    task, kind = trained.task, trained.kind
    null = jnp.int32(task.dataset.num_classes)
    if method.unconditional:
        model = kind.unconditional(task.config, trained.model, null)
    elif kind.guides_itself:
        if method.guidance != Method.guidance:
            raise ValueError(
                f"{trained.folder} holds a model that guides itself in one branch: it takes a scale "
                f"and no guidance, got {method.guidance!r}"
            )
        # Outside an interval the scale is 1, which it must then know too.
        if method.interval:
            kind.number(task.config, 1.0)
        number = kind.number(task.config, method.scale)
        model = kind.guided(trained.model, null, method.schedule(number))
    elif method.guidance in WEAKER:
        reference = trained.weakened(WEAKER[method.guidance], weaker)
        model = extrapolate(trained.model, reference, method.schedule(method.scale))
    else:
        guide, scale = GUIDANCE[method.guidance], method.schedule(method.scale)
        model = guide(trained.model, null, scale, task.path)
    if classifier is None:
        return model
    strength = jnp.float32(method.classifier_scale)
    # Near the noise the factor of the gradient grows without bound, and a learnt gradient does not
    # vanish there as the true one does: on the linear path this keeps the factor to 9.
    return classifier_guidance(model, task.path, classifier.log_prob, strength, margin=0.1)


@functools.partial(jax.jit, static_argnums=(2, 3))
def _start(
    key: PRNGKeyArray, indices: Int[Array, " b"], shape: tuple[int, ...], path: NoisePath
) -> tuple[PRNGKeyArray, Float[Array, "b h w c"]]:
    """Return each image's key and its noise, of the size that the path has at t = 0."""
    keys = fold_each(key, indices)
    noise = samplers.draw_noise(keys, (indices.shape[0], *shape))
    return keys, noise * path.sigma(jnp.float32(0))


def sample(
    trained: Trained,
    labels: Sequence[int] | Int[np.ndarray, " n"],
    method: Method,
    *,
    seed: int = 0,
    batch: int = 256,
    progress: Callable[[int], None] = lambda done: None,
    weaker: Trained | None = None,
    classifier: Trained | None = None,
) -> Float[np.ndarray, "n h w c"]:
    """Draw one image a label, in chunks spread over all devices.

    Of several processes each makes the same call, draws its share and returns all images.

    Args:
      trained: from `load`.
      labels: classes, n in all.
      method: solver and guidance.
      seed: of the whole job; image i draws from fold_in(key(seed), i).
      batch: images at a time; larger ones need more memory and give the same images.
      progress: told how many more images are done after every chunk.
      weaker, classifier: as `guided_model` has them.
    Returns:
      float32 images in about [-1, 1].
    Raises:
      ValueError: a label that is no class, an empty list, or a batch below 1.
    """
    labels = np.asarray(labels, np.int32)
    if labels.ndim != 1 or not labels.size:
        raise ValueError(f"labels must be a list of at least one class, got shape {labels.shape}")
    if batch < 1:
        raise ValueError(f"batch must be at least 1, got {batch}")
    trained.check_labels(labels.tolist())
    task, mesh = trained.task, all_devices()
    # One shape for every chunk, so that one program serves; the devices share it evenly.
    size = -(-min(batch, labels.size) // mesh.size) * mesh.size
    model = guided_model(trained, method, weaker, classifier)
    ts = GRIDS[method.grid](method.steps, task.path)
    key, shared = jax.random.key(seed), NamedSharding(mesh, P("data"))
    chunks = []
    for first in range(0, labels.size, size):
        indices = np.minimum(np.arange(first, first + size, dtype=np.int32), labels.size - 1)
        numbers, cond = (_spread(part, shared) for part in (indices, labels[indices]))
        keys, noise = _start(key, numbers, task.dataset.image_shape, task.path)
        images = SOLVERS[method.solver](model, noise, jnp.asarray(ts), cond, keys, task.path)
        chunks.append(_gathered(images)[: labels.size - first])
        progress(len(chunks[-1]))
    return np.concatenate(chunks)


def _spread(whole: np.ndarray, sharding: NamedSharding) -> Array:
    """Put onto all devices what every process holds the whole of."""
    return jax.make_array_from_callback(whole.shape, sharding, whole.__getitem__)


def _gathered(images: Array) -> np.ndarray:
    """Bring the images of all processes to each of them."""
    if jax.process_count() == 1:
        return np.asarray(images)
    return np.asarray(multihost_utils.process_allgather(images, tiled=True))
