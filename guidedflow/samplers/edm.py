"""EDM's sampler: Heun's method in sigma / alpha, with noise added before a step ("churn")."""

import dataclasses
from collections.abc import Callable
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from guidedflow import predictions
from guidedflow.paths import Path
from guidedflow.samplers.diffusion import estimates
from guidedflow.samplers.scan import Step, run
from guidedflow.times import GridLike, as_grid, time_of_ratio
from guidedflow.types import RENOISE, Cond, ModelFn, check_number, concrete


@dataclasses.dataclass(frozen=True)
class KarrasHeun:
    """Made by `sample_edm`."""

    honours: ClassVar[frozenset[str]] = frozenset({RENOISE})
    path: Path
    corrects: bool

    def __call__(self, step: Step) -> tuple[Array, PyTree]:
        data, noise = estimates(self.path, step)
        alpha, sigma = self.path.alpha(step.s), self.path.sigma(step.s)
        x = alpha * data + sigma * noise
        if not self.corrects:
            return x, step.memory
        end = step.evaluate(x, step.s)
        # At sigma = 0 the result is not used, but an infinite coefficient would make the gradient nan.
        time = jnp.where(sigma > 0, step.s, step.t)
        end_noise, _ = predictions.read(
            self.path, end.native, end.renoise, x, time, predictions.noise
        )
        alpha_t, sigma_t = self.path.alpha(step.t), self.path.sigma(step.t)
        fall = sigma - alpha * sigma_t / jnp.where(alpha_t > 0, alpha_t, 1.0)
        corrected = x + 0.5 * fall * (end_noise - noise)
        return jnp.where((alpha_t > 0) & (sigma > 0), corrected, x), step.memory


@dataclasses.dataclass(frozen=True)
class Churning(KarrasHeun):
    """`KarrasHeun` that first adds noise in each step, up to the ratio (1 + gamma) sigma / alpha."""

    gamma: float
    low: float
    high: float
    scale: float

    def begin(self, x: Array, t: Array, draw: Callable[[int], Array]) -> tuple[Array, Array]:
        """Return the noised state and its time, where the step then begins."""
        alpha, sigma = self.path.alpha(t), self.path.sigma(t)
        # If alpha = 0, the state is pure noise and no more is added.
        churns = (alpha > 0) & (sigma >= self.low * alpha)
        if self.high != np.inf:
            churns &= sigma <= self.high * alpha
        alpha = jnp.where(alpha > 0, alpha, 1.0)
        raised = time_of_ratio(self.path, (1 + self.gamma) * sigma / alpha).astype(t.dtype)
        before = jnp.where(churns, jnp.minimum(raised, t), t)
        kept = jnp.where(churns, self.path.alpha(before) / alpha, 1.0)
        added = jnp.maximum(self.path.sigma(before) ** 2 - (kept * sigma) ** 2, 0.0)
        spread = jnp.where(churns, self.scale * jnp.sqrt(added), 0.0)
        return kept * x + spread * draw(0), before


def sample_edm(
    model: ModelFn,
    noise: Float[Array, "b *d"],
    ts: GridLike,
    cond: Cond = None,
    *,
    path: Path,
    churn: float = 0.0,
    churn_low: float = 0.0,
    churn_high: float = np.inf,
    churn_scale: float = 1.0,
    corrects: bool = True,
    key: PRNGKeyArray | None = None,
    trajectory: bool = False,
) -> Array:
    """Carry noise to data by EDM's stochastic Heun sampler, on any path.

    In y = x / alpha and r = sigma / alpha, where the ODE is dy/dr = noise(y, r):

      r' = (1 + gamma) r,   y' = y + S_noise sqrt(r'^2 - r^2) z,   gamma = min(S_churn / N, sqrt 2 - 1),
      y_s = y' + (r_s - r') (noise(y', r') + noise(y_e, r_s)) / 2,   y_e from Euler's step.

    If r_s = 0 or r is infinite, the step is Euler's step alone, which is DDIM's. If the last step is
    known to end at sigma = 0, its second evaluation is left out: 2 N - 1 evaluations in all. If
    (1 + gamma) r exceeds the range of the path, noise is added only up to the end of the range.

    Args:
      model, noise, ts, cond, trajectory: as for `sample_ode`; the grid of the paper is
        `times.karras_grid`.
      path: the path the model was trained on.
      churn: S_churn >= 0; 0 is deterministic.
      churn_low, churn_high: S_min and S_max, the range of r in which noise is added.
      churn_scale: S_noise, the standard deviation of the added noise, about 1.
      corrects: False leaves out the second evaluation: Euler's method with churn.
      key: needed if churn > 0; one key, or one key per example.
    Raises:
      ValueError: a churn setting is out of range, or churn has no key; otherwise as `sample_ode`.
    Source: Karras et al. 2022, algorithm 2 (algorithm 1 without churn).
    """
    check_number("churn", churn, 0)
    check_number("churn_low", churn_low, 0)
    check_number("churn_scale", churn_scale, 0)
    if churn_high != np.inf:
        check_number("churn_high", churn_high, churn_low)
    if churn > 0 and key is None:
        raise ValueError(f"churn = {churn} draws noise: pass key=jax.random.key(seed)")
    ts = as_grid(ts)
    gamma = min(churn / (jnp.shape(ts)[0] - 1), 2**0.5 - 1)

    def solver(corrects: bool) -> KarrasHeun:
        if churn == 0:
            return KarrasHeun(path, corrects)
        return Churning(path, corrects, gamma, churn_low, churn_high, churn_scale)

    last = solver(False) if corrects and _ends_clean(path, ts) else None
    return run(model, noise, ts, cond, solver(corrects), last=last, key=key, trajectory=trajectory)


def _ends_clean(path: Path, ts: GridLike) -> bool:
    """Whether the grid ends at sigma = 0; False if its values are not known while tracing."""
    known = concrete(ts)
    if known is None:
        return False
    with jax.core.eval_context():
        return float(path.sigma(jnp.asarray(known[-1]))) == 0
