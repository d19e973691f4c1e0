"""Micro-batching: a few examples are evaluated at a time, so that activations stay in cache."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from guidedflow.nn.capabilities import capabilities
from guidedflow.types import Cond, ModelFn, check_batch, pytree


@pytree
class InGroups:
    """Made by `in_groups`."""

    model: ModelFn
    size: int

    def __call__(self, x: Array, t: Array, cond: Cond = None) -> Array:
        batch = jnp.shape(x)[0]
        size = group_of(batch, self.size)
        if size == batch:
            return self.model(x, t, cond)
        check_batch("cond", cond, batch)

        # A micro-batch takes every n-th example, so it is spread over devices like the batch.
        def split(leaf: Array) -> Array:
            return jnp.swapaxes(
                jnp.reshape(leaf, (size, batch // size, *jnp.shape(leaf)[1:])), 0, 1
            )

        groups = jax.tree.map(split, (x, t, cond))
        values = jax.lax.map(lambda group: self.model(*group), groups)
        return jnp.swapaxes(values, 0, 1).reshape(batch, *values.shape[2:])


def in_groups(model: ModelFn, size: int) -> ModelFn:
    """Evaluate a model on `size` examples at a time, in a loop within the compiled program.

    The result is the same up to rounding. On a CPU the activations of a large batch do not fit in the
    caches between one matmul and the next; those of a micro-batch do. With `classifier_free`, one turn of
    the loop evaluates `size` examples for every branch. On accelerators the loop only costs time.

    Args:
      model: a model function without state.
      size: examples per micro-batch, at least 1. If the batch has no divisor between half of `size`
        and `size`, it is evaluated whole.
    Raises:
      ValueError: size is not a whole number of at least 1.
    """
    if isinstance(size, bool) or not isinstance(size, int) or size < 1:
        raise ValueError(f"size must be a whole number of at least 1, got {size!r}")
    return InGroups(model, size)


def group_of(batch: int, size: int) -> int:
    """Return the examples per micro-batch: the largest divisor of `batch` up to `size`, or all of it."""
    if batch <= size:
        return batch
    best = max(divisor for divisor in range(1, size + 1) if batch % divisor == 0)
    return best if 2 * best >= size else batch


def for_device(model: ModelFn, network: Any) -> ModelFn:
    """Return `model`, evaluated in micro-batches if that suits the network's device.

    Args:
      model: a network as a model function.
      network: the network itself; its capabilities give the examples per micro-batch.
    """
    rows = capabilities(network).examples_per_turn
    return model if rows is None else in_groups(model, rows)


def micro_batches_for_device(network: Any, batch: int) -> int:
    """Return the number of equal micro-batches of a training step on one device.

    On a CPU each micro-batch has about 1024 tokens. Its gradient is computed separately, so that only
    the sum of the gradients is kept from one to the next. On accelerators there is one micro-batch.

    Args:
      network: the network itself; its capabilities give the examples per micro-batch.
      batch: examples on one device.
    """
    rows = capabilities(network).examples_per_turn
    return 1 if rows is None else batch // group_of(batch, rows)
