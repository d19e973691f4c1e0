"""Sampling jobs: a bundle and one condition an image in, images out.

A job runs in chunks of one compiled program, spread over all devices of all processes; image i depends
on the seed and on i, not on how large a chunk is.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int, PRNGKeyArray

from guidedflow import samplers
from guidedflow.bundle import Bundle, encoded
from guidedflow.guidance import classifier as classifier_guidance
from guidedflow.guidance import extrapolate
from guidedflow.keys import fold_each
from guidedflow.nn.capabilities import capabilities
from guidedflow.paths import Path
from guidedflow.pipelines.methods import GRIDS, GUIDANCE, SOLVERS, WEAKER, Method
from guidedflow.target import Target, attached
from guidedflow.types import Cond, ModelFn


def guided_model(
    bundle: Bundle,
    method: Method,
    weaker: Bundle | None = None,
    classifier: Bundle | None = None,
    null: Cond | None = None,
) -> ModelFn:
    """Return a bundle's model guided as a method says.

    Args:
      bundle: what draws images; one that takes the scale itself is evaluated in one branch.
      method: names and numbers.
      weaker: what autoguidance leads away from.
      classifier: its gradient is added to whatever the method makes.
      null: in place of the condition's own null: a negative prompt, or the null encoded.
    Raises:
      ValueError: the bundle and the method do not go together.
    """
    null = bundle.condition.null() if null is None else null
    if method.unconditional:
        model = bundle.takes_scale.unconditional(bundle.model, null)
    elif bundle.takes_scale.in_one_branch:
        model = _in_one_branch(bundle, method, null)
    elif method.guidance in WEAKER:
        reference = _weaker(bundle, WEAKER[method.guidance], weaker)
        model = extrapolate(bundle.model, reference, method.schedule(method.scale))
    else:
        guide, scale = GUIDANCE[method.guidance], method.schedule(method.scale)
        model = guide(bundle.model, null, scale, bundle.path)
    if classifier is None:
        return model
    strength = jnp.float32(method.classifier_scale)
    # Near the noise the factor of the gradient grows without bound, and a learnt gradient does not
    # vanish there as the true one does: on the linear path this keeps the factor to 9.
    return classifier_guidance(model, bundle.path, classifier.log_prob, strength, margin=0.1)


def _in_one_branch(bundle: Bundle, method: Method, null: Cond) -> ModelFn:
    """Return the model at the number that it takes for the method's scale."""
    if method.guidance != Method.guidance:
        raise ValueError(
            f"{bundle.name} holds a model that guides itself in one branch: it takes a scale "
            f"and no guidance, got {method.guidance!r}"
        )
    # Outside an interval the scale is 1, which it must then know too.
    if method.interval:
        bundle.takes_scale.number(1.0)
    number = bundle.takes_scale.number(method.scale)
    return bundle.takes_scale.guided(bundle.model, null, method.schedule(number))


def _weaker(bundle: Bundle, how: str, other: Bundle | None) -> ModelFn:
    """Return a weaker model: another bundle's, or this network with its middle block perturbed."""
    if how != "another run":
        return bundle.perturbed(how)
    if other is None:
        raise ValueError("autoguidance needs a weaker run: --reference=WORKDIR")
    name = f"the reference {other.name}"
    other.check_fits(name, bundle.image_shape, bundle.condition, bundle.path)
    return other.model


@functools.partial(jax.jit, static_argnums=(3, 4))
def _start(
    key: PRNGKeyArray,
    indices: Int[Array, " b"],
    ts: Float[Array, " n"],
    shape: tuple[int, ...],
    path: Path,
) -> tuple[PRNGKeyArray, Float[Array, "b h w c"]]:
    """Return each image's key and its noise, of the size that the path has where the grid starts."""
    keys = fold_each(key, indices)
    noise = samplers.draw_noise(keys, (indices.shape[0], *shape))
    return keys, samplers.start(path, noise, ts)


def sample(
    bundle: Bundle,
    asked: Sequence[str | int] | Cond,
    method: Method,
    *,
    seed: int = 0,
    batch: int = 256,
    progress: Callable[[int], None] = lambda done: None,
    weaker: Bundle | None = None,
    classifier: Bundle | None = None,
    target: Target | None = None,
    negative: Any = None,
) -> Float[np.ndarray, "n h w c"]:
    """Draw one image a condition, in chunks spread over all devices.

    Of several processes each makes the same call, draws its share and returns all images.

    Args:
      bundle: what draws.
      asked: what the bundle's condition parses, as class names or numbers; or a condition, numpy
        arrays with n first.
      method: solver and guidance.
      seed: of the whole job; image i draws from fold_in(key(seed), i).
      batch: images at a time; larger ones need more memory and give the same images.
      progress: told how many more images are done after every chunk.
      weaker, classifier: as `guided_model` has them.
      target: the devices; by default what is attached.
      negative: an entry as `asked` has them, which takes the null's place.
    Returns:
      float32 images in about [-1, 1], or latents.
    Raises:
      ValueError: a condition that the bundle does not know, none at all, or a batch below 1.
    """
    if batch < 1:
        raise ValueError(f"batch must be at least 1, got {batch}")
    cond = bundle.condition.parse(list(asked)) if _is_list(asked) else asked
    count = _examples(cond)
    mesh = (target or attached()).mesh()
    # One shape for every chunk, so that one program serves; the devices share it evenly.
    size = -(-min(batch, count) // mesh.size) * mesh.size
    cond, null = _prepared(bundle, cond, negative, weaker, mesh)
    model = guided_model(bundle, method, weaker, classifier, null)
    ts = jnp.asarray(GRIDS[method.grid](method.steps, bundle.path))
    key, shared = jax.random.key(seed), NamedSharding(mesh, P("data"))
    chunks = []
    for first in range(0, count, size):
        indices = np.minimum(np.arange(first, first + size, dtype=np.int32), count - 1)
        chunk = jax.tree.map(lambda leaf, rows=indices: np.asarray(leaf)[rows], cond)
        numbers, chunk = _spread(indices, shared), _spread(chunk, shared)
        keys, noise = _start(key, numbers, ts, bundle.image_shape, bundle.path)
        images = SOLVERS[method.solver](model, noise, ts, chunk, keys, bundle.path)
        chunks.append(_gathered(images)[: count - first])
        progress(len(chunks[-1]))
    return np.concatenate(chunks)


def _prepared(
    bundle: Bundle, cond: Cond, negative: Any, weaker: Bundle | None, mesh: Mesh
) -> tuple[Cond, Cond]:
    """Return the condition, on the host, and the null or what takes its place: both encoded."""
    null = bundle.condition.null()
    if negative is not None:
        null = jax.tree.map(lambda leaf: leaf[0], bundle.condition.parse([negative]))
    # Another run has another encoder: each then encodes for itself, in its own call.
    if weaker is not None or not capabilities(bundle.network).encodes:
        return cond, null
    features, nothing = _encoded(mesh)(bundle.network, bundle.params, cond, null)
    return jax.tree.map(np.asarray, features), nothing


@functools.cache
def _encoded(mesh: Mesh) -> Callable[..., tuple[Cond, Cond]]:
    whole = NamedSharding(mesh, P())
    return jax.jit(encoded, static_argnums=0, out_shardings=whole)


def _is_list(asked: Any) -> bool:
    return isinstance(asked, list | tuple | range) or (
        isinstance(asked, np.ndarray) and asked.ndim == 1
    )


def _examples(cond: Cond) -> int:
    """Return how many examples a condition has.

    Raises:
      ValueError: none, or not as many in every leaf.
    """
    shapes = [np.shape(leaf) for leaf in jax.tree.leaves(cond)]
    counts = {shape[0] if shape else 0 for shape in shapes}
    if len(counts) != 1 or 0 in counts:
        raise ValueError(f"expected one condition an image, at least one, got shapes {shapes}")
    return counts.pop()


def _spread(whole: Cond, sharding: NamedSharding) -> Any:
    """Put onto all devices what every process holds the whole of."""
    return jax.tree.map(
        lambda leaf: jax.make_array_from_callback(leaf.shape, sharding, leaf.__getitem__), whole
    )


def _gathered(images: Array) -> np.ndarray:
    """Bring the images of all processes to each of them."""
    if jax.process_count() == 1:
        return np.asarray(images)
    return np.asarray(multihost_utils.process_allgather(images, tiled=True))
