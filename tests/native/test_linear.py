"""A layer and its gradient by compiled kernels against float64 and JAX's own derivatives."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from units import SHAPES, bound, exact, normal, on_all_units

from guidedflow.native import library
from guidedflow.native.linear import affine
from guidedflow.training.flops import counted


def layer(x, kernel, bias, gelu):
    return exact(formula(x) if gelu else x, kernel) + np.asarray(bias, np.float64)


def formula(x):
    x = np.asarray(x, np.float64)
    return x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))) / 2


@on_all_units
@pytest.mark.parametrize("gelu", [False, True])
@pytest.mark.parametrize(("m", "k", "n"), SHAPES)
def test_a_layer_has_the_error_of_float32(units, m, k, n, gelu):
    x, kernel, bias = normal(0, m, k), normal(1, k, n), normal(2, n)
    error = np.abs(affine(x, kernel, bias, units, gelu) - layer(x, kernel, bias, gelu))
    assert (error <= layer_bound(x, kernel, gelu) + 2**-24 * np.abs(bias)).all()


def layer_bound(x, y, gelu):
    """Twice a product's, and GELU's own rounding, a few parts in 2²⁴ of its argument."""
    return 2 * bound(x, y) + (2**-21 * exact(np.abs(x), np.abs(y)) if gelu else 0)


@on_all_units
@pytest.mark.parametrize("gelu", [False, True])
@pytest.mark.parametrize(("m", "k", "n"), SHAPES)
def test_the_gradient_of_a_layer_has_the_error_of_float32(units, m, k, n, gelu):
    x, ct = normal(0, m, k), normal(1, m, n)
    _, vjp = jax.vjp(lambda *p: affine(x, *p, units, gelu), normal(2, k, n), normal(3, n))
    of_kernel, of_bias = vjp(ct)
    left = (formula(x) if gelu else np.float64(x)).T
    error = np.abs(of_kernel - exact(left, ct))
    assert (error <= layer_bound(x.T, ct, gelu)).all()
    assert (np.abs(of_bias - np.float64(ct).sum(0)) <= m * 2**-24 * np.abs(ct).sum(0)).all()


@on_all_units
def test_a_gradient_is_one_program(units):
    def loss(kernel, bias):
        return jnp.sum(affine(x, kernel, bias, units, gelu=True) ** 2)

    x, kernel, bias = normal(0, 4, 3), normal(1, 3, 2), normal(2, 2)
    text = jax.jit(jax.grad(loss, (0, 1))).lower(kernel, bias).as_text()
    assert text.count("custom_call @guidedflow") == 2
    assert f"@{library.target(library.AFFINE_GRADIENT, units)}(" in text


@on_all_units
def test_gelu_far_out_is_its_argument_or_nothing(units):
    far = jnp.array([-jnp.inf, -3e38, -50.0, -10.0, 0.0, 10.0, 50.0, 3e38, jnp.nan])[:, None]
    got = affine(far, jnp.ones((1, 1)), jnp.zeros(1), units, gelu=True)
    np.testing.assert_allclose(got[:-1], np.maximum(far[:-1], 0), atol=1e-7)
    assert jnp.isnan(got[-1])


@on_all_units
def test_gelu_is_its_formula(units):
    near = jnp.linspace(-9, 9, 333)[:, None]
    got = affine(near, jnp.ones((1, 2)), jnp.zeros(2), units, gelu=True)
    assert (np.abs(got - formula(near)) <= 2**-21 * np.abs(near)).all()


def plain_layer(x, kernel, bias, gelu):
    return (jax.nn.gelu(x) if gelu else x) @ kernel + bias[None]


@on_all_units
@pytest.mark.parametrize("gelu", [False, True])
def test_derivatives_of_a_layer(units, gelu):
    operands = normal(0, 2, 3), normal(1, 3, 4), normal(2, 4)

    def of(f):
        def loss(*operands):
            return jnp.sum(jnp.sin(f(*operands)))

        each = [jax.grad(loss, i) for i in range(3)]
        return [*each, jax.jacfwd(loss, (0, 1, 2)), jax.hessian(loss, (0, 1, 2))]

    fast = of(partial(affine, units=units, gelu=gelu))
    for got, expected in zip(fast, of(partial(plain_layer, gelu=gelu)), strict=True):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5),
            jax.jit(got)(*operands),
            expected(*operands),
        )


@on_all_units
@pytest.mark.parametrize("gelu", [False, True])
def test_a_gradient_penalty_has_its_gradient(units, gelu):
    """Backwards through a backward pass, where the layer's gradient is differentiated itself."""
    operands = normal(0, 2, 3), normal(1, 3, 4), normal(2, 4)

    def penalty(f, *operands):
        grads = jax.grad(lambda *operands: jnp.sum(jnp.sin(f(*operands))), (0, 1, 2))(*operands)
        return sum(jnp.sum(jnp.sin(grad)) for grad in grads)

    fast, plain = (partial(f, gelu=gelu) for f in (partial(affine, units=units), plain_layer))
    got = jax.jit(jax.grad(partial(penalty, fast), (0, 1, 2)))(*operands)
    expected = jax.grad(partial(penalty, plain), (0, 1, 2))(*operands)
    for one, other in zip(got, expected, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


@on_all_units
@pytest.mark.parametrize("axes", [(0, None, None), (1, None, None), (0, 0, None), (None, None, 0)])
def test_vmap_of_a_layer_is_a_loop(units, axes):
    sizes = [(4, 5), (5, 6), (6,)]
    operands = [
        normal(i, *size[: axis or 0], 3, *size[axis or 0 :])
        if axis is not None
        else normal(i, *size)
        for i, (size, axis) in enumerate(zip(sizes, axes, strict=True))
    ]
    got = jax.vmap(partial(affine, units=units, gelu=True), axes)(*operands)
    expected = jax.vmap(partial(plain_layer, gelu=True), axes)(*operands)
    np.testing.assert_allclose(got, expected, atol=1e-5)


@on_all_units
def test_an_empty_layer_is_its_bias_and_other_shapes_are_refused(units):
    bias = normal(0, 3)
    got = affine(jnp.ones((2, 0)), jnp.ones((0, 3)), bias, units)
    np.testing.assert_array_equal(got, np.broadcast_to(bias, (2, 3)))
    with pytest.raises(ValueError, match="no layer of"):
        affine(jnp.ones((2, 4)), jnp.ones((4, 3)), normal(0, 4), units)
    assert counted(partial(affine, units=units), jnp.ones((2, 4)), jnp.ones((4, 3)), bias) == 48


@on_all_units
def test_under_shard_map_a_shared_layer_gets_the_sum_of_its_gradients(units):
    mesh = Mesh(np.asarray(jax.devices()[:4]), ("data",))
    operands = normal(0, 64, 32), normal(1, 32, 16), normal(2, 16)

    def loss(f, *operands):
        return jnp.sum(jnp.sin(f(*operands)))

    mapped = jax.shard_map(
        jax.grad(lambda *o: jax.lax.psum(loss(partial(affine, units=units), *o), "data"), (1, 2)),
        mesh=mesh,
        in_specs=(P("data"), P(), P()),
        out_specs=(P(), P()),
    )
    expected = jax.grad(partial(loss, partial(plain_layer, gelu=False)), (1, 2))(*operands)
    for got, right in zip(jax.jit(mapped)(*operands), expected, strict=True):
        np.testing.assert_allclose(got, right, atol=5e-5)
