"""The reference itself: each of the mixture's exact quantities against another way to it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from mixture import GAUSSIAN, IMAGES, PLANE

from guidedflow import paths

PATHS = [
    paths.Linear(),
    paths.Trigonometric(),
    paths.VariancePreserving(),
    paths.DiscreteBeta(),
    paths.VarianceExploding(0.1, 5.0),
    paths.EDM(5.0, 3.0),
]


def points(path, mixture, count=24, low=0.05, high=0.95):
    keys = jax.random.split(jax.random.key(0), 3)
    t = jax.random.uniform(keys[0], (count,), minval=low, maxval=high)
    label = jax.random.randint(keys[1], (count,), 0, mixture.num_classes + 1)
    one = jax.vmap(lambda k, s: mixture.sample_at(k, 1, path, s)[0])
    return one(jax.random.split(keys[2], count), t), t, label


@pytest.mark.parametrize("path", PATHS, ids=lambda p: type(p).__name__)
@pytest.mark.parametrize("mixture", [PLANE, IMAGES], ids=["plane", "images"])
def test_velocity_keeps_the_mass_that_the_density_has(path, mixture):
    """d/dt log p + div v + v . grad log p = 0, by differentiating the log density alone."""

    def residual(x, t, label):
        def velocity(x):
            return mixture.velocity_of(path, x, t, label)

        change, slope = jax.grad(mixture.log_density_of, (2, 1))(path, x, t, label)
        size = x.size
        divergence = jnp.trace(jax.jacfwd(velocity)(x).reshape(size, size))
        return change + divergence + jnp.sum(velocity(x) * slope), jnp.abs(divergence) + jnp.abs(
            change
        )

    with jax.enable_x64(True):
        x, t, label = (jnp.asarray(a, jnp.float64) for a in points(path, mixture))
        left, size = jax.jit(jax.vmap(residual))(x, t, label.astype(int))
        # DiscreteBeta keeps its table in float32.
        assert np.max(np.abs(left) / (1 + size)) < 1e-5


@pytest.mark.parametrize("path", PATHS, ids=lambda p: type(p).__name__)
def test_score_is_the_gradient_of_the_log_density(path):
    x, t, label = points(path, PLANE)
    gradient = jax.vmap(jax.grad(lambda *a: PLANE.log_density_of(path, *a)))(x, t, label)
    np.testing.assert_allclose(PLANE.score(path)(x, t, label), gradient, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("path", PATHS, ids=lambda p: type(p).__name__)
def test_posterior_means_add_up_to_the_state(path):
    x, t, label = points(path, PLANE)
    alpha, sigma = (jax.vmap(f)(t)[:, None] for f in (path.alpha, path.sigma))
    total = alpha * PLANE.data(path)(x, t, label) + sigma * PLANE.noise(path)(x, t, label)
    np.testing.assert_allclose(total, x, rtol=1e-4, atol=1e-4)


def test_posterior_is_bayes_rule_on_the_densities():
    path, (x, t, _) = paths.Linear(), points(paths.Linear(), PLANE)
    null = jnp.full(x.shape[:1], PLANE.null)
    for y in range(3):
        label = jnp.full(x.shape[:1], y)
        joint = PLANE.log_density(path)(x, t, label) + np.log(PLANE.class_weights[y])
        evidence = PLANE.log_density(path)(x, t, null)
        np.testing.assert_allclose(PLANE.log_prob(path)(x, t, label), joint - evidence, atol=1e-4)


def test_density_of_the_noised_plane_integrates_to_one():
    axis = np.linspace(-6, 6, 241, dtype=np.float32)
    grid = jnp.stack(jnp.meshgrid(axis, axis), -1).reshape(-1, 2)
    for label in range(4):
        full = jnp.full(grid.shape[:1], label)
        density = jnp.exp(
            PLANE.log_density(paths.Linear())(grid, jnp.full_like(full, 0.7, float), full)
        )
        assert abs(float(jnp.sum(density)) * (axis[1] - axis[0]) ** 2 - 1) < 1e-3


@pytest.mark.parametrize("label", [None, 0, 2])
@pytest.mark.parametrize("t", [0.4, 1.0])
def test_samples_follow_the_stated_law(label, t):
    n = 4000
    x = PLANE.sample_at(jax.random.key(1), n, paths.Linear(), t, label)
    assert PLANE.distance(x, label, paths.Linear(), t) < 1.95 / n**0.5
    assert PLANE.distance(x + 0.15, label, paths.Linear(), t) > 1.95 / n**0.5


def test_moments_are_those_of_the_samples():
    n = 20_000
    for label in (None, 0):
        x = np.asarray(PLANE.sample(jax.random.key(2), n, label)[0])
        mean, variance = PLANE.moments(label)
        np.testing.assert_allclose(x.mean(0), mean, atol=4 * np.sqrt(variance.max() / n))
        np.testing.assert_allclose(x.var(0), variance, rtol=8 / n**0.5)


def test_transport_solves_the_flow_of_one_gaussian():
    path, x = paths.Trigonometric(), jnp.asarray([[0.3, -1.0]])
    at = jnp.float32(0.4)
    slope = jax.jvp(lambda s: GAUSSIAN.transport(path, x, at, s), (at,), (jnp.ones(()),))[1]
    velocity = GAUSSIAN.velocity(path)(x, at[None], jnp.zeros(1, int))
    np.testing.assert_allclose(slope, velocity, rtol=1e-5)
