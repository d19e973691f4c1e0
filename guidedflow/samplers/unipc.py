"""UniPC: a multistep predictor and a corrector that reuses the next step's evaluation."""

import dataclasses
from collections.abc import Callable
from typing import ClassVar, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from guidedflow.paths import Path
from guidedflow.samplers.diffusion import estimates
from guidedflow.samplers.exponential import (
    correction,
    exact,
    half_log_snr,
    highest,
    interval,
    positions,
)
from guidedflow.samplers.multistep import History, combine
from guidedflow.samplers.scan import Step, run
from guidedflow.times import GridLike, as_grid
from guidedflow.types import RENOISE, Cond, ModelFn

Rate = Callable[[Array], Array]
"""B(h), any function h + O(h^2): the two-point formulas use it in place of 2 m_1."""


def bh1(h: Array) -> Array:
    """B(h) = h.  Zhao et al. 2023, section 4.1."""
    return h


def bh2(h: Array) -> Array:
    """B(h) = e^h - 1; for data prediction this is 1 - e^(-h).  Zhao et al. 2023, section 4.1."""
    return -jnp.expm1(-h)


class Before(NamedTuple):
    """The step before: its corrected state as data and noise, its half log-SNR, its order."""

    history: History
    data: Array
    noise: Array
    order: Array


@dataclasses.dataclass(frozen=True)
class UniPC:
    """Made by `sample_unipc`."""

    honours: ClassVar[frozenset[str]] = frozenset({RENOISE})
    path: Path
    order: int
    rate: Rate
    falling_steps: int | None

    def init(self, x: Array) -> Before:
        history = History.empty(x, self.order)
        return Before(history, jnp.zeros_like(x), jnp.zeros_like(x), jnp.ones((), jnp.int32))

    def _moments(self, h: Array, count: int) -> list[Array]:
        moments = exact(h, count)
        return [moments[0], 0.5 * self.rate(h)] if count == 2 else moments

    def _corrected(self, before: Before, predicted: Array, data: Array, t: Array) -> Array:
        """Return the corrected state at t: the polynomial also goes through the evaluation at t (UniC)."""
        start, end = before.history.at[0], half_log_snr(self.path, t)
        # After a step from alpha = 0, h is infinite, and DDIM's step is not corrected.
        usable = (before.history.seen > 0) & jnp.isfinite(start)
        h = jnp.where(usable, interval(start, end), 1)
        earlier = positions(before.history, start, h)[1:]
        # One row more than in the predictor: the evaluation at t is the second, at u = 1.
        nodes = [jnp.zeros_like(h), jnp.ones_like(h), *earlier]
        weights = correction(nodes, h, self._moments, before.order + 1)
        old = before.history.values
        values = jnp.concatenate([old[:1], data.astype(old.dtype)[None], old[1:]])
        ddim = self.path.alpha(t) * before.data + self.path.sigma(t) * before.noise
        corrected = ddim + self.path.alpha(t) * combine(weights, values)
        return jnp.where(usable, corrected, predicted)

    def __call__(self, step: Step) -> tuple[Array, Before]:
        data, noise = estimates(self.path, step)
        start = half_log_snr(self.path, step.t)
        h = interval(start, half_log_snr(self.path, step.s))
        alpha, sigma = self.path.alpha(step.s), self.path.sigma(step.s)
        moved = self._corrected(step.memory, step.x, data, step.t) - step.x
        noise = noise + moved / self.path.sigma(step.t)
        history = step.memory.history.push(data, start)
        order = highest(self.order, history, self.falling_steps, sigma == 0)
        nodes = positions(history, start, h)
        weights = correction(nodes, h, self._moments, order)
        x = alpha * (data + combine(weights, history.values)) + sigma * noise
        dtype = step.x.dtype
        before = Before(history, data.astype(dtype), noise.astype(dtype), order.astype(jnp.int32))
        return x, before


def sample_unipc(
    model: ModelFn,
    noise: Float[Array, "b *d"],
    ts: GridLike,
    cond: Cond = None,
    *,
    path: Path,
    order: int = 2,
    rate: Rate = bh2,
    lower_order_final: bool = True,
    trajectory: bool = False,
) -> Array:
    """Carry noise to data by UniPC of order 2 or 3, one evaluation per step.

    Predict:  x_s = (sigma_s / sigma_t) x_t + alpha_s sum_j w_j D_j, j over the last `order` estimates.
    Correct:  the same sum with D_s among the D_j, which raises the order by one. This is done when the
    next step begins, because D_s at the predicted x_s is then known; it is not evaluated again.

    The weights are exact, except with two estimates, where m_1 = B(h) / 2. The last state is only
    predicted. That step, and steps to sigma = 0 or from alpha = 0, are as in `sample_dpmpp`.

    Args:
      model, noise, ts, cond, path, trajectory: as for `sample_dpmpp`; the states are the predicted ones.
      order: order of the predictor, 1, 2 or 3.
      rate: bh1 or bh2.
      lower_order_final: whether the order falls to 1 over the last steps.
    Raises:
      ValueError: order is not 1, 2 or 3; otherwise as `sample_ode`.
    Source: Zhao et al. 2023, algorithms 5-8, data prediction; eq. 8 and 9.
    """
    if isinstance(order, bool) or order not in (1, 2, 3):
        raise ValueError(f"order must be 1, 2 or 3, got {order!r}")
    ts = as_grid(ts)
    steps = jnp.shape(ts)[0] - 1
    solver = UniPC(path, order, rate, steps if lower_order_final else None)
    return run(model, noise, ts, cond, solver, trajectory=trajectory)
