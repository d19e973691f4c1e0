"""A labelled Gaussian mixture in the plane: every density, posterior and velocity is known.

Component k has a label, a weight p_k, a mean m_k and a deviation s_k. On a path x_t = alpha data +
sigma noise it is Gaussian at every time, of mean alpha m_k and variance V_k = alpha^2 s_k^2 + sigma^2;
given x_t and the component,

  E[data] = m_k + alpha s_k^2 (x - alpha m_k) / V_k,   E[noise] = sigma (x - alpha m_k) / V_k,

and the velocity alpha' E[data] + sigma' E[noise] is the mean of these under the components' posterior.
"""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
from jax.scipy.special import logsumexp
from jaxtyping import Array, Float, Int

from guidedflow.paths import Path, derivatives


@dataclasses.dataclass(frozen=True)
class Mixture:
    """Rows of (label, weight, mean x, mean y, deviation); the label `null` means all of them."""

    rows: tuple[tuple[int, float, float, float, float], ...]

    @property
    def null(self) -> int:
        """The label of no condition."""
        return 1 + max(row[0] for row in self.rows)

    def log_joint(
        self, path: Path, x: Float[Array, " d"], t: Array, label: Array
    ) -> Float[Array, " k"]:
        """Return log p_t(x, component given label)."""
        labels, weights, means, deviations = self._columns(x.dtype)
        member = (labels == label) | (label == self.null)
        log_weights = jnp.where(member, jnp.log(weights), -jnp.inf)
        variance = (path.alpha(t) * deviations) ** 2 + path.sigma(t) ** 2
        square = jnp.sum((x[None] - path.alpha(t) * means) ** 2, axis=-1)
        exponent = -0.5 * square / variance - jnp.log(2 * jnp.pi * variance)
        return log_weights - logsumexp(log_weights) + exponent

    def log_density(self, path: Path, x: Array, t: Array, label: Array) -> Array:
        """Return log p_t(x given label) of one point."""
        return logsumexp(self.log_joint(path, x, t, label))

    def log_posterior(self, path: Path, x: Array, t: Array, label: Array) -> Array:
        """Return log p_t(label given x) of one point."""
        labels, weights, _, _ = self._columns(x.dtype)
        prior = jnp.sum(jnp.where(labels == label, weights, 0)) / jnp.sum(weights)
        everything = self.log_density(path, x, t, jnp.asarray(self.null))
        return self.log_density(path, x, t, label) + jnp.log(prior) - everything

    def velocity_at(self, path: Path, x: Array, t: Array, label: Array) -> Array:
        """Return E[dx_t/dt given x_t = x, label] of one point."""
        _, _, means, deviations = self._columns(x.dtype)
        alpha, sigma, alpha_slope, sigma_slope = derivatives(path, t)
        variance = ((alpha * deviations) ** 2 + sigma**2)[:, None]
        away = x[None] - alpha * means
        data = means + alpha * deviations[:, None] ** 2 * away / variance
        each = alpha_slope * data + sigma_slope * sigma * away / variance
        return jax.nn.softmax(self.log_joint(path, x, t, label)) @ each

    def velocity(self, path: Path) -> partial:
        """Return the model function (x: b d, t: b, label: b)."""
        return partial(_over_batch, self.velocity_at, path)

    def log_prob(self, path: Path) -> partial:
        """Return the classifier (x: b d, t: b, label: b) -> b."""
        return partial(_over_batch, self.log_posterior, path)

    def widened(self, factor: float) -> "Mixture":
        """Return a worse model of the same data: every component `factor` times as wide."""
        return Mixture(tuple((*row[:4], factor * row[4]) for row in self.rows))

    def sample(self, key: Array, count: int, label: int) -> Float[Array, "n 2"]:
        """Draw data of one label, or of all for `null`."""
        labels, weights, means, deviations = self._columns(jnp.float32)
        choice, normal = jax.random.split(key)
        chosen = weights * ((labels == label) | (label == self.null))
        component = jax.random.choice(choice, len(self.rows), (count,), p=chosen / chosen.sum())
        z = jax.random.normal(normal, (count, 2))
        return means[component] + deviations[component][:, None] * z

    def _columns(
        self, dtype: jnp.dtype
    ) -> tuple[Int[Array, " k"], Float[Array, " k"], Float[Array, "k 2"], Float[Array, " k"]]:
        labels, weights, *mean, deviations = zip(*self.rows, strict=True)
        means = jnp.stack([jnp.asarray(part, dtype) for part in mean], axis=-1)
        return (
            jnp.asarray(labels),
            jnp.asarray(weights, dtype),
            means,
            jnp.asarray(deviations, dtype),
        )


def _over_batch(function, path: Path, x: Array, t: Array, label: Array) -> Array:
    return jax.vmap(partial(function, path))(x, t, label)


PLANE = Mixture(
    (
        (0, 0.25, -1.1, 0.6, 0.35),
        (0, 0.15, 0.1, 1.3, 0.45),
        (0, 0.10, 0.4, -0.2, 0.40),
        (1, 0.30, 1.2, 0.4, 0.40),
        (1, 0.20, 0.3, -1.2, 0.45),
    )
)
"""Two overlapping classes, so that p(y given x) matters where they meet."""
