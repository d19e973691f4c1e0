"""A classifier of noisy images, whose gradient guides a generator.

Dhariwal & Nichol 2021, section 4: the descending half of a U-Net that is told the time.
"""

import dataclasses
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from guidedflow.nn.capabilities import Capabilities
from guidedflow.nn.conditioning import check_input, embed_condition
from guidedflow.nn.linear import Dense
from guidedflow.nn.normalization import group_norm
from guidedflow.nn.operations import XLA, Operations
from guidedflow.nn.residual import Level, check_levels, descend
from guidedflow.sizes import height_and_width


class Classifier(nn.Module):
    """log p(class given x, t), up to a constant: `network.apply({"params": p}, x, t)` are logits.

    Adaptive normalisation tells every block how noisy its image is; the last image is normalised,
    averaged over its places and projected.  A new classifier says that all classes are as likely.

    Attributes:
      image_size: (height, width), or one number; divisible by 2^(levels − 1).
      channels: of the image.
      num_classes: number of logits.
      width: channels of the first level; even.
      multipliers: channels of each level over `width`; each level after the first halves the image.
      blocks: residual blocks a level.
      attend: levels with attention after every block, 0 the full image.
      head_width: channels of an attention head.
      time_scale, dtype, operations: as in `DiT`.
    Raises:
      ValueError: at construction for levels that do not fit the image, or fewer than two classes;
        when called for inputs of another shape or dtype.
    """

    image_size: int | tuple[int, int]
    channels: int
    num_classes: int
    width: int
    multipliers: tuple[int, ...] = (1, 2)
    blocks: int = 2
    attend: tuple[int, ...] = ()
    head_width: int = 64
    time_scale: float = 1000.0
    dtype: Any = jnp.float32
    operations: Operations = dataclasses.field(default_factory=XLA)

    def __post_init__(self) -> None:
        check_levels(self.size, self.width, self.multipliers, self.attend)
        if self.num_classes < 2:
            raise ValueError(f"num_classes: expected at least 2, got {self.num_classes}")
        super().__post_init__()

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the image."""
        return height_and_width(self.image_size)

    @property
    def capabilities(self) -> Capabilities:
        """Logits, and nothing beside them."""
        return Capabilities(output="logits")

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], t: Float[Array, " b"]
    ) -> Float[Array, "b num_classes"]:
        """Return logits, float32.

        Args:
          x: noisy images, (b, *size, channels).
          t: times in [0, 1], 0 noise, 1 data.
        """
        check_input(x, t, self.size, self.channels)
        c = embed_condition(
            t, None, 4 * self.width, None, (), self.time_scale, self.dtype, self.operations
        )
        features = tuple(self.width * multiplier for multiplier in self.multipliers)
        lowest = descend(
            self._make_level, x, c, features, self.blocks, self.dtype, self.operations
        )[-1]
        last = nn.silu(group_norm(features[-1], self.dtype, affine=True, name="norm")(lowest))
        pooled = last.astype(jnp.float32).mean(axis=(1, 2))
        zeros = nn.initializers.zeros_init()
        head = Dense(self.num_classes, kernel_init=zeros, operations=self.operations, name="head")
        return head(pooled)

    def _make_level(self, level: int, features: int, name: str) -> nn.Module:
        attend = level in self.attend
        return Level(features, attend, self.head_width, self.dtype, self.operations, name=name)
