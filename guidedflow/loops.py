"""`lax.scan` and `lax.cond` that also work inside `jax.shard_map`.

Inside a shard_map the type of an array says over which mesh axes its value varies. JAX requires that a
loop's carry keeps its type and that both branches of a condition have the same type. JAX would reject a
carry that begins as zeros, or a branch that returns zeros, because zeros are equal on all devices. `scan`
and `cond` mark such values as varying where their counterparts vary. Outside a shard_map they are
`lax.scan` and `lax.cond`.
"""

from collections.abc import Callable
from typing import Any

import jax
from jax import lax
from jaxtyping import Array, PyTree


def _in_shard_map() -> bool:
    return bool(jax.sharding.get_abstract_mesh().manual_axes)


def _axes(leaf: Any) -> frozenset[str]:
    """Return the mesh axes over which an array, or the result of eval_shape, varies."""
    kind = leaf if isinstance(leaf, jax.ShapeDtypeStruct) else jax.typeof(leaf)
    return kind.manual_axis_type.varying if kind.manual_axis_type else frozenset()


def varies(tree: PyTree) -> bool:
    """Return whether a leaf of `tree` varies over an axis of the mesh."""
    return any(_axes(leaf) for leaf in jax.tree.leaves(tree))


def _vary(leaf: Array, *like: Any) -> Array:
    """Return `leaf` marked as varying wherever one of `like` varies."""
    missing = frozenset().union(*map(_axes, like)) - _axes(leaf)
    return lax.pcast(leaf, tuple(sorted(missing)), to="varying") if missing else leaf


def scan(
    body: Callable[[PyTree, PyTree], tuple[PyTree, PyTree]], carry: PyTree, xs: PyTree
) -> tuple[PyTree, PyTree]:
    """`lax.scan`; the initial carry is marked as varying over the mesh axes over which `body` makes it vary."""
    varies = _in_shard_map() and bool(len(jax.tree.leaves(xs)[0]))
    while varies:
        after, _ = jax.eval_shape(body, carry, jax.tree.map(lambda leaf: leaf[0], xs))
        before = [_axes(leaf) for leaf in jax.tree.leaves(carry)]
        carry = jax.tree.map(_vary, carry, after)
        varies = before != [_axes(leaf) for leaf in jax.tree.leaves(carry)]
    return lax.scan(body, carry, xs)


def cond(predicate: Array, true: Callable[[], PyTree], false: Callable[[], PyTree]) -> PyTree:
    """`lax.cond`; if one branch's result varies over a mesh axis, the other's is marked as varying too."""
    if not _in_shard_map():
        return lax.cond(predicate, true, false)
    shapes = jax.eval_shape(true), jax.eval_shape(false)
    branches = (lambda b=branch: jax.tree.map(_vary, b(), *shapes) for branch in (true, false))
    return lax.cond(predicate, *branches)
