"""Self-attention by compiled kernels against float64 and XLA, forwards, backwards, mapped, sharded."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from einops import rearrange
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from units import normal, on_all_units

from guidedflow.native import library
from guidedflow.native.attention import self_attention
from guidedflow.nn.operations import XLA
from guidedflow.training.flops import counted

pytestmark = on_all_units
plain = XLA("cpu").self_attention


def by(units):
    return partial(self_attention, units=units)


def gradient(function, packed, cotangent, heads):
    return jax.vjp(lambda packed: function(packed, heads), packed)[1](cotangent)[0]


def exact(packed, cotangent, heads):
    """The result and its gradient, in float64: dp = do·vᵀ, ds = p∘(dp − Σ p∘dp)."""
    packed, cotangent = np.asarray(packed, np.float64), np.asarray(cotangent, np.float64)
    q, k, v = rearrange(packed, "b n (three h d) -> three b h n d", three=3, h=heads)
    do = rearrange(cotangent, "b n (h d) -> b h n d", h=heads)
    scale = q.shape[-1] ** -0.5
    s = scale * q @ np.swapaxes(k, -1, -2)
    p = np.exp(s - s.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    dp = do @ np.swapaxes(v, -1, -2)
    ds = scale * p * (dp - (p * dp).sum(-1, keepdims=True))
    parts = np.stack([ds @ k, np.swapaxes(ds, -1, -2) @ q, np.swapaxes(p, -1, -2) @ do])
    return (
        rearrange(p @ v, "b h n d -> b n (h d)"),
        rearrange(parts, "three b h n d -> b n (three h d)"),
    )


SHAPES = [
    (1, 1, 1, 1),
    (2, 17, 2, 8),
    (1, 33, 1, 72),
    (3, 64, 2, 16),
    (1, 300, 2, 40),
    (1, 700, 1, 64),
]


@pytest.mark.parametrize(("b", "n", "h", "d"), SHAPES)
@pytest.mark.parametrize("size", [1.0, 8.0])
def test_the_error_is_that_of_float32(units, b, n, h, d, size):
    """No more than four times XLA's own, and 2⁻²² of the largest number, where XLA's happens to be 0.

    With numbers of size 8 the largest logits pass 100: one token takes all the weight.
    """
    fused = by(units)
    packed, cotangent = size * normal(0, b, n, 3 * h * d), normal(1, b, n, h * d)
    of_value, of_gradient = exact(packed, cotangent, h)
    for function, expected in (
        (lambda f: f(packed, h), of_value),
        (lambda f: gradient(f, packed, cotangent, h), of_gradient),
    ):
        error, own = (np.abs(function(f) - expected).max() for f in (fused, plain))
        assert error <= 4 * own + 2**-22 * np.abs(expected).max()


def test_equal_keys_give_the_mean_of_the_values(units):
    fused = by(units)
    packed = normal(0, 2, 50, 3 * 16).at[..., 16:32].set(0.7)
    got = fused(packed, 2)
    mean = np.asarray(packed[..., 32:], np.float64).mean(1, keepdims=True)
    # Weights of 1/50, sums of 50 terms.
    np.testing.assert_allclose(got, np.broadcast_to(mean, got.shape), atol=60 * 2**-24 * 4)


def test_logits_far_apart_neither_overflow_nor_vanish(units):
    """Logits of 0 and ±10⁵: each token attends to itself alone, or to all with its sign."""
    fused = by(units)
    eye = jnp.eye(8)[None]
    values = normal(0, 1, 8, 8)
    packed = jnp.concatenate([1e3 * eye, 1e3 * eye, values], axis=-1)
    np.testing.assert_allclose(fused(packed, 1), values, rtol=2**-22)


def test_what_is_not_finite_stays_visible_and_stays_in_its_head(units):
    fused = by(units)
    packed = normal(0, 1, 20, 3 * 16).at[0, 3, 16].set(jnp.nan)
    got = np.asarray(fused(packed, 2))
    assert np.isnan(got[..., :8]).all()
    assert np.isfinite(got[..., 8:]).all()


def test_no_tokens_and_no_examples(units):
    fused = by(units)
    for shape in ((0, 5, 12), (2, 0, 12)):
        assert fused(jnp.ones(shape), 2).shape == (*shape[:2], 4)
        assert gradient(fused, jnp.ones(shape), jnp.ones((*shape[:2], 4)), 2).shape == shape


@pytest.mark.parametrize("axis", [0, 1, 3])
def test_vmap_is_a_larger_batch(units, axis):
    fused = by(units)
    packed, cotangent = normal(0, 3, 2, 9, 24), normal(1, 3, 2, 9, 8)
    moved = jnp.moveaxis(packed, 0, axis)
    flat = packed.reshape(6, 9, 24)
    got = jax.vmap(lambda p: fused(p, 2), axis)(moved)
    np.testing.assert_array_equal(got.reshape(6, 9, 8), fused(flat, 2))
    got = jax.vmap(lambda p, c: gradient(fused, p, c, 2), (axis, 0))(moved, cotangent)
    expected = gradient(fused, flat, cotangent.reshape(6, 9, 8), 2)
    np.testing.assert_array_equal(got.reshape(6, 9, 24), expected)


def test_vmap_over_cotangents_alone_and_nested(units):
    fused = by(units)
    packed, cotangent = normal(0, 2, 9, 24), normal(1, 2, 3, 2, 9, 8)
    got = jax.vmap(jax.vmap(lambda c: gradient(fused, packed, c, 2)))(cotangent)
    for i in range(2):
        for j in range(3):
            expected = gradient(fused, packed, cotangent[i, j], 2)
            np.testing.assert_array_equal(got[i, j], expected)


def loss(packed, function):
    return jnp.sum(jnp.sin(function(packed, 2)))


@pytest.mark.parametrize(
    "derivative",
    [
        lambda f: lambda x: jax.jvp(f, (x,), (jnp.cos(x),))[1],
        lambda f: jax.hessian(f),
        lambda f: jax.jacrev(jax.grad(f)),
        lambda f: jax.grad(jax.checkpoint(f)),
        lambda f: jax.grad(lambda x: jnp.sum(jax.grad(f)(x) ** 2)),
        lambda f: jax.grad(lambda x: jax.lax.scan(lambda c, _: (c + f(x), None), 0.0, None, 3)[0]),
    ],
    ids=["forwards", "hessian", "twice backwards", "remat", "penalty", "scan"],
)
def test_derivatives_of_every_mode_and_order(units, derivative):
    fused = by(units)
    packed = normal(0, 1, 5, 3 * 4)
    got, expected = (
        jax.jit(derivative(partial(loss, function=function)))(packed) for function in (fused, plain)
    )
    np.testing.assert_allclose(got, expected, atol=2e-5 * np.abs(expected).max())


def test_the_gradient_transposes_back(units):
    """⟨gradient(c), t⟩ = ⟨tangent(t), c⟩, and the gradient is linear in c."""
    fused = by(units)
    packed, t, c = normal(0, 2, 7, 24), normal(1, 2, 7, 24), normal(2, 2, 7, 8)
    back = jax.linear_transpose(lambda c: gradient(fused, packed, c, 2), c)
    (tangent,) = back(t)
    expected = jax.jvp(lambda p: plain(p, 2), (packed,), (t,))[1]
    np.testing.assert_allclose(tangent, expected, atol=1e-5)
    np.testing.assert_allclose(
        jnp.vdot(gradient(fused, packed, c, 2), t), jnp.vdot(expected, c), rtol=1e-4
    )


def test_one_program_forwards_and_one_backwards(units):
    fused = by(units)
    packed = normal(0, 2, 16, 24)
    value_and_grad = jax.jit(jax.value_and_grad(lambda p: loss(p, fused)))
    text = value_and_grad.lower(packed).as_text()
    assert (
        text.count(f"@{library.target(library.ATTENTION, units)}(")
        == text.count(f"@{library.target(library.ATTENTION_GRADIENT, units)}(")
        == 1
    )
    assert "dot_general" not in text


def test_sharded_it_is_the_same(units):
    fused = by(units)
    mesh = Mesh(np.asarray(jax.devices()[:4]), ("data",))
    packed = normal(0, 8, 9, 24)
    rows = jax.device_put(packed, NamedSharding(mesh, P("data")))
    expected = jax.jit(jax.grad(lambda p: loss(p, fused)))(packed)
    np.testing.assert_array_equal(jax.jit(jax.grad(lambda p: loss(p, fused)))(rows), expected)
    mapped = jax.shard_map(
        jax.grad(lambda p: loss(p, fused)), mesh=mesh, in_specs=P("data"), out_specs=P("data")
    )
    np.testing.assert_array_equal(jax.jit(mapped)(rows), expected)


def test_operations_are_counted(units):
    fused = by(units)
    packed = jnp.ones((2, 10, 3 * 12))
    product = 2 * 2 * 10 * 10 * 12
    assert counted(lambda p: fused(p, 3), packed) == 2 * product
    assert counted(jax.grad(lambda p: jnp.sum(fused(p, 3))), packed) == 7 * product


def test_features_that_do_not_divide_are_refused(units):
    fused = by(units)
    with pytest.raises(ValueError, match=r"no 5 heads of .* in float32\(2, 9, 24\)"):
        fused(jnp.ones((2, 9, 24)), 5)
