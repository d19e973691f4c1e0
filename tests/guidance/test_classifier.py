"""Guidance by a classifier: Bayes' rule on data whose posterior is known."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from mixture import PLANE

from guidedflow import guidance, paths, samplers

EVERY = [
    paths.Linear(),
    paths.Trigonometric(),
    paths.VariancePreserving(),
    paths.VarianceExploding(0.1, 5.0),
    paths.EDM(5.0, 3.0),
]
every_path = pytest.mark.parametrize("path", EVERY, ids=lambda p: type(p).__name__)


@functools.cache
def points(n=12):
    x = jnp.asarray(np.random.default_rng(0).normal(size=(n, 2)), jnp.float32)
    return x, jnp.linspace(0.05, 0.9, n), jnp.asarray(np.arange(n) % 3)


def at(model, *args):
    return np.asarray(jax.jit(lambda *a: model(*a))(*(args or points())))


def guided(path, scale, **options):
    model = guidance.fixed(PLANE.velocity(path), PLANE.null)
    return guidance.classifier(model, path, PLANE.log_prob(path), scale, **options)


@every_path
def test_the_true_posterior_turns_the_whole_law_into_the_conditional(path):
    wanted = at(PLANE.velocity(path))
    size = np.abs(wanted).max()
    np.testing.assert_allclose(at(guided(path, 1.0)), wanted, rtol=2e-3, atol=2e-3 * size)
    assert np.abs(at(guided(path, 0.0)) - wanted).max() > 1e-2 * size


@every_path
def test_scale_zero_is_the_model(path):
    model = guidance.fixed(PLANE.velocity(path), PLANE.null)
    np.testing.assert_array_equal(at(guided(path, 0.0)), at(model))


def test_guiding_the_conditional_model_adds_one_to_the_scale():
    path = EVERY[0]
    over = guidance.classifier(PLANE.velocity(path), path, PLANE.log_prob(path), 2.0)
    np.testing.assert_allclose(at(over), at(guided(path, 3.0)), rtol=2e-3, atol=2e-3)


def test_the_push_is_finite_at_both_ends():
    x, _, cond = points()
    for t in (0.0, 1.0):
        assert np.all(np.isfinite(at(guided(EVERY[0], 2.0), x, jnp.full(len(x), t), cond)))


def test_samples_under_the_true_classifier_follow_the_conditional_law():
    n = 2000
    noise = samplers.draw_noise(jax.random.key(0), (n, 2))
    grid = np.linspace(0, 1, 49, dtype=np.float32)
    x = samplers.sample_ode(guided(EVERY[0], jnp.float32(1)), noise, grid, jnp.zeros(n, int))
    assert PLANE.distance(x, 0) < PLANE.tolerance(n)
    assert PLANE.distance(x) > 4 * PLANE.tolerance(n)


def test_scale_may_be_one_an_example_or_a_schedule():
    path, t = EVERY[0], points()[1]
    each = at(guided(path, jnp.arange(12.0)))
    np.testing.assert_allclose(each[3], at(guided(path, 3.0))[3], rtol=1e-4, atol=1e-4)
    ramp = at(guided(path, guidance.linear(0.0, 1.0)))
    steady = at(guided(path, t))
    np.testing.assert_allclose(ramp, steady, rtol=1e-4, atol=1e-4)


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="scale must"):
        guided(EVERY[0], "2")
    for margin in (0.0, 0.5, "a"):
        with pytest.raises(ValueError, match="margin must be"):
            guided(EVERY[0], 1.0, margin=margin)
