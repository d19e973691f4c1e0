"""The U-Net of convolutions: the call of the transformer, attention only where asked for."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from guidedflow.models import UNet, create


def network(**fields):
    base = {"image_size": (4, 8), "channels": 2, "width": 4, "multipliers": (1, 2), "blocks": 1}
    return UNet(**{**base, "num_classes": 3, **fields})


def batch():
    x = jax.random.normal(jax.random.key(1), (2, 4, 8, 2))
    return x, jnp.array([0.2, 0.8]), jnp.array([0, 2])


def random_params(net):
    """Parameters without the zeros of a new network, so that every part counts."""
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(net.init, jax.random.key(0), *batch())["params"]
    return jax.tree.map(lambda a: jnp.asarray(rng.normal(0, 0.25, a.shape), a.dtype), shapes)


@functools.partial(jax.jit, static_argnums=0)
def run(net, params, x, t, cond):
    return net.apply({"params": params}, x, t, cond)


@pytest.fixture(scope="module")
def params():
    return random_params(network())


def test_a_new_network_gives_zero():
    net = network()
    init = jax.jit(net.init)(jax.random.key(0), *batch())["params"]
    assert jnp.all(run(net, init, *batch()) == 0)


def test_every_input_counts_and_reaches_every_place(params):
    x, t, y = batch()
    base = run(network(), params, x, t, y)
    assert base.shape == x.shape
    for other in ((x + 1, t, y), (x, t + 0.05, y), (x, t, y + 1)):
        change = jnp.abs(run(network(), params, *other) - base)
        assert jnp.all(change.max(-1) > 1e-4)


def test_mapping_the_condition_equals_two_calls(params):
    x, t, y = batch()
    null = jnp.full_like(y, 3)
    mapped = jax.vmap(lambda c: run(network(), params, x, t, c))(jnp.stack([null, y]))
    np.testing.assert_allclose(mapped[0], run(network(), params, x, t, null), atol=1e-4)
    np.testing.assert_allclose(mapped[1], run(network(), params, x, t, y), atol=1e-4)


def test_attention_stands_only_at_the_levels_asked_for():
    def attending(**fields):
        net = network(**fields)
        shapes = jax.eval_shape(net.init, jax.random.key(0), *batch())["params"]
        return {name for name, block in shapes.items() if "attention" in block}

    assert attending() == set()
    lowest = {"down_1_0", "middle_0", "up_1_0", "up_1_1"}
    assert attending(attend=(1,)) == lowest
    assert attending(attend=(0, 1)) == lowest | {"down_0_0", "up_0_0", "up_0_1"}


def test_doubled_channels_and_sixteen_bits():
    net = network(double_channels=True, dtype=jnp.bfloat16, attend=(1,))
    p = random_params(net)
    out = run(net, p, *batch())
    assert (out.shape, out.dtype) == ((2, 4, 8, 4), jnp.float32)
    exact = run(network(double_channels=True, attend=(1,)), p, *batch())
    assert 1e-4 < jnp.linalg.norm(out - exact) / jnp.linalg.norm(exact) < 0.1


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"image_size": (6, 8), "multipliers": (1, 1, 1)}, "3 levels need sides of 4"),
        ({"attend": (2,)}, r"attend: expected levels in \[0, 2\), got 2"),
        ({"multipliers": ()}, "at least one level"),
        ({"width": 3}, "even number, got 3"),
        ({"image_size": (8, 8, 3)}, "one or two positive integers"),
    ],
)
def test_contradictory_fields_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        network(**fields)


def test_inputs_that_do_not_fit_are_refused(params):
    x, t, y = batch()
    with pytest.raises(ValueError, match=r"expected shape \(b, 4, 8, 2\)"):
        run(network(), params, x[..., :1], t, y)
    with pytest.raises(ValueError, match="labels: expected an array of integers"):
        run(network(), params, x, t, t)


def test_presets_take_digits():
    net = create("tiny-unet")
    x, t, y = jnp.zeros((2, 8, 8, 1)), jnp.zeros(2), jnp.zeros(2, int)
    out = jax.eval_shape(net.init_with_output, jax.random.key(0), x, t, y)[0]
    assert out.shape == x.shape
