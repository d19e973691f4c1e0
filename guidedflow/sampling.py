"""Sampling jobs: a trained run's parameters and a list of labels in, images out.

A job runs in chunks of one compiled program; image i depends on the seed and on i, not on how large
a chunk is.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int, PRNGKeyArray

from guidedflow import samplers
from guidedflow.methods import GRIDS, GUIDANCE, SOLVERS, Method
from guidedflow.paths import Path as NoisePath
from guidedflow.training import config as configs
from guidedflow.training import workdir as workdirs
from guidedflow.training.build import Task, build
from guidedflow.training.checkpoint import restore
from guidedflow.types import ModelFn


@dataclasses.dataclass(frozen=True, eq=False)
class Trained:
    """A run's network with the parameters of its newest good checkpoint.

    Attributes:
      task: what the run is made of.
      model: velocity field; its parameters are leaves.
      step: training steps done.
    """

    task: Task
    model: ModelFn
    step: int

    def check_labels(self, labels: Sequence[int]) -> None:
        """Raise ValueError unless every label is a class of the model."""
        classes = self.task.dataset.num_classes
        for label in labels:
            if not 0 <= label < classes:
                raise ValueError(
                    f"label {label} is out of range: this model knows classes 0 to {classes - 1}"
                )


def load(folder: Path, *, ema: bool = True, say: Callable[[str], None] = print) -> Trained:
    """Return what was trained in a workdir.

    Args:
      folder: the workdir.
      ema: take the averaged parameters, which sample better, or the newest ones.
      say: gets one line for every damaged checkpoint that was passed over.
    Raises:
      ValueError: no run, no checkpoint, or only damaged ones.
    """
    config = configs.from_resolved(workdirs.read_config(folder))
    # How it was spread while training does not bind those who sample from it.
    config.parallel.strategy, config.accumulate = "auto", 1
    config.batch = jax.device_count()
    task = build(config)
    everywhere = NamedSharding(_mesh(), P())
    abstract = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=everywhere),
        jax.eval_shape(task.init, jax.random.key(0)),
    )
    field = "ema" if ema else "params"
    found = restore(workdirs.checkpoints(folder), abstract, only=field, say=say)
    if found is None:
        raise ValueError(
            f"{folder} holds no checkpoint yet; train until the first one is written, "
            f"guidedflow train --workdir={folder} --config=…"
        )
    state, record = found
    return Trained(task, task.model(getattr(state, field)), record.step)


def _mesh() -> Mesh:
    return Mesh(np.asarray(jax.devices()), ("data",))


@functools.partial(jax.jit, static_argnums=(2, 3))
def _start(
    key: PRNGKeyArray, indices: Int[Array, " b"], shape: tuple[int, ...], path: NoisePath
) -> tuple[PRNGKeyArray, Float[Array, "b h w c"]]:
    """Return each image's key and its noise, of the size that the path has at t = 0."""
    keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(indices)
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
) -> Float[np.ndarray, "n h w c"]:
    """Draw one image a label, in chunks spread over all devices.

    Args:
      trained: from `load`.
      labels: classes, n in all.
      method: solver and guidance.
      seed: of the whole job; image i draws from fold_in(key(seed), i).
      batch: images at a time; larger ones need more memory and give the same images.
      progress: told how many more images are done after every chunk.
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
    task, mesh = trained.task, _mesh()
    # One shape for every chunk, so that one program serves; the devices share it evenly.
    size = -(-min(batch, labels.size) // mesh.size) * mesh.size
    null = jnp.int32(task.dataset.num_classes)
    model = GUIDANCE[method.guidance](trained.model, null, method.schedule(), task.path)
    ts = GRIDS[method.grid](method.steps, task.path)
    key, shared = jax.random.key(seed), NamedSharding(mesh, P("data"))
    chunks = []
    for first in range(0, labels.size, size):
        indices = np.minimum(np.arange(first, first + size, dtype=np.int32), labels.size - 1)
        numbers, cond = (jax.device_put(part, shared) for part in (indices, labels[indices]))
        keys, noise = _start(key, numbers, task.dataset.image_shape, task.path)
        images = SOLVERS[method.solver](model, noise, jnp.asarray(ts), cond, keys, task.path)
        chunks.append(np.asarray(images)[: labels.size - first])
        progress(len(chunks[-1]))
    return np.concatenate(chunks)
