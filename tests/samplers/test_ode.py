"""ODE samplers: their orders on an exactly solved flow, what they transport, what they return."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from mixture import GAUSSIAN, PLANE

from guidedflow import guidance, paths, samplers
from guidedflow.samplers import euler, heun, midpoint, rk4, sample_ode

LINEAR = paths.Linear()
NOISE = np.random.default_rng(0).normal(size=(5, 2))
LABELS = np.asarray([0, 1, 2, 3, 0])


def grid(steps, low=0.0, high=1.0, dtype=np.float32):
    return np.linspace(low, high, steps + 1, dtype=dtype)


def error(step, steps, path):
    """The largest distance from the exact flow of one Gaussian, in float64."""
    with jax.enable_x64(True):
        model, zeros = GAUSSIAN.velocity(path), jnp.zeros(5, int)
        x = jnp.asarray(NOISE)
        out = sample_ode(model, x, grid(steps, 0.0, 0.95, np.float64), zeros, step=step)
        exact = GAUSSIAN.transport(path, x, jnp.zeros(()), jnp.asarray(0.95))
        return float(jnp.max(jnp.abs(out - exact)))


@pytest.mark.parametrize(("step", "order"), [(euler, 1), (midpoint, 2), (heun, 2), (rk4, 4)])
def test_error_falls_at_the_order_of_the_method(step, order):
    steps = np.asarray([16, 32, 64])
    errors = [error(step, n, paths.Trigonometric()) for n in steps]
    fitted = -np.polyfit(np.log(steps), np.log(errors), 1)[0]
    assert abs(fitted - order) < 0.15 * order, (fitted, errors)


def test_a_gaussian_is_carried_exactly_where_the_flow_is_a_line_through_time():
    """One point of data: the velocity (data - x) / (1 - t) is integrated exactly by one Euler step."""
    target = jnp.asarray([2.0, -1.0])

    def model(x, t, cond):
        return (target[None] - x) / (1 - t)[:, None]

    out = sample_ode(model, jnp.asarray(NOISE, jnp.float32), grid(7), step=euler)
    np.testing.assert_allclose(out, np.tile(target, (5, 1)), atol=1e-5)


@pytest.mark.parametrize("path", [LINEAR, paths.Trigonometric(), paths.VarianceExploding(0.02, 20)])
def test_moments_of_a_gaussian_are_transported(path):
    n = 4000
    start = samplers.draw_noise(jax.random.key(0), (n, 2)) * path.sigma(jnp.zeros(()))
    out = np.asarray(sample_ode(GAUSSIAN.velocity(path), start, grid(64), jnp.zeros(n, int)))
    mean, variance = GAUSSIAN.moments()
    # A finite sigma_max still carries a little of the mean that the noise is begun without.
    slack = 0.1 if isinstance(path, paths.VarianceExploding) else 0.0
    np.testing.assert_allclose(out.mean(0), mean, atol=4 * np.sqrt(variance.max() / n) + slack)
    np.testing.assert_allclose(out.var(0), variance, rtol=4 * np.sqrt(2 / n) + 0.02)


def test_every_label_of_one_batch_follows_its_own_law():
    n = 1500
    noise = samplers.draw_noise(jax.random.key(1), (4 * n, 2))
    labels = np.repeat(np.arange(4), n)
    out = np.asarray(sample_ode(PLANE.velocity(LINEAR), noise, grid(32), labels))
    for label in range(4):
        law = None if label == PLANE.null else label
        assert PLANE.distance(out[labels == label], law) < PLANE.tolerance(n)


@functools.cache
def run(step, last=None, trajectory=False):
    noise = jnp.asarray(NOISE, jnp.float32)
    model = PLANE.velocity(LINEAR)
    return np.asarray(
        sample_ode(model, noise, grid(6), LABELS, step=step, last=last, trajectory=trajectory)
    )


@pytest.mark.parametrize("last", [None, euler])
def test_a_trajectory_begins_at_the_noise_and_ends_at_the_sample(last):
    states = run(heun, last, True)
    assert states.shape == (7, 5, 2)
    np.testing.assert_array_equal(states[0], NOISE.astype(np.float32))
    np.testing.assert_allclose(states[-1], run(heun, last), rtol=1e-6)


def test_a_trajectory_passes_through_the_samples_of_shorter_grids():
    short = sample_ode(
        PLANE.velocity(LINEAR), jnp.asarray(NOISE, jnp.float32), grid(6)[:4], LABELS, step=heun
    )
    np.testing.assert_allclose(run(heun, None, True)[3], short, rtol=1e-5, atol=1e-6)


def test_a_last_euler_step_keeps_the_model_away_from_the_end():
    def singular(x, t, cond):
        return jnp.where(t[:, None] < 1, -x, jnp.nan)

    noise = jnp.asarray(NOISE, jnp.float32)
    assert np.all(np.isfinite(sample_ode(singular, noise, grid(4), step=heun, last=euler)))
    assert np.all(np.isnan(sample_ode(singular, noise, grid(4), step=heun)))
    assert np.all(np.isfinite(sample_ode(singular, noise, grid(4), step=midpoint)))


def test_an_example_does_not_depend_on_its_batch():
    noise = jnp.asarray(NOISE, jnp.float32)
    model = guidance.classifier_free(PLANE.velocity(LINEAR), PLANE.null, 2.0)
    part = np.asarray([3, 1])
    whole = sample_ode(model, noise, grid(6), LABELS)
    pair = sample_ode(model, noise[part], grid(6), LABELS[part])
    np.testing.assert_allclose(pair, whole[part], rtol=1e-5, atol=1e-5)


def test_noise_of_an_example_depends_on_its_index_alone():
    key = jax.random.key(7)
    many, few = (samplers.draw_noise(key, (n, 3)) for n in (5, 2))
    np.testing.assert_array_equal(many[:2], few)
    keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(3, 5))
    np.testing.assert_array_equal(samplers.draw_noise(keys, (2, 3)), many[3:])


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
def test_dtype_is_kept_and_near_the_float32_sample(dtype):
    out = sample_ode(PLANE.velocity(LINEAR), jnp.asarray(NOISE, dtype), grid(6), LABELS)
    assert out.dtype == dtype
    wanted = run(heun)
    np.testing.assert_allclose(out.astype(jnp.float32), wanted, atol=0.1)


def test_second_call_retraces_nothing_though_all_is_rebuilt():
    traced = [0]

    def model(x, t, cond):
        traced[0] += 1
        return -x

    counts = []
    for w in (1.5, 4.0, 6.0):
        guided = guidance.classifier_free(model, 3, guidance.interval(jnp.float32(w), 0.2, 0.8))
        sample_ode(guided, jnp.asarray(NOISE * w, jnp.float32), grid(6), LABELS, step=heun)
        counts.append(traced[0])
    assert counts[0] == counts[1] == counts[2]


def test_bad_input_is_refused():
    noise, model = jnp.asarray(NOISE, jnp.float32), PLANE.velocity(LINEAR)
    for ts, says in (
        (grid(4)[::-1], "must increase"),
        (grid(4) + 0.5, r"lie in \[0, 1\]"),
        (grid(4)[:1], "at least 2 times"),
        (np.arange(2), "floating point"),
    ):
        with pytest.raises(ValueError, match=says):
            sample_ode(model, noise, ts, LABELS)
    with pytest.raises(ValueError, match="cond must have 5 examples first"):
        sample_ode(model, noise, grid(2), LABELS[:2])
    with pytest.raises(ValueError, match="noise must be floating"):
        sample_ode(model, jnp.ones((5, 2), int), grid(2), LABELS)
    with pytest.raises(ValueError, match="batch first"):
        sample_ode(model, jnp.ones(()), grid(2))
    with pytest.raises(ValueError, match="velocity of x's shape"):
        sample_ode(lambda x, t, c: x[:, :1], noise, grid(2))
