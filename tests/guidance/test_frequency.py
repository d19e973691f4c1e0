"""Frequency-decoupled guidance: bands that add up, and a scale for each."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from guidedflow import guidance, paths, predictions
from guidedflow.guidance.frequency import pyramid, rebuild

LINEAR = paths.Linear()
C, U, X = jax.random.normal(jax.random.key(0), (3, 8, 8, 2))
ROWS = jnp.arange(16.0)[:, None, None]


def apply(gains, c=C, u=U, w=10.0, space=None, t=0.4):
    rule = guidance.frequency_decoupled(gains)
    if space is not None:
        rule = guidance.in_space(rule, LINEAR, space)
    return rule(c, u, jnp.float32(w), X, jnp.float32(t), rule.init(c))[0]


@pytest.mark.parametrize("shape", [(8, 8, 2), (7, 5, 1), (9, 16, 3)])
@pytest.mark.parametrize("levels", [1, 2, 3])
def test_the_pyramid_rebuilds_what_it_split(shape, levels):
    image = jax.random.normal(jax.random.key(1), shape)
    bands = pyramid(image, levels)
    assert [band.shape[0] for band in bands] == [-(-shape[0] // 2**k) for k in range(levels)]
    np.testing.assert_allclose(rebuild(bands), image, atol=1e-5)


def test_a_constant_difference_is_guided_by_the_low_scale_alone():
    out = apply((1.0, 4 / 9), c=U + 0.3)
    np.testing.assert_allclose(out, U + 5 * 0.3, rtol=1e-5, atol=1e-5)


def test_a_smooth_difference_is_guided_by_the_low_scale():
    """Straight slopes pass the blur unchanged, away from the repeated edges."""
    c = jnp.broadcast_to(ROWS, (16, 16, 1))
    out = apply((1.0, 4 / 9), c=c, u=jnp.zeros_like(c), w=10.0)
    np.testing.assert_allclose(out[4:-4], 5 * c[4:-4], rtol=1e-4)


def test_a_checkerboard_is_guided_by_the_high_scale():
    board = ((-1.0) ** (ROWS + ROWS[:, :, 0].T[..., None]))[2:-2, 2:-2]
    out = apply((1.0, 4 / 9), c=board, u=jnp.zeros_like(board))
    np.testing.assert_allclose(out[3:-3, 3:-3], 10 * board[3:-3, 3:-3], rtol=1e-4)


def test_velocities_give_what_data_estimates_give():
    np.testing.assert_allclose(
        apply((1.0, 0.3)), apply((1.0, 0.3), space=predictions.data), rtol=1e-4, atol=1e-4
    )


def test_equal_gains_are_classifier_free_guidance():
    np.testing.assert_allclose(apply((1.0, 1.0, 1.0)), U + 10 * (C - U), rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(apply((1.0, 0.5), w=1.0), C)


def test_an_image_too_small_for_its_levels_is_refused():
    model = guidance.classifier_free(
        lambda x, t, c: x, 0, 2.0, rule=guidance.frequency_decoupled((1.0, 0.5, 0.2))
    )
    label = jnp.zeros(2, jnp.int32)
    for shape in ((2, 3, 8, 1), (2, 8)):
        with pytest.raises(ValueError, match="at least 4 pixels"):
            model(jnp.zeros(shape), jnp.full(2, 0.5), label)


@pytest.mark.parametrize("gains", [(), [1.0, 0.5], (1.0, "low")])
def test_gains_that_are_not_numbers_are_refused(gains):
    with pytest.raises(ValueError, match="gains"):
        guidance.frequency_decoupled(gains)
