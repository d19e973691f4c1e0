"""Residual blocks of convolutions, and the descending half that U-Net and classifier share.

Dhariwal & Nichol 2021, "Diffusion Models Beat GANs on Image Synthesis", section 3 and appendix.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import linen as nn
from jaxtyping import Array, Float

from guidedflow.nn.attention import attention
from guidedflow.nn.linear import Dense, Initializer
from guidedflow.nn.operations import folded_product

_ZEROS = nn.initializers.zeros_init()


def group_norm(channels: int, dtype: Any, *, affine: bool, name: str | None = None) -> nn.GroupNorm:
    """Return group normalisation in up to 32 groups, of at least four channels where possible.

    Statistics are float32.  Groups of one channel would erase every channel's mean, and with it how
    bright an image is.   Wu & He 2018, eq. 1, ε = 1e-5.
    """
    groups = math.gcd(32, channels)
    while groups > 1 and channels // groups < 4:
        groups //= 2
    return nn.GroupNorm(
        groups, epsilon=1e-5, dtype=dtype, use_bias=affine, use_scale=affine, name=name
    )


class Convolution(nn.Module):
    """3×3 convolution with one row of zeros around the image.

    y_{ij} = Σ_{pq} kernel_{pq}·x_{stride·i+p−1, stride·j+q−1} + bias.

    On CPU it runs as one product of matrices over gathered neighbourhoods: XLA's CPU convolutions
    take some 25 times as long for the gradient with respect to the kernel inside a loop, where
    gradient accumulation puts it, and products fold an axis that `vmap` adds (`folding`).

    Attributes:
      features: channels of the result.
      stride: 1 keeps the size, 2 halves it.
      kernel_init: of the float32 parameter `kernel`, (3, 3, c, features).
      dtype: of the products and of the result.
    """

    features: int
    dtype: Any
    stride: int = 1
    kernel_init: Initializer = nn.initializers.lecun_normal()

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b i j k"]:
        shape = (3, 3, x.shape[-1], self.features)
        kernel = self.param("kernel", self.kernel_init, shape, jnp.float32).astype(self.dtype)
        zeros = nn.initializers.zeros_init()
        bias = self.param("bias", zeros, (self.features,), jnp.float32).astype(self.dtype)
        if jax.default_backend() == "cpu":
            near = _neighbourhoods(x.astype(self.dtype), self.stride)
            rows = near.reshape(-1, near.shape[-1])
            y = folded_product(rows, kernel.reshape(-1, self.features))
            y = y.reshape(*near.shape[:-1], self.features)
        else:
            strides, around = (self.stride, self.stride), ((1, 1), (1, 1))
            y = jax.lax.conv_general_dilated(
                x.astype(self.dtype),
                kernel,
                strides,
                around,
                dimension_numbers=("NHWC", "HWIO", "NHWC"),
            )
        return y + bias[None, None, None]


def _neighbourhoods(x: Float[Array, "b h w c"], stride: int) -> Float[Array, "b i j d"]:
    height, width = x.shape[1:3]
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    shifted = [
        padded[:, row : row + height : stride, column : column + width : stride]
        for row in range(3)
        for column in range(3)
    ]
    return jnp.concatenate(shifted, axis=-1)


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
        h = Convolution(self.features, self.dtype, name="conv_0")(h)
        modulation = Dense(2 * self.features, kernel_init=_ZEROS, dtype=self.dtype, name="modulate")
        scale, shift = jnp.split(modulation(nn.silu(c))[:, None, None, :], 2, axis=-1)
        h = group_norm(self.features, self.dtype, affine=False)(h) * (1 + scale) + shift
        last = Convolution(self.features, self.dtype, kernel_init=_ZEROS, name="conv_1")
        h = last(nn.silu(h))
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
    images = [Convolution(features[0], dtype, name="conv_in")(x.astype(dtype))]
    for level, channels in enumerate(features):
        for index in range(blocks):
            images.append(make_level(level, channels, f"down_{level}_{index}")(images[-1], c))
        if level + 1 < len(features):
            halve = Convolution(channels, dtype, stride=2, name=f"halve_{level}")
            images.append(halve(images[-1]))
    return images
