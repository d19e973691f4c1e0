"""The reference itself: each of the mixture's exact quantities against another way to it."""

import functools

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


def points(path, mixture, count=24):
    """States, times and labels, the null one too, drawn from the law itself."""
    rng = np.random.default_rng(0)
    t = rng.uniform(0.05, 0.95, count)
    label = rng.integers(0, mixture.num_classes + 1, count)
    component = rng.choice(len(mixture.weights), count, p=mixture.weights)
    data, noise = (rng.normal(size=(count, *mixture.shape)) for _ in range(2))
    data = mixture.means[component] + mixture.deviations[component] * data

    def state(data, noise, t):
        return path.alpha(t) * data + path.sigma(t) * noise

    return jax.vmap(state)(data, noise, t), jnp.asarray(t), jnp.asarray(label)


@functools.cache
def residuals(path, mixture):
    """What should vanish, for a batch of points, in float64 and in one compiled program."""

    def one(x, t, label):
        def velocity(x):
            return mixture.velocity_of(path, x, t, label)

        change, slope = jax.grad(mixture.log_density_of, (2, 1))(path, x, t, label)
        divergence = jnp.trace(jax.jacfwd(velocity)(x).reshape(x.size, x.size))
        scale = 1 + jnp.abs(change) + jnp.abs(divergence)
        mass = (change + divergence + jnp.sum(velocity(x) * slope)) / scale
        data, noise = (f(path, x, t, label) for f in (mixture.data_of, mixture.noise_of))
        state = path.alpha(t) * data + path.sigma(t) * noise - x
        return mass, mixture.score_of(path, x, t, label) - slope, state

    with jax.enable_x64(True):
        return jax.jit(jax.vmap(one))(*points(path, mixture))


EVERY = pytest.mark.parametrize("path", PATHS, ids=lambda p: type(p).__name__)


@EVERY
def test_velocity_keeps_the_mass_that_the_density_has(path):
    """d/dt log p + div v + v . grad log p = 0, by differentiating the log density alone."""
    # DiscreteBeta keeps its table in float32.
    np.testing.assert_allclose(residuals(path, PLANE)[0], 0, atol=1e-5)


def test_velocity_of_images_keeps_the_mass():
    np.testing.assert_allclose(residuals(paths.Linear(), IMAGES)[0], 0, atol=1e-9)


@EVERY
def test_score_is_the_gradient_of_the_log_density(path):
    np.testing.assert_allclose(residuals(path, PLANE)[1], 0, atol=1e-9)


@EVERY
def test_posterior_means_add_up_to_the_state(path):
    np.testing.assert_allclose(residuals(path, PLANE)[2], 0, atol=1e-9)


def test_posterior_is_bayes_rule_on_the_densities():
    path = paths.Linear()
    x, t, _ = points(path, PLANE)
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
    assert PLANE.distance(x, label, paths.Linear(), t) < PLANE.tolerance(n)
    assert PLANE.distance(x + 0.15, label, paths.Linear(), t) > PLANE.tolerance(n)


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
    move = jax.jit(jax.jacfwd(lambda s: GAUSSIAN.transport(path, x, at, s)))
    slope = move(at)
    velocity = GAUSSIAN.velocity(path)(x, at[None], jnp.zeros(1, int))
    np.testing.assert_allclose(slope, velocity, rtol=1e-5)
