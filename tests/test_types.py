"""What the core passes around, and what it says of bad input."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from guidedflow import types


def test_a_plain_function_satisfies_the_protocol():
    def model(x, t, cond):
        return 2 * x

    x = jnp.ones((2, 3))
    assert types.init_state(model, x) == ()
    got, state = types.evaluate(model, (), x, jnp.zeros(2), None, jnp.float32(0))
    assert state == ()
    assert got.variance is None
    for field in got[:3]:
        np.testing.assert_array_equal(field, 2 * x)


def test_a_model_of_another_shape_is_refused():
    with pytest.raises(ValueError, match="velocity of x's shape"):
        types.evaluate(lambda x, t, c: x[:, :1], (), jnp.ones((2, 3)), jnp.zeros(2), None, 0.0)


def test_pytrees_compare_by_their_parts():
    @types.pytree
    class Pair:
        first: jax.Array
        second: float

    leaves, treedef = jax.tree.flatten(Pair(jnp.ones(2), 3.0))
    assert len(leaves) == 2
    assert treedef == jax.tree.structure(Pair(jnp.zeros(5), 4.0))
    assert jax.tree.map(lambda a: a + 1, Pair(1.0, 2.0)) == Pair(2.0, 3.0)


def test_a_null_serves_every_example_or_is_one_an_example():
    cond = {"text": jnp.ones((4, 3)), "label": jnp.arange(4)}
    one = types.broadcast_null({"text": jnp.zeros(3), "label": 9}, cond)
    np.testing.assert_array_equal(one["label"], [9] * 4)
    assert one["text"].shape == (4, 3)
    assert one["label"].dtype == cond["label"].dtype
    each = types.broadcast_null(
        {"text": jnp.zeros((4, 3)), "label": jnp.asarray([9, 8, 7, 6])}, cond
    )
    np.testing.assert_array_equal(each["label"], [9, 8, 7, 6])


def test_a_float32_null_serves_bfloat16_conditions():
    null = types.broadcast_null(jnp.zeros(3), jnp.ones((4, 3), jnp.bfloat16))
    assert null.dtype == jnp.bfloat16


@pytest.mark.parametrize(
    ("null", "says"),
    [
        ({"text": jnp.zeros(3)}, "structure of cond"),
        ({"text": jnp.zeros(2), "label": 9}, r"null\['text'\] must have shape \(3,\)"),
        ({"text": jnp.zeros(3), "label": 9.5}, r"null\['label'\]"),
        (9, "structure of cond"),
    ],
)
def test_a_null_unlike_the_condition_is_refused(null, says):
    with pytest.raises(ValueError, match=says):
        types.broadcast_null(null, {"text": jnp.ones((4, 3)), "label": jnp.arange(4)})


@pytest.mark.parametrize("scale", ["7", None, True, float("inf"), np.ones((2, 2)), 1j])
def test_what_is_no_scale_is_refused(scale):
    with pytest.raises(ValueError, match="scale must"):
        types.check_scale(scale)


@pytest.mark.parametrize("scale", [0, 1.5, -1, np.float32(2), np.ones(3), lambda t: t])
def test_numbers_arrays_and_schedules_are_scales(scale):
    types.check_scale(scale)


def test_bounds_of_a_number_are_in_the_message():
    with pytest.raises(ValueError, match=r"eta must be a finite number in \[0, 1\], got 2"):
        types.check_number("eta", 2, 0, 1)
    types.check_number("eta", jnp.bfloat16(0.5), 0, 1)
    jax.jit(lambda eta: types.check_number("eta", eta, 0, 1))(7.0)


def test_expand_gives_trailing_axes_to_weights_an_example():
    like = jnp.ones((2, 3, 4))
    assert types.expand(2.0, like) == 2.0
    assert types.expand(jnp.ones(2), like).shape == (2, 1, 1)


def test_batches_name_the_leaf_that_is_off():
    with pytest.raises(ValueError, match=r"cond\['b'\] must have 2 examples first, got \(3,\)"):
        types.check_batch("cond", {"a": jnp.ones(2), "b": jnp.ones(3)}, 2)
