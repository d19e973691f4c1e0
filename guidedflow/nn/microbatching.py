"""A batch evaluated a few examples at a time, so that what lies between two products stays in cache."""

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

        # A group takes every n-th example, so that it is spread over devices as the batch is.
        def split(leaf: Array) -> Array:
            return jnp.swapaxes(
                jnp.reshape(leaf, (size, batch // size, *jnp.shape(leaf)[1:])), 0, 1
            )

        groups = jax.tree.map(split, (x, t, cond))
        values = jax.lax.map(lambda group: self.model(*group), groups)
        return jnp.swapaxes(values, 0, 1).reshape(batch, *values.shape[2:])


def in_groups(model: ModelFn, size: int) -> ModelFn:
    """Evaluate a model on `size` examples after another, in a loop within the compiled program.

    The same function, to rounding. On a CPU a transformer's activations of a large batch leave the
    caches between one product and the next; a group's stay. Guided by `classifier_free`, one turn of
    the loop evaluates `size` examples under every branch. On accelerators it only costs.

    Args:
      model: a model function without state.
      size: examples in a group, at least 1; the batch is evaluated whole where no divisor of it lies
        between half of `size` and `size`.
    Raises:
      ValueError: size is not a whole number of at least 1.
    """
    if isinstance(size, bool) or not isinstance(size, int) or size < 1:
        raise ValueError(f"size must be a whole number of at least 1, got {size!r}")
    return InGroups(model, size)


def group_of(batch: int, size: int) -> int:
    """Return the examples a turn: the largest divisor of `batch` up to `size`, or all of it."""
    if batch <= size:
        return batch
    best = max(divisor for divisor in range(1, size + 1) if batch % divisor == 0)
    return best if 2 * best >= size else batch


def for_device(model: ModelFn, network: Any) -> ModelFn:
    """Return `model` in the groups that suit the network's device, or whole.

    Args:
      model: a network as a model function.
      network: the network itself, whose capabilities say how many examples a turn.
    """
    rows = capabilities(network).examples_per_turn
    return model if rows is None else in_groups(model, rows)


def micro_batches_for_device(network: Any, batch: int) -> int:
    """Return into how many equal parts a training step cuts the `batch` that one device holds.

    On a CPU each part has about 1024 tokens and its gradient is taken on its own, so that nothing
    but the gradients' sum is kept from one to the next; on accelerators there is one part.

    Args:
      network: the network itself, whose capabilities say how many examples a turn.
      batch: examples.
    """
    rows = capabilities(network).examples_per_turn
    return 1 if rows is None else batch // group_of(batch, rows)
