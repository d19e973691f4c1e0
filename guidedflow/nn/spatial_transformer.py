"""Stable Diffusion's blocks: residual blocks told the time, transformers told tokens, resampling.

Rombach et al. 2022, "High-Resolution Image Synthesis with Latent Diffusion Models". Parameter names
are those of diffusers' UNet2DConditionModel, with `kernel` for a transposed `weight`, `scale` for a
normalisation's, and `to_out_0` for `to_out.0`.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from einops import repeat
from flax import linen as nn
from jaxtyping import Array, Float

from guidedflow.nn.context import Context, attend
from guidedflow.nn.convolutions import Convolution
from guidedflow.nn.linear import Dense
from guidedflow.nn.operations import Operations

_ZEROS = nn.initializers.zeros_init()


class Setting(NamedTuple):
    """What all blocks of one network share.

    Attributes:
      groups: of every group normalisation; divides the channels of every level.
      scale_shift: how the time drives a residual block, see `ResnetBlock`.
      dtype: compute dtype.
      operations: what computes the layers.
    """

    groups: int
    scale_shift: bool
    dtype: Any
    operations: Operations

    def group_norm(self, name: str, epsilon: float) -> nn.GroupNorm:
        """Return group normalisation with gain and bias, statistics in float32."""
        return nn.GroupNorm(self.groups, epsilon=epsilon, dtype=self.dtype, name=name)

    def dense(self, features: int, name: str, **fields: Any) -> Dense:
        """Return a linear layer."""
        return Dense(features, dtype=self.dtype, operations=self.operations, name=name, **fields)

    def convolution(self, features: int, name: str, **fields: Any) -> Convolution:
        """Return a convolution of 3×3."""
        return Convolution(features, self.dtype, operations=self.operations, name=name, **fields)


class ResnetBlock(nn.Module):
    """x' = skip(x) + conv₂(silu(h)), zero at first, with h = norm(conv₁(silu(norm(x)))) told the time.

    With the projection e of the time's embedding: h = norm(conv₁(…) + e), or with `scale_shift`
    h = (1 + scale)·norm(conv₁(…)) + shift, (scale, shift) = e.   Dhariwal & Nichol 2021, eq. 3.

    Attributes:
      features: channels of the result.
      setting: of the network.
    """

    features: int
    setting: Setting

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], c: Float[Array, "b d"]
    ) -> Float[Array, "b h w k"]:
        given, both = self.setting, self.setting.scale_shift
        h = nn.silu(given.group_norm("norm1", 1e-5)(x))
        h = given.convolution(self.features, "conv1")(h)
        project = given.dense(self.features * (2 if both else 1), "time_emb_proj")
        told = project(nn.silu(c))[:, None, None, :]
        norm = given.group_norm("norm2", 1e-5)
        if both:
            scale, shift = jnp.split(told, 2, axis=-1)
            h = norm(h) * (1 + scale) + shift
        else:
            h = norm(h + told)
        h = given.convolution(self.features, "conv2", kernel_init=_ZEROS)(nn.silu(h))
        if x.shape[-1] != self.features:
            x = given.dense(self.features, "conv_shortcut")(x)
        return x + h


class _Attention(nn.Module):
    """Attention from x to a context, or among x."""

    heads: int
    setting: Setting

    @nn.compact
    def __call__(self, x: Float[Array, "b n d"], context: Context) -> Float[Array, "b n d"]:
        dense = partial(self.setting.dense, x.shape[-1])
        q = dense("to_q", use_bias=False)(x)
        k = dense("to_k", use_bias=False)(context.tokens)
        v = dense("to_v", use_bias=False)(context.tokens)
        mixed = attend(self.setting.operations, q, k, v, self.heads, context.mask)
        return dense("to_out_0")(mixed)


class _GEGLU(nn.Module):
    """(W₁x)·gelu(W₂x), with the exact GELU.   Shazeer 2020, "GLU Variants Improve Transformer"."""

    hidden: int
    setting: Setting

    @nn.compact
    def __call__(self, x: Float[Array, "b n d"]) -> Float[Array, "b n hidden"]:
        value, gate = jnp.split(self.setting.dense(2 * self.hidden, "proj")(x), 2, axis=-1)
        return value * jax.nn.gelu(gate, approximate=False)


class _FeedForward(nn.Module):
    setting: Setting

    @nn.compact
    def __call__(self, x: Float[Array, "b n d"]) -> Float[Array, "b n d"]:
        hidden = _GEGLU(4 * x.shape[-1], self.setting, name="net_0")(x)
        return self.setting.dense(x.shape[-1], "net_2")(hidden)


class _TransformerBlock(nn.Module):
    """Self-attention, attention to the context where there is one, feed-forward; each is added."""

    heads: int
    setting: Setting

    @nn.compact
    def __call__(self, x: Float[Array, "b n d"], context: Context | None) -> Float[Array, "b n d"]:
        def normed(name: str) -> Array:
            norm = nn.LayerNorm(epsilon=1e-5, dtype=self.setting.dtype, name=name)
            return norm(x)

        mix = partial(_Attention, self.heads, self.setting)
        own = normed("norm1")
        x = x + mix(name="attn1")(own, Context(own, None))
        if context is not None:
            x = x + mix(name="attn2")(normed("norm2"), context)
        return x + _FeedForward(self.setting, name="ff")(normed("norm3"))


class SpatialTransformer(nn.Module):
    """Transformer blocks over all places of an image, added to it; zero at first.

    Attributes:
      heads: number of heads; divides the channels.
      depth: number of blocks.
      setting: of the network.
    """

    heads: int
    depth: int
    setting: Setting

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], context: Context | None
    ) -> Float[Array, "b h w c"]:
        batch, height, width, channels = x.shape
        tokens = self.setting.group_norm("norm", 1e-6)(x).reshape(batch, height * width, channels)
        tokens = self.setting.dense(channels, "proj_in")(tokens)
        for index in range(self.depth):
            block = _TransformerBlock(self.heads, self.setting, name=f"transformer_blocks_{index}")
            tokens = block(tokens, context)
        tokens = self.setting.dense(channels, "proj_out", kernel_init=_ZEROS)(tokens)
        return x + tokens.reshape(x.shape)


class Resample(nn.Module):
    """A convolution that halves an image, or one behind the doubling of its places.

    Attributes:
      features: channels of the result.
      up: whether it doubles.
      setting: of the network.
    """

    features: int
    up: bool
    setting: Setting

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b i j k"]:
        if self.up:
            x = repeat(x, "b h w c -> b (h p) (w q) c", p=2, q=2)
        return self.setting.convolution(self.features, "conv", stride=1 if self.up else 2)(x)


class Level(nn.Module):
    """One level of a U-Net: residual blocks, a transformer after each, resampling at the end.

    Attributes:
      features: channels.
      blocks: residual blocks.
      heads: of the transformers.
      depth: blocks of a transformer; 0 for convolutions only.
      resample: "down", "up" or "none".
      middle: for the lowest: two residual blocks, a transformer between them.
      setting: of the network.
    """

    features: int
    blocks: int
    heads: int
    depth: int
    resample: str
    setting: Setting
    middle: bool = False

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b h w c"],
        c: Float[Array, "b d"],
        context: Context | None,
        skips: tuple[Array, ...] = (),
    ) -> list[Float[Array, "b _ _ _"]]:
        """Return the image after every part; each residual block joins its own of `skips`, if any."""
        images = []
        for index in range(self.blocks):
            if skips:
                x = jnp.concatenate([x, skips[index]], axis=-1)
            x = ResnetBlock(self.features, self.setting, name=f"resnets_{index}")(x, c)
            last = self.middle and index == self.blocks - 1
            if self.depth and not last:
                name = f"attentions_{index}"
                x = SpatialTransformer(self.heads, self.depth, self.setting, name=name)(x, context)
            images.append(x)
        if self.resample != "none":
            up = self.resample == "up"
            name = "upsamplers_0" if up else "downsamplers_0"
            images.append(Resample(self.features, up, self.setting, name=name)(x))
        return images
