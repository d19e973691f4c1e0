"""The ODE with adaptive steps, by diffrax: `pip install guidedflow[adaptive]`."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from guidedflow import loops
from guidedflow.types import (
    Cond,
    ModelFn,
    check_batch,
    check_floating,
    check_number,
    evaluate,
    init_state,
    needs,
)

# Both methods have 7 stages; the first stage is the last stage of the step before.
EVALUATIONS_A_STEP = 6


def dopri5(diffrax: Any) -> Any:
    """Dormand & Prince's pair of orders 5 and 4.  Dormand & Prince 1980, table 2."""
    return diffrax.Dopri5()


def tsit5(diffrax: Any) -> Any:
    """Tsitouras's pair of orders 5 and 4.  Tsitouras 2011, table 1."""
    return diffrax.Tsit5()


Method = Callable[[Any], Any]
"""The module diffrax -> its solver, with 6 evaluations per step."""


class Adaptive(NamedTuple):
    """The result of `sample_ode_adaptive`, one entry per example.

    Attributes:
      x: the state at `high`.
      evaluations: number of model evaluations for it.
      reached: whether it reached `high` within the allowed steps; otherwise x is nan.
    """

    x: Float[Array, "b *d"]
    evaluations: Int[Array, " b"]
    reached: Bool[Array, " b"]


def _diffrax() -> Any:
    try:
        import diffrax
    except ImportError as error:
        raise ImportError(
            "adaptive steps need diffrax: pip install 'guidedflow[adaptive]'"
        ) from error
    return diffrax


def sample_ode_adaptive(
    model: ModelFn,
    noise: Float[Array, "b *d"],
    cond: Cond = None,
    *,
    low: float = 0.0,
    high: float = 1.0,
    solver: Method = dopri5,
    rtol: float = 1e-4,
    atol: float = 1e-4,
    max_steps: int = 1000,
) -> Adaptive:
    """Carry noise to data along dx/dt = model(x, t, cond), with step sizes chosen for a tolerance.

    A step is accepted if the embedded error estimate e has  rms(e / (atol + rtol max(|x|, |x_s|))) <= 1.
    The rms is over one example alone, so each example has its own steps and does not depend on the
    batch. A batch takes as long as its slowest example.

    Args:
      model, noise, cond: as for `sample_ode`; guidance that keeps a state between steps is rejected.
      low, high: the interval of time, 0 <= low < high <= 1.
      solver: dopri5 or tsit5, both of order 5 with 6 evaluations a step.
      rtol, atol: tolerances, positive; below about 1e-6 float32 rounding limits the accuracy.
      max_steps: largest number of steps of one example, accepted and rejected together.
    Returns:
      The states, the evaluations spent and whether the end was reached.
    Raises:
      ImportError: diffrax is missing; the message names the extra.
      ValueError: an argument is out of range, the model keeps a state, or it is called in a shard_map
        with check_vma.
      RuntimeError: an example did not reach `high` within max_steps; under jit, `reached` says so.
    Source: Dormand & Prince 1980; Tsitouras 2011; Hairer, Nørsett & Wanner 1993, eq. II.4.11.
    """
    check_number("low", low, 0, 1)
    check_number("high", high, 0, 1)
    if not low < high:
        raise ValueError(f"the interval must be in order, low < high, got {low} and {high}")
    for name, tolerance in (("rtol", rtol), ("atol", atol)):
        check_number(name, tolerance, 1e-12, 1)
    if isinstance(max_steps, bool) or not isinstance(max_steps, int) or max_steps < 1:
        raise ValueError(f"max_steps must be a whole number of at least 1, got {max_steps!r}")
    if not callable(solver):
        raise ValueError(f"solver must be dopri5 or tsit5 of this module, got {solver!r}")
    check_floating("noise", noise)
    check_batch("cond", cond, jnp.shape(noise)[0])
    if needs(model):
        raise ValueError(f"adaptive steps use no {sorted(needs(model))}, which the model asks for")
    if loops.varies((noise, cond)):
        raise ValueError(
            "diffrax's loops do not say what varies over the mesh: call adaptive steps within "
            "jax.shard_map(..., check_vma=False)"
        )
    if jax.tree.leaves(init_state(model, noise)):
        raise ValueError("the model keeps a state from step to step, which adaptive steps reject")
    _diffrax()
    result = Adaptive(*_solve(model, noise, cond, (low, high), rtol, atol, solver, max_steps))
    if isinstance(result.reached, jax.core.Tracer):
        return result
    # Each host counts its own examples, because no host sees all of them.
    short = int(jnp.sum(~result.reached))
    if short:
        raise RuntimeError(
            f"{short} of {result.reached.size} examples did not reach t = {high:g} in max_steps = "
            f"{max_steps}: allow more, loosen rtol and atol, or end before a singular time"
        )
    return result


def _solve(
    model: ModelFn,
    noise: Array,
    cond: Cond,
    ends: tuple[float, float],
    rtol: float,
    atol: float,
    solver: Method,
    max_steps: int,
) -> tuple[Array, Array, Array]:
    leaves, treedef = jax.tree.flatten(model)
    arrays = [leaf if hasattr(leaf, "__array__") else None for leaf in leaves]
    constants = tuple(None if hasattr(leaf, "__array__") else leaf for leaf in leaves)
    settings = (*ends, rtol, atol)
    return _compiled(treedef, constants, solver, max_steps, arrays, noise, cond, settings)


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _compiled(
    treedef: Any,
    constants: tuple,
    solver: Method,
    max_steps: int,
    arrays: list,
    noise: Array,
    cond: Cond,
    settings: tuple,
) -> tuple[Array, Array, Array]:
    diffrax = _diffrax()
    pairs = zip(arrays, constants, strict=True)
    model = jax.tree.unflatten(treedef, [c if a is None else a for a, c in pairs])
    low, high, rtol, atol = settings

    def field(t: Array, x: Array, cond: Cond) -> Array:
        time = jnp.asarray(t, jnp.result_type(float))[None]
        batched = jax.tree.map(lambda leaf: leaf[None], cond)
        velocity = evaluate(model, (), x[None], time, batched, time[0])[0].velocity
        return velocity[0].astype(x.dtype)

    def one(x: Array, cond: Cond) -> tuple[Array, Array, Array]:
        solution = diffrax.diffeqsolve(
            diffrax.ODETerm(field),
            solver(diffrax),
            low,
            high,
            None,
            x,
            cond,
            stepsize_controller=diffrax.PIDController(rtol=rtol, atol=atol),
            max_steps=max_steps,
            throw=False,
        )
        reached = solution.result == diffrax.RESULTS.successful
        # A step's first stage is the last stage before it; choosing the first step size takes two more.
        count = EVALUATIONS_A_STEP * solution.stats["num_steps"] + 1 + 2
        end = jnp.where(reached, solution.ys[-1], jnp.nan)
        return end.astype(x.dtype), count, reached

    return jax.vmap(one)(noise, cond)
