"""Residual blocks of convolutions, and the descending half that U-Net and classifier share.

Dhariwal & Nichol 2021, "Diffusion Models Beat GANs on Image Synthesis", section 3 and appendix.
"""

import math
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from einops import rearrange
from flax import linen as nn
from jaxtyping import Array, Float

from guidedflow.models.attention import attention
from guidedflow.models.layers import Dense

_ZEROS = nn.initializers.zeros_init()


def group_norm(channels: int, dtype: Any, *, affine: bool, name: str | None = None) -> nn.GroupNorm:
    """Return group normalisation in the largest power of two of groups, at most 32, that divides.

    Statistics are float32.   Wu & He 2018, eq. 1, ε = 1e-5.
    """
    groups = math.gcd(32, channels)
    return nn.GroupNorm(
        groups, epsilon=1e-5, dtype=dtype, use_bias=affine, use_scale=affine, name=name
    )


def convolution(features: int, dtype: Any, *, zero: bool = False, stride: int = 1) -> nn.Conv:
    """Return a 3×3 convolution that keeps the size, or halves it with stride 2."""
    init = _ZEROS if zero else nn.initializers.lecun_normal()
    return nn.Conv(features, (3, 3), strides=stride, dtype=dtype, kernel_init=init)


class ResidualBlock(nn.Module):
    """Two convolutions around a skip, the second one's normalisation driven by the condition.

    x' = skip(x) + conv(silu((1 + scale)·norm(h) + shift)), h = conv(silu(norm(x))); the last
    convolution starts at zero, so that a new block is its skip.   Adaptive group normalisation:
    Dhariwal & Nichol 2021, eq. 3.

    Attributes:
      features: channels of the result.
      dtype: compute dtype.
    """

    features: int
    dtype: Any

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], c: Float[Array, "b d"]
    ) -> Float[Array, "b h w features"]:
        h = nn.silu(group_norm(x.shape[-1], self.dtype, affine=True, name="norm")(x))
        h = convolution(self.features, self.dtype)(h)
        modulation = Dense(2 * self.features, kernel_init=_ZEROS, dtype=self.dtype, name="modulate")
        scale, shift = jnp.split(modulation(nn.silu(c))[:, None, None, :], 2, axis=-1)
        h = group_norm(self.features, self.dtype, affine=False)(h) * (1 + scale) + shift
        h = convolution(self.features, self.dtype, zero=True)(nn.silu(h))
        if x.shape[-1] != self.features:
            x = Dense(self.features, dtype=self.dtype, name="skip")(x)
        return x + h


class ImageAttention(nn.Module):
    """Self-attention between all places of an image, added to it; zero at first.

    Attributes:
      head_width: channels of a head; the number of heads is the channels over it, at least one.
      backend: see `attention.attention`.
      dtype: compute dtype.
    """

    head_width: int
    backend: str
    dtype: Any

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        channels = x.shape[-1]
        tokens = rearrange(group_norm(channels, self.dtype, affine=True)(x), "b h w c -> b (h w) c")
        heads = max(1, channels // self.head_width)
        packed = Dense(3 * channels, dtype=self.dtype, name="qkv")(tokens)
        q, k, v = rearrange(packed, "b n (three k d) -> three b n k d", three=3, k=heads)
        mixed = rearrange(attention(q, k, v, self.backend), "b n k d -> b n (k d)")
        out = Dense(channels, kernel_init=_ZEROS, dtype=self.dtype, name="proj")(mixed)
        return x + out.reshape(x.shape)


class Level(nn.Module):
    """One residual block and, where asked for, attention after it.

    Attributes: `features` of the block; `attend`, whether attention follows; those of both parts.
    """

    features: int
    attend: bool
    head_width: int
    backend: str
    dtype: Any

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], c: Float[Array, "b d"]
    ) -> Float[Array, "b h w features"]:
        x = ResidualBlock(self.features, self.dtype, name="block")(x, c)
        if self.attend:
            x = ImageAttention(self.head_width, self.backend, self.dtype, name="attention")(x)
        return x


def check_levels(
    size: tuple[int, int], width: int, multipliers: tuple[int, ...], attend: tuple[int, ...]
) -> None:
    """Refuse levels that an image cannot be halved into.

    Raises:
      ValueError: a side that is not divisible by 2^(levels − 1), an odd width, a level to attend at
        that does not exist, or no level at all.
    """
    if not multipliers:
        raise ValueError("multipliers: expected at least one level, got ()")
    factor = 2 ** (len(multipliers) - 1)
    if size[0] % factor or size[1] % factor:
        levels = len(multipliers)
        raise ValueError(f"image {size[0]}×{size[1]}: {levels} levels need sides of {factor}·n")
    if width < 2 or width % 2:
        raise ValueError(f"width: expected an even number, got {width}")
    for level in attend:
        if not 0 <= level < len(multipliers):
            raise ValueError(f"attend: expected levels in [0, {len(multipliers)}), got {level}")


def descend(
    make_level: Callable[[int, int, str], nn.Module],
    x: Float[Array, "b h w c"],
    c: Float[Array, "b d"],
    features: tuple[int, ...],
    blocks: int,
    dtype: Any,
) -> list[Float[Array, "b _ _ _"]]:
    """Run the descending half: levels of blocks, a halving convolution between them.

    Call it inside a module's compact method.

    Args:
      make_level: (level, features, name) -> a `Level`.
      x, c: the image and the condition.
      features: channels of each level.
      blocks: residual blocks a level.
      dtype: compute dtype.
    Returns:
      Every intermediate image, the input's projection first, the lowest last.
    """
    images = [convolution(features[0], dtype)(x.astype(dtype))]
    for level, channels in enumerate(features):
        for index in range(blocks):
            images.append(make_level(level, channels, f"down_{level}_{index}")(images[-1], c))
        if level + 1 < len(features):
            images.append(convolution(channels, dtype, stride=2)(images[-1]))
    return images
