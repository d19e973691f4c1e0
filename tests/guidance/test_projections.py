"""What APG, CFG-Zero*, TCFG and MAMBO-G do to two vectors, by geometry."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from mixture import PLANE

from guidedflow import guidance, paths, predictions, samplers, times
from guidedflow.types import evaluate, init_state

LINEAR = paths.Linear()
KEYS = jax.random.split(jax.random.key(0), 3)
C, U, X = (jax.random.normal(key, (3, 4)) for key in KEYS)
T = jnp.float32(0.4)


def data(velocity):
    return X + (1 - T) * velocity


def apply(rule, c=C, u=U, w=3.0, t=T, memory=None):
    memory = rule.init(X) if memory is None else memory
    return rule(c, u, jnp.float32(w), X, t, memory)


def inner(a, b):
    return float(np.sum(np.float64(a) * np.float64(b)))


def test_projected_adds_only_what_is_orthogonal_to_the_data_estimate():
    guided, _ = apply(guidance.projected(LINEAR, momentum=0.0, threshold=np.inf))
    moved = data(guided) - data(C)
    assert abs(inner(moved, data(C))) < 1e-4
    # What is left out lies along the data estimate alone.
    left = 2 * (data(C) - data(U)) - moved
    residue = left - inner(left, data(C)) / inner(data(C), data(C)) * data(C)
    assert np.abs(residue).max() < 1e-5


@pytest.mark.parametrize("threshold", [0.1, 1.0])
def test_projected_cuts_the_difference_of_data_estimates_to_the_threshold(threshold):
    rule = guidance.projected(LINEAR, momentum=0.0, threshold=threshold, parallel=1.0)
    guided, _ = apply(rule)
    moved = data(guided) - data(C)
    np.testing.assert_allclose(np.sqrt(inner(moved, moved)), 2 * threshold, rtol=1e-4)


def test_projected_leaves_a_difference_below_the_threshold_alone():
    loose = guidance.projected(LINEAR, momentum=0.0, threshold=1e3)
    free = guidance.projected(LINEAR, momentum=0.0, threshold=np.inf)
    np.testing.assert_array_equal(apply(loose)[0], apply(free)[0])


def test_momentum_adds_up_differences_before_they_are_shortened():
    rule = guidance.projected(LINEAR, momentum=-0.5, threshold=0.1, parallel=1.0)
    _, first = apply(rule)
    np.testing.assert_allclose(first, data(C) - data(U), rtol=1e-4, atol=1e-5)
    _, second = apply(rule, c=2 * C, u=U, memory=first)
    wanted = data(2 * C) - data(U) - 0.5 * first
    np.testing.assert_allclose(second, wanted, rtol=1e-4, atol=1e-5)


def test_momentum_is_left_out_where_no_velocity_can_move_the_data_estimate():
    rule = guidance.projected(LINEAR, momentum=-0.5, threshold=np.inf, parallel=1.0)
    guided, _ = apply(rule, t=jnp.float32(1), memory=100 * X)
    np.testing.assert_allclose(guided, U + 3 * (C - U), rtol=1e-4, atol=1e-4)


def test_momentum_goes_through_the_scan_once_a_step():
    """Three Euler steps by hand, and Heun's second evaluation sees the memory of the first."""
    rule = guidance.projected(LINEAR, momentum=-0.6, threshold=0.8)
    model = guidance.classifier_free(PLANE.velocity(LINEAR), PLANE.null, 4.0, rule=rule)
    grid = np.asarray([0.0, 0.3, 0.6, 0.9], np.float32)
    label = jnp.asarray([0, 1])
    noise = samplers.draw_noise(jax.random.key(1), (2, 2))

    def by_hand(heun):
        x, state = noise, init_state(model, noise)
        for t, s in itertools.pairwise(grid):
            here = jnp.full(2, t)
            first, after = evaluate(model, state, x, here, label, here)
            slope = first.velocity
            if heun:
                end = x + (s - t) * slope
                there = evaluate(model, state, end, jnp.full(2, s), label, here)[0].velocity
                slope = 0.5 * (slope + there)
            x, state = x + (s - t) * slope, after
        return x

    for step in (samplers.euler, samplers.heun):
        out = samplers.sample_ode(model, noise, grid, label, step=step)
        np.testing.assert_allclose(out, by_hand(step is samplers.heun), rtol=1e-4, atol=1e-4)
    without = guidance.projected(LINEAR, momentum=0.0, threshold=0.8)
    other = guidance.classifier_free(PLANE.velocity(LINEAR), PLANE.null, 4.0, rule=without)
    forgets = samplers.sample_ode(other, noise, grid, label, step=samplers.heun)
    assert np.abs(forgets - out).max() > 1e-2


def test_optimized_scale_leaves_the_conditional_orthogonal_to_the_null_branch():
    """The best s makes c - s u orthogonal to u; at w = 2 the result is 2 c - s u."""
    guided, _ = apply(guidance.optimized_scale(), w=2.0)
    left = np.float64(guided) - C  # c - s u
    assert abs(inner(left, U)) < 1e-4
    assert np.abs(np.float64(C) - left).max() > 1e-2


def test_optimized_scale_keeps_a_null_branch_of_zero_finite():
    guided, _ = apply(guidance.optimized_scale(), u=jnp.zeros_like(U), w=2.0)
    np.testing.assert_allclose(guided, 2 * C, rtol=1e-6)


@pytest.mark.parametrize("seed", range(4))
def test_tangential_projects_on_the_first_singular_vector(seed):
    c, u = jax.random.normal(jax.random.key(seed), (2, 3, 4))
    guided, _ = apply(guidance.tangential(), c=c, u=u, w=3.0)
    _, _, rows = np.linalg.svd(np.stack([c, u]).reshape(2, -1).astype(np.float64))
    weak = (inner(u.ravel(), rows[0]) * rows[0]).reshape(u.shape)
    np.testing.assert_allclose(guided, weak + 3 * (c - weak), rtol=1e-4, atol=1e-4)


def test_tangential_is_classifier_free_guidance_where_the_branches_are_parallel():
    guided, _ = apply(guidance.tangential(), u=-0.5 * C)
    np.testing.assert_allclose(guided, -0.5 * C + 3 * 1.5 * C, rtol=1e-4, atol=1e-5)


def test_tangential_keeps_the_null_branch_where_no_direction_comes_first():
    c = jnp.asarray([[1.0, 0.0]])
    u = jnp.asarray([[0.0, 1.0]])
    np.testing.assert_allclose(apply(guidance.tangential(), c=c, u=u)[0], u + 3 * (c - u))


def test_magnitude_aware_guides_less_the_longer_the_difference():
    rule = guidance.magnitude_aware(damping=8.0)

    def used(size):
        guided, _ = apply(rule, c=U + size * C, w=10.0)
        return inner(guided - U, C) / inner(size * C, C)

    scales = [used(size) for size in (1e-3, 0.05, 0.2, 10.0)]
    assert scales == sorted(scales, reverse=True)
    np.testing.assert_allclose(scales[0], 10, rtol=0.05)
    np.testing.assert_allclose(scales[-1], 1, rtol=1e-4)


def test_magnitude_aware_at_one_efold():
    """Where 8 |c - u| = |u| the extra scale is w - 1 over e."""
    size = np.sqrt(inner(U, U) / inner(C, C)) / 8
    guided, _ = apply(guidance.magnitude_aware(), c=U + size * C, w=10.0)
    np.testing.assert_allclose(guided, U + (1 + 9 / np.e) * size * C, rtol=1e-4, atol=1e-5)


def test_a_rule_in_another_space_sees_that_space():
    """A spy of a rule: what it is given are data estimates, what it answers becomes a velocity."""

    class Spy:
        def init(self, x):
            return ()

        def __call__(self, c, u, w, x, t, memory):
            return c + u, memory

    guided, _ = apply(guidance.in_space(Spy(), LINEAR, predictions.data))
    np.testing.assert_allclose(data(guided), data(C) + data(U), rtol=1e-4, atol=1e-4)


def test_branches_of_half_precision_are_joined_in_single():
    c, u = (jnp.full((64, 64), value, jnp.bfloat16) for value in (1.0, 0.1))
    guided, _ = guidance.optimized_scale()(c, u, jnp.float32(2), c, T, ())
    assert guided.dtype == jnp.float32
    np.testing.assert_allclose(guided, np.float32(c), rtol=1e-2)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: guidance.projected(LINEAR, momentum=1.0), "momentum"),
        (lambda: guidance.projected(LINEAR, threshold=0.0), "threshold"),
        (lambda: guidance.projected(LINEAR, parallel="0"), "parallel"),
        (lambda: guidance.magnitude_aware(-1.0), "damping"),
    ],
)
def test_bad_numbers_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_model_that_remembers_cannot_be_a_branch():
    inside = guidance.classifier_free(
        PLANE.velocity(LINEAR), PLANE.null, 2.0, rule=guidance.projected(LINEAR)
    )
    with pytest.raises(ValueError, match="state"):
        guidance.classifier_free(inside, PLANE.null, 2.0)


def test_the_whole_of_it_on_a_grid_to_the_data_stays_near_the_data():
    model = guidance.classifier_free(
        PLANE.velocity(LINEAR), PLANE.null, 4.0, rule=guidance.projected(LINEAR)
    )
    noise = samplers.draw_noise(jax.random.key(1), (16, 2))
    label = jnp.arange(16) % 3
    out = samplers.sample_ode(model, noise, times.uniform_grid(32), label, step=samplers.heun)
    assert np.abs(out).max() < 8
