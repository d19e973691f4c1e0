"""Guidance scales that change over t; each is a Scale.

Outside its bounds an interval is 1, which is no guidance in `classifier_free`; a `window` is 0.
"""

from collections.abc import Sequence
from itertools import pairwise

import jax.numpy as jnp
from jaxtyping import Array

from guidedflow.paths import Path
from guidedflow.types import Scale, check_number, check_scale, pytree, scale_at


def _check_interval(scale: Scale, low: float, high: float) -> None:
    check_scale(scale)
    check_number("low", low, 0, 1)
    check_number("high", high, 0, 1)
    if not low <= high:
        raise ValueError(f"the interval is empty: low {low} is above high {high}")


@pytree
class Interval:
    """Made by `interval`."""

    scale: Scale
    low: float
    high: float

    def __call__(self, t: Array) -> Array:
        inside = (t >= self.low) & (t <= self.high)
        return jnp.where(inside, scale_at(self.scale, t), 1.0)


def interval(scale: Scale, low: float, high: float) -> Interval:
    """Guide only while low <= t <= high; elsewhere the model is the conditional model.

    w(t) = scale on [low, high], 1 outside.

    `low = high` guides at that one time; if the grid does not contain it, nothing is guided.
    `low = 0, high = 1` guides always. Where w(t) = 1, `classifier_free` evaluates one branch.

    Args:
      scale: guidance scale inside the interval, a number or a schedule; 1 is no guidance.
      low, high: times in [0, 1], t = 0 noise, t = 1 data; low <= high.
    Raises:
      ValueError: scale is not a number, or the interval is empty or leaves [0, 1].
    Source: Kynkäänniemi et al. 2024, eq. 5.
    """
    _check_interval(scale, low, high)
    return Interval(scale, low, high)


@pytree
class SigmaInterval:
    """Made by `sigma_interval`."""

    scale: Scale
    path: Path
    low: float
    high: float

    def __call__(self, t: Array) -> Array:
        sigma, alpha = self.path.sigma(t), self.path.alpha(t)
        inside = (sigma > self.low * alpha) & (sigma <= self.high * alpha)
        return jnp.where(inside, scale_at(self.scale, t), 1.0)


def sigma_interval(scale: Scale, path: Path, low: float, high: float) -> SigmaInterval:
    """Guide only while low < sigma / alpha <= high, the noise level in units of the data.

    w(t) = scale on (low, high], 1 outside. The best values for EDM2-XXL on ImageNet-512 are
    (0.28, 1.61] and scale 2.0.

    Raises:
      ValueError: scale is not a number, or not 0 <= low <= high.
    Source: Kynkäänniemi et al. 2024, eq. 5, which is in sigma.
    """
    check_scale(scale)
    check_number("low", low, 0)
    check_number("high", high, low)
    return SigmaInterval(scale, path, low, high)


@pytree
class Ramp:
    """Made by `linear` and `cosine`."""

    start: float
    end: float
    rounded: bool

    def __call__(self, t: Array) -> Array:
        fraction = jnp.where(self.rounded, 0.5 * (1 - jnp.cos(jnp.pi * t)), t)
        return self.start + (self.end - self.start) * fraction


def linear(start: float, end: float) -> Ramp:
    """w(t) = start + (end - start) t: `start` at the noise, `end` at the data.

    Source: Wang et al. 2024 (analysis of guidance weight schedulers), table 1.
    """
    check_number("start", start)
    check_number("end", end)
    return Ramp(start, end, False)


def cosine(start: float, end: float) -> Ramp:
    """w(t) = start + (end - start) (1 - cos(pi t)) / 2: a ramp with slope 0 at both ends.

    Source: Wang et al. 2024, table 1.
    """
    check_number("start", start)
    check_number("end", end)
    return Ramp(start, end, True)


@pytree
class Window:
    """Made by `window`."""

    scale: Scale
    low: float
    high: float

    def __call__(self, t: Array) -> Array:
        inside = (t >= self.low) & (t <= self.high)
        return jnp.where(inside, scale_at(self.scale, t), 0.0)


def window(scale: Scale, low: float, high: float) -> Window:
    """Guide only while low <= t <= high: an interval for scales where 0 means no guidance.

    s(t) = scale on [low, high], 0 outside.

    For `perturbed`, `classifier` and `loss_guidance`; skip-layer guidance is usual on [0.01, 0.2].
    Where s(t) = 0, `perturbed` does not evaluate the perturbed network.

    Args:
      scale: scale inside the interval, a number or a schedule; 0 is no guidance.
      low, high: times in [0, 1], t = 0 noise, t = 1 data; low <= high.
    Raises:
      ValueError: scale is not a number, or the interval is empty or leaves [0, 1].
    """
    _check_interval(scale, low, high)
    return Window(scale, low, high)


@pytree
class Power:
    """Made by `power`."""

    start: float
    end: float
    exponent: float

    def __call__(self, t: Array) -> Array:
        return self.start + (self.end - self.start) * t**self.exponent


def power(start: float, end: float, exponent: float = 2.0) -> Power:
    """w(t) = start + (end - start) t^exponent: monotone; exponent 1 is `linear`.

    Args:
      start, end: scales at the noise and at the data.
      exponent: positive; above 1 most of the change is late, below 1 early.
    Raises:
      ValueError: a number is missing or the exponent is not positive.
    Source: Wang et al. 2024 (analysis of guidance weight schedulers), section 3, monotone schedules.
    """
    check_number("start", start)
    check_number("end", end)
    check_number("exponent", exponent, 1e-6)
    return Power(start, end, exponent)


@pytree
class Stepwise:
    """Made by `stepwise`."""

    times: tuple[float, ...]
    scales: tuple[Scale, ...]

    def __call__(self, t: Array) -> Array:
        value = jnp.broadcast_to(scale_at(self.scales[0], t), jnp.shape(t))
        for time, scale in zip(self.times, self.scales[1:], strict=True):
            value = jnp.where(t >= time, scale_at(scale, t), value)
        return value


def stepwise(times: Sequence[float], scales: Sequence[Scale]) -> Stepwise:
    """w(t) = scales[0] before times[0], scales[k] from times[k - 1] on.

    Args:
      times: increasing, in [0, 1].
      scales: one more than times; numbers or schedules.
    Raises:
      ValueError: there is not one scale more than times, a scale is not a number, or the times do not
        increase within [0, 1].
    """
    if len(scales) != len(times) + 1:
        raise ValueError(f"{len(times)} times need {len(times) + 1} scales, got {len(scales)}")
    for scale in scales:
        check_scale(scale)
    for time in times:
        check_number("times", time, 0, 1)
    if any(after <= before for before, after in pairwise(times)):
        raise ValueError(f"times must increase, got {tuple(times)}")
    return Stepwise(tuple(times), tuple(scales))
