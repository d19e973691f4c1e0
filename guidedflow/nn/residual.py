"""Residual blocks of convolutions, and the downsampling half that U-Net and classifier share.

Dhariwal & Nichol 2021, "Diffusion Models Beat GANs on Image Synthesis", section 3 and appendix.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import jax.numpy as jnp
from einops import rearrange
from flax import linen as nn
from jaxtyping import Array, Float

from guidedflow.nn.convolutions import Convolution
from guidedflow.nn.linear import Dense
from guidedflow.nn.normalization import group_norm
from guidedflow.nn.operations import XLA, Operations

_ZEROS = nn.initializers.zeros_init()


class ResidualBlock(nn.Module):
    """Two convolutions with a skip connection; the condition modulates the second normalisation.

    x' = skip(x) + conv(silu((1 + scale)·norm(h) + shift)), h = conv(silu(norm(x))). The last
    convolution starts at zero, so a new block equals its skip.   Adaptive group normalisation:
    Dhariwal & Nichol 2021, eq. 3.

    Attributes:
      features: channels of the result.
      dtype: compute dtype.
      operations: computes the layers.
    """

    features: int
    dtype: Any
    operations: Operations = dataclasses.field(default_factory=XLA)

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], c: Float[Array, "b d"]
    ) -> Float[Array, "b h w features"]:
        h = nn.silu(group_norm(x.shape[-1], self.dtype, affine=True, name="norm")(x))
        convolution = partial(Convolution, self.features, self.dtype, operations=self.operations)
        h = convolution(name="conv_0")(h)
        dense = partial(Dense, dtype=self.dtype, operations=self.operations)
        modulation = dense(2 * self.features, kernel_init=_ZEROS, name="modulate")
        scale, shift = jnp.split(modulation(nn.silu(c))[:, None, None, :], 2, axis=-1)
        h = group_norm(self.features, self.dtype, affine=False)(h) * (1 + scale) + shift
        last = convolution(kernel_init=_ZEROS, name="conv_1")
        h = last(nn.silu(h))
        if x.shape[-1] != self.features:
            x = dense(self.features, name="skip")(x)
        return x + h


class ImageAttention(nn.Module):
    """Self-attention over all positions of an image, added to the image; zero at first.

    Attributes:
      head_width: channels of a head; the number of heads is channels / head_width, at least one.
      dtype: compute dtype.
      operations: computes it.
    """

    head_width: int
    dtype: Any
    operations: Operations = dataclasses.field(default_factory=XLA)

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        channels = x.shape[-1]
        tokens = rearrange(group_norm(channels, self.dtype, affine=True)(x), "b h w c -> b (h w) c")
        heads = max(1, channels // self.head_width)
        dense = partial(Dense, dtype=self.dtype, operations=self.operations)
        mixed = self.operations.self_attention(dense(3 * channels, name="qkv")(tokens), heads)
        out = dense(channels, kernel_init=_ZEROS, name="proj")(mixed)
        return x + out.reshape(x.shape)


class Level(nn.Module):
    """One residual block and, optionally, attention after it.

    Attributes: `features` of the block; `attend`, whether attention follows; and those of both parts.
    """

    features: int
    attend: bool
    head_width: int
    dtype: Any
    operations: Operations = dataclasses.field(default_factory=XLA)

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], c: Float[Array, "b d"]
    ) -> Float[Array, "b h w features"]:
        x = ResidualBlock(self.features, self.dtype, self.operations, name="block")(x, c)
        if self.attend:
            attend = ImageAttention(self.head_width, self.dtype, self.operations, name="attention")
            x = attend(x)
        return x


def check_levels(
    size: tuple[int, int], width: int, multipliers: tuple[int, ...], attend: tuple[int, ...]
) -> None:
    """Check that an image can be halved for every level.

    Raises:
      ValueError: a side is not divisible by 2^(levels − 1), the width is odd, a level in `attend` does
        not exist, or there is no level.
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
    operations: Operations,
) -> list[Float[Array, "b _ _ _"]]:
    """Run the downsampling half: levels of blocks, with convolutions of stride 2 between them.

    Call it inside a module's compact method.

    Args:
      make_level: (level, features, name) -> a `Level`.
      x, c: the image and the condition.
      features: channels of each level.
      blocks: residual blocks per level.
      dtype: compute dtype.
      operations: computes the convolutions.
    Returns:
      All intermediate images, from the projection of the input to the lowest level.
    """
    convolution = partial(Convolution, dtype=dtype, operations=operations)
    images = [convolution(features[0], name="conv_in")(x.astype(dtype))]
    for level, channels in enumerate(features):
        for index in range(blocks):
            images.append(make_level(level, channels, f"down_{level}_{index}")(images[-1], c))
        if level + 1 < len(features):
            halve = convolution(channels, stride=2, name=f"halve_{level}")
            images.append(halve(images[-1]))
    return images
