"""The galleries leave no method out, and their measures are right where the answer is known."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import guidance_gallery, solver_gallery
from experiments.closed_form import PLANE
from guidedflow import guidance, samplers

# What is no method by itself: how branches are evaluated, and the rule that classifier_free has.
NO_METHODS = {"Affine", "concatenated", "sequential", "vmapped"}


def shown(table):
    return {name for entry in table.values() for name in entry[0]}


def test_every_guidance_method_has_a_panel():
    assert set(guidance.__all__) - NO_METHODS <= shown(guidance_gallery.methods())


def test_every_sampler_and_step_has_a_panel():
    samples = {name for name in samplers.__all__ if name.startswith("sample_")}
    steps = {"euler", "midpoint", "heun", "rk4", "adams_bashforth", "dopri5", "tsit5", "recurrent"}
    assert steps <= set(samplers.__all__)
    assert samples | steps <= shown(solver_gallery.solvers())


def test_panels_name_functions_that_exist():
    for table, home in (
        (guidance_gallery.methods(), guidance),
        (solver_gallery.solvers(), samplers),
    ):
        for name in shown(table) - {"recurrent"}:
            assert callable(getattr(home, name)) or inspect.isclass(getattr(home, name))


def test_samples_of_one_point_have_no_spread_and_its_own_posterior():
    point = jnp.array([-1.1, 0.6])
    measured = guidance_gallery.measure(jnp.tile(point, (5, 1)))
    one = jnp.exp(
        PLANE.log_posterior(guidance_gallery.PATH, point, jnp.asarray(1.0), jnp.asarray(0))
    )
    assert measured["posterior"] == pytest.approx(float(one), rel=1e-5)
    assert measured["spread"] == pytest.approx(0, abs=1e-6)


def test_images_of_points_are_the_points_again():
    points = jax.random.normal(jax.random.key(0), (3, 2))
    images = guidance_gallery._image_of(points)
    assert images.shape == (3, 2, 2, 1)
    np.testing.assert_array_equal(guidance_gallery._point_of(images), points)


def test_distance_is_the_root_mean_square_of_pairs():
    ends, others = jnp.array([[3.0, 4.0], [0.0, 0.0]]), jnp.zeros((2, 2))
    assert solver_gallery.distance(ends, others) == pytest.approx((25 / 2) ** 0.5)


def test_both_grids_share_their_ends():
    for grid in (solver_gallery.even_in_time, solver_gallery.even_in_log_snr):
        ts = np.asarray(grid(8))
        assert np.all(np.diff(ts) > 0)
        np.testing.assert_allclose(
            ts[[0, -1]], [solver_gallery.LOW, solver_gallery.HIGH], rtol=1e-5
        )
