"""Normalisation over features or groups of channels, and its modulation by a condition."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float


def normalize(x: Float[Array, "*rows d"], epsilon: float = 1e-6) -> Float[Array, "*rows d"]:
    """Layer normalisation without parameters: (x − mean)/√(variance + ε) over the last axis.

    The statistics and the result are float32 for every dtype of `x` except float64, which stays.
    Ba et al. 2016, eq. 4, without gain and bias.
    """
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    centred = x - x.mean(axis=-1, keepdims=True)
    variance = jnp.square(centred).mean(axis=-1, keepdims=True)
    return centred * jax.lax.rsqrt(variance + epsilon)


def modulate(
    x: Float[Array, "b n d"], shift: Float[Array, "b d"], scale: Float[Array, "b d"]
) -> Float[Array, "b n d"]:
    """Adaptive normalisation: x·(1 + scale) + shift, with one scale and shift for all tokens.

    Peebles & Xie 2023, section 3.2.  Zero shift and scale do not change `x`.
    """
    return x * (1 + scale[:, None, :]) + shift[:, None, :]


def group_norm(channels: int, dtype: Any, *, affine: bool, name: str | None = None) -> nn.GroupNorm:
    """Return group normalisation in up to 32 groups, of at least four channels where possible.

    Statistics are float32.  Groups of one channel would remove the mean of every channel, and with it
    the brightness of an image.   Wu & He 2018, eq. 1, ε = 1e-5.
    """
    groups = math.gcd(32, channels)
    while groups > 1 and channels // groups < 4:
        groups //= 2
    return nn.GroupNorm(
        groups, epsilon=1e-5, dtype=dtype, use_bias=affine, use_scale=affine, name=name
    )
