"""Folding of a mapped axis into rows: a vmapped network runs the matmuls of a larger batch.

Under `vmap` a matmul of (rows, d) with (d, k) becomes one of (axis, rows, d) with (d, k).  XLA's CPU
compiler uses another layout and slower code for it.  Reshaped to (axis·rows, d), the same numbers run at
the speed of the unmapped program.  Classifier-free guidance maps the whole network over its branches, so
its cost on a CPU depends on this.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.custom_batching import custom_vmap
from jaxtyping import Array


def fold_mapped(
    function: Callable[..., Array], has_rows: tuple[bool, ...], *, behind: bool = False
) -> Callable[..., Array]:
    """Return `function` with a batching rule that folds the mapped axis into the rows.

    f(x₁ … x_m) stacked over the mapped axis = f(rows of all x_i together), split again.

    Args:
      function: computes each row of its result from the same row of its row arguments.
      has_rows: for each argument, whether its leading axis is the axis of rows.
      behind: merge the mapped axis after the rows, not before them. Rows that are spread over devices
        then stay on their devices, at the cost of a transposition.
    Returns:
      The same function.  `vmap`, also nested, folds the mapped axis; if an argument without rows is
      mapped, JAX maps the function itself.  Derivatives of every order and mode are those of
      `function`: they bypass the rule, because `custom_vmap` alone has no transpose.
    """

    @custom_vmap
    def folded(*arguments: Array) -> Array:
        return function(*arguments)

    @folded.def_vmap
    def rule(axis_size: int, mapped: list[bool], *arguments: Array) -> tuple[Array, bool]:
        if any(is_mapped and not rows for is_mapped, rows in zip(mapped, has_rows, strict=True)):
            axes = tuple(0 if is_mapped else None for is_mapped in mapped)
            return jax.vmap(function, in_axes=axes)(*arguments), True
        merged = [
            _merge(argument, axis_size, is_mapped, behind) if rows else argument
            for argument, is_mapped, rows in zip(arguments, mapped, has_rows, strict=True)
        ]
        result = folded(*merged)
        if behind:
            return jnp.swapaxes(result.reshape(-1, axis_size, *result.shape[1:]), 0, 1), True
        return result.reshape(axis_size, -1, *result.shape[1:]), True

    @jax.custom_jvp
    def differentiable(*arguments: Array) -> Array:
        return folded(*arguments)

    @differentiable.defjvp
    def derivative(primals: tuple, tangents: tuple) -> tuple[Array, Array]:
        return jax.jvp(function, primals, tangents)

    return differentiable


def _merge(argument: Array, axis_size: int, is_mapped: bool, behind: bool) -> Array:
    if not is_mapped:
        argument = jnp.broadcast_to(argument[None], (axis_size, *argument.shape))
    if behind:
        argument = jnp.swapaxes(argument, 0, 1)
    return argument.reshape(-1, *argument.shape[2:])
