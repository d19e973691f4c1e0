"""Classifier guidance in its three forms, and guidance by a loss on the data estimate."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from mixture import GAUSSIAN, PLANE

from guidedflow import guidance, paths, predictions, samplers
from guidedflow.types import evaluate

PATHS = [paths.Linear(), paths.VariancePreserving(), paths.EDM(5.0, 3.0)]
every_path = pytest.mark.parametrize("path", PATHS, ids=lambda path: type(path).__name__)
LABEL = jnp.arange(6) % 3
X = jax.random.normal(jax.random.key(0), (6, 2))


def null(path, mixture=PLANE):
    return guidance.fixed(mixture.velocity(path), mixture.null)


def gradient(path, t):
    log_prob = PLANE.log_prob(path)
    return jax.grad(lambda x: jnp.sum(log_prob(x, jnp.full(6, t), LABEL)))(X)


def noise_of(path, velocity, t):
    kinds = predictions.velocity, predictions.noise
    return predictions.convert_batch(path, velocity, X, jnp.full(6, t), *kinds)


@every_path
def test_the_flow_form_is_the_ddim_form(path):
    """It takes sigma s grad from the noise."""
    t = 0.4
    model = guidance.classifier(null(path), path, PLANE.log_prob(path), 2.5)
    guided, plain = (noise_of(path, m(X, jnp.full(6, t), LABEL), t) for m in (model, null(path)))
    wanted = plain - path.sigma(t) * 2.5 * gradient(path, t)
    np.testing.assert_allclose(guided, wanted, rtol=2e-3, atol=2e-3)


@every_path
@pytest.mark.parametrize("variance", [samplers.smallest, samplers.largest])
def test_the_ancestral_form_moves_the_mean_by_the_variance_times_the_gradient(path, variance):
    """Two draws of one key differ in the mean alone; the variance is read off a third."""
    t, s = 0.4, 0.6
    grid, key = np.asarray([t, s], np.float32), jax.random.key(1)

    def step(model, key=key):
        return samplers.sample_ddpm(model, X, grid, LABEL, key=key, path=path, variance=variance)

    model = guidance.ancestral_classifier(null(path), PLANE.log_prob(path), 2.5)
    moved = step(model) - step(null(path))

    def total(time):
        return path.alpha(time) ** 2 + path.sigma(time) ** 2

    ratio = path.alpha(t) / path.alpha(s)
    lost = path.sigma(t) ** 2 - (ratio * path.sigma(s)) ** 2
    share = (
        lost * path.sigma(s) ** 2 / path.sigma(t) ** 2
        if variance is samplers.smallest
        else lost * total(s) / total(t)
    )
    np.testing.assert_allclose(moved, share * 2.5 * gradient(path, t), rtol=1e-2, atol=1e-3)


def test_the_flow_form_moves_an_ancestral_mean_nearly_as_the_ancestral_form():
    """By alpha_s / alpha_t of what the largest variance does, which is 1 for small steps."""
    path = PATHS[1]
    t, s = 0.5, 0.52
    grid, key = np.asarray([t, s], np.float32), jax.random.key(1)
    flow = guidance.classifier(null(path), path, PLANE.log_prob(path), 1.0)
    ancestral = guidance.ancestral_classifier(null(path), PLANE.log_prob(path), 1.0)
    plain, by_flow, by_mean = (
        samplers.sample_ddpm(m, X, grid, LABEL, key=key, path=path, variance=samplers.largest)
        for m in (null(path), flow, ancestral)
    )
    ratio = path.alpha(t) / path.alpha(s)
    np.testing.assert_allclose(by_flow - plain, (by_mean - plain) / ratio, rtol=2e-2, atol=1e-4)
    assert 0.85 < ratio < 1


def test_samplers_without_a_mean_refuse_the_ancestral_form():
    path = PATHS[0]
    model = guidance.rescale(guidance.ancestral_classifier(null(path), PLANE.log_prob(path)))
    grid = np.asarray([0.2, 0.6], np.float32)
    for sample in (
        lambda: samplers.sample_ode(model, X, grid, LABEL),
        lambda: samplers.sample_ddim(model, X, grid, LABEL, path=path),
    ):
        with pytest.raises(ValueError, match="shift"):
            sample()


def test_classifier_and_ancestral_guidance_add_up():
    path, t = PATHS[0], jnp.full(6, 0.4)
    once = guidance.ancestral_classifier(null(path), PLANE.log_prob(path), 1.5)
    twice = guidance.ancestral_classifier(once, PLANE.log_prob(path), 1.0)
    result, _ = evaluate(twice, (), X, t, LABEL, t)
    np.testing.assert_allclose(result.shift, 2.5 * gradient(path, 0.4), rtol=1e-4, atol=1e-5)


def square(data, cond):
    return 0.5 * jnp.sum((data - 2.0) ** 2, -1)


@every_path
def test_a_loss_moves_the_noise_by_sigma_times_its_gradient(path):
    """On one Gaussian the data estimate is m + g (x - alpha m), g = alpha s^2 / variance."""
    t = 0.4
    field = null(path, GAUSSIAN)
    guided = guidance.loss_guidance(field, path, square, 3.0)(X, jnp.full(6, t), LABEL)
    moved = noise_of(path, guided, t) - noise_of(path, field(X, jnp.full(6, t), LABEL), t)
    alpha, sigma = path.alpha(t), path.sigma(t)
    mean, spread = GAUSSIAN.means, GAUSSIAN.deviations
    gain = alpha * spread**2 / (alpha**2 * spread**2 + sigma**2)
    data = mean + gain * (X - alpha * mean)
    np.testing.assert_allclose(moved, 3 * sigma * gain * (data - 2.0), rtol=5e-3, atol=5e-3)


def test_a_loss_pulls_samples_where_it_is_least_and_none_leaves_them():
    path = PATHS[0]
    noise = samplers.draw_noise(jax.random.key(2), (6, 2))
    grid = np.linspace(0.02, 1, 20, dtype=np.float32)

    def sample(scale):
        model = guidance.loss_guidance(null(path, GAUSSIAN), path, square, scale)
        return samplers.sample_ode(model, noise, grid, LABEL, step=samplers.euler)

    free = samplers.sample_ode(null(path, GAUSSIAN), noise, grid, LABEL, step=samplers.euler)
    np.testing.assert_allclose(sample(0.0), free, rtol=1e-4, atol=1e-4)
    losses = [float(jnp.mean(square(sample(scale), None))) for scale in (0.0, 1.0, 4.0)]
    assert losses[0] > 1.5 * losses[1] > 2 * losses[2]


def test_a_loss_of_another_shape_is_refused():
    path = PATHS[0]
    model = guidance.loss_guidance(null(path), path, lambda data, cond: jnp.sum(data**2))
    with pytest.raises(ValueError, match=r"one number an example \(6,\), got \(\)"):
        model(X, jnp.full(6, 0.5), LABEL)


def test_a_scale_that_is_no_number_is_refused():
    with pytest.raises(ValueError, match="scale"):
        guidance.loss_guidance(null(PATHS[0]), PATHS[0], square, "1")
    with pytest.raises(ValueError, match="margin"):
        guidance.loss_guidance(null(PATHS[0]), PATHS[0], square, 1.0, margin=0.6)
