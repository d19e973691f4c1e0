"""Sampling by the probability-flow ODE, dx/dt = v(x, t), with fixed steps of size h = s - t."""

from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from guidedflow.samplers.scan import Solver, Step, run
from guidedflow.times import GridLike
from guidedflow.types import Cond, ModelFn


def euler(step: Step) -> tuple[Array, PyTree]:
    """x + h v(x, t): order 1, one evaluation. On the linear path this is DDIM with eta = 0."""
    return step.x + (step.s - step.t) * step.first.velocity, step.memory


def midpoint(step: Step) -> tuple[Array, PyTree]:
    """x + h v(x + h/2 v(x, t), t + h/2): order 2, two evaluations, none at t = 1."""
    half = 0.5 * (step.s - step.t)
    middle = step.evaluate(step.x + half * step.first.velocity, step.t + half)
    return step.x + 2 * half * middle.velocity, step.memory


def heun(step: Step) -> tuple[Array, PyTree]:
    """x + h/2 (v(x, t) + v(x + h v(x, t), s)): order 2, two evaluations.

    Karras et al. 2022, algorithm 1.
    """
    h = step.s - step.t
    end = step.evaluate(step.x + h * step.first.velocity, step.s)
    return step.x + 0.5 * h * (step.first.velocity + end.velocity), step.memory


def rk4(step: Step) -> tuple[Array, PyTree]:
    """The classical Runge-Kutta step: order 4, four evaluations.

    Hairer, Nørsett & Wanner 1993, table 1.2.
    """
    x, t, s = step.x, step.t, step.s
    h = s - t
    k1 = step.first.velocity
    k2 = step.evaluate(x + 0.5 * h * k1, t + 0.5 * h).velocity
    k3 = step.evaluate(x + 0.5 * h * k2, t + 0.5 * h).velocity
    k4 = step.evaluate(x + h * k3, s).velocity
    return x + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4), step.memory


def sample_ode(
    model: ModelFn,
    noise: Float[Array, "b *d"],
    ts: GridLike,
    cond: Cond = None,
    *,
    step: Solver = heun,
    last: Solver | None = None,
    key: PRNGKeyArray | None = None,
    trajectory: bool = False,
) -> Array:
    """Carry noise to data along dx/dt = model(x, t, cond), in one compiled scan over the grid.

    Args:
      model: a velocity field, guided or not.
      noise: the state at ts[0], b *d: standard normal times sigma(ts[0]), as `start` returns it.
      ts: increasing times in [0, 1], from `times`; or a list or tuple of numbers.
      cond: condition, every leaf with the batch first.
      step: euler, midpoint, heun, rk4, or an Adams-Bashforth solver.
      last: another solver for the last step. With `euler` the model is never evaluated at ts[-1]; a
        model that predicts data or noise is singular there if ts[-1] is t = 1.
      key: for a step that draws noise, such as `recurrent`; one key, or one key per example.
      trajectory: return every state, n b *d, instead of the last.
    Returns:
      x at ts[-1], with the shape and dtype of noise. Each example depends only on its own noise and
      condition.
    Raises:
      ValueError: the grid does not increase within [0, 1], or shapes or dtypes do not match.
    Source: Song et al. 2021, eq. 13; Lipman et al. 2023, eq. 1.
    """
    return run(model, noise, ts, cond, step, last=last, key=key, trajectory=trajectory)
