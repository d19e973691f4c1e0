"""Paths from noise to data: x_t = alpha(t) * data + sigma(t) * noise, t = 0 noise, t = 1 data.

| path              | alpha(t)          | sigma(t)                   | alpha(0)| sigma(0) | sigma(1)     |
|-------------------|-------------------|----------------------------|---------|----------|--------------|
| Linear            | t                 | 1 - t                      | 0       | 1        | 0            |
| Trigonometric     | sin(pi t / 2)     | cos(pi t / 2)              | 0       | 1        | 0            |
| VariancePreserving| exp(-B(1 - t) / 2)| sqrt(1 - alpha^2)          | 0.0066  | 1        | 0, slope -inf|
| DiscreteBeta      | sqrt(alpha_bar)   | sqrt(1 - alpha_bar)        | 0.0064  | 1        | 0, slope -inf|
| .. with `zero_snr`| sqrt(alpha_bar)   | sqrt(1 - alpha_bar)        | 0       | 1        | 0, slope -inf|
| VarianceExploding | 1                 | sigma_max^(1-t) sigma_min^t| 1       | sigma_max| sigma_min    |
| EDM               | 1                 | sigma_max (1 - t)^rho      | 1       | sigma_max| 0, slope 0   |

B(s) is the integral of beta. If sigma' is infinite at t = 1, the velocity is infinite too. On such a
path, end an ODE grid a little before t = 1 (`times.uniform_grid(steps, high=1 - 1e-3)`), or use the
diffusion samplers, which never evaluate a model at t = 1.
"""

import dataclasses
from collections.abc import Callable
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from guidedflow.betas import (
    cosine_betas,
    linear_betas,
    log_alpha_table,
    scaled_linear_betas,
    zero_snr,
)
from guidedflow.types import check_floating, check_number, check_times, wide

__all__ = [
    "EDM",
    "TINY",
    "DiscreteBeta",
    "Linear",
    "Path",
    "Time",
    "Trigonometric",
    "VarianceExploding",
    "VariancePreserving",
    "cosine_betas",
    "derivatives",
    "interior",
    "interpolate",
    "linear_betas",
    "log_snr",
    "scaled_linear_betas",
    "zero_snr",
]

Time = Float[Array, ""]
TINY = float(np.finfo(np.float32).tiny)


@runtime_checkable
class Path(Protocol):
    """The two coefficients of x_t, for one scalar time; callers vmap."""

    def alpha(self, t: Time) -> Time:
        """Return the coefficient of the data; it grows with t."""
        ...

    def sigma(self, t: Time) -> Time:
        """Return the coefficient of the noise; it falls with t."""
        ...


@dataclasses.dataclass(frozen=True)
class Linear:
    """The straight path: alpha = t, sigma = 1 - t.

    Rectified flow (Liu et al. 2023, eq. 1); the conditional optimal-transport path of Lipman et al.
    2023, eq. 20 with sigma_min = 0. Its velocity, data - noise, is finite at both ends.
    """

    def alpha(self, t: Time) -> Time:
        return jnp.asarray(t)

    def sigma(self, t: Time) -> Time:
        return 1 - jnp.asarray(t)


@dataclasses.dataclass(frozen=True)
class Trigonometric:
    """The variance-preserving circle: alpha = sin(pi t / 2), sigma = cos(pi t / 2).

    GVP of Ma et al. 2024 (SiT), table 1; Albergo & Vanden-Eijnden 2023, eq. 5. The cosine is written
    as a sine of 1 - t, which is exactly 0 at t = 1.
    """

    def alpha(self, t: Time) -> Time:
        return jnp.sin(0.5 * jnp.pi * t)

    def sigma(self, t: Time) -> Time:
        return jnp.sin(0.5 * jnp.pi * (1 - t))


def _from_log_alpha(log_alpha: Time) -> Time:
    # 0 - 0 is +0. Negating 0 gives -0, which would turn the slope at clean data into +inf.
    return jnp.sqrt(0 - jnp.expm1(2 * log_alpha))


@dataclasses.dataclass(frozen=True)
class VariancePreserving:
    """The VP diffusion with linear beta, run from noise to data: s = 1 - t,

    log alpha = -s^2 (beta_max - beta_min) / 4 - s beta_min / 2,   sigma = sqrt(1 - alpha^2).

    Song et al. 2021, eq. 33. At t = 1, sigma = 0 with an infinite slope.

    Attributes:
      beta_min, beta_max: rate of noising at the data and at the noise end; 0 < beta_min <= beta_max.
    Raises:
      ValueError: the rates are not numbers or out of order.
    """

    beta_min: float = 0.1
    beta_max: float = 20.0

    def __post_init__(self) -> None:
        check_number("beta_min", self.beta_min, 0)
        check_number("beta_max", self.beta_max, self.beta_min)

    def _log_alpha(self, t: Time) -> Time:
        s = 1 - t
        return -0.25 * s**2 * (self.beta_max - self.beta_min) - 0.5 * s * self.beta_min

    def alpha(self, t: Time) -> Time:
        return jnp.exp(self._log_alpha(t))

    def sigma(self, t: Time) -> Time:
        return _from_log_alpha(self._log_alpha(t))


@dataclasses.dataclass(frozen=True)
class DiscreteBeta:
    """DDPM's table of betas as a path: step k of 0 .. steps - 1 is at t = 1 - (k + 1) / steps.

    alpha(t_k)^2 = alpha_bar_k = prod over i <= k of (1 - beta_i);   sigma^2 = 1 - alpha^2.

    k = steps - 1 is the noise end, t = 0; clean data, t = 1, is the empty product. Between two
    entries log alpha is linear. Ho et al. 2020, eq. 4. If the last beta is 1, the noise end is pure
    noise, alpha(0) = 0, and alpha itself is linear between the last two entries.

    Attributes:
      betas: `steps -> table`: linear_betas, cosine_betas, scaled_linear_betas, one of them inside
        `zero_snr`, or your own function.
      steps: entries of the table, at least 1.
    Raises:
      ValueError: the table has another length, or a beta outside (0, 1); only the last may be 1.
    """

    betas: Callable[[int], np.ndarray] = linear_betas
    steps: int = 1000

    def __post_init__(self) -> None:
        check_number("steps", self.steps, 1)
        log_alpha_table(self.betas, self.steps)

    def _position(self, t: Time) -> tuple[Array, Time]:
        """Return the index of the entry next to t on the data side, and the fraction of the way to the next."""
        position = self.steps * (1 - t)
        below = jnp.clip(jnp.floor(position), 0, self.steps - 1).astype(jnp.int32)
        return below, position - below

    def _log_alpha(self, t: Time) -> Time:
        """Return log alpha; a last entry of -inf, pure noise, is replaced by the entry before it."""
        entries = log_alpha_table(self.betas, self.steps)
        table = jnp.asarray(np.where(np.isinf(entries), entries[-2], entries), jnp.float32)
        below, fraction = self._position(t)
        return (1 - fraction) * table[below] + fraction * table[below + 1]

    def _faded(self, t: Time) -> Time | None:
        """Return the factor of exp(log alpha) with which alpha goes to 0; None if alpha never does."""
        if np.isfinite(log_alpha_table(self.betas, self.steps)[-1]):
            return None
        below, fraction = self._position(t)
        return jnp.where(below == self.steps - 1, 1 - fraction, 1)

    def alpha(self, t: Time) -> Time:
        alpha, faded = jnp.exp(self._log_alpha(t)), self._faded(t)
        return alpha if faded is None else alpha * faded

    def sigma(self, t: Time) -> Time:
        log_alpha, faded = self._log_alpha(t), self._faded(t)
        if faded is None:
            return _from_log_alpha(log_alpha)
        # 1 - (a f)^2 = (1 - a^2) + a^2 (1 - f^2): no cancellation at either end.
        return jnp.sqrt(jnp.exp(2 * log_alpha) * (1 - faded**2) - jnp.expm1(2 * log_alpha))

    def index(self, t: Time) -> Time:
        """Return the table's step k at time t, as a float; a DDPM network takes it as its time."""
        return self.steps * (1 - t) - 1

    def time(self, index: Array) -> Array:
        """Return the time of step k; the inverse of `index`."""
        return 1 - (index + 1) / self.steps


@dataclasses.dataclass(frozen=True)
class VarianceExploding:
    """Data plus geometrically falling noise: alpha = 1, sigma = sigma_max^(1 - t) sigma_min^t.

    Song et al. 2021, eq. 30. A sample at t = 1 still carries noise of deviation sigma_min.

    Attributes:
      sigma_min, sigma_max: noise at t = 1 and t = 0; 0 < sigma_min < sigma_max.
    Raises:
      ValueError: the deviations are not positive numbers in order.
    """

    sigma_min: float = 0.01
    sigma_max: float = 50.0

    def __post_init__(self) -> None:
        check_number("sigma_min", self.sigma_min, TINY)
        check_number("sigma_max", self.sigma_max, self.sigma_min)

    def alpha(self, t: Time) -> Time:
        return jnp.ones_like(t)

    def sigma(self, t: Time) -> Time:
        return self.sigma_max * (self.sigma_min / self.sigma_max) ** jnp.asarray(t)


@dataclasses.dataclass(frozen=True)
class EDM:
    """Data plus noise that falls to zero: alpha = 1, sigma = sigma_max (1 - t)^rho.

    A uniform grid in t is the grid of Karras et al. 2022, eq. 5, with sigma_min = 0; with their
    sigma_min it is `times.karras_grid`. Because of the power, 1 - t is of order 1 even at small sigma;
    on a straight line it would be lost in float32 rounding. At t = 1 both sigma and its slope are 0:
    the velocity is 0 there and does not determine the noise.

    Attributes:
      sigma_max: noise at t = 0, positive.
      rho: curvature, at least 1.
    Raises:
      ValueError: a field is out of range.
    """

    sigma_max: float = 80.0
    rho: float = 7.0

    def __post_init__(self) -> None:
        check_number("sigma_max", self.sigma_max, TINY)
        check_number("rho", self.rho, 1)

    def alpha(self, t: Time) -> Time:
        return jnp.ones_like(t)

    def sigma(self, t: Time) -> Time:
        return self.sigma_max * (1 - jnp.asarray(t)) ** self.rho


def derivatives(path: Path, t: Time) -> tuple[Time, Time, Time, Time]:
    """Return alpha, sigma, alpha', sigma' at one time; the derivatives by jvp."""
    t = jnp.asarray(t)
    one = jnp.ones_like(t)
    alpha, alpha_dot = jax.jvp(path.alpha, (t,), (one,))
    sigma, sigma_dot = jax.jvp(path.sigma, (t,), (one,))
    return alpha, sigma, alpha_dot, sigma_dot


def log_snr(path: Path, t: Time) -> Time:
    """Return log(alpha^2 / sigma^2) at one time: -inf where alpha = 0, inf where sigma = 0.

    Computed in float32 or wider, because a small sigma is 0 in narrower types.
    """
    t = wide(jnp.asarray(t))
    return 2 * (jnp.log(path.alpha(t)) - jnp.log(path.sigma(t)))


def interior(t: Array, margin: float = 1e-3) -> Array:
    """Return `t` clipped to [margin, 1 - margin], where every conversion is finite."""
    return jnp.clip(t, margin, 1 - margin)


def interpolate(
    path: Path, data: Float[Array, "*d"], noise: Float[Array, "*d"], t: Time
) -> tuple[Float[Array, "*d"], Float[Array, "*d"]]:
    """Return the point of the path between one noise and one data example, and its velocity.

    x_t = alpha(t) data + sigma(t) noise,   dx_t/dt = alpha'(t) data + sigma'(t) noise.

    Args:
      data, noise: one example each, of equal shape.
      t: scalar in [0, 1]; vmap for a batch.
    Returns:
      x_t and dx_t/dt, the latter by jvp.
    Raises:
      ValueError: the shapes differ, a dtype is not floating, or t is not a scalar in [0, 1].
    Source: Lipman et al. 2023, eq. 10-11; Albergo et al. 2023, eq. 2.2.
    """
    if jnp.shape(data) != jnp.shape(noise):
        raise ValueError(
            f"data and noise must have one shape, got {jnp.shape(data)} and {jnp.shape(noise)}"
        )
    check_floating("data", data)
    check_floating("noise", noise)
    check_times(t, ())
    t = jnp.asarray(t)

    def point(t: Time) -> Array:
        return path.alpha(t) * data + path.sigma(t) * noise

    return jax.jvp(point, (t,), (jnp.ones_like(t),))
