"""Rescale, thresholding, channels and still steps: what they change, and what they leave alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from mixture import IMAGES, PLANE

from guidedflow import guidance, paths, predictions, samplers, times
from guidedflow.types import evaluate, pytree

LINEAR = paths.Linear()
X = jax.random.normal(jax.random.key(0), (6, 2, 2, 3))
T = jnp.linspace(0, 1, 6)
LABEL = jnp.arange(6) % 3
FREE = guidance.classifier_free(IMAGES.velocity(LINEAR), IMAGES.null, 4.0)
CONDITIONAL = IMAGES.velocity(LINEAR)(X, T, LABEL)
GUIDED = FREE(X, T, LABEL)


def deviation(value):
    return np.std(np.float64(value), axis=(1, 2, 3))


def test_rescale_gives_each_example_the_deviation_of_its_conditional_branch():
    out = guidance.rescale(FREE, 1.0)(X, T, LABEL)
    np.testing.assert_allclose(deviation(out), deviation(CONDITIONAL), rtol=1e-4)
    assert np.ptp(deviation(out)) > 0.01


def test_rescale_in_part_is_between():
    out = guidance.rescale(FREE, 0.7)(X, T, LABEL)
    wanted = 0.7 * deviation(CONDITIONAL) + 0.3 * deviation(GUIDED)
    np.testing.assert_allclose(deviation(out), wanted, rtol=1e-4)
    # Only the length changes, so the direction stays.
    np.testing.assert_allclose(out / GUIDED, (out / GUIDED)[:, :1, :1, :1] * jnp.ones_like(X), 1e-3)


def test_rescale_at_scale_one_changes_nothing():
    plain = guidance.classifier_free(IMAGES.velocity(LINEAR), IMAGES.null, 1.0)
    np.testing.assert_allclose(guidance.rescale(plain)(X, T, LABEL), CONDITIONAL, 1e-5, 1e-6)


@pytest.mark.parametrize("predicts", [predictions.noise, predictions.data, predictions.v])
def test_rescale_is_finite_at_both_ends_in_every_space(predicts):
    out = guidance.rescale(FREE, path=LINEAR, predicts=predicts)(X, T, LABEL)
    assert np.all(np.isfinite(out))


class Constant:
    """A model whose data estimate on the linear path is what it was given."""

    def __init__(self, data):
        self.data = data

    def __call__(self, x, t, cond):
        return (self.data - x) / (1 - t)[:, None, None, None]


def estimate(model, t):
    t = jnp.full(6, t)
    return X + (1 - t[0]) * model(X, t, LABEL)


@pytest.mark.parametrize("t", [0.0, 0.5, 0.99])
def test_thresholding_shrinks_an_estimate_by_its_own_quantile(t):
    data = np.float32(3 * np.random.default_rng(0).normal(size=X.shape))
    out = estimate(guidance.dynamic_threshold(Constant(data), LINEAR, 0.8), t)
    limit = np.quantile(np.abs(data).reshape(6, -1), 0.8, axis=1)[:, None, None, None]
    np.testing.assert_allclose(out, np.clip(data, -limit, limit) / limit, atol=2e-4)
    assert np.all(limit > 1)


def test_thresholding_leaves_an_estimate_inside_the_range_alone():
    data = jnp.clip(X, -1, 1)
    t = jnp.full(6, 0.5)
    plain = Constant(data)
    np.testing.assert_allclose(
        guidance.dynamic_threshold(plain, LINEAR)(X, t, LABEL), plain(X, t, LABEL), atol=1e-6
    )


def test_thresholding_looks_at_each_example_by_itself():
    data = X.at[0].multiply(100.0)
    out = estimate(guidance.dynamic_threshold(Constant(data), LINEAR), 0.5)
    other = estimate(guidance.dynamic_threshold(Constant(X), LINEAR), 0.5)
    np.testing.assert_allclose(out[1:], other[1:], atol=1e-5)


def test_thresholded_samples_stay_in_the_range_up_to_the_data():
    model = guidance.dynamic_threshold(
        guidance.classifier_free(IMAGES.velocity(LINEAR), IMAGES.null, 20.0), LINEAR, 1.0
    )
    noise = samplers.draw_noise(jax.random.key(1), X.shape)
    grid = times.uniform_grid(8)
    out = samplers.sample_ddim(model, noise, grid, LABEL, path=LINEAR)
    assert np.abs(out).max() < 1 + 1e-4
    free = guidance.classifier_free(IMAGES.velocity(LINEAR), IMAGES.null, 20.0)
    assert np.abs(samplers.sample_ddim(free, noise, grid, LABEL, path=LINEAR)).max() > 1.5


def test_guided_channels_are_guided_and_the_others_conditional():
    out = guidance.guide_channels(FREE, 2)(X, T, LABEL)
    np.testing.assert_array_equal(out[..., :2], GUIDED[..., :2])
    np.testing.assert_array_equal(out[..., 2:], CONDITIONAL[..., 2:])
    last = guidance.guide_channels(FREE, (2,))(X, T, LABEL)
    np.testing.assert_array_equal(last[..., 2], GUIDED[..., 2])
    np.testing.assert_array_equal(last[..., :2], CONDITIONAL[..., :2])
    assert np.all(np.abs(GUIDED - CONDITIONAL)[:3].max(axis=(0, 1, 2)) > 0.1)


def test_corrections_hand_on_what_the_guidance_inside_remembers():
    rule = guidance.projected(LINEAR, momentum=-0.6, threshold=0.5)
    inside = guidance.classifier_free(PLANE.velocity(LINEAR), PLANE.null, 4.0, rule=rule)
    noise, label = samplers.draw_noise(jax.random.key(1), (4, 2)), jnp.arange(4) % 3
    grid = times.uniform_grid(6, high=0.9)
    wanted = samplers.sample_ode(inside, noise, grid, label, step=samplers.euler)
    for model in (
        guidance.rescale(inside, 0.0),
        guidance.guide_channels(inside, 2),
        guidance.zero_init(inside, 0.0),
        guidance.perturbed(inside, PLANE.velocity(LINEAR), 0.0),
    ):
        out = samplers.sample_ode(model, noise, grid, label, step=samplers.euler)
        np.testing.assert_allclose(out, wanted, rtol=1e-4, atol=1e-5)


calls = []


@pytree
class Counted:
    """A model that notes every evaluation as it runs."""

    def __call__(self, x, t, cond):
        jax.debug.callback(lambda t: calls.append(float(t)), t[0])
        return jnp.ones_like(x)


def test_still_steps_stay_where_they_are_and_cost_no_evaluation():
    calls.clear()
    noise = jnp.zeros((2, 3))
    model = guidance.zero_init(Counted(), 0.2)
    out = samplers.sample_ode(
        model, noise, times.uniform_grid(10), step=samplers.midpoint, trajectory=True
    )
    jax.effects_barrier()
    np.testing.assert_allclose(out[:3], 0)
    np.testing.assert_allclose(out[3:, 0, 0], np.arange(1, 9) / 10, rtol=1e-5)
    assert len(calls) == 2 * 8
    assert min(calls) > 0.19


def test_zero_star_is_the_optimised_rule_after_its_still_steps():
    model = guidance.zero_star(IMAGES.velocity(LINEAR), IMAGES.null, 3.0, until=0.5)
    rule = guidance.classifier_free(
        IMAGES.velocity(LINEAR), IMAGES.null, 3.0, rule=guidance.optimized_scale()
    )
    out, wanted = model(X, T, LABEL), rule(X, T, LABEL)
    np.testing.assert_allclose(out[T >= 0.5], wanted[T >= 0.5], rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(out[T < 0.5], 0)


def test_a_network_with_a_variance_keeps_it():
    def network(x, t, cond):
        return jnp.concatenate([x, 0.3 * jnp.ones_like(x)], -1)

    model = predictions.as_velocity(network, LINEAR, predictions.velocity)
    free = guidance.classifier_free(model, IMAGES.null, 2.0)
    for wrapped in (
        guidance.rescale(free),
        guidance.dynamic_threshold(free, LINEAR),
        guidance.guide_channels(free, 1),
        guidance.zero_init(free, 0.5),
    ):
        at = jnp.float32(0.7)
        result, _ = evaluate(wrapped, (), X, jnp.full(6, 0.7), LABEL, at)
        np.testing.assert_allclose(result.variance, 0.3 * np.ones(X.shape), rtol=1e-6)
        np.testing.assert_array_equal(result.renoise, result.velocity)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: guidance.rescale(FREE, 1.5), "phi"),
        (lambda: guidance.rescale(FREE, predicts=predictions.noise), "path"),
        (lambda: guidance.dynamic_threshold(FREE, LINEAR, 0.0), "quantile"),
        (lambda: guidance.guide_channels(FREE, 0), "channels"),
        (lambda: guidance.guide_channels(FREE, (0, -1)), "channels"),
        (lambda: guidance.guide_channels(FREE, 4)(X, T, LABEL), "channels must lie in"),
        (lambda: guidance.zero_init(FREE, 2.0), "until"),
    ],
)
def test_bad_numbers_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
