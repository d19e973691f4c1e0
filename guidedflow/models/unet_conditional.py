"""The U-Net of Stable Diffusion, under the same call as `DiT`.

Rombach et al. 2022, "High-Resolution Image Synthesis with Latent Diffusion Models". Parameter names
follow diffusers' UNet2DConditionModel, see `nn.spatial_transformer`.
"""

import dataclasses
from functools import partial
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from guidedflow.nn.capabilities import Capabilities
from guidedflow.nn.conditioning import (
    add_label_and_numbers,
    check_input,
    split_condition,
    take_vector,
    takes,
)
from guidedflow.nn.context import Context, take_tokens
from guidedflow.nn.embeddings import sinusoids
from guidedflow.nn.operations import XLA, Operations
from guidedflow.nn.residual import check_levels
from guidedflow.nn.spatial_transformer import Level, Setting
from guidedflow.nn.stacking import check_remat, rematerialized
from guidedflow.sizes import height_and_width

_ZEROS = nn.initializers.zeros_init()


class UNetConditional(nn.Module):
    """Levels of residual blocks told the time, and of transformers told tokens.

    "label", "scalars" and "vector" are added to the time's embedding; "tokens" are attended to at the
    levels of `attend`. A new network gives zero.  Dtypes, labels and numbers as in `DiT`.

    Attributes:
      image_size: (height, width), or one number; divisible by 2^(levels − 1).
      channels: of the image.
      width: channels of the first level; even.
      multipliers: channels of each level over `width`; each level after the first halves the image.
      blocks: residual blocks a level, one more on the way up.
      attend: levels with transformers, 0 the full image; with any, the middle has one too; () leaves
        convolutions only.
      heads: attention heads, one number or one a level.
      transformer_depth: blocks of a transformer, one number or one a level.
      groups: of group normalisation; divides the channels of every level.
      scale_shift: the time scales and shifts the second normalisation of a residual block, and is
        not added before it.
      token_width: width of "tokens" (b, m, token_width) with an optional "mask" (b, m); None for a
        network without them, whose transformers then have self-attention alone.
      vector_width: width of "vector" (b, vector_width), projected by two layers; None for none.
      remat: what the backward pass keeps of a level, see `stacking.check_remat`.
      num_classes, double_channels, scalars, time_scale, dtype, operations: as in `DiT`.
    Raises:
      ValueError: as `DiT` does.
    """

    image_size: int | tuple[int, int]
    channels: int
    width: int = 320
    multipliers: tuple[int, ...] = (1, 2, 4, 4)
    blocks: int = 2
    attend: tuple[int, ...] = (0, 1, 2)
    heads: int | tuple[int, ...] = 8
    transformer_depth: int | tuple[int, ...] = 1
    groups: int = 32
    scale_shift: bool = False
    token_width: int | None = None
    vector_width: int | None = None
    num_classes: int | None = None
    double_channels: bool = False
    scalars: tuple[str, ...] = ()
    time_scale: float = 1000.0
    dtype: Any = jnp.float32
    operations: Operations = dataclasses.field(default_factory=XLA)
    remat: str = "none"

    def __post_init__(self) -> None:
        check_levels(self.size, self.width, self.multipliers, self.attend)
        check_remat(self.remat)
        if self.token_width and not self.attend:
            raise ValueError("attend: tokens need a level that attends to them, got ()")
        for name in ("heads", "transformer_depth"):
            if min(self._of_levels(name)) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}")
        heads = self._of_levels("heads")
        for level, features in enumerate(self._features):
            if features % self.groups:
                raise ValueError(f"groups: {self.groups} does not divide {features} channels")
            if self.attend and features % heads[level]:
                raise ValueError(f"heads: {heads[level]} does not divide {features} channels")
        super().__post_init__()

    def _of_levels(self, name: str) -> tuple[int, ...]:
        value, levels = getattr(self, name), len(self.multipliers)
        every = (value,) * levels if isinstance(value, int) else tuple(value)
        if len(every) != levels:
            raise ValueError(f"{name}: expected one number or {levels}, got {value}")
        return every

    @property
    def _features(self) -> tuple[int, ...]:
        return tuple(self.width * multiplier for multiplier in self.multipliers)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the image."""
        return height_and_width(self.image_size)

    @property
    def capabilities(self) -> Capabilities:
        """A field that takes further numbers, and tokens and a vector where they have a width."""
        return Capabilities(takes=takes(self.vector_width, self.token_width), takes_scalars=True)

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], t: Float[Array, " b"], cond: Any = None
    ) -> Float[Array, "b h w c_out"]:
        """Return the velocity at `x` and `t`; arguments as of `DiT`."""
        check_input(x, t, self.size, self.channels)
        given = Setting(self.groups, self.scale_shift, self.dtype, self.operations)
        c, context = self._embed(given, t, cond)
        features, last = self._features, len(self.multipliers) - 1
        skips = [given.convolution(features[0], "conv_in")(x.astype(self.dtype))]
        make = partial(self._make_level, given)
        for level in range(last + 1):
            resample = "none" if level == last else "down"
            down = make(level, self.blocks, resample, level in self.attend, f"down_blocks_{level}")
            skips += down(skips[-1], c, context)
        middle = make(last, 2, "none", bool(self.attend), "mid_block")
        h = middle(skips[-1], c, context)[-1]
        for level in reversed(range(last + 1)):
            # The way up is counted from the lowest level.
            resample, name = "up" if level else "none", f"up_blocks_{last - level}"
            up = make(level, self.blocks + 1, resample, level in self.attend, name)
            h = up(h, c, context, tuple(skips.pop() for _ in range(self.blocks + 1)))[-1]
        h = nn.silu(given.group_norm("conv_norm_out", 1e-5)(h))
        out = self.channels * (2 if self.double_channels else 1)
        return given.convolution(out, "conv_out", kernel_init=_ZEROS)(h).astype(x.dtype)

    def _make_level(
        self, given: Setting, level: int, blocks: int, resample: str, attends: bool, name: str
    ) -> nn.Module:
        return rematerialized(Level, self.remat, False)(
            self._features[level],
            blocks,
            self._of_levels("heads")[level],
            self._of_levels("transformer_depth")[level] if attends else 0,
            resample,
            given,
            middle=name == "mid_block",
            name=name,
        )

    def _embed(
        self, given: Setting, t: Float[Array, " b"], cond: Any
    ) -> tuple[Float[Array, "b d"], Context | None]:
        """Return what is added to the time's embedding, that included, and the tokens."""
        size, wide = len(t), 4 * self.width
        cond = split_condition(
            cond, self.num_classes, self.scalars, self.vector_width, self.token_width
        )
        waves = sinusoids(self.time_scale * t, self.width // 2)
        c = _TwoLayers(wide, given, name="time_embedding")(waves)
        c = add_label_and_numbers(
            c,
            cond,
            self.num_classes,
            self.scalars,
            self.time_scale,
            self.dtype,
            self.operations,
            table="class_embedding",
        )
        if self.vector_width:
            vector = take_vector(cond, size, self.vector_width)
            c += _TwoLayers(wide, given, name="add_embedding")(vector)
        if not self.token_width:
            return c, None
        return c, take_tokens(cond, size, self.token_width)


class _TwoLayers(nn.Module):
    """W₂·silu(W₁·x)."""

    width: int
    setting: Setting

    @nn.compact
    def __call__(self, x: Float[Array, "b k"]) -> Float[Array, "b width"]:
        hidden = self.setting.dense(self.width, "linear_1")(x)
        return self.setting.dense(self.width, "linear_2")(nn.silu(hidden))
