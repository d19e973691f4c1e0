"""Labelled Gaussian mixtures: data of which every density, posterior, score and velocity is known.

Component k has a label y_k, a weight p_k, a mean m_k and a deviation s_k of each coordinate. On a path
x_t = alpha data + sigma noise it is Gaussian at every time, of mean alpha m_k and variance
V_k = alpha^2 s_k^2 + sigma^2, and so, given x_t = x and the component,

  E[data] = m_k + alpha s_k^2 (x - alpha m_k) / V_k,   E[noise] = sigma (x - alpha m_k) / V_k.

Everything else is the mean of these under the components' posterior. The velocity is
alpha' E[data] + sigma' E[noise], the score -sum_k p(k given x) (x - alpha m_k) / V_k; neither goes
through `guidedflow.predictions`. The null label is `num_classes`: all components.
"""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import logsumexp
from scipy.special import ndtr


@dataclasses.dataclass(frozen=True, eq=False)
class Mixture:
    """Components along the first axis of every field; labels run over 0 .. num_classes - 1."""

    labels: np.ndarray
    weights: np.ndarray
    means: np.ndarray
    deviations: np.ndarray

    @classmethod
    def of(cls, *components):
        """Build from (label, weight, mean, deviation); weights are normalised."""
        labels, weights, means, deviations = zip(*components, strict=True)
        means = np.asarray(means, np.float64)
        deviations = np.stack(
            [np.broadcast_to(s, m.shape) for s, m in zip(deviations, means, strict=True)]
        ).astype(np.float64)
        weights = np.asarray(weights, np.float64)
        return cls(np.asarray(labels, np.int32), weights / weights.sum(), means, deviations)

    @property
    def num_classes(self):
        return int(self.labels.max()) + 1

    @property
    def null(self):
        return self.num_classes

    @property
    def shape(self):
        return self.means.shape[1:]

    @property
    def class_weights(self):
        """p(y)."""
        return np.bincount(self.labels, self.weights)

    def weights_of(self, label=None):
        """p(component given label), of all labels where it is None."""
        kept = self.weights * (True if label in (None, self.null) else self.labels == label)
        return kept / kept.sum()

    # One example: x *d, scalar t, scalar label.

    def _log_weights(self, label):
        """log p(component given label)."""
        member = (jnp.asarray(self.labels) == label) | (label == self.null)
        log_weights = jnp.where(
            member, jnp.asarray(np.log(self.weights), jnp.result_type(float)), -jnp.inf
        )
        return log_weights - logsumexp(log_weights)

    def _constants(self):
        """Means and deviations in the width of the day: JAX caches a numpy constant by identity."""
        width = jnp.result_type(float)
        return self.means.astype(width), self.deviations.astype(width)

    def _at(self, path, t):
        """The components' means and variances at time t."""
        alpha, sigma = path.alpha(t), path.sigma(t)
        means, deviations = self._constants()
        return alpha * means, alpha**2 * deviations**2 + sigma**2

    def _log_joint(self, path, x, t, label):
        """log p_t(x, component given label)."""
        means, variances = self._at(path, t)
        axes = tuple(range(1, means.ndim))
        exponents = (x[None] - means) ** 2 / variances + jnp.log(2 * jnp.pi * variances)
        return self._log_weights(label) - 0.5 * jnp.sum(exponents, axes)

    def _mean(self, path, x, t, label, values):
        """The mean of `values` (component first) under p(component given x_t, label)."""
        responsibility = jax.nn.softmax(self._log_joint(path, x, t, label))
        return jnp.tensordot(responsibility, values, axes=1).astype(x.dtype)

    def log_density_of(self, path, x, t, label):
        """log p_t(x given label)."""
        return logsumexp(self._log_joint(path, x, t, label))

    def log_posterior_of(self, path, x, t):
        """log p_t(y given x) of every class."""
        densities = jnp.stack([self.log_density_of(path, x, t, y) for y in range(self.num_classes)])
        return jax.nn.log_softmax(densities + jnp.log(self.class_weights))

    def data_of(self, path, x, t, label):
        """E[data given x_t, label]."""
        means, variances = self._at(path, t)
        clean, deviations = self._constants()
        gain = path.alpha(t) * deviations**2 / variances
        return self._mean(path, x, t, label, clean + gain * (x[None] - means))

    def noise_of(self, path, x, t, label):
        """E[noise given x_t, label]."""
        means, variances = self._at(path, t)
        return self._mean(path, x, t, label, path.sigma(t) * (x[None] - means) / variances)

    def score_of(self, path, x, t, label):
        """grad log p_t(x given label)."""
        means, variances = self._at(path, t)
        return self._mean(path, x, t, label, -(x[None] - means) / variances)

    def velocity_of(self, path, x, t, label):
        """E[dx_t/dt given x_t, label]."""
        slopes = jax.grad(path.alpha)(t), jax.grad(path.sigma)(t)
        data, noise = self.data_of(path, x, t, label), self.noise_of(path, x, t, label)
        return (slopes[0] * data + slopes[1] * noise).astype(x.dtype)

    def v_of(self, path, x, t, label):
        """E[alpha noise - sigma data given x_t, label]."""
        data, noise = self.data_of(path, x, t, label), self.noise_of(path, x, t, label)
        return (path.alpha(t) * noise - path.sigma(t) * data).astype(x.dtype)

    # Batched functions (x: b *d, t: b, label: b), equal ones comparing equal.

    def velocity(self, path):
        return Field(self, path, "velocity_of")

    def score(self, path):
        return Field(self, path, "score_of")

    def noise(self, path):
        return Field(self, path, "noise_of")

    def data(self, path):
        return Field(self, path, "data_of")

    def v(self, path):
        return Field(self, path, "v_of")

    def log_density(self, path):
        """(x, t, label) -> log p_t(x given label): b; the null label for log p_t(x)."""
        return Field(self, path, "log_density_of")

    def log_prob(self, path):
        """(x, t, label) -> log p_t(label given x): b, the classifier that guidance takes."""
        return Field(self, path, "_log_prob_of")

    def _log_prob_of(self, path, x, t, label):
        return self.log_posterior_of(path, x, t)[label]

    # Laws.

    def sample(self, key, count, label=None):
        """Draw data `count *d` and labels `count`; of one label, or of all where it is None."""
        choice, normal = jax.random.split(key)
        component = jax.random.choice(
            choice, len(self.weights), (count,), p=jnp.asarray(self.weights_of(label), jnp.float32)
        )
        z = jax.random.normal(normal, (count, *self.shape))
        means, deviations = (jnp.asarray(a, z.dtype) for a in (self.means, self.deviations))
        return means[component] + deviations[component] * z, jnp.asarray(self.labels)[component]

    def sample_at(self, key, count, path, t, label=None):
        """Draw x_t `count *d` of one label, or of all where it is None."""
        draw, normal = jax.random.split(key)
        data, _ = self.sample(draw, count, label)
        return path.alpha(t) * data + path.sigma(t) * jax.random.normal(normal, data.shape)

    def moments(self, label=None):
        """Mean and variance of the data, each *d, of one label, or of all where it is None."""
        weights = self.weights_of(label)
        mean = np.tensordot(weights, self.means, 1)
        square = np.tensordot(weights, self.means**2 + self.deviations**2, 1)
        return mean, square - mean**2

    def cdf(self, direction, values, label=None, path=None, t=1.0):
        """P(<direction, x_t> <= values), of the data itself where `path` is None."""
        weights = self.weights_of(label)
        alpha, sigma = (1.0, 0.0) if path is None else (float(path.alpha(t)), float(path.sigma(t)))
        axes = self.means.ndim - 1
        variances = alpha**2 * self.deviations**2 + sigma**2
        means = np.tensordot(alpha * self.means, direction, axes)
        stds = np.sqrt(np.tensordot(variances, np.square(direction), axes))
        z = (np.asarray(values)[:, None] - means[None]) / stds[None]
        return ndtr(z) @ weights

    def distance(self, samples, label=None, path=None, t=1.0, directions=8, seed=0):
        """The largest Kolmogorov-Smirnov distance to the law of x_t over the axes and random lines.

        To be held against `tolerance(n)`.
        """
        size = int(np.prod(self.shape))
        lines = np.random.default_rng(seed).normal(size=(directions, size))
        lines = np.concatenate([np.eye(size), lines]).reshape(-1, *self.shape)
        samples = np.asarray(samples, np.float64)
        n = len(samples)
        worst = 0.0
        for line in lines:
            values = np.sort(np.tensordot(samples, line, len(self.shape)))
            exact = self.cdf(line, values, label, path, t)
            above, below = np.arange(1, n + 1) / n - exact, exact - np.arange(n) / n
            worst = max(worst, float(np.max(np.maximum(above, below))))
        return worst

    @staticmethod
    def tolerance(n):
        """What one line of n exact samples exceeds 7 times in a million: 2 exp(-2 n d^2)."""
        return 2.5 / n**0.5

    def transport(self, path, x, t, s):
        """The exact ODE solution at s from x at t, for a mixture of one component."""
        (mean_t,), (variance_t,) = self._at(path, t)
        (mean_s,), (variance_s,) = self._at(path, s)
        return mean_s[None] + (x - mean_t[None]) * jnp.sqrt(variance_s / variance_t)[None]


@dataclasses.dataclass(frozen=True)
class Field:
    """One quantity of a mixture on a path, over a batch; a model function where it is `b *d`."""

    mixture: Mixture
    path: object
    name: str

    @partial(jax.jit, static_argnums=0)
    def __call__(self, x, t, cond):
        one = partial(getattr(self.mixture, self.name), self.path)
        return jax.vmap(one)(x, t, cond)


GAUSSIAN = Mixture.of((0, 1.0, [1.5, -0.5], [0.3, 0.8]))
"""One Gaussian in the plane: every flow is `transport`."""

PLANE = Mixture.of(
    (0, 0.2, [-2.0, 0.5], [0.4, 0.3]),
    (0, 0.15, [-0.5, 1.5], 0.35),
    (1, 0.4, [1.5, 0.5], [0.3, 0.6]),
    (2, 0.25, [0.3, -1.5], [0.6, 0.3]),
)
"""Three overlapping classes in the plane, one of two components, of unequal weights."""

IMAGES = Mixture.of(
    (0, 0.3, np.linspace(-1, 1, 12).reshape(2, 2, 3), 0.3),
    (1, 0.3, np.linspace(1, -1, 12).reshape(2, 2, 3), 0.4),
    (2, 0.4, np.cos(np.arange(12.0)).reshape(2, 2, 3), 0.2),
)
"""Three classes of tiny images, h w c = 2 2 3."""
