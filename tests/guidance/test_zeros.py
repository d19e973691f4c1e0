"""Guidance where a prediction is exactly 0: the value is finite, and so is its gradient."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from guidedflow import distillation, guidance, paths
from guidedflow.guidance.projections import along, norm
from guidedflow.types import evaluate, init_state

PATH = paths.Linear()
SHAPE = (2, 4, 4, 1)
SOME = jnp.asarray(np.random.default_rng(0).normal(size=SHAPE), jnp.float32)
NOTHING = jnp.zeros(SHAPE)


def linear(x, t, cond):
    """A model whose velocity is its condition."""
    return cond


def classifier_free(null, rule):
    return guidance.classifier_free(linear, null, jnp.float32(2), rule=rule)


RULES = {
    "projected": guidance.projected(PATH, threshold=1.0),
    "optimized scale": guidance.optimized_scale(),
    "tangential": guidance.tangential(),
    "magnitude-aware": guidance.magnitude_aware(),
    "magnitude-aware, undamped": guidance.magnitude_aware(0.0),
    "frequency-decoupled": guidance.frequency_decoupled(),
}
METHODS = {
    **{name: functools.partial(classifier_free, rule=rule) for name, rule in RULES.items()},
    "rescale": lambda null: guidance.rescale(classifier_free(null, guidance.Affine())),
    "dynamic threshold": lambda null: guidance.dynamic_threshold(
        classifier_free(null, guidance.Affine()), PATH
    ),
    "zero star": lambda null: guidance.zero_star(linear, null, jnp.float32(2), until=0.0),
}


@pytest.mark.parametrize("name", METHODS)
def test_value_and_gradient_are_finite_where_branches_are_zero(name):
    """Every pair of strong and weak branch, and x too, of which some or all are 0 or very small."""

    @jax.jit
    @jax.vmap
    def both(strong, null, x):
        def total(strong, null, x):
            out = METHODS[name](null)(x, jnp.full(2, 0.5), strong)
            return jnp.sum(out * SOME), out

        return jax.grad(total, (0, 1, 2), has_aux=True)(strong, null, x)

    sizes = [SOME, NOTHING, 1e-20 * SOME, jnp.ones(SHAPE)]
    strong, null = (
        jnp.stack(pair) for pair in zip(*((a, b) for a in sizes for b in sizes), strict=False)
    )
    for x in (NOTHING, SOME):
        for leaf in jax.tree.leaves(both(strong, null, jnp.broadcast_to(x, strong.shape))):
            assert np.all(np.isfinite(leaf))


def test_rescaling_leaves_a_prediction_of_zero_as_it_is():
    """2 strong - null = 0 at null = 2 strong: nothing to stretch, with the gradient of no stretch."""

    def guided(strong):
        model = guidance.classifier_free(linear, jax.lax.stop_gradient(2 * SOME), jnp.float32(2))
        return guidance.rescale(model, 1.0)(SOME, jnp.full(2, 0.5), strong)

    value, slope = jax.jvp(guided, (SOME,), (SOME,))
    np.testing.assert_array_equal(value, NOTHING)
    np.testing.assert_allclose(slope, 2 * SOME, rtol=1e-6)


@pytest.mark.parametrize("size", [1e-25, 1.0, 1e25])
def test_lengths_and_projections_do_not_depend_on_the_unit(size):
    np.testing.assert_allclose(norm(size * SOME) / size, jnp.linalg.norm(SOME), rtol=1e-5)
    np.testing.assert_allclose(along(SOME, size * SOME), SOME, rtol=1e-5)
    slope = jax.grad(lambda a: norm(a))(size * SOME)
    np.testing.assert_allclose(slope, SOME / jnp.linalg.norm(SOME), rtol=1e-5)


def test_without_a_null_velocity_magnitude_aware_is_the_conditional_model():
    model = classifier_free(NOTHING, guidance.magnitude_aware())
    np.testing.assert_allclose(model(SOME, jnp.full(2, 0.5), SOME), SOME, rtol=1e-6)
    undamped = classifier_free(NOTHING, guidance.magnitude_aware(0.0))
    np.testing.assert_allclose(undamped(SOME, jnp.full(2, 0.5), SOME), 2 * SOME, rtol=1e-6)


SCALED = {
    "classifier_free": lambda w: guidance.classifier_free(linear, 0 * SOME, w),
    "extrapolate": lambda w: guidance.extrapolate(linear, linear, w),
    "plus_plus": lambda w: guidance.plus_plus(linear, 0 * SOME, w / 10),
    "reuse": lambda w: guidance.reuse(linear, 0 * SOME, w),
    "perturbed": lambda w: guidance.perturbed(linear, linear, w),
    "compose": lambda w: guidance.compose(linear, 0 * SOME, [w]),
    "perpendicular": lambda w: guidance.perpendicular(linear, 0 * SOME, w),
    "perpendicular, negative": lambda w: guidance.perpendicular(linear, 0 * SOME, 2.0, w),
    "classifier": lambda w: guidance.classifier(linear, PATH, each, w),
    "ancestral_classifier": lambda w: guidance.ancestral_classifier(linear, each, w),
    "loss_guidance": lambda w: guidance.loss_guidance(linear, PATH, lambda x, c: each(x, 0, c), w),
    "interval": lambda w: guidance.classifier_free(
        linear, 0 * SOME, guidance.interval(w, 0.0, 1.0)
    ),
    "at_scale": lambda w: distillation.at_scale(lambda x, t, c, w: x, w),
}


def each(x, t, cond):
    return jnp.sum(x, (1, 2, 3))


@pytest.mark.parametrize("name", SCALED)
@pytest.mark.parametrize("length", [1, 3])
def test_a_scale_of_another_length_than_the_batch_is_named(name, length):
    cond = {"compose": (SOME,)}.get(name, (SOME, SOME) if "perp" in name else SOME)
    model = SCALED[name](jnp.full(length, 2.0))
    state, t = init_state(model, SOME), jnp.full(2, 0.5)
    with pytest.raises(ValueError, match=rf"scale must be .* batch of 2, got \({length},\)"):
        jax.eval_shape(lambda x: evaluate(model, state, x, t, cond, t[0]), SOME)
