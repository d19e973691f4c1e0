"""DPM-Solver++: exponential integrators in the half log-SNR, for the data estimate of a model.

Let l = log(alpha / sigma) and h = l_s - l_t. Apart from the data estimate D, the ODE is linear in x:

  x_s = (sigma_s / sigma_t) x_t + alpha_s integral_0^1 h exp(-h (1 - u)) D(l_t + u h) du.

A constant D gives DDIM; a polynomial D through earlier evaluations gives a multistep method. All are
written as DDIM's step plus weighted differences of the data estimates. CFG++ therefore renoises as in
DDIM. The step to sigma_s = 0, where h is infinite, is DDIM's step, which is exact.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import ClassVar, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from guidedflow.paths import Path, log_snr
from guidedflow.samplers.diffusion import estimates
from guidedflow.samplers.multistep import History, combine, lagrange, padded
from guidedflow.samplers.scan import Step, run
from guidedflow.times import GridLike, as_grid
from guidedflow.types import RENOISE, Cond, ModelFn, check_number

Moments = Callable[[Array, int], list[Array]]
"""(h, k) -> the integrals, exact or approximate, of the k powers of u times h exp(-h (1 - u))."""


def exact(h: Array, count: int) -> list[Array]:
    """The exact integrals: the method has its full order.

    m_n = integral_0^1 h exp(-h (1 - u)) u^n du = 1 - n m_(n-1) / h,   m_0 = 1 - exp(-h).

    Lu et al. 2022 (DPM-Solver++), eq. 8 and appendix A. For h < 1/2, where the recurrence cancels, a
    series is used.
    """
    small = jnp.minimum(h, 0.5)
    moments = [-jnp.expm1(-h)]
    for n in range(1, count):
        series = sum(
            (-1) ** (j + 1) * math.factorial(n) / math.factorial(n + j) * small**j
            for j in range(1, 9)
        )
        moments.append(jnp.where(h < 0.5, series, 1 - n * moments[-1] / h))
    return moments


def published(h: Array, count: int) -> list[Array]:
    """The integrals of the published DPM-Solver++, which the schedulers of other projects use.

    With two evaluations m_1 = m_0 / 2 (Lu et al. 2022, algorithm 2). With three, m_2 / 2 replaces m_2,
    as in the authors' code. Then the method of order 3 converges at order 2; with `exact`, at order 3.
    """
    moments = exact(h, count)
    if count == 2:
        return [moments[0], 0.5 * moments[0]]
    if count == 3:
        return [*moments[:2], 0.5 * moments[2]]
    return moments


def correction(nodes: list[Array], h: Array, moments: Moments, order: Array) -> Float[Array, " k"]:
    """Return the weights of the data estimates that are added to DDIM's step; the first node is 0.

    They sum to 0.
    """
    rows = []
    for k in range(1, len(nodes) + 1):
        m = moments(h, k)
        weights = lagrange(nodes[:k], m)
        rows.append(padded(weights.at[0].add(-m[0]), len(nodes)))
    return jnp.stack(rows)[order - 1]


def half_log_snr(path: Path, t: Array) -> Array:
    """Return log(alpha / sigma) at one time."""
    return 0.5 * log_snr(path, t)


def interval(start: Array, end: Array) -> Array:
    """Return the step in half log-SNR; 1 if it is infinite, because no weight then depends on it.

    An infinite value would make the gradient nan, even though it is not used.
    """
    finite = jnp.isfinite(start) & jnp.isfinite(end)
    return jnp.where(finite, jnp.where(finite, end, 1) - jnp.where(finite, start, 0), 1)


def positions(history: History, start: Array, h: Array) -> list[Array]:
    """Return the nodes (at - start) / h of the evaluations, newest first.

    If an evaluation does not exist yet, or its log-SNR is infinite, its node is some other finite
    number, for the same reason as in `interval`.
    """
    nodes = []
    for j, at in enumerate(history.at):
        known = (j < history.seen) & jnp.isfinite(at) & jnp.isfinite(start)
        gap = jnp.where(known, at, 0) - jnp.where(known, start, 0)
        nodes.append(jnp.where(known, gap / h, -1.5 * j))
    return nodes


def highest(order: int, history: History, steps: int | None, ends: Array) -> Array:
    """Return the order of this step: limited by the history, and lower towards the grid's end.

    Args:
      steps: number of steps of the grid, if the order falls to 1 at its end; otherwise None.
      ends: whether this step ends at sigma = 0, where only order 1 is defined.
    """
    taken = jnp.arange(order, dtype=history.seen.dtype) < history.seen
    # On a grid from alpha = 0 the first evaluation is at l = -inf, so no polynomial can use it.
    usable = jnp.sum(taken & jnp.isfinite(history.at), dtype=history.seen.dtype)
    if steps is not None:
        usable = jnp.minimum(usable, steps - history.seen + 1)
    return jnp.where(ends, 1, jnp.maximum(usable, 1))


@dataclasses.dataclass(frozen=True)
class Multistep:
    """Made by `sample_dpmpp`."""

    honours: ClassVar[frozenset[str]] = frozenset({RENOISE})
    path: Path
    order: int
    eta: float
    moments: Moments
    falling_steps: int | None

    def init(self, x: Array) -> History:
        return History.empty(x, self.order)

    def __call__(self, step: Step) -> tuple[Array, History]:
        data, noise = estimates(self.path, step)
        alpha, sigma = self.path.alpha(step.s), self.path.sigma(step.s)
        start = half_log_snr(self.path, step.t)
        end = half_log_snr(self.path, step.s)
        h = interval(start, end)
        history = step.memory.push(data, start)
        order = highest(self.order, history, self.falling_steps, sigma == 0)
        nodes = positions(history, start, h)
        weights = correction(nodes, (1 + self.eta) * h, self.moments, order)
        x = alpha * (data + combine(weights, history.values))
        if self.eta == 0:
            return x + sigma * noise, history
        h = end - start
        kept, fresh = jnp.exp(-self.eta * h), jnp.sqrt(-jnp.expm1(-2 * self.eta * h))
        return x + sigma * (kept * noise + fresh * step.draw(0)), history


def sample_dpmpp(
    model: ModelFn,
    noise: Float[Array, "b *d"],
    ts: GridLike,
    cond: Cond = None,
    *,
    path: Path,
    order: int = 2,
    eta: float = 0.0,
    key: PRNGKeyArray | None = None,
    moments: Moments = published,
    lower_order_final: bool | None = None,
    trajectory: bool = False,
) -> Array:
    """Carry noise to data by multistep DPM-Solver++: 2M, 3M, and with eta = 1 2M SDE.

    x_s = (sigma_s / sigma_t) e^(-eta h) x_t + alpha_s sum_j w_j D_j
          + sigma_s sqrt(1 - e^(-2 eta h)) z,

    with D_j the last `order` data estimates and w_j their weights under e^(-(1 + eta) h (1 - u)). A step
    takes one evaluation; none is at ts[-1]. Order 1 with eta = 0 is DDIM. The first steps, and a step to
    sigma = 0 or from alpha = 0, have lower order.

    Args:
      model, noise, ts, cond, trajectory: as for `sample_ode`.
      path: the path the model was trained on; it need not be variance-preserving.
      order: number of evaluations that a step uses: 1, 2 or 3.
      eta: 0 is the ODE, 1 the SDE of DPM-Solver++; values between add less noise.
      key: needed if eta > 0; one key, or one key per example.
      moments: `published`, or `exact`; order 3 converges at order 3 only with `exact`.
      lower_order_final: whether the order falls to 1 over the last steps. None: only on grids of
        fewer than 15 steps, where it helps.
    Raises:
      ValueError: order is not 1, 2 or 3; eta is outside [0, 1] or has no key; otherwise as `sample_ode`.
    Source: Lu et al. 2022 (DPM-Solver++), algorithm 2 (2M), eq. 18 (2M SDE) and their code (3M); eta
      between 0 and 1 as in Cui et al. 2023 and k-diffusion.
    """
    if isinstance(order, bool) or order not in (1, 2, 3):
        raise ValueError(f"order must be 1, 2 or 3, got {order!r}")
    check_number("eta", eta, 0, 1)
    if eta > 0 and key is None:
        raise ValueError(f"eta = {eta} draws noise: pass key=jax.random.key(seed)")
    ts = as_grid(ts)
    steps = jnp.shape(ts)[0] - 1
    falls = steps < 15 if lower_order_final is None else lower_order_final
    solver = Multistep(path, order, float(eta), moments, steps if falls else None)
    return run(model, noise, ts, cond, solver, key=key, trajectory=trajectory)


class Pending(NamedTuple):
    """State between the two evaluations of a single-step update: its start, and whether one is under way."""

    data: Array
    noise: Array
    at: Array
    half_way: Array


@dataclasses.dataclass(frozen=True)
class Singlestep:
    """Made by `sample_dpmpp_singlestep`."""

    honours: ClassVar[frozenset[str]] = frozenset({RENOISE})
    path: Path
    moments: Moments

    def init(self, x: Array) -> Pending:
        at = jnp.zeros((), x.dtype)
        return Pending(jnp.zeros_like(x), jnp.zeros_like(x), at, jnp.zeros((), bool))

    def __call__(self, step: Step) -> tuple[Array, Pending]:
        data, noise = (estimate.astype(step.x.dtype) for estimate in estimates(self.path, step))
        alpha, sigma = self.path.alpha(step.s), self.path.sigma(step.s)
        here = half_log_snr(self.path, step.t).astype(step.memory.at.dtype)
        start = step.memory.at
        h = interval(start, half_log_snr(self.path, step.s))
        closes = step.memory.half_way & (sigma > 0) & jnp.isfinite(start)
        gap = jnp.where(closes, here - start, 1)
        slope = jnp.where(closes, self.moments(h, 2)[1] * h / gap, 0)
        second = step.memory.data + slope * (data - step.memory.data)
        x = jnp.where(
            closes,
            alpha * second + sigma * step.memory.noise,
            alpha * data + sigma * noise,
        )
        return x, Pending(data, noise, here, ~step.memory.half_way)


def sample_dpmpp_singlestep(
    model: ModelFn,
    noise: Float[Array, "b *d"],
    ts: GridLike,
    cond: Cond = None,
    *,
    path: Path,
    moments: Moments = published,
    trajectory: bool = False,
) -> Array:
    """Carry noise to data by single-step DPM-Solver++ of order 2 (2S), two grid intervals per step.

    From t over u to s:  x_u by DDIM,  x_s = (sigma_s / sigma_t) x_t + alpha_s (m_0 D_t + m_1 (D_u -
    D_t) / r),  r = (l_u - l_t) / (l_s - l_t).

    The grid contains the time of every evaluation, so on equal grids the cost equals that of the multistep
    methods. On a grid evenly spaced in log-SNR, r is 1/2 as in the paper. A single interval left over,
    the interval to sigma = 0 and a step from alpha = 0 are DDIM steps. Every second state of a trajectory
    is an intermediate state.

    Args:
      model, noise, ts, cond, path, trajectory: as for `sample_dpmpp`.
      moments: `published` (m_1 = m_0 / 2) or `exact`.
    Raises:
      ValueError: as `sample_ode`.
    Source: Lu et al. 2022 (DPM-Solver++), algorithm 1.
    """
    return run(model, noise, ts, cond, Singlestep(path, moments), trajectory=trajectory)
