"""Every arrangement of attention is the same function; the choice is said."""

import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from guidedflow.nn.attention import attention, pick
from guidedflow.nn.fallbacks import say_once
from guidedflow.nn.operations import XLA


def reference(q, k, v):
    """Softmax attention of one head written out, in float64."""
    q, k, v = (np.asarray(a, np.float64) for a in (q, k, v))
    out = np.zeros(q.shape)
    for b, h in np.ndindex(q.shape[0], q.shape[2]):
        logits = q[b, :, h] @ k[b, :, h].T / np.sqrt(q.shape[-1])
        weights = np.exp(logits - logits.max(1, keepdims=True))
        out[b, :, h] = weights / weights.sum(1, keepdims=True) @ v[b, :, h]
    return out


def inputs(*leading, tokens=5):
    shape = (*leading, 2, tokens, 3, 4)
    return [2 * jax.random.normal(jax.random.key(i), shape) for i in range(3)]


@pytest.mark.parametrize("backend", ["xla", "cpu"])
def test_backends_agree_with_the_formula(backend):
    q, k, v = inputs()
    k, v = k[:, :4], v[:, :4]
    np.testing.assert_allclose(attention(q, k, v, backend=backend), reference(q, k, v), atol=1e-5)


@pytest.mark.parametrize("backend", ["xla", "cpu"])
@pytest.mark.parametrize("axes", [(0, 0, 0), (0, None, None), (None, 0, 0)])
def test_mapped_attention_is_attention_of_each(backend, axes):
    full = inputs(3)
    arguments = [a if axis == 0 else a[0] for a, axis in zip(full, axes, strict=True)]
    mapped = jax.jit(jax.vmap(lambda *a: attention(*a, backend=backend), axes))(*arguments)
    for i in range(3):
        each = [a[i] if axis == 0 else a for a, axis in zip(arguments, axes, strict=True)]
        np.testing.assert_allclose(mapped[i], reference(*each), atol=1e-5)


def test_attention_maps_twice():
    full = inputs(2, 3)
    twice = jax.vmap(jax.vmap(lambda *a: attention(*a, backend="cpu")))(*full)
    np.testing.assert_allclose(twice[1, 2], reference(*(a[1, 2] for a in full)), atol=1e-5)


def test_backends_agree_in_gradients_also_when_mapped():
    full = inputs(3)

    def grads(backend):
        def loss(*a):
            return jnp.sin(attention(*a, backend=backend)).sum()

        return jax.vmap(jax.grad(loss, argnums=(0, 1, 2)))(*full)

    for a, b in zip(grads("cpu"), grads("xla"), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_backends_agree_in_forward_derivatives():
    q, k, v = inputs()
    pairs = [
        jax.jvp(lambda q, b=b: attention(q, k, v, backend=b), (q,), (k,)) for b in ("cpu", "xla")
    ]
    np.testing.assert_allclose(pairs[0][1], pairs[1][1], atol=1e-5)


@pytest.mark.parametrize("backend", ["xla", "cpu"])
def test_softmax_stays_in_float32_when_the_dtype_is_smaller(backend):
    q, k, v = (a.astype(jnp.bfloat16) for a in inputs(tokens=64))
    out = attention(q, k, v, backend=backend)
    assert out.dtype == jnp.bfloat16
    np.testing.assert_allclose(out.astype(jnp.float32), reference(q, k, v), rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("backend", ["xla", "cpu"])
def test_large_logits_do_not_overflow(backend):
    q, k, v = inputs()
    np.testing.assert_allclose(
        attention(100 * q, k, v, backend=backend), reference(100 * q, k, v), atol=1e-4
    )


@pytest.mark.parametrize(
    ("platform", "dtype", "name"),
    [
        ("cpu", jnp.float32, "cpu"),
        ("gpu", jnp.bfloat16, "cudnn"),
        ("gpu", jnp.float16, "cudnn"),
        ("gpu", jnp.float32, "xla"),
        ("tpu", jnp.bfloat16, "xla"),
    ],
)
def test_auto_picks_what_suits_the_platform(platform, dtype, name):
    assert pick("auto", platform, dtype)[0] == name
    assert XLA(platform).attention_name(dtype) == name


def test_cudnn_falls_back_with_a_message(caplog):
    q, k, v = (a.astype(jnp.bfloat16) for a in inputs())
    say_once.cache_clear()
    with caplog.at_level(logging.WARNING):
        without_gpu = XLA("cpu", "cudnn").attention(q, k, v)
        refused = XLA("gpu").attention(q, k, v)
    messages = [record.message for record in caplog.records]
    assert any("cuDNN needs a GPU" in message for message in messages)
    assert any("cuDNN refused (2, 5, 3, 4) bfloat16" in message for message in messages)
    np.testing.assert_array_equal(without_gpu, refused)
    np.testing.assert_array_equal(refused, attention(q, k, v, backend="xla"))


@pytest.mark.parametrize("backend", ["xla", "cpu"])
def test_keys_that_are_masked_out_are_as_if_they_were_not_there(backend):
    q, k, v = inputs()
    mask = jnp.array([[True] * 3 + [False] * 2, [True, False, True, True, False]])
    got = jax.jit(jax.vmap(lambda q: attention(q, k, v, mask, backend=backend)))(jnp.stack([q, -q]))
    changed = attention(q, k.at[~mask].set(7.0), v.at[~mask].set(-9.0), mask, backend=backend)
    np.testing.assert_array_equal(changed, attention(q, k, v, mask, backend=backend))
    for i, keep in enumerate(np.asarray(mask)):
        expected = reference(q[i : i + 1], k[i : i + 1, keep], v[i : i + 1, keep])
        np.testing.assert_allclose(got[0, i : i + 1], expected, atol=1e-5)
        opposite = reference(-q[i : i + 1], k[i : i + 1, keep], v[i : i + 1, keep])
        np.testing.assert_allclose(got[1, i : i + 1], opposite, atol=1e-5)


@pytest.mark.parametrize("backend", ["xla", "cpu"])
def test_an_example_without_keys_stays_finite(backend):
    q, k, v = inputs()
    out = attention(q, k, v, jnp.zeros((2, 5), bool), backend=backend)
    mean = np.broadcast_to(np.asarray(v).mean(1, keepdims=True), out.shape)
    np.testing.assert_allclose(out, mean, atol=1e-5)


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="did you mean 'cudnn'"):
        attention(*inputs(), backend="cudn")
    with pytest.raises(ValueError, match="did you mean 'cudnn'"):
        XLA("cpu", "cudn")
    with pytest.raises(ValueError, match="unknown platform 'npu'"):
        XLA("npu")
    with pytest.raises(ValueError, match=r"mask: expected shape \(2, 5\)"):
        attention(*inputs(), jnp.ones((2, 4), bool))
