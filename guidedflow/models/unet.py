"""U-Net of convolutions, with attention where it is asked for, under the same call as `DiT`.

Ronneberger et al. 2015; residual blocks and conditioning of Dhariwal & Nichol 2021.
"""

import dataclasses
from functools import partial
from typing import Any

import jax.numpy as jnp
from einops import repeat
from flax import linen as nn
from jaxtyping import Array, Float

from guidedflow.nn.capabilities import Capabilities
from guidedflow.nn.conditioning import check_input, embed_condition
from guidedflow.nn.convolutions import Convolution
from guidedflow.nn.normalization import group_norm
from guidedflow.nn.operations import XLA, Operations
from guidedflow.nn.residual import Level, check_levels, descend
from guidedflow.sizes import height_and_width


class UNet(nn.Module):
    """Convolutional network down to small images and up again, each scale joined to its twin.

    Time, class and further numbers drive the normalisations.  A new network gives zero.  Dtypes,
    labels and numbers as in `DiT`.

    Attributes:
      image_size: (height, width), or one number; divisible by 2^(levels − 1).
      channels: of the image.
      width: channels of the first level; even.
      multipliers: channels of each level over `width`; each level after the first halves the image.
      blocks: residual blocks a level.
      attend: levels with attention after every block, 0 the full image; none by default, which
        leaves convolutions only.
      head_width: channels of an attention head.
      num_classes, double_channels, scalars, time_scale, dtype, operations: as in `DiT`.
    Raises:
      ValueError: as `DiT` does.
    """

    image_size: int | tuple[int, int]
    channels: int
    width: int
    multipliers: tuple[int, ...] = (1, 2, 2)
    blocks: int = 2
    attend: tuple[int, ...] = ()
    head_width: int = 64
    num_classes: int | None = None
    double_channels: bool = False
    scalars: tuple[str, ...] = ()
    time_scale: float = 1000.0
    dtype: Any = jnp.float32
    operations: Operations = dataclasses.field(default_factory=XLA)

    def __post_init__(self) -> None:
        check_levels(self.size, self.width, self.multipliers, self.attend)
        super().__post_init__()

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the image."""
        return height_and_width(self.image_size)

    @property
    def capabilities(self) -> Capabilities:
        """A field that takes further numbers."""
        return Capabilities(takes=frozenset({"label", "scalars"}), takes_scalars=True)

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], t: Float[Array, " b"], cond: Any = None
    ) -> Float[Array, "b h w c_out"]:
        """Return the velocity at `x` and `t`; arguments as of `DiT`."""
        check_input(x, t, self.size, self.channels)
        c = embed_condition(
            t,
            cond,
            4 * self.width,
            self.num_classes,
            self.scalars,
            self.time_scale,
            self.dtype,
            self.operations,
        )
        convolution = partial(Convolution, dtype=self.dtype, operations=self.operations)
        features = tuple(self.width * multiplier for multiplier in self.multipliers)
        images = descend(self._make_level, x, c, features, self.blocks, self.dtype, self.operations)
        h = self._make_level(len(features) - 1, features[-1], "middle_0")(images[-1], c)
        h = self._make_level(-1, features[-1], "middle_1")(h, c)
        for level, channels in reversed(list(enumerate(features))):
            for index in range(self.blocks + 1):
                joined = jnp.concatenate([h, images.pop()], axis=-1)
                h = self._make_level(level, channels, f"up_{level}_{index}")(joined, c)
            if level:
                h = repeat(h, "b h w c -> b (h p) (w q) c", p=2, q=2)
                h = convolution(channels, name=f"double_{level}")(h)
        h = nn.silu(group_norm(features[0], self.dtype, affine=True, name="norm")(h))
        out = self.channels * (2 if self.double_channels else 1)
        zeros = nn.initializers.zeros_init()
        last = convolution(out, kernel_init=zeros, name="conv_out")
        return last(h).astype(x.dtype)

    def _make_level(self, level: int, features: int, name: str) -> nn.Module:
        attend = level in self.attend
        return Level(features, attend, self.head_width, self.dtype, self.operations, name=name)
