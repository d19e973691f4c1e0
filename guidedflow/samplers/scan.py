"""The loop of all samplers: a `lax.scan` over a grid, compiled once.

A *solver* advances one step, `solver(Step) -> (x, memory)`. `memory` is its state from earlier steps;
the optional method `init(x)` creates it. A solver that adds noise before it evaluates does so in the
optional method `begin(x, t, draw) -> (x, t)`, and its step starts at the result. Solvers are functions or
frozen dataclasses, so an equal solver does not recompile; nor does a model function rebuilt from the
same static parts. A solver that uses `renoise` or `shift` of an Evaluation names them in its attribute
`honours`.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from guidedflow import loops
from guidedflow.keys import example_keys
from guidedflow.paths import Path
from guidedflow.times import GridLike, as_grid
from guidedflow.types import (
    Cond,
    Evaluation,
    ModelFn,
    check_batch,
    check_floating,
    evaluate,
    init_state,
    needs,
    wide,
)


class Step(NamedTuple):
    """The inputs of one step of a solver.

    Attributes:
      x: the state, b *d.
      t, s: scalar times, from t to s > t.
      first: the evaluation at (x, t).
      evaluate: (x, t) -> Evaluation, for further evaluations within the step, guided like the first.
      draw: (n) -> standard normal like x, from each example's own key; each n is another draw.
      memory: the state of the solver.
    """

    x: Array
    t: Array
    s: Array
    first: Evaluation
    evaluate: Callable[[Array, Array], Evaluation]
    draw: Callable[[int | Array], Array]
    memory: PyTree


Solver = Callable[[Step], tuple[Array, PyTree]]


class _Static(NamedTuple):
    """Static arguments of the compiled program: the model's structure and non-array leaves, and the solvers."""

    treedef: Any
    leaves: tuple
    solver: Solver
    last: Solver | None
    trajectory: bool


def _is_array(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array) or hasattr(leaf, "__array__")


def draw_noise(key: PRNGKeyArray, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
    """Return standard normal noise `shape` = (b, *d); example i draws from fold_in(key, i).

    Args:
      key: one key, or one key per example; with the latter, the batch may be a part of a larger batch.
      shape: the batch first.
    Raises:
      ValueError: a batch of keys of another size.
    """
    keys = example_keys(key, shape[0])
    return jax.vmap(lambda k: jax.random.normal(k, shape[1:], dtype))(keys)


def start(path: Path, noise: Float[Array, "b *d"], ts: GridLike) -> Float[Array, "b *d"]:
    """Return the state at the first time of a grid, from noise alone.

    x = sigma(ts[0]) noise.

    On the path the state also has the term alpha(ts[0]) data. The data is unknown, so its mean
    alpha(ts[0]) E[data] and its variance alpha(ts[0])^2 Var[data] are left out. Nothing is left out if
    alpha(ts[0]) = 0, and little if sigma / alpha is large, as at t = 0 of every path.

    Args:
      path: the path the model was trained on.
      noise: standard normal, from `draw_noise`.
      ts: the grid that is sampled on.
    Returns:
      The initial state, with the shape and dtype of noise.
    Raises:
      ValueError: the grid does not increase within [0, 1], or noise is not floating point.
    Source: Karras et al. 2022, algorithm 1: x_0 ~ N(0, sigma(t_0)^2).
    """
    check_floating("noise", noise)
    sigma = path.sigma(jnp.asarray(as_grid(ts)[0]))
    return (jnp.asarray(noise) * sigma).astype(jnp.result_type(noise))


def _check_needs(model: ModelFn, solver: Solver) -> None:
    ignored = needs(model) - getattr(solver, "honours", frozenset())
    if ignored:
        name = getattr(solver, "__name__", type(solver).__name__)
        raise ValueError(
            f"{name} steps along the velocity and ignores the {' and '.join(sorted(ignored))} that "
            "this guidance asks for; use sample_ddim or sample_ddpm for CFG++ and sample_ddpm for "
            "the ancestral classifier"
        )


def run(
    model: ModelFn,
    noise: Float[Array, "b *d"],
    ts: GridLike,
    cond: Cond,
    solver: Solver,
    *,
    last: Solver | None = None,
    key: PRNGKeyArray | None = None,
    trajectory: bool = False,
) -> Array:
    """Integrate `model` from `noise` at ts[0] to ts[-1] with `solver`; `last` takes the last step.

    Returns:
      x at ts[-1], b *d; with `trajectory` every state, n b *d, of which the first is `noise`.
    Raises:
      ValueError: the grid, the state's dtype or the condition's batch is wrong.
    """
    ts = as_grid(ts)
    check_floating("noise", noise)
    if jnp.ndim(noise) < 1:
        raise ValueError("noise must have the batch first, got a scalar")
    batch = jnp.shape(noise)[0]
    check_batch("cond", cond, batch)
    for solve in filter(None, (solver, last)):
        _check_needs(model, solve)
    keys = None if key is None else example_keys(key, batch)
    leaves, treedef = jax.tree.flatten(model)
    arrays = [leaf if _is_array(leaf) else None for leaf in leaves]
    constants = tuple(None if _is_array(leaf) else leaf for leaf in leaves)
    static = _Static(treedef, constants, solver, last, trajectory)
    return _run(static, arrays, jnp.asarray(noise), jnp.asarray(ts), cond, keys)


@functools.partial(jax.jit, static_argnums=0)
def _run(static: _Static, arrays: list, noise: Array, ts: Array, cond: Cond, keys: Any) -> Array:
    pairs = zip(arrays, static.leaves, strict=True)
    leaves = [constant if array is None else array for array, constant in pairs]
    model = jax.tree.unflatten(static.treedef, leaves)
    # Solvers and schedules compute in float32 or wider; the model gets x in the noise's own dtype.
    ts = ts.astype(wide(noise).dtype)

    def advance(solver: Solver, carry: tuple, times: tuple) -> tuple:
        x, state, memory = carry
        x, (t, s, index) = wide(x), times

        # It is inlined into the step; as a jitted function it is traced once for all evaluations of a step.
        @jax.jit
        def at(x: Array, time: Array) -> tuple[Evaluation, PyTree]:
            batched = jnp.broadcast_to(time, x.shape[:1])
            told, after = evaluate(model, state, x.astype(noise.dtype), batched, cond, t)
            return jax.tree.map(wide, told), after

        def draw(n: int | Array) -> Array:
            if keys is None:
                raise ValueError("this sampler draws noise: pass key=jax.random.key(seed)")

            def one(k: PRNGKeyArray) -> Array:
                # The initial noise was drawn from k itself, so a step must not draw from k.
                k = jax.random.fold_in(jax.random.fold_in(k, index + 1), n)
                return wide(jax.random.normal(k, noise.shape[1:], noise.dtype))

            return jax.vmap(one)(keys)

        if hasattr(solver, "begin"):
            x, t = solver.begin(x, t, draw)
        first, state_after = at(x, t)
        step = Step(x, t, s, first, lambda x, t: at(x, t)[0], draw, memory)
        x, memory = solver(step)
        return x.astype(noise.dtype), state_after, memory

    memory = static.solver.init(wide(noise)) if hasattr(static.solver, "init") else ()
    carry = (noise, init_state(model, noise), memory)
    times = (ts[:-1], ts[1:], jnp.arange(ts.shape[0] - 1))
    scanned = times if static.last is None else jax.tree.map(lambda a: a[:-1], times)

    def body(carry: tuple, times: tuple) -> tuple:
        carry = advance(static.solver, carry, times)
        return carry, carry[0] if static.trajectory else None

    states: Any
    carry, states = loops.scan(body, carry, scanned)
    if static.last is not None:
        carry = advance(static.last, carry, jax.tree.map(lambda a: a[-1], times))
    if not static.trajectory:
        return carry[0]
    final = [] if static.last is None else [carry[0][None]]
    return jnp.concatenate([noise[None], states, *final])
