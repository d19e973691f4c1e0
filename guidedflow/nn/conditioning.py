"""A network's inputs besides the image (time, class, further numbers), embedded as one vector."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from guidedflow.nn.embeddings import LabelEmbedding, ScalarEmbedding
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
    _check_numbers("t", t, len(x))


def embed_condition(
    t: Float[Array, " b"],
    cond: Any,
    width: int,
    num_classes: int | None,
    scalars: tuple[str, ...],
    time_scale: float,
    dtype: Any,
    operations: Operations,
) -> Float[Array, "b width"]:
    """Return the sum of the embeddings of the time, the class and the further numbers.

    Call it inside a module's compact method: the parameters `t_embedder`, `y_embedder` and
    `<name>_embedder` become parameters of that module.

    Args:
      t: times, one per example.
      cond: integer labels (b,); with `scalars`, a mapping of "label" and each name to (b,) arrays.
        A network with neither classes nor scalars ignores it.
      width: width of the result.
      num_classes: number of classes without the null class; None or 0 for none.
      scalars: names of the further numbers.  Their last layer starts at zero, so a network to which
        a number is added computes the same at first.
      time_scale: factor of the time and the numbers.
      dtype: compute dtype.
      operations: computes the layers.
    Raises:
      ValueError: labels are not integers, an entry is missing or unknown, or the batch size differs.
    """
    size = len(t)
    label, numbers = _split(cond, bool(num_classes), scalars)
    scalar = partial(ScalarEmbedding, width, time_scale, dtype=dtype, operations=operations)
    result = scalar(name="t_embedder")(t)
    if num_classes:
        if not hasattr(label, "dtype") or not jnp.issubdtype(label.dtype, jnp.integer):
            kind = getattr(label, "dtype", type(label).__name__)
            raise ValueError(f"labels: expected an array of integers, got {kind}")
        if label.shape != (size,):
            raise ValueError(f"labels: expected shape ({size},) as t has, got {label.shape}")
        result += LabelEmbedding(num_classes, width, dtype, operations, name="y_embedder")(label)
    zeros = nn.initializers.zeros_init()
    for name, number in numbers.items():
        _check_numbers(name, number, size)
        result += scalar(last_init=zeros, name=f"{name}_embedder")(number)
    return result


def _split(cond: Any, labelled: bool, scalars: tuple[str, ...]) -> tuple[Any, dict[str, Array]]:
    if not scalars:
        if labelled and isinstance(cond, Mapping):
            raise ValueError(f"cond: expected an array of labels, got a mapping of {list(cond)}")
        return cond, {}
    expected = (("label",) if labelled else ()) + scalars
    if not isinstance(cond, Mapping) or set(cond) != set(expected):
        got = list(cond) if isinstance(cond, Mapping) else type(cond).__name__
        raise ValueError(f"cond: expected a mapping of {list(expected)}, got {got}")
    return cond.get("label"), {name: cond[name] for name in scalars}


def _check_numbers(name: str, value: Any, size: int) -> None:
    if jnp.shape(value) != (size,):
        raise ValueError(
            f"{name}: expected shape ({size},), one an example, got {jnp.shape(value)}"
        )
    if not jnp.issubdtype(value.dtype, jnp.floating):
        raise ValueError(f"{name}: expected a floating dtype, got {value.dtype}")
