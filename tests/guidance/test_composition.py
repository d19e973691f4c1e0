"""Several conditions at once: negative ones, perpendicular ones, in one call of the model."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from mixture import Mixture

from guidedflow import guidance, paths
from guidedflow.types import pytree

LINEAR = paths.Linear()
X = jax.random.normal(jax.random.key(0), (5, 2))
T = jnp.linspace(0.1, 0.9, 5)
ZERO, ONE, TWO = (jnp.full(5, k) for k in range(3))
FOUR = Mixture.of(*[(k, 1.0, [k % 2 * 2.0 - 1, k // 2 * 2.0 - 1], 0.4) for k in range(4)])
MODEL, NULL = FOUR.velocity(LINEAR), FOUR.null


def branches(*labels):
    return [MODEL(X, T, label) for label in (*labels, jnp.full(5, NULL))]


calls = [0]


@pytree
class Counted:
    """Counts how often it is traced."""

    def __call__(self, x, t, cond):
        calls[0] += 1
        return MODEL(x, t, cond)


def test_composition_adds_the_weighted_differences():
    a, b, c, u = branches(ZERO, ONE, TWO)
    out = guidance.compose(MODEL, NULL, [2.0, -0.5, 1.0])(X, T, (ZERO, ONE, TWO))
    np.testing.assert_allclose(out, 2 * a - 0.5 * b + c - 1.5 * u, rtol=1e-4, atol=1e-5)


def test_composition_at_the_data_is_the_product_of_experts():
    """Near t = 1, p(x) [p(x | A) / p(x)] [p(x | B) / p(x)] has the score that composition gives."""
    t = jnp.full(5, 0.99)
    density = FOUR.log_density(LINEAR)

    def log_product(x):
        null = density(x, t, jnp.full(5, NULL))
        return jnp.sum(density(x, t, ZERO) + density(x, t, ONE) - null)

    score = guidance.compose(FOUR.score(LINEAR), NULL, [1.0, 1.0])(X, t, (ZERO, ONE))
    np.testing.assert_allclose(score, jax.grad(log_product)(X), rtol=1e-3, atol=1e-2)


def test_every_branch_comes_from_one_call():
    calls[0] = 0
    guidance.compose(Counted(), NULL, [1.0, 2.0, 3.0])(X, T, (ZERO, ONE, TWO))
    guidance.perpendicular(Counted(), NULL)(X, T, (ZERO, ONE))
    assert calls[0] == 2


def test_scales_may_be_one_an_example_or_schedules():
    a, b, u = branches(ZERO, ONE)
    each = jnp.arange(5.0)
    model = guidance.compose(MODEL, NULL, [each, guidance.linear(0.0, 2.0)])
    wanted = u + each[:, None] * (a - u) + 2 * T[:, None] * (b - u)
    np.testing.assert_allclose(model(X, T, (ZERO, ONE)), wanted, rtol=1e-4, atol=1e-5)


def test_a_negative_prompt_as_null_is_composition_with_opposite_weights():
    negative = guidance.classifier_free(MODEL, ONE, 3.0)
    both = guidance.compose(MODEL, NULL, [3.0, -2.0])
    np.testing.assert_allclose(negative(X, T, ZERO), both(X, T, (ZERO, ONE)), rtol=1e-4, atol=1e-5)


def test_what_is_taken_away_is_perpendicular_to_the_positive_direction():
    a, b, u = (np.float64(v) for v in branches(ZERO, ONE))
    out = guidance.perpendicular(MODEL, NULL, 4.0, 1.5)(X, T, (ZERO, ONE))
    taken = (u + 4 * (a - u) - out) / (4 * 1.5)
    np.testing.assert_allclose(np.sum(taken * (a - u), 1), 0, atol=1e-4)
    left = (b - u) - taken
    cross = left[:, 0] * (a - u)[:, 1] - left[:, 1] * (a - u)[:, 0]
    np.testing.assert_allclose(cross, 0, atol=1e-4)
    assert np.abs(taken).max() > 0.1


def test_a_negative_that_is_the_positive_takes_nothing_away():
    out = guidance.perpendicular(MODEL, NULL, 4.0)(X, T, (ZERO, ZERO))
    free = guidance.classifier_free(MODEL, NULL, 4.0)(X, T, ZERO)
    np.testing.assert_allclose(out, free, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("scale", [1.0, jnp.float32(1), guidance.interval(5.0, 0.95, 1.0)])
def test_perpendicular_guides_nothing_at_one(scale):
    a, _, _ = branches(ZERO, ONE)
    out = guidance.perpendicular(MODEL, NULL, scale)(X, T, (ZERO, ONE))
    np.testing.assert_allclose(out, a, rtol=1e-5, atol=1e-6)


def test_examples_do_not_meet_in_the_projection():
    model = guidance.perpendicular(MODEL, NULL, 4.0)
    whole = model(X, T, (ZERO, ONE))
    alone = model(X[2:3], T[2:3], (ZERO[2:3], ONE[2:3]))
    np.testing.assert_allclose(whole[2:3], alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: guidance.compose(MODEL, NULL, []), "at least one scale"),
        (lambda: guidance.compose(MODEL, NULL, ["2"]), "scale"),
        (lambda: guidance.compose(MODEL, NULL, [1.0])(X, T, ZERO), "tuple of 1"),
        (lambda: guidance.compose(MODEL, NULL, [1.0])(X, T, (ZERO, ONE)), "2 of them"),
        (lambda: guidance.perpendicular(MODEL, NULL)(X, T, ZERO), "tuple of 2"),
        (lambda: guidance.perpendicular(MODEL, NULL, 1.0, None), "negative|scale"),
        (lambda: guidance.compose(MODEL, 1.5, [1.0])(X, T, (ZERO,)), "null"),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
