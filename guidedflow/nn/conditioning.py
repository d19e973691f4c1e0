"""A network's inputs besides the image (time, class, further numbers), embedded as one vector."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Int

from guidedflow.nn.embeddings import LabelEmbedding, ScalarEmbedding
from guidedflow.nn.linear import Dense
from guidedflow.nn.operations import Operations
from guidedflow.types import pytree


@pytree
class Modulation:
    """The modulations that a DiT computes from its condition; the network takes them in its place.

    Attributes:
      blocks: shift, scale and gate for both halves of every block, depth b 6·d.
      last: shift and scale of the final layer, b 2·d.
    """

    blocks: Float[Array, "depth b six_d"]
    last: Float[Array, "b two_d"]


def check_input(x: Array, t: Array, image_size: tuple[int, int], channels: int) -> None:
    """Check that an image and a time fit the network.

    Raises:
      ValueError: `x` is not floating (b, h, w, channels), or `t` is not floating (b,).
    """
    expected = (*image_size, channels)
    if x.ndim != 4 or x.shape[1:] != expected:
        shape = ", ".join(map(str, expected))
        raise ValueError(f"x: expected shape (b, {shape}), got {x.shape}")
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(f"x: expected a floating dtype, got {x.dtype}")
    check_numbers("t", t, len(x))


def embed_condition(
    t: Float[Array, " b"],
    cond: Any,
    width: int,
    num_classes: int | None,
    scalars: tuple[str, ...],
    time_scale: float,
    dtype: Any,
    operations: Operations,
    vector_width: int | None = None,
    token_width: int | None = None,
) -> Float[Array, "b width"]:
    """Return the sum of the embeddings of the time, of the class, of further numbers and a vector.

    Call it inside a module's compact method: the parameters `t_embedder`, `y_embedder`,
    `<name>_embedder` and `vector_embedder` become that module's.

    Args:
      t: times, one an example.
      cond: integer labels (b,); with `scalars`, a mapping of "label" and each name to (b,) arrays,
        and of "vector" and "tokens" where they have a width; a network that takes none of these
        does not look at it, unless it has tokens or a vector, which are refused.
      width: of the result.
      num_classes: classes without the null class; None or 0 for none.
      scalars: names of the further numbers.  Their last layer starts at zero, so that a network
        that gains a number starts as the network without it.
      time_scale: multiplies the time and the numbers.
      dtype: compute dtype.
      operations: what computes the layers.
      vector_width: of "vector", (b, vector_width) floating.  Its projection starts at zero.
      token_width: of "tokens", which are only looked for here.
    Raises:
      ValueError: labels are not integers, an entry is missing or unknown, or the batch size differs.
    """
    cond = split_condition(cond, num_classes, scalars, vector_width, token_width)
    result = ScalarEmbedding(
        width, time_scale, dtype=dtype, operations=operations, name="t_embedder"
    )(t)
    result = add_label_and_numbers(
        result, cond, num_classes, scalars, time_scale, dtype, operations, table="y_embedder"
    )
    if vector_width:
        zeros = nn.initializers.zeros_init()
        dense = Dense(width, zeros, dtype=dtype, operations=operations, name="vector_embedder")
        result += dense(take_vector(cond, len(t), vector_width))
    return result


def add_label_and_numbers(
    c: Float[Array, "b width"],
    cond: Mapping[str, Any],
    num_classes: int | None,
    scalars: tuple[str, ...],
    time_scale: float,
    dtype: Any,
    operations: Operations,
    *,
    table: str,
) -> Float[Array, "b width"]:
    """Return c with the embeddings of the class and of further numbers added.

    Call it inside a module's compact method, as `embed_condition`.

    Args:
      c: an embedding of the time.
      cond: by name, from `split_condition`.
      num_classes, scalars, time_scale, dtype, operations: as of `embed_condition`.
      table: name of the parameters of the classes.
    Raises:
      ValueError: as `embed_condition`.
    """
    size, width = c.shape
    if num_classes:
        label = take_labels(cond["label"], size)
        c += LabelEmbedding(num_classes, width, dtype, operations, name=table)(label)
    zeros = nn.initializers.zeros_init()
    for name in scalars:
        check_numbers(name, cond[name], size)
        c += ScalarEmbedding(width, time_scale, zeros, dtype, operations, name=f"{name}_embedder")(
            cond[name]
        )
    return c


def take_labels(label: Any, size: int) -> Int[Array, " b"]:
    """Return the labels of a condition.

    Raises:
      ValueError: not integers of shape (size,).
    """
    if not hasattr(label, "dtype") or not jnp.issubdtype(label.dtype, jnp.integer):
        kind = getattr(label, "dtype", type(label).__name__)
        raise ValueError(f"labels: expected an array of integers, got {kind}")
    if label.shape != (size,):
        raise ValueError(f"labels: expected shape ({size},) as t has, got {label.shape}")
    return label


def split_condition(
    cond: Any,
    num_classes: int | None,
    scalars: tuple[str, ...],
    vector_width: int | None,
    token_width: int | None,
) -> Mapping[str, Any]:
    """Return a network's condition by name: "label", the numbers' names, "vector", "tokens", "mask".

    Raises:
      ValueError: an entry that the network cannot take, or one that is missing.
    """
    named = (*scalars, *_names(vector=vector_width, tokens=token_width))
    if not named:
        if num_classes and isinstance(cond, Mapping):
            raise ValueError(f"cond: expected an array of labels, got a mapping of {list(cond)}")
        if isinstance(cond, Mapping) and (unknown := {"tokens", "vector"} & set(cond)):
            raise ValueError(f"cond: this network takes no {' and no '.join(sorted(unknown))}")
        return {"label": cond}
    expected = (*_names(label=num_classes), *named)
    optional = {"mask"} if token_width else set()
    if not isinstance(cond, Mapping) or set(cond) - optional != set(expected):
        got = list(cond) if isinstance(cond, Mapping) else type(cond).__name__
        raise ValueError(f"cond: expected a mapping of {list(expected)}, got {got}")
    return cond


def takes(vector_width: int | None, token_width: int | None) -> frozenset[str]:
    """Return what a network can be told, as `Capabilities.takes` names it."""
    return frozenset({"label", "scalars", *_names(vector=vector_width, tokens=token_width)})


def _names(**fields: Any) -> tuple[str, ...]:
    return tuple(name for name, value in fields.items() if value)


def take_vector(cond: Mapping[str, Any], size: int, width: int) -> Float[Array, "b width"]:
    """Return the vector of a condition.

    Raises:
      ValueError: not floating (size, width).
    """
    vector = cond["vector"]
    if jnp.shape(vector) != (size, width) or not jnp.issubdtype(vector.dtype, jnp.floating):
        raise ValueError(
            f"vector: expected floating numbers of shape ({size}, {width}), got "
            f"{vector.dtype} of {jnp.shape(vector)}"
        )
    return vector


def check_numbers(name: str, value: Any, size: int) -> None:
    """Refuse anything but floating numbers, one an example.

    Raises:
      ValueError: another shape or dtype.
    """
    if jnp.shape(value) != (size,):
        raise ValueError(
            f"{name}: expected shape ({size},), one an example, got {jnp.shape(value)}"
        )
    if not jnp.issubdtype(value.dtype, jnp.floating):
        raise ValueError(f"{name}: expected a floating dtype, got {value.dtype}")
