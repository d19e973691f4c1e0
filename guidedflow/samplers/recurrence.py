"""Self-recurrence: every step is repeated several times from the same time, with fresh noise."""

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, PyTree

from guidedflow import loops
from guidedflow.paths import Path
from guidedflow.samplers.scan import Solver, Step


@dataclasses.dataclass(frozen=True)
class Recurrent:
    """Made by `recurrent`."""

    solver: Solver
    path: Path
    repeats: int

    @property
    def honours(self) -> frozenset[str]:
        return getattr(self.solver, "honours", frozenset())

    def init(self, x: Array) -> PyTree:
        return self.solver.init(x) if hasattr(self.solver, "init") else ()

    def __call__(self, step: Step) -> tuple[Array, PyTree]:
        if self.repeats == 1:
            return self.solver(step)
        ratio = self.path.alpha(step.t) / self.path.alpha(step.s)
        lost = self.path.sigma(step.t) ** 2 - (ratio * self.path.sigma(step.s)) ** 2
        spread = jnp.sqrt(jnp.maximum(lost, 0))

        def again(carry: tuple[Array, PyTree], index: Array) -> tuple[tuple, None]:
            # Draw 0 of a repetition renews the noise; later draws belong to the solver.
            begin = 1000 * (index + 1)
            x = (ratio * carry[0] + spread * step.draw(begin)).astype(step.x.dtype)
            repeated = step._replace(
                x=x,
                first=step.evaluate(x, step.t),
                draw=lambda n: step.draw(begin + 1 + n),
            )
            x, memory = self.solver(repeated)
            return (x.astype(step.x.dtype), memory), None

        x, memory = self.solver(step)
        carry = (x.astype(step.x.dtype), memory)
        return loops.scan(again, carry, jnp.arange(self.repeats - 1))[0]


def recurrent(solver: Solver, path: Path, repeats: int) -> Solver:
    """Return a solver that takes every step `repeats` times and adds fresh noise to go back in between.

    x_s = solver step from x_t;   x_t <- a x_s + sqrt(sigma_t^2 - a^2 sigma_s^2) z,
    a = alpha_t / alpha_s,

    The path itself noises from s to t in this way, so an exact step keeps the distribution of x_t. If
    guidance moved the state out of that distribution, the repetitions bring it back towards it at each
    noise level. Strong gradients (`guidance.loss_guidance`) need this.
    All repetitions are one step for guidance: schedules and state are those of the step's beginning.

    Args:
      solver: any step: euler, heun, `DDIM(path, eta)`.
      path: the path of the model.
      repeats: how often each step is taken, at least 1; 1 is the solver itself. 5 to 10 is usual.
        The evaluations grow in proportion.
    Returns:
      A solver for `sample_ode(..., step=..., key=key)`; it draws noise if repeats > 1.
    Raises:
      ValueError: repeats is not a whole number of at least 1, or the solver already goes back to a
        noisier time (EDM's churn).
    Source: Bansal et al. 2023 (universal guidance), section 3.3 and algorithm 1; Lugmayr et al. 2022.
    """
    if isinstance(repeats, bool) or not isinstance(repeats, int) or repeats < 1:
        raise ValueError(f"repeats must be a whole number of at least 1, got {repeats!r}")
    if hasattr(solver, "begin"):
        raise ValueError(f"{type(solver).__name__} adds noise of its own and cannot be repeated")
    return Recurrent(solver, path, repeats)
