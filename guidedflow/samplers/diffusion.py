"""DDPM's ancestral sampler and DDIM, on any path.

Both estimate data and noise at (x, t) and rebuild the state at s > t from them, so the model is never
evaluated at the grid's end. Writing a = alpha(t) / alpha(s), the step's own noise has the variance
sigma(t)^2 - a^2 sigma(s)^2.
"""

import dataclasses
from collections.abc import Callable
from typing import ClassVar

import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from guidedflow import predictions
from guidedflow.paths import Path
from guidedflow.samplers.scan import Step, run
from guidedflow.times import GridLike
from guidedflow.types import RENOISE, SHIFT, Cond, ModelFn, check_number


def estimates(path: Path, step: Step) -> tuple[Array, Array]:
    """Return the data estimate and the noise that renoises it, from the step's first evaluation.

    Without CFG++ both come from the same velocity, so data and noise satisfy x = alpha data + sigma
    noise.
    """

    def read(velocity: Array, what: predictions.Prediction) -> Array:
        return predictions.read(path, step.first.native, velocity, step.x, step.t, what)[0]

    return (
        read(step.first.velocity, predictions.data),
        read(step.first.renoise, predictions.noise),
    )


@dataclasses.dataclass(frozen=True)
class DDIM:
    """Made by `sample_ddim`."""

    honours: ClassVar[frozenset[str]] = frozenset({RENOISE})
    path: Path
    eta: float

    def __call__(self, step: Step) -> tuple[Array, PyTree]:
        data, noise = estimates(self.path, step)
        alpha, sigma = self.path.alpha(step.s), self.path.sigma(step.s)
        if self.eta == 0:
            return alpha * data + sigma * noise, step.memory
        ratio = self.path.alpha(step.t) / alpha
        sigma_t = self.path.sigma(step.t)
        own = jnp.maximum(1 - (ratio * sigma / sigma_t) ** 2, 0)
        fresh = self.eta * sigma * jnp.sqrt(own)
        kept = jnp.sqrt(jnp.maximum(sigma**2 - fresh**2, 0))
        return alpha * data + kept * noise + fresh * step.draw(0), step.memory


def sample_ddim(
    model: ModelFn,
    noise: Float[Array, "b *d"],
    ts: GridLike,
    cond: Cond = None,
    *,
    path: Path,
    eta: float = 0.0,
    key: PRNGKeyArray | None = None,
    trajectory: bool = False,
) -> Array:
    """Carry noise to data by DDIM.

    x_s = alpha_s data + sqrt(sigma_s^2 - f^2) noise + f z,
    f = eta sigma_s sqrt(1 - (alpha_t sigma_s / (alpha_s sigma_t))^2).

    eta = 0 is deterministic; on the linear path it is Euler's method. eta = 1 has the smaller of the two
    variances of DDPM.

    Args:
      model, noise, ts, cond, trajectory: as for `sample_ode`.
      path: the path the model was trained on; it need not be variance-preserving.
      eta: amount of fresh noise, in [0, 1].
      key: needed if eta > 0; one key, or one key per example.
    Raises:
      ValueError: eta is outside [0, 1], or eta > 0 without a key; otherwise as `sample_ode`.
    Source: Song, Meng & Ermon 2021, eq. 12 and 16.
    """
    check_number("eta", eta, 0, 1)
    if eta > 0 and key is None:
        raise ValueError(f"eta = {eta} draws noise: pass key=jax.random.key(seed)")
    solver = DDIM(path, float(eta))
    return run(model, noise, ts, cond, solver, key=key, trajectory=trajectory)


Variance = Callable[[Array, Array, Array | None], Array]
"""(smallest, largest, predicted position in [-1, 1]) -> the log variance of an ancestral step."""


def smallest(low: Array, high: Array, position: Array | None) -> Array:
    """The variance of the posterior, exact if the data is one point.  Ho et al. 2020, eq. 7."""
    return low


def largest(low: Array, high: Array, position: Array | None) -> Array:
    """Exact if the data is standard normal; on variance-preserving paths, the forward step's variance.

    Ho et al. 2020, section 3.2.
    """
    return high


def learned(low: Array, high: Array, position: Array | None) -> Array:
    """Predicted by the network, between the two in log space.  Nichol & Dhariwal 2021, eq. 15.

    Raises:
      ValueError: the model predicts no variance.
    """
    if position is None:
        raise ValueError("learned variance needs a network with twice x's channels (as_velocity)")
    fraction = 0.5 * (position + 1)
    return fraction * high + (1 - fraction) * low


@dataclasses.dataclass(frozen=True)
class Ancestral:
    """Made by `sample_ddpm`."""

    honours: ClassVar[frozenset[str]] = frozenset({RENOISE, SHIFT})
    path: Path
    variance: Variance

    def __call__(self, step: Step) -> tuple[Array, PyTree]:
        data, noise = estimates(self.path, step)
        alpha, sigma = self.path.alpha(step.s), self.path.sigma(step.s)
        alpha_t, sigma_t = self.path.alpha(step.t), self.path.sigma(step.t)
        kept = (alpha_t * sigma / (alpha * sigma_t)) ** 2
        own = jnp.maximum(1 - kept, 0)
        # At s = 1 the posterior variance is 0. The floor keeps its logarithm finite; no noise is added.
        floor = float(jnp.finfo(jnp.float32).tiny)
        low = jnp.log(jnp.maximum(own * sigma**2, floor))
        spread_s, spread_t = alpha**2 + sigma**2, alpha_t**2 + sigma_t**2
        high = jnp.log(jnp.maximum(own * sigma_t**2 * spread_s / spread_t, floor))
        log_variance = self.variance(low, high, step.first.variance)
        mean = alpha * data + sigma * jnp.sqrt(kept) * noise
        if step.first.shift is not None:
            mean = mean + jnp.exp(log_variance) * step.first.shift
        spread = jnp.where(sigma > 0, jnp.exp(0.5 * log_variance), 0.0)
        return mean + spread * step.draw(0), step.memory


def sample_ddpm(
    model: ModelFn,
    noise: Float[Array, "b *d"],
    ts: GridLike,
    cond: Cond = None,
    *,
    key: PRNGKeyArray,
    path: Path,
    variance: Variance = smallest,
    trajectory: bool = False,
) -> Array:
    """Carry noise to data by ancestral sampling, x_s ~ N(mean of q(x_s given x_t, data), variance).

    mean = alpha_s data + sigma_s sqrt(k) noise,   k = (alpha_t sigma_s / (alpha_s sigma_t))^2,
    variance between (1 - k) sigma_s^2 and (1 - k) sigma_t^2 (alpha_s^2 + sigma_s^2) / (alpha_t^2 +
    sigma_t^2). The first is exact if the data is one point, the second if it is standard normal.

    A grid with fewer points than the training table is respaced sampling. If sigma_s = 0, no noise is
    added.

    Args:
      model, noise, ts, cond, trajectory: as for `sample_ode`.
      key: one key, or one key per example; example i draws from fold_in(key, i).
      path: the path the model was trained on; any path.
      variance: smallest, largest, or learned (for a network with twice the channels).
    Raises:
      ValueError: as `sample_ode`, or variance is `learned` and the model predicts no variance.
    Source: Ho et al. 2020, algorithm 2 and eq. 7; Nichol & Dhariwal 2021, eq. 15 and section 4.
    """
    solver = Ancestral(path, variance)
    return run(model, noise, ts, cond, solver, key=key, trajectory=trajectory)
