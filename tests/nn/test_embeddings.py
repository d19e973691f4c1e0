"""Positions, times and classes in the layouts of the published checkpoints."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from guidedflow.nn.embeddings import LabelEmbedding, ScalarEmbedding, grid_positions, sinusoids


def test_positions_encode_the_column_first_each_half_sine_then_cosine():
    positions = grid_positions((3, 5), 16).reshape(3, 5, 4, 4)
    omega = 10_000.0 ** (-np.arange(4) / 4)
    for row, column in np.ndindex(3, 5):
        np.testing.assert_allclose(positions[row, column, 0], np.sin(column * omega), atol=1e-6)
        np.testing.assert_allclose(positions[row, column, 1], np.cos(column * omega), atol=1e-6)
        np.testing.assert_allclose(positions[row, column, 2], np.sin(row * omega), atol=1e-6)
        np.testing.assert_allclose(positions[row, column, 3], np.cos(row * omega), atol=1e-6)


def test_positions_of_different_tokens_differ():
    positions = grid_positions((16, 16), 1152)
    assert len(np.unique(positions.round(4), axis=0)) == 256


def test_positions_need_a_width_divisible_by_four():
    with pytest.raises(ValueError, match="divisible by 4, got 18"):
        grid_positions((2, 2), 18)


def test_sinusoids_are_cosines_then_sines_with_frequencies_over_half():
    waves = sinusoids(jnp.array([0.0, 3.0]), half=4)
    omega = np.array([1.0, 0.1, 0.01, 0.001])
    np.testing.assert_allclose(waves[0], [1, 1, 1, 1, 0, 0, 0, 0])
    np.testing.assert_allclose(waves[1], np.r_[np.cos(3 * omega), np.sin(3 * omega)], atol=1e-6)


def test_the_factor_multiplies_the_number():
    plain, scaled = ScalarEmbedding(8), ScalarEmbedding(8, factor=1000.0)
    p = jax.jit(plain.init)(jax.random.key(0), jnp.zeros(1))
    t = jnp.array([0.25, 0.5])
    np.testing.assert_allclose(scaled.apply(p, t), plain.apply(p, 1000 * t))


def test_without_a_factor_near_times_look_alike():
    near = jnp.array([0.5, 0.51])

    def distance(factor):
        return jnp.linalg.norm(jnp.diff(sinusoids(factor * near), axis=0))

    assert distance(1000.0) > 50 * distance(1.0)


def test_labels_read_their_row_and_the_null_class_is_the_last():
    table = LabelEmbedding(3, 4)
    p = table.init(jax.random.key(0), jnp.zeros(1, int))
    rows = p["params"]["embedding_table"]
    assert rows.shape == (4, 4)
    np.testing.assert_array_equal(table.apply(p, jnp.array([3, 1])), rows[jnp.array([3, 1])])
