"""CLIP's text transformer: who sees whom, where a prompt is pooled, and what is refused."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from guidedflow.models.text import TextEncoder, gelu, quick_gelu

END = 9
TOKENS = jnp.array([[8, 1, 2, END, END, END], [8, 3, 4, 5, 6, END]])
MASK = jnp.array([[1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 1]], bool)


def encoder(**options):
    return TextEncoder(10, END, **{"width": 8, "depth": 2, "heads": 2, "positions": 6, **options})


@pytest.fixture(scope="module")
def params():
    """Weights of size one: with small ones every position would look like its embedding."""
    shapes = jax.eval_shape(encoder().init, jax.random.key(0), TOKENS)
    leaves, tree = jax.tree.flatten(shapes)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    return tree.unflatten(
        [jax.random.normal(k, x.shape) for k, x in zip(keys, leaves, strict=True)]
    )


@pytest.fixture(scope="module")
def run(params):
    return jax.jit(lambda tokens, mask=None: encoder().apply(params, tokens, mask))


def test_a_position_sees_itself_and_those_before_it(run):
    before = run(TOKENS).tokens
    for place in range(1, 6):
        changed = np.abs(run(TOKENS.at[:, place].set(7)).tokens - before).max(-1) > 0
        assert not changed[:, :place].any()
        assert changed[:, place:].all()


def test_what_the_mask_hides_changes_no_other_position(run):
    shown = run(TOKENS, MASK)
    hidden = run(jnp.where(MASK, TOKENS, 7), MASK)
    np.testing.assert_array_equal(hidden.tokens[MASK], shown.tokens[MASK])
    # Hidden positions come after all that can be pooled, so that causality alone would do; a hidden
    # one in the middle needs the mask.
    middle = MASK.at[1, 2].set(False)
    other = run(TOKENS.at[1, 2].set(7), middle)
    np.testing.assert_array_equal(other.pooled, run(TOKENS, middle).pooled)
    assert np.abs(other.pooled - run(TOKENS, MASK).pooled).max() > 1e-3


def test_a_shorter_prompt_has_the_features_of_the_padded_one(params, run):
    short = encoder().apply(params, TOKENS[:1, :4])
    np.testing.assert_allclose(short.tokens, run(TOKENS).tokens[:1, :4], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(short.pooled, run(TOKENS).pooled[:1], rtol=1e-4, atol=1e-5)


def test_a_prompt_is_pooled_at_its_first_end_or_at_its_largest_number(params):
    tokens = jnp.array([[8, 1, END, 2, END, 3], [0, 1, 5, 2, 3, 4]])
    features = encoder().apply(params, tokens)
    np.testing.assert_array_equal(features.pooled[0], features.tokens[0, 2])
    legacy = TextEncoder(10, 2, width=8, depth=2, heads=2, positions=6).apply(params, tokens)
    np.testing.assert_array_equal(legacy.pooled, legacy.tokens[jnp.arange(2), jnp.array([2, 2])])


def test_a_projection_is_a_linear_map_of_what_was_pooled(params, run):
    matrix = jax.random.normal(jax.random.key(2), (8, 3))
    projected = {"params": {**params["params"], "text_projection": {"kernel": matrix}}}
    out = encoder(projection=3).apply(projected, TOKENS)
    np.testing.assert_allclose(out.pooled, run(TOKENS).pooled @ matrix, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(out.tokens, run(TOKENS).tokens, rtol=1e-4, atol=1e-5)


def test_activations_are_their_formulas():
    x = jnp.linspace(-4, 4, 9)
    exact = [value * 0.5 * (1 + math.erf(value / math.sqrt(2))) for value in x.tolist()]
    np.testing.assert_allclose(gelu(x), exact, rtol=1e-4, atol=1e-6)
    quick = [value / (1 + math.exp(-1.702 * value)) for value in x.tolist()]
    np.testing.assert_allclose(quick_gelu(x), quick, rtol=1e-4, atol=1e-6)


def test_parameters_are_float32_whatever_it_computes_in(params, run):
    half = encoder(dtype=jnp.bfloat16)
    made = half.init(jax.random.key(0), TOKENS)
    assert {leaf.dtype for leaf in jax.tree.leaves(made)} == {jnp.dtype(jnp.float32)}
    out = half.apply(params, TOKENS).tokens
    assert out.dtype == jnp.bfloat16
    # Eight bits of mantissa through two layers of weights of size one.
    assert np.mean(np.abs(out.astype(jnp.float32) - run(TOKENS).tokens)) < 0.1


@pytest.mark.parametrize(
    ("options", "tokens", "mask", "message"),
    [
        (
            {"activation": "geluu"},
            TOKENS,
            None,
            r"unknown activation 'geluu' \(did you mean 'gelu'",
        ),
        ({"heads": 3}, TOKENS, None, "3 heads do not divide a width of 8"),
        ({}, TOKENS[0], None, r"integer tokens \(b, n\), got int32 of shape \(6,\)"),
        ({}, TOKENS / 1, None, "integer tokens"),
        ({}, jnp.zeros((1, 7), int), None, "at most 6 tokens, got 7"),
        ({}, TOKENS, MASK[:1], r"mask of booleans \(2, 6\), got bool of shape \(1, 6\)"),
        ({}, TOKENS, MASK.astype(int), "mask of booleans"),
    ],
)
def test_what_does_not_fit_is_refused(options, tokens, mask, message):
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(encoder(**options).init, jax.random.key(0), tokens, mask)
