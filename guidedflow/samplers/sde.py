"""Sampling by stochastic differential equations that share the ODE's marginals."""

import dataclasses
from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from guidedflow import predictions
from guidedflow.paths import Path
from guidedflow.samplers.scan import Solver, Step, run
from guidedflow.types import Cond, ModelFn, check_number

Diffusion = Callable[[Path, Array], Array]
"""(path, t) -> g(t) >= 0, the coefficient of the noise."""


@dataclasses.dataclass(frozen=True)
class constant:
    """g(t) = value.  Ma et al. 2024 (SiT), table 2, "constant", as a square root."""

    value: float = 1.0

    def __post_init__(self) -> None:
        check_number("value", self.value, 0)

    def __call__(self, path: Path, t: Array) -> Array:
        return jnp.full_like(t, self.value)


@dataclasses.dataclass(frozen=True)
class proportional:
    """g(t)^2 = value sigma(t): fades with the noise.  Ma et al. 2024, table 2, "sigma"."""

    value: float = 1.0

    def __post_init__(self) -> None:
        check_number("value", self.value, 0)

    def __call__(self, path: Path, t: Array) -> Array:
        return jnp.sqrt(self.value * path.sigma(t))


def drift(path: Path, diffusion: Diffusion, velocity: Array, x: Array, t: Array) -> Array:
    """Return v + g^2 / 2 score at scalar time t, over a batch.  Ma et al. 2024, eq. 4."""
    p, q = predictions.conversion(path, t, predictions.velocity, predictions.score)
    return velocity + 0.5 * diffusion(path, t) ** 2 * (p * x + q * velocity)


@dataclasses.dataclass(frozen=True)
class EulerMaruyama:
    """x + h (v + g^2/2 score) + g sqrt(h) z: weak order 1, one evaluation, none at ts[-1]."""

    path: Path
    diffusion: Diffusion
    noisy: bool = True

    def __call__(self, step: Step) -> tuple[Array, PyTree]:
        h = step.s - step.t
        slope = drift(self.path, self.diffusion, step.first.velocity, step.x, step.t)
        x = step.x + h * slope
        if self.noisy:
            x = x + self.diffusion(self.path, step.t) * jnp.sqrt(h) * step.draw(0)
        return x, step.memory


@dataclasses.dataclass(frozen=True)
class Tweedie:
    """The data estimate at (x, t), read as the state at s: alpha(s) data + sigma(s) noise."""

    path: Path

    def __call__(self, step: Step) -> tuple[Array, PyTree]:
        def estimate(what: predictions.Prediction) -> Array:
            p, q = predictions.conversion(self.path, step.t, predictions.velocity, what)
            return p * step.x + q * step.first.velocity

        alpha, sigma = self.path.alpha(step.s), self.path.sigma(step.s)
        x = alpha * estimate(predictions.data) + sigma * estimate(predictions.noise)
        return x, step.memory


def mean(path: Path, diffusion: Diffusion) -> Solver:
    """Return the last step that follows the drift and adds no noise."""
    return EulerMaruyama(path, diffusion, noisy=False)


def tweedie(path: Path, diffusion: Diffusion) -> Solver:
    """Return the last step that jumps to the data estimate, E[data given x_t].  Efron 2011."""
    return Tweedie(path)


def sample_sde(
    model: ModelFn,
    noise: Float[Array, "b *d"],
    ts: Float[Array, " n"],
    cond: Cond = None,
    *,
    key: PRNGKeyArray,
    path: Path,
    diffusion: Diffusion = constant(1.0),
    last: Callable[[Path, Diffusion], Solver] | None = mean,
    trajectory: bool = False,
) -> Array:
    """Carry noise to data by Euler-Maruyama on an SDE with the ODE's marginals.

    dx = [v(x, t) + g(t)^2 / 2 score(x, t)] dt + g(t) dW,

    score from the velocity by `predictions.conversion`. g = 0 is the ODE under Euler; a larger g
    forgets earlier errors and needs smaller steps, h g^2 well under sigma^2. The drift is not
    evaluated at ts[-1].

    Args:
      model, noise, ts, cond, trajectory: as for `sample_ode`.
      key: one key, or one an example; example i draws from fold_in(key, i).
      path: the path the model was trained on.
      diffusion: g, (path, t) -> number >= 0: constant, proportional, or one's own.
      last: the last step: `mean` (no noise added), `tweedie` (the data estimate), None (as others).
    Raises:
      ValueError: as `sample_ode`.
    Source: Ma et al. 2024 (SiT), eq. 4-5; Albergo et al. 2023, theorem 2.6.
    """
    solver = EulerMaruyama(path, diffusion)
    final = None if last is None else last(path, diffusion)
    return run(model, noise, ts, cond, solver, last=final, key=key, trajectory=trajectory)
