"""Convolutions: the same function on every device; groups that keep the brightness."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from guidedflow.nn.convolutions import Convolution
from guidedflow.nn.normalization import group_norm


@pytest.mark.parametrize("stride", [1, 2])
def test_the_product_on_cpu_is_the_convolution_of_other_devices(monkeypatch, stride):
    layer = Convolution(5, jnp.float32, stride=stride)
    x = jax.random.normal(jax.random.key(0), (2, 4, 6, 3))
    p = layer.init(jax.random.key(1), x)
    p = {"params": {**p["params"], "bias": jnp.arange(5.0)}}
    product = layer.apply(p, x)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    np.testing.assert_allclose(product, layer.apply(p, x), atol=1e-5)
    assert product.shape == (2, 4 // stride, 6 // stride, 5)


def test_a_mapped_convolution_is_that_of_each_image():
    layer = Convolution(5, jnp.float32)
    x = jax.random.normal(jax.random.key(0), (3, 2, 4, 6, 3))
    p = layer.init(jax.random.key(1), x[0])
    mapped = jax.vmap(lambda x: layer.apply(p, x))(x)
    np.testing.assert_allclose(mapped[1], layer.apply(p, x[1]), atol=1e-5)


@pytest.mark.parametrize(("channels", "groups"), [(8, 2), (32, 8), (128, 32), (12, 2), (6, 1)])
def test_groups_have_at_least_four_channels(channels, groups):
    assert group_norm(channels, jnp.float32, affine=False).num_groups == groups
