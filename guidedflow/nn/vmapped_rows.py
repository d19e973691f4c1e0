"""A mapped axis folded into rows: a vmapped network runs the products of a larger batch.

Under `vmap` a product of (rows, d) with (d, k) becomes one of (axis, rows, d) with (d, k).  XLA's
CPU compiler gives that its own layout and its own, slower, code; the same numbers as (axis·rows, d)
run at the speed of the unmapped program.  Classifier-free guidance maps the whole network over its
branches, so this is what its cost on CPU hangs on.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.custom_batching import custom_vmap
from jaxtyping import Array


def fold_mapped(
    function: Callable[..., Array], has_rows: tuple[bool, ...], *, behind: bool = False
) -> Callable[..., Array]:
    """Return `function` with a batching rule that merges the mapped axis into the rows.

    f(x₁ … x_m) stacked over the mapped axis = f(rows of all x_i together), split again.

    Args:
      function: works on each row of its row arguments alone; its result has the same rows first.
      has_rows: for each argument, whether its leading axis is that of the rows.
      behind: merge the mapped axis behind the rows and not before them: rows that are spread over
        devices then stay there, at the cost of a transposition.
    Returns:
      The same function.  It maps (`vmap`, also nested) by folding, unless an argument without rows
      is mapped, which is left to JAX.  Derivatives of every order and mode are those of `function`:
      they bypass the rule, because `custom_vmap` alone has no transpose.
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
