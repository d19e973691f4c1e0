"""Scales over t: where they guide, their ends, and that the shape between is the one named."""

import jax.numpy as jnp
import numpy as np
import pytest

from guidedflow import guidance, paths

T = jnp.linspace(0, 1, 101)


def test_an_interval_guides_inside_and_is_the_conditional_model_outside():
    w = guidance.interval(3.0, 0.2, 0.6)(T)
    inside = (T >= 0.2) & (T <= 0.6)
    np.testing.assert_array_equal(w[inside], 3)
    np.testing.assert_array_equal(w[~inside], 1)


def test_a_window_guides_inside_and_is_zero_outside():
    s = guidance.window(guidance.linear(0.0, 10.0), 0.2, 0.6)(T)
    inside = (T >= 0.2) & (T <= 0.6)
    np.testing.assert_allclose(s[inside], 10 * T[inside], rtol=1e-6)
    np.testing.assert_array_equal(s[~inside], 0)


def test_an_interval_in_sigma_is_open_below_and_closed_above():
    path = paths.Linear()
    # sigma / alpha is 3, 1, 1/3 at these times.
    t = jnp.asarray([0.25, 0.5, 0.75])
    np.testing.assert_array_equal(guidance.sigma_interval(2.0, path, 1.0, 3.0)(t), [2, 1, 1])
    np.testing.assert_array_equal(guidance.sigma_interval(2.0, path, 0.9, 1.0)(t), [1, 2, 1])


@pytest.mark.parametrize(
    "schedule", [guidance.linear, guidance.cosine, guidance.power], ids=lambda s: s.__name__
)
def test_ramps_meet_their_ends_and_never_turn(schedule):
    w = schedule(1.0, 5.0)(T)
    np.testing.assert_allclose([w[0], w[-1]], [1, 5], atol=1e-6)
    assert np.all(np.diff(w) >= 0)
    np.testing.assert_allclose(schedule(5.0, 1.0)(T), 6 - w, atol=1e-5)


def test_halfway_each_ramp_is_where_its_shape_says():
    half = jnp.float32(0.5)
    for schedule, share in (
        (guidance.linear(0.0, 1.0), 0.5),
        (guidance.cosine(0.0, 1.0), 0.5),
        (guidance.power(0.0, 1.0, 3.0), 0.125),
        (guidance.power(0.0, 1.0, 0.5), np.sqrt(0.5)),
    ):
        np.testing.assert_allclose(schedule(half), share, rtol=1e-5)
    quarter = guidance.cosine(0.0, 1.0)(jnp.float32(0.25))
    np.testing.assert_allclose(quarter, 0.5 - np.sqrt(0.125), rtol=1e-5)


def test_steps_change_at_their_times():
    w = guidance.stepwise([0.2, 0.5], [1.0, 4.0, guidance.linear(0.0, 2.0)])(T)
    np.testing.assert_array_equal(w[T < 0.2], 1)
    np.testing.assert_array_equal(w[(T >= 0.2) & (T < 0.5)], 4)
    np.testing.assert_allclose(w[T >= 0.5], 2 * T[T >= 0.5], rtol=1e-6)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: guidance.interval(2.0, 0.6, 0.2), "empty"),
        (lambda: guidance.interval(2.0, -0.1, 0.2), "low"),
        (lambda: guidance.window(2.0, 0.6, 0.2), "empty"),
        (lambda: guidance.window(2.0, 0.0, 1.2), "high"),
        (lambda: guidance.sigma_interval(2.0, paths.Linear(), 2.0, 1.0), "high"),
        (lambda: guidance.interval("2", 0.2, 0.6), "scale"),
        (lambda: guidance.window(None, 0.2, 0.6), "scale"),
        (lambda: guidance.stepwise([0.5], [1.0, "2"]), "scale"),
        (lambda: guidance.linear("1", 2.0), "start"),
        (lambda: guidance.power(1.0, 2.0, 0.0), "exponent"),
        (lambda: guidance.stepwise([0.5], [1.0]), "1 times need 2 scales"),
        (lambda: guidance.stepwise([0.5, 0.2], [1.0, 2.0, 3.0]), "increase"),
    ],
)
def test_bad_numbers_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
