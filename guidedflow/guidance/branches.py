"""Three ways to evaluate a model under several conditions at one (x, t).

`vmapped` is the default on every device. The three were measured on the CPU (docs/benchmarks.md): none is
the fastest at every size. `vmapped` was never more than 5% behind the fastest, and `sequential` was 5 to
10% behind `vmapped` at batch 1. Nothing was measured on GPUs and TPUs; `guidedflow bench` compares them.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from guidedflow.types import Cond, Evaluation, ModelFn, evaluate, init_state

Branches = Callable[[ModelFn, Array, Array, Sequence[Cond], Array], Evaluation]
"""(model, x: b *d, t: b, conds, at) -> an Evaluation whose leaves have a branch axis first."""


def check_stateless(name: str, model: ModelFn) -> None:
    """Raise ValueError if `model` keeps a state between steps."""
    state = init_state(model, jnp.zeros((1, 1, 1, 1))) if hasattr(model, "init") else ()
    if jax.tree.leaves(state):
        raise ValueError(
            f"{name} evaluates its model under several conditions and cannot carry the state of "
            f"{type(model).__name__}; apply {name} inside instead"
        )


def _once(model: ModelFn, x: Array, t: Array, cond: Cond, at: Array) -> Evaluation:
    return evaluate(model, (), x, t, cond, at)[0]


def _stack(conds: Sequence[Cond], join: Callable[[list[Array]], Array]) -> Cond:
    return jax.tree.map(lambda *leaves: join([jnp.asarray(leaf) for leaf in leaves]), *conds)


def vmapped(model: ModelFn, x: Array, t: Array, conds: Sequence[Cond], at: Array) -> Evaluation:
    """Stack the conditions on a new axis and vmap the model over it; x and t are not mapped.

    Layers that do not depend on the condition (patch embedding, time embedding) are computed once.
    """
    stacked = _stack(conds, jnp.stack)
    return jax.vmap(lambda cond: _once(model, x, t, cond, at))(stacked)


def concatenated(
    model: ModelFn, x: Array, t: Array, conds: Sequence[Cond], at: Array
) -> Evaluation:
    """Repeat x and t along the batch axis, one copy per branch, and call the model once."""
    count = len(conds)
    many_x, many_t = (jnp.concatenate([value] * count) for value in (x, t))
    both = _once(model, many_x, many_t, _stack(conds, jnp.concatenate), at)
    return jax.tree.map(lambda leaf: leaf.reshape(count, -1, *leaf.shape[1:]), both)


def sequential(model: ModelFn, x: Array, t: Array, conds: Sequence[Cond], at: Array) -> Evaluation:
    """Call the model once per branch; this needs the least memory."""
    each: list[Any] = [_once(model, x, t, cond, at) for cond in conds]
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *each)
