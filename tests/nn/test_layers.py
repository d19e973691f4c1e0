"""Patches, normalisation, and products that fold a mapped axis into rows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from guidedflow.nn.linear import Dense
from guidedflow.nn.normalization import modulate, normalize
from guidedflow.nn.patches import patchify, unpatchify


@pytest.fixture(scope="module")
def dense():
    layer = Dense(6)
    x = jax.random.normal(jax.random.key(0), (4, 3, 5))
    return layer, layer.init(jax.random.key(1), x), x


@pytest.mark.parametrize("image", [(8, 8, 3), (4, 8, 1), (6, 2, 4)])
def test_unpatchify_undoes_patchify(image):
    x = jax.random.normal(jax.random.key(0), (2, *image))
    grid = (image[0] // 2, image[1] // 2)
    np.testing.assert_array_equal(unpatchify(patchify(x, 2), 2, grid), x)


def test_patches_run_along_rows_with_channels_fastest():
    x = jnp.arange(4 * 4 * 2).reshape(1, 4, 4, 2)
    tokens = patchify(x, 2)
    np.testing.assert_array_equal(tokens[0, 1], x[0, :2, 2:].reshape(-1))
    np.testing.assert_array_equal(tokens[0, 2], x[0, 2:, :2].reshape(-1))


def test_normalised_values_have_mean_zero_and_variance_one():
    y = normalize(5 + 3 * jax.random.normal(jax.random.key(0), (2, 4, 64)))
    np.testing.assert_allclose(y.mean(-1), 0, atol=1e-5)
    np.testing.assert_allclose(y.var(-1), 1, atol=1e-5)


def test_statistics_of_sixteen_bit_values_are_float32():
    x = (100 + jax.random.normal(jax.random.key(0), (2, 4, 512))).astype(jnp.bfloat16)
    y = normalize(x)
    assert y.dtype == jnp.float32
    np.testing.assert_allclose(y, normalize(x.astype(jnp.float32)), atol=1e-6)


def test_zero_shift_and_scale_leave_the_tokens():
    x = jnp.ones((2, 3, 4))
    zero = jnp.zeros((2, 4))
    np.testing.assert_array_equal(modulate(x, zero, zero), x)
    np.testing.assert_array_equal(modulate(x, zero + 1, zero + 2), 4 * x)


def test_dense_is_the_product_over_the_last_axis(dense):
    layer, p, x = dense
    kernel, bias = p["params"]["kernel"], p["params"]["bias"] + 1
    expected = np.einsum("bnd,dk->bnk", x, kernel) + np.asarray(bias)
    got = layer.apply({"params": {"kernel": kernel, "bias": bias}}, x)
    np.testing.assert_allclose(got, expected, atol=1e-5)


def test_mapped_products_have_no_batch_axis(dense):
    layer, p, x = dense
    text = str(jax.make_jaxpr(jax.vmap(lambda x: layer.apply(p, x)))(x))
    assert "dot_general" in text
    assert "f32[12,6] = dot_general" in text


def test_parameters_can_be_mapped_too(dense):
    layer, p, x = dense
    many = jax.tree.map(lambda a: jnp.stack([a, 2 * a]), p)
    got = jax.vmap(layer.apply, in_axes=(0, None))(many, x)
    np.testing.assert_allclose(got[1], 2 * layer.apply(p, x), atol=1e-5)


def test_products_work_inside_pmap_and_on_a_sharded_mesh(dense):
    layer, p, x = dense
    expected = layer.apply(p, x)
    f = jax.vmap(layer.apply, in_axes=(None, 0))
    np.testing.assert_allclose(
        jax.pmap(f, in_axes=(None, 0))(p, x[:, None])[:, 0], expected, atol=1e-5
    )
    mesh = Mesh(np.array(jax.devices()), ("data",))
    sharded = jax.device_put(x, NamedSharding(mesh, P("data")))
    np.testing.assert_allclose(jax.jit(f)(p, sharded), expected, atol=1e-5)
    inside = jax.shard_map(
        lambda p, x: jax.grad(lambda x: f(p, x).sum())(x) + 0 * x,
        mesh=mesh,
        in_specs=(P(), P("data")),
        out_specs=P("data"),
    )
    expected_gradient = jax.grad(lambda x: layer.apply(p, x).sum())(x)
    np.testing.assert_allclose(inside(p, x), expected_gradient, atol=1e-5)


def test_second_derivatives_of_mapped_products(dense):
    layer, p, x = dense

    def f(x):
        return jnp.sin(layer.apply(p, x)).sum()

    mapped = jax.jit(jax.hessian(lambda z: jax.vmap(f)(z).sum()))(x[:2, :1])
    for i in range(2):
        direct = jax.jit(jax.hessian(f))(x[i, :1])
        assert jnp.abs(direct).max() > 0.01
        np.testing.assert_allclose(mapped[i, :, :, i], direct, atol=1e-5)
    np.testing.assert_array_equal(mapped[0, :, :, 1], 0)
