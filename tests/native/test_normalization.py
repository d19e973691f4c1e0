"""Adaptive normalisation by compiled kernels against float64 and XLA, and its derivatives."""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from units import normal, on_all_units

from guidedflow.models.dit import DiT
from guidedflow.native import library, operations
from guidedflow.native.normalization import adaptive_normalize
from guidedflow.nn.normalization import modulate, normalize
from guidedflow.nn.operations import XLA
from guidedflow.training.flops import counted

pytestmark = on_all_units
ROUNDING = 2**-24


def plain(x, shift, scale, epsilon=1e-6):
    return modulate(normalize(x, epsilon), shift, scale)


def through_operations(units):
    return operations(units, XLA("cpu")).adaptive_normalize


def by(units):
    return partial(adaptive_normalize, units=units)


def operands(b, n, d, seed=0):
    """Tokens, shift and scale."""
    return normal(seed, b, n, d), normal(seed + 1, b, d), normal(seed + 2, b, d)


def gradient(function, cotangent, *operands):
    return jax.vjp(function, *operands)[1](cotangent)


def exact(x, shift, scale, cotangent=0.0, epsilon=1e-6):
    """The result, its gradient and 1/σ, in float64: dx = (g − mean g − z·mean(g·z))/σ."""
    x, shift, scale, dy = (np.asarray(v, np.float64) for v in (x, shift, scale, cotangent))
    centred = x - x.mean(-1, keepdims=True)
    inverse = 1 / np.sqrt((centred**2).mean(-1, keepdims=True) + epsilon)
    z = centred * inverse
    g = dy * (1 + scale[:, None])
    dx = inverse * (g - g.mean(-1, keepdims=True) - z * (g * z).mean(-1, keepdims=True))
    y = z * (1 + scale[:, None]) + shift[:, None]
    return y, (dx, (dy + 0 * x).sum(1), (dy * z).sum(1)), inverse


SHAPES = [
    (1, 1, 1),
    (2, 3, 5),
    (5, 1, 16),
    (3, 7, 33),
    (2, 40, 64),
    (700, 1, 20),
    (2, 100, 129),
    (4, 256, 384),
    (1, 5, 1536),
]


@pytest.mark.parametrize(("b", "n", "d"), SHAPES)
def test_the_error_is_that_of_float32(units, b, n, d):
    """Twelve roundings of the largest number lie between the tokens and the result: a centred number's
    three, the deviation's four, the products' and the modulation's; a sum's chain is d/64 + 8 long."""
    x, shift, scale = operands(b, n, d)
    expected, _, _ = exact(x, shift, scale)
    got = by(units)(x, shift, scale)
    # A deviation is within the chain's roundings of the largest number, and √ε is the least divisor.
    _, _, inverse = exact(x, shift, scale)
    size = np.abs(np.asarray(x, np.float64)).max(-1, keepdims=True) * inverse
    bound = (d / 64 + 20) * ROUNDING * (1 + np.abs(np.asarray(scale)[:, None])) * (1 + size)
    bound += 2 * ROUNDING * np.abs(np.asarray(shift)[:, None])
    assert (np.abs(got - expected) <= bound).all()


@pytest.mark.parametrize(("b", "n", "d"), SHAPES)
def test_the_gradients_error_is_that_of_float32(units, b, n, d):
    """No more than four times XLA's own, and 2⁻²¹ of the largest number, where XLA's happens to be 0."""
    x, shift, scale = operands(b, n, d)
    cotangent = normal(3, b, n, d)
    _, expected, inverse = exact(x, shift, scale, cotangent)
    for got, own, right in zip(
        gradient(by(units), cotangent, x, shift, scale),
        gradient(plain, cotangent, x, shift, scale),
        expected,
        strict=True,
    ):
        # Of a single feature, dx is what remains of g − g times 1/√ε.
        largest = max(np.abs(right).max(), inverse.max() if d == 1 else 0)
        assert np.abs(got - right).max() <= 4 * np.abs(own - right).max() + 2**-21 * largest


def test_a_mean_far_from_zero_does_no_harm(units):
    """Of mean 1000 and deviation 10⁻², whose numbers are 160 roundings of the mean apart."""
    x, shift, scale = operands(2, 50, 384)
    x = 1e3 + 1e-2 * x
    expected, right, _ = exact(x, shift, scale, cotangent := normal(3, 2, 50, 384))
    error, own = (np.abs(f(x, shift, scale) - expected).max() for f in (by(units), plain))
    assert error <= min(own, 1e-4)
    got = gradient(by(units), cotangent, x, shift, scale)
    for number, expected in zip(got, right, strict=True):
        np.testing.assert_allclose(number, expected, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("value", [0.0, 0.7, -1e6, 1e12])
def test_a_constant_row_is_the_shift(units, value):
    _, shift, scale = operands(2, 3, 77)
    got = by(units)(jnp.full((2, 3, 77), value), shift, scale)
    if abs(value) <= 1:
        np.testing.assert_allclose(got, jnp.broadcast_to(shift[:, None], got.shape), atol=1e-6)
    assert np.isfinite(got).all()


def test_epsilon_is_added_to_the_variance(units):
    x, shift, scale = operands(2, 4, 24)
    cotangent = normal(3, 2, 4, 24)
    fused = partial(adaptive_normalize, units=units, epsilon=0.5)
    expected, right, _ = exact(x, shift, scale, cotangent, epsilon=0.5)
    np.testing.assert_allclose(fused(x, shift, scale), expected, atol=1e-5)
    for got, wanted in zip(gradient(fused, cotangent, x, shift, scale), right, strict=True):
        np.testing.assert_allclose(got, wanted, atol=1e-5)


def test_what_is_not_finite_stays_visible_and_stays_in_its_row(units):
    x, shift, scale = operands(2, 6, 40)
    for bad in (jnp.nan, jnp.inf):
        broken = x.at[1, 2, 39].set(bad)
        got = np.array(by(units)(broken, shift, scale))
        dx, _, dscale = map(np.array, gradient(by(units), jnp.ones_like(x), broken, shift, scale))
        assert np.isnan(got[1, 2]).all()
        assert np.isnan(dx[1, 2]).all()
        assert np.isnan(dscale[1]).all()
        assert np.isfinite(dscale[0]).all()
        for numbers in (got, dx):
            numbers[1, 2] = 0
            assert np.isfinite(numbers).all()


def test_no_tokens_and_no_examples(units):
    for b, n in ((0, 5), (2, 0)):
        x, shift, scale = operands(b, n, 12)
        assert by(units)(x, shift, scale).shape == x.shape
        dx, dshift, dscale = gradient(by(units), x, x, shift, scale)
        assert dx.shape == x.shape
        np.testing.assert_array_equal(dshift, jnp.zeros((b, 12)))
        np.testing.assert_array_equal(dscale, jnp.zeros((b, 12)))
        mapped = jax.vmap(by(units), (None, 0, None))(x, shift[None], scale)
        assert mapped.shape == (1, *x.shape)


def test_a_result_does_not_depend_on_what_ran_when(units):
    x, shift, scale = operands(4, 256, 384)
    backwards = jax.jit(partial(gradient, by(units)))
    first = backwards(x, x, shift, scale)
    for _ in range(10):
        jax.tree.map(np.testing.assert_array_equal, backwards(x, x, shift, scale), first)


@pytest.mark.parametrize("mapped", list(itertools.product([False, True], repeat=3))[1:], ids=str)
def test_vmap_is_a_larger_batch(units, mapped):
    axes = tuple(axis if maps else None for axis, maps in zip((1, 0, 2), mapped, strict=True))
    shapes = (2, 5, 20), (2, 20), (2, 20)
    values = [
        normal(i, *((*s[:axis], 3, *s[axis:]) if axis is not None else s))
        for i, (s, axis) in enumerate(zip(shapes, axes, strict=True))
    ]
    cotangent = normal(3, 2, 5, 20)
    for function in (
        lambda f: f,
        lambda f: partial(gradient, f, cotangent),
        lambda f: lambda *v: jax.jvp(f, v, tuple(map(jnp.cos, v)))[1],
    ):
        got, expected = (jax.vmap(function(f), axes)(*values) for f in (by(units), plain))
        jax.tree.map(partial(np.testing.assert_allclose, atol=2e-5), got, expected)


def test_vmap_over_cotangents_alone_and_nested(units):
    values, cotangent = operands(2, 5, 20), normal(3, 2, 3, 2, 5, 20)
    got = jax.vmap(jax.vmap(lambda c: gradient(by(units), c, *values)))(cotangent)
    for i, j in itertools.product(range(2), range(3)):
        expected = gradient(by(units), cotangent[i, j], *values)
        for number, other in zip(got, expected, strict=True):
            np.testing.assert_array_equal(number[i, j], other)


def loss(function, x, shift, scale):
    return jnp.sum(
        jnp.sin(function(x, shift, scale)) * jnp.cos(jnp.arange(x.size)).reshape(x.shape)
    )


EVERY = (0, 1, 2)


def penalty(function):
    gradients = jax.grad(function, EVERY)
    return jax.grad(lambda *v: sum(jnp.sum(part**2) for part in gradients(*v)), EVERY)


@pytest.mark.parametrize(
    "derivative",
    [
        lambda f: jax.jacfwd(f, EVERY),
        lambda f: jax.hessian(f, EVERY),
        lambda f: jax.jacrev(jax.grad(f, EVERY), EVERY),
        lambda f: jax.grad(f, 0),
        lambda f: jax.grad(f, 1),
        lambda f: jax.jacfwd(f, 2),
        lambda f: jax.grad(jax.checkpoint(f), EVERY),
        penalty,
    ],
    ids=["forwards", "hessian", "backwards twice", "x", "shift", "scale", "remat", "penalty"],
)
def test_derivatives_of_every_mode_and_order(units, derivative):
    values = operands(2, 3, 5)
    got, expected = (
        jax.jit(derivative(partial(loss, function)))(*values) for function in (by(units), plain)
    )
    for number, other in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(number, other, atol=2e-5 * max(1, np.abs(other).max()))


def test_the_gradient_transposes_back(units):
    """⟨gradient(c), t⟩ = ⟨tangent(t), c⟩, and the gradient is linear in c."""
    values, tangents, c = operands(2, 7, 24), operands(2, 7, 24, seed=4), normal(3, 2, 7, 24)
    back = jax.linear_transpose(lambda c: gradient(by(units), c, *values), c)
    (tangent,) = back(tangents)
    expected = jax.jvp(plain, values, tangents)[1]
    np.testing.assert_allclose(tangent, expected, atol=2e-5)
    pairs = zip(gradient(by(units), c, *values), tangents, strict=True)
    inner = sum(jnp.vdot(part, t) for part, t in pairs)
    np.testing.assert_allclose(inner, jnp.vdot(expected, c), rtol=1e-4)


def test_one_program_forwards_and_one_backwards(units):
    values = operands(2, 16, 24)
    function = through_operations(units)
    value_and_grad = jax.jit(jax.value_and_grad(partial(loss, function), EVERY))
    text = value_and_grad.lower(*values).as_text()
    assert (
        text.count(f"@{library.target(library.NORMALIZE, units)}(")
        == text.count(f"@{library.target(library.NORMALIZE_GRADIENT, units)}(")
        == 1
    )
    assert "rsqrt" not in text
    assert counted(partial(loss, function), *values) == 0


def test_a_derivative_keeps_tokens_and_scale_alone(units):
    x, shift, scale = operands(2, 16, 24)
    _, backwards = jax.vjp(by(units), x, shift, scale)
    kept = jax.tree.leaves(backwards)
    assert sum(v.size for v in kept) <= x.size + scale.size


def test_under_shard_map_a_shared_shift_gets_the_sum_of_the_gradients(units):
    mesh = Mesh(np.asarray(jax.devices()[:4]), ("data",))
    x, shift, scale = operands(8, 9, 24)

    def shared(function):
        def total(x, shift, scale):
            wide = [jnp.broadcast_to(v, (len(x), 24)) for v in (shift, scale)]
            return jnp.sum(jnp.sin(function(x, *wide)))

        return jax.grad(total, EVERY)

    values = x, shift[:1], scale[:1]
    expected = jax.jit(shared(plain))(*values)
    mapped = jax.shard_map(
        shared(by(units)),
        mesh=mesh,
        in_specs=(P("data"), P(), P()),
        out_specs=(P("data"), P(), P()),
    )
    got = jax.jit(mapped)(*values)
    jax.tree.map(partial(np.testing.assert_allclose, atol=1e-4), got, expected)


@pytest.mark.parametrize("order", [jax.grad, jax.hessian])
def test_under_shard_map_operands_may_vary_unlike(units, order):
    """Each device has examples of its own and all have one shift and scale."""
    mesh = Mesh(np.asarray(jax.devices()[:2]), ("data",))
    x, shift, scale = operands(2, 3, 4)
    values = x, shift[:1], scale[:1]

    def mapped(function):
        def total(x, shift, scale):
            return jax.lax.psum(jnp.sum(jnp.sin(function(x, shift, scale))), "data")

        specs = P("data"), P(), P()
        whole = jax.shard_map(total, mesh=mesh, in_specs=specs, out_specs=P())
        return jax.jit(order(whole, EVERY))

    got, expected = (mapped(function)(*values) for function in (by(units), plain))
    for number, other in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(number, other, atol=1e-4)


def test_sharded_it_is_the_same(units):
    mesh = Mesh(np.asarray(jax.devices()[:4]), ("data",))
    values = operands(8, 9, 24)
    backwards = jax.jit(jax.grad(partial(loss, by(units)), EVERY))
    rows = jax.device_put(values, NamedSharding(mesh, P("data")))
    jax.tree.map(np.testing.assert_array_equal, backwards(*rows), backwards(*values))


def test_half_precision_and_wrong_shapes(units):
    x, shift, scale = operands(2, 3, 8)
    half = x.astype(jnp.bfloat16)
    with pytest.raises(ValueError, match="no adaptive normalisation of bfloat16"):
        by(units)(half, shift, scale)
    for values in ((x, shift[:1], scale), (x, shift, scale[:, :4]), (x[0], shift, scale)):
        with pytest.raises(ValueError, match="no adaptive normalisation of float32"):
            by(units)(*values)
    # Where the modulation is float32, so are the statistics and the result.
    ours, xla = through_operations(units), XLA("cpu").adaptive_normalize
    got = ours(half, shift, scale)
    np.testing.assert_allclose(got, xla(half, shift, scale), atol=1e-5)
    assert got.dtype == jnp.float32
    wholly = [v.astype(jnp.bfloat16) for v in (x, shift, scale)]
    np.testing.assert_array_equal(ours(*wholly), xla(*wholly))


def test_a_network_is_the_same_function(units):
    def make(name):
        made = XLA("cpu") if name == "xla" else operations(name, XLA("cpu"))
        return DiT(8, 3, 2, 16, 2, 2, num_classes=4, operations=made)

    x, t, label = normal(0, 3, 8, 8, 3), jnp.linspace(0.1, 0.9, 3), jnp.arange(3)
    params = make("xla").init(jax.random.key(0), x, t, label)
    # A new network's modulations are zero.
    params = jax.tree.map(lambda p: p + 0.1 * normal(p.size, *p.shape), params)

    def value_and_grad(name):
        def energy(params):
            return jnp.sum(jnp.sin(make(name).apply(params, x, t, label)))

        return jax.jit(jax.value_and_grad(energy))

    text = value_and_grad(units).lower(params).as_text()
    assert text.count(f"@{library.target(library.NORMALIZE, units)}(") == 5
    assert text.count(f"@{library.target(library.NORMALIZE_GRADIENT, units)}(") == 5
    got, expected = value_and_grad(units)(params), value_and_grad("xla")(params)
    for number, other in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(number, other, atol=3e-5 * max(1, np.abs(other).max()))
