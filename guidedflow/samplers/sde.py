"""Sampling by stochastic differential equations that have the same marginals as the ODE."""

import dataclasses
from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from guidedflow import predictions
from guidedflow.paths import Path, derivatives
from guidedflow.samplers.diffusion import estimates
from guidedflow.samplers.scan import Solver, Step, run
from guidedflow.times import GridLike
from guidedflow.types import Cond, Evaluation, ModelFn, check_number

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
    """g(t)^2 = value sigma(t): falls with the noise.  Ma et al. 2024, table 2, "sigma"."""

    value: float = 1.0

    def __post_init__(self) -> None:
        check_number("value", self.value, 0)

    def __call__(self, path: Path, t: Array) -> Array:
        return jnp.sqrt(self.value * path.sigma(t))


@dataclasses.dataclass(frozen=True)
class linear:
    """g(t)^2 = value (1 - t): falls linearly on every path.  Ma et al. 2024, table 2, "linear"."""

    value: float = 1.0

    def __post_init__(self) -> None:
        check_number("value", self.value, 0)

    def __call__(self, path: Path, t: Array) -> Array:
        return jnp.sqrt(self.value * (1 - t))


@dataclasses.dataclass(frozen=True)
class sbdm:
    """g(t)^2 = value 2 (alpha'/alpha sigma^2 - sigma sigma'): for value = 1, the time reversal of diffusion.

    On VariancePreserving it is beta, on EDM -2 sigma sigma'. It is infinite where alpha = 0, so begin the
    grid after t = 0 on the linear and trigonometric paths.  Song et al. 2021, eq. 6; Ma et al. 2024,
    table 2, "SBDM".
    """

    value: float = 1.0

    def __post_init__(self) -> None:
        check_number("value", self.value, 0)

    def __call__(self, path: Path, t: Array) -> Array:
        alpha, sigma, alpha_dot, sigma_dot = derivatives(path, t)
        rate = 2 * (alpha_dot / alpha * sigma**2 - sigma * sigma_dot)
        return jnp.sqrt(self.value * jnp.maximum(rate, 0))


@dataclasses.dataclass(frozen=True)
class cosine:
    """g(t)^2 = (1 + cos(pi t))^2 value / 4: falls smoothly to 0.  Ma et al. 2024, "decreasing"."""

    value: float = 1.0

    def __post_init__(self) -> None:
        check_number("value", self.value, 0)

    def __call__(self, path: Path, t: Array) -> Array:
        return jnp.sqrt(self.value) * 0.5 * (1 + jnp.cos(jnp.pi * t))


@dataclasses.dataclass(frozen=True)
class bump:
    """g(t)^2 = value sin(pi t)^2: 0 at both ends.  Ma et al. 2024, "increasing-decreasing"."""

    value: float = 1.0

    def __post_init__(self) -> None:
        check_number("value", self.value, 0)

    def __call__(self, path: Path, t: Array) -> Array:
        return jnp.sqrt(self.value) * jnp.abs(jnp.sin(jnp.pi * t))


def drift(path: Path, diffusion: Diffusion, at: Evaluation, x: Array, t: Array) -> Array:
    """Return v + g^2 / 2 score at scalar time t, over a batch.  Ma et al. 2024, eq. 4."""
    score, _ = predictions.read(path, at.native, at.velocity, x, t, predictions.score)
    return at.velocity + 0.5 * diffusion(path, t) ** 2 * score


@dataclasses.dataclass(frozen=True)
class EulerMaruyama:
    """x + h (v + g^2/2 score) + g sqrt(h) z: weak order 1, one evaluation, none at ts[-1]."""

    path: Path
    diffusion: Diffusion
    noisy: bool = True

    def __call__(self, step: Step) -> tuple[Array, PyTree]:
        h = step.s - step.t
        slope = drift(self.path, self.diffusion, step.first, step.x, step.t)
        x = step.x + h * slope
        if self.noisy:
            x = x + self.diffusion(self.path, step.t) * jnp.sqrt(h) * step.draw(0)
        return x, step.memory


@dataclasses.dataclass(frozen=True)
class StochasticHeun:
    """Heun's method on the drift with one draw of the noise: weak order 2, two evaluations.

    x_e = x + h a(x, t) + g sqrt(h) z,   x_s = x + h/2 (a(x, t) + a(x_e, s)) + g sqrt(h) z,

    g^2 is the mean over both ends.  Kloeden & Platen 1992, chapter 15, for noise that does not depend on x.
    """

    path: Path
    diffusion: Diffusion

    def __call__(self, step: Step) -> tuple[Array, PyTree]:
        h = step.s - step.t
        g = [self.diffusion(self.path, time) for time in (step.t, step.s)]
        noise = jnp.sqrt(0.5 * h * (g[0] ** 2 + g[1] ** 2)) * step.draw(0)
        slope = drift(self.path, self.diffusion, step.first, step.x, step.t)
        guess = step.x + h * slope + noise
        end = drift(self.path, self.diffusion, step.evaluate(guess, step.s), guess, step.s)
        return step.x + 0.5 * h * (slope + end) + noise, step.memory


def euler_maruyama(path: Path, diffusion: Diffusion) -> Solver:
    """Return the step of weak order 1, with one evaluation."""
    return EulerMaruyama(path, diffusion)


def stochastic_heun(path: Path, diffusion: Diffusion) -> Solver:
    """Return the step of weak order 2, with two evaluations."""
    return StochasticHeun(path, diffusion)


@dataclasses.dataclass(frozen=True)
class Tweedie:
    """The state at s from the estimates at (x, t): alpha(s) data + sigma(s) noise."""

    path: Path

    def __call__(self, step: Step) -> tuple[Array, PyTree]:
        data, noise = estimates(self.path, step)
        return self.path.alpha(step.s) * data + self.path.sigma(step.s) * noise, step.memory


def mean(path: Path, diffusion: Diffusion) -> Solver:
    """Return the last step that follows the drift and adds no noise."""
    return EulerMaruyama(path, diffusion, noisy=False)


def tweedie(path: Path, diffusion: Diffusion) -> Solver:
    """Return the last step that jumps to the data estimate, E[data given x_t].  Efron 2011."""
    return Tweedie(path)


def sample_sde(
    model: ModelFn,
    noise: Float[Array, "b *d"],
    ts: GridLike,
    cond: Cond = None,
    *,
    key: PRNGKeyArray,
    path: Path,
    diffusion: Diffusion = constant(1.0),
    step: Callable[[Path, Diffusion], Solver] = euler_maruyama,
    last: Callable[[Path, Diffusion], Solver] | None = mean,
    trajectory: bool = False,
) -> Array:
    """Carry noise to data by an SDE with the ODE's marginals.

    dx = [v(x, t) + g(t)^2 / 2 score(x, t)] dt + g(t) dW,

    with the score converted from the velocity by `predictions.conversion`. g = 0 is the ODE under Euler.
    A larger g removes earlier errors but needs smaller steps, h g^2 well below sigma^2. With
    euler_maruyama, or with a `last` step, the drift is not evaluated at ts[-1].

    Args:
      model, noise, ts, cond, trajectory: as for `sample_ode`.
      key: one key, or one key per example; example i draws from fold_in(key, i).
      path: the path the model was trained on.
      diffusion: g, (path, t) -> number >= 0: constant, proportional, linear, sbdm, cosine, bump, or your own.
      step: euler_maruyama or stochastic_heun.
      last: the last step: `mean` (adds no noise), `tweedie` (the data estimate), None (like the others).
    Raises:
      ValueError: as `sample_ode`.
    Source: Ma et al. 2024 (SiT), eq. 4-5; Albergo et al. 2023, theorem 2.6.
    """
    solver = step(path, diffusion)
    final = None if last is None else last(path, diffusion)
    return run(model, noise, ts, cond, solver, last=final, key=key, trajectory=trajectory)
