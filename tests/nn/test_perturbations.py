"""Perturbed blocks: what each does, and that untouched blocks stay the same."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from guidedflow.models import DiT, stack_blocks
from guidedflow.nn.attention import attention
from guidedflow.nn.operations import XLA
from guidedflow.nn.perturbations import blur_tokens
from guidedflow.nn.transformer import Attention


def network(**fields):
    base = {"image_size": (4, 6), "channels": 1, "patch": 2, "width": 8, "depth": 3, "heads": 2}
    return DiT(**{**base, **fields})


@pytest.fixture(scope="module")
def case():
    x = jax.random.normal(jax.random.key(0), (2, 4, 6, 1))
    t = jnp.array([0.2, 0.7])
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(network().init, jax.random.key(1), x, t)["params"]
    p = jax.tree.map(lambda a: jnp.asarray(rng.normal(0, 0.3, a.shape), a.dtype), shapes)
    return x, t, p


@functools.partial(jax.jit, static_argnums=0)
def run(net, params, x, t):
    return net.apply({"params": params}, x, t)


def without_block(p, removed):
    kept = [i for i in range(3) if i != removed]
    rest = {k: v for k, v in p.items() if not k.startswith("blocks_")}
    return rest | {f"blocks_{new}": p[f"blocks_{old}"] for new, old in enumerate(kept)}


def test_no_perturbation_and_no_blocks_are_the_network_itself(case):
    x, t, p = case
    base = run(network(), p, x, t)
    for fields in ({"perturb_blocks": (1,)}, {"perturbation": "skip"}, {"perturbation": "blur"}):
        np.testing.assert_array_equal(run(network(**fields), p, x, t), base)


@pytest.mark.parametrize("block", [0, 1, 2])
def test_skip_is_the_network_without_the_block(case, block):
    x, t, p = case
    skipping = network(perturb_blocks=(block,), perturbation="skip")
    short = run(network(depth=2), without_block(p, block), x, t)
    np.testing.assert_allclose(run(skipping, p, x, t), short, atol=1e-5)


def attend(perturbation, sigma=1.0):
    return Attention(2, perturbation, (2, 3), sigma, jnp.float32, XLA())


def test_identity_attention_is_the_projected_values():
    x = jax.random.normal(jax.random.key(0), (2, 6, 8))
    p = attend("none").init(jax.random.key(1), x, None)
    v = (x @ p["params"]["qkv"]["kernel"])[..., 16:]
    expected = v @ p["params"]["proj"]["kernel"]
    np.testing.assert_allclose(attend("identity_attention").apply(p, x, None), expected, atol=1e-5)


def test_an_infinite_blur_gives_every_token_the_answer_to_the_mean_query():
    x = jax.random.normal(jax.random.key(0), (2, 6, 8))
    p = attend("none").init(jax.random.key(1), x, None)
    packed = (x @ p["params"]["qkv"]["kernel"]).reshape(2, 6, 3, 2, 4)
    q, k, v = (packed[:, :, i] for i in range(3))
    mixed = attention(jnp.broadcast_to(q.mean(1, keepdims=True), q.shape), k, v)
    expected = mixed.reshape(2, 6, 8) @ p["params"]["proj"]["kernel"]
    got = attend("blur", float("inf")).apply(p, x, None)
    np.testing.assert_allclose(got, expected, atol=1e-5)


def test_blur_goes_from_nothing_to_the_mean():
    x = jax.random.normal(jax.random.key(0), (1, 12, 2, 4))
    np.testing.assert_allclose(blur_tokens(x, (3, 4), 1e-3), x, atol=1e-6)
    mean = jnp.broadcast_to(x.mean(1, keepdims=True), x.shape)
    np.testing.assert_allclose(blur_tokens(x, (3, 4), 1e4), mean, atol=1e-5)


def test_blur_of_a_point_is_a_gaussian_on_the_grid():
    point = jnp.zeros((5, 7)).at[2, 3].set(1.0).reshape(1, 35, 1, 1)
    spread = blur_tokens(point, (5, 7), 0.6).reshape(5, 7)
    assert spread[2, 3] / spread[2, 4] == pytest.approx(np.exp(1 / (2 * 0.36)), rel=0.05)
    assert spread[2, 3] / spread[1, 3] == pytest.approx(np.exp(1 / (2 * 0.36)), rel=0.05)


@pytest.mark.parametrize("perturbation", ["identity_attention", "skip", "blur"])
def test_a_scanned_network_is_perturbed_in_the_same_blocks(case, perturbation):
    x, t, p = case
    fields = {"perturb_blocks": (0, 2), "perturbation": perturbation, "blur_sigma": 1.0}
    unrolled = run(network(**fields), p, x, t)
    scanned = network(**fields, scan_layers=True, remat="full")
    got = run(scanned, stack_blocks(p, 3), x, t)
    np.testing.assert_allclose(got, unrolled, atol=1e-5)
    assert jnp.abs(unrolled - run(network(), p, x, t)).max() > 1e-2


def test_a_perturbed_network_starts_with_all_parameters(case):
    x, t, p = case
    net = network(perturb_blocks=(1,), perturbation="skip")
    perturbed = jax.eval_shape(net.init, jax.random.key(1), x, t)
    assert jax.tree.map(jnp.shape, perturbed["params"]) == jax.tree.map(jnp.shape, p)
