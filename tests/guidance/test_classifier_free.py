"""Classifier-free guidance: its fixed points, its branches, what they cost, and its samples."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from mixture import PLANE

from guidedflow import guidance, paths, samplers

LINEAR = paths.Linear()
MODEL = PLANE.velocity(LINEAR)
NULL = PLANE.null
GRID = np.linspace(0, 1, 9, dtype=np.float32)
WAYS = [guidance.vmapped, guidance.concatenated, guidance.sequential]


@functools.cache
def points(n=12):
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(n, 2)), jnp.float32)
    return x, jnp.linspace(0.05, 0.9, n), jnp.asarray(np.arange(n) % 3)


def at(model, *args):
    return np.asarray(jax.jit(lambda *a: model(*a))(*(args or points())))


def null_velocity():
    x, t, cond = points()
    return at(MODEL, x, t, jnp.full_like(cond, NULL))


@pytest.mark.parametrize("branches", WAYS)
def test_guidance_at_one_is_the_conditional_model(branches):
    for one in (1, 1.0, jnp.ones(()), jnp.ones(12), lambda t: jnp.ones_like(t)):
        guided = guidance.classifier_free(MODEL, NULL, one, branches=branches)
        np.testing.assert_allclose(at(guided), at(MODEL), atol=1e-5)


@pytest.mark.parametrize("branches", WAYS)
def test_guidance_at_zero_is_the_null_model(branches):
    guided = guidance.classifier_free(MODEL, NULL, 0.0, branches=branches)
    np.testing.assert_allclose(at(guided), null_velocity(), atol=1e-6)


@pytest.mark.parametrize("branches", WAYS)
def test_every_arrangement_of_the_branches_extrapolates_the_same_line(branches):
    guided = guidance.classifier_free(MODEL, NULL, 3.5, branches=branches)
    one, zero = at(MODEL), null_velocity()
    np.testing.assert_allclose(at(guided), zero + 3.5 * (one - zero), rtol=1e-4, atol=1e-4)


def test_scale_of_each_example_is_its_own():
    scales = jnp.arange(12.0)
    mixed = at(guidance.classifier_free(MODEL, NULL, scales))
    for i in (0, 1, 5):
        np.testing.assert_allclose(
            mixed[i], at(guidance.classifier_free(MODEL, NULL, jnp.float32(i)))[i], rtol=1e-5
        )


def test_negative_prompts_are_each_examples_own_null():
    x, t, cond = points()
    negative = (cond + 1) % 3
    one, away = at(MODEL), at(MODEL, x, t, negative)
    guided = guidance.classifier_free(MODEL, negative, 2.0)
    np.testing.assert_allclose(at(guided), 2 * one - away, rtol=1e-4, atol=1e-4)


def counted(model, scale, grid=GRID, branches=guidance.vmapped, step=samplers.euler):
    """How many evaluations a run takes, counted while it runs."""
    seen = []

    def counting(x, t, cond):
        jax.debug.callback(lambda _: seen.append(1), t[0])
        return model(x, t, cond)

    guided = guidance.classifier_free(counting, NULL, scale, branches=branches)
    noise, cond = jnp.ones((2, 2)), jnp.asarray([0, 1])
    jax.block_until_ready(samplers.sample_ode(guided, noise, grid, cond, step=step))
    jax.effects_barrier()
    return len(seen)


def test_an_interval_costs_one_branch_where_the_scale_is_one():
    """8 Euler steps of which those at t = 0.25, 0.375, 0.5 are guided: 5 + 2 x 3 evaluations."""
    inside = guidance.interval(3.0, 0.25, 0.5)
    assert counted(MODEL, inside, branches=guidance.sequential) == 11
    assert counted(MODEL, 3.0, branches=guidance.sequential) == 16
    assert counted(MODEL, 1.0, branches=guidance.sequential) == 8
    # A guided step's second evaluation is guided as its first: 5 x 2 + 3 x 2 x 2.
    heun = functools.partial(counted, branches=guidance.sequential, step=samplers.heun)
    assert heun(MODEL, inside) == 22


def test_the_whole_interval_guides_and_an_empty_one_does_not():
    def run(scale):
        guided = guidance.classifier_free(MODEL, NULL, scale)
        return samplers.sample_ode(guided, points()[0], GRID, points()[2])

    np.testing.assert_allclose(run(guidance.interval(3.0, 0.0, 1.0)), run(3.0), atol=1e-5)
    np.testing.assert_allclose(run(guidance.interval(3.0, 0.3, 0.3)), run(1.0), atol=1e-5)
    assert np.abs(run(3.0) - run(1.0)).max() > 0.05


def test_autoguidance_away_from_the_null_branch_is_classifier_free():
    weak = guidance.fixed(MODEL, NULL)
    np.testing.assert_allclose(
        at(guidance.extrapolate(MODEL, weak, 2.5)),
        at(guidance.classifier_free(MODEL, NULL, 2.5)),
        rtol=1e-5,
        atol=1e-5,
    )


def run(model, n=2000, cond=None, key=0, steps=48):
    noise = samplers.draw_noise(jax.random.key(key), (n, 2))
    labels = jnp.full(n, cond)
    return samplers.sample_ode(model, noise, np.linspace(0, 1, steps + 1, dtype=np.float32), labels)


@pytest.mark.parametrize("label", [0, 2])
def test_samples_at_one_follow_the_conditional_law(label):
    x = run(guidance.classifier_free(MODEL, NULL, jnp.float32(1)), cond=label)
    assert PLANE.distance(x, label) < PLANE.tolerance(2000)
    assert PLANE.distance(x, 1) > 4 * PLANE.tolerance(2000)


def test_samples_at_zero_follow_the_whole_law():
    x = run(guidance.classifier_free(MODEL, NULL, jnp.float32(0)), cond=0)
    assert PLANE.distance(x) < PLANE.tolerance(2000)


def test_a_sweep_over_array_scales_compiles_once():
    traced = [0]

    def counting(x, t, cond):
        traced[0] += 1
        return MODEL(x, t, cond)

    for w in (1.5, 2.0, 7.5):
        guided = guidance.classifier_free(counting, NULL, jnp.float32(w))
        samplers.sample_ode(guided, points()[0], GRID, points()[2])
        if w == 1.5:
            first = traced[0]
    assert traced[0] == first


def test_bad_input_is_refused():
    x, t, cond = points()
    for scale in ("2", None, float("nan"), jnp.ones((2, 2))):
        with pytest.raises(ValueError, match="scale must"):
            guidance.classifier_free(MODEL, NULL, scale)
    with pytest.raises(ValueError, match="null must have shape"):
        guidance.classifier_free(MODEL, jnp.zeros(3, int), 2.0)(x, t, cond)
    with pytest.raises(ValueError, match="structure of cond"):
        guidance.classifier_free(MODEL, {"label": NULL}, 2.0)(x, t, cond)
    with pytest.raises(ValueError, match="one number or one an example"):
        guidance.classifier_free(MODEL, NULL, jnp.ones(5))(x, t, cond)
