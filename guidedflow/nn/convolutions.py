"""Convolutions of images, computed by the operations that a network is given."""

import dataclasses
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from guidedflow.nn.linear import Initializer
from guidedflow.nn.operations import XLA, Operations


class Convolution(nn.Module):
    """Convolution with an odd square kernel and zero padding.

    y_{ij} = Σ_{pq} kernel_{pq}·x_{stride·i+p−side//2, stride·j+q−side//2} + bias.

    Attributes:
      features: channels of the result.
      dtype: compute dtype, also of the result.
      stride: 1 keeps the size, 2 halves it.
      kernel_init: initialiser of the float32 parameter `kernel`, (side, side, c, features).
      side: side of the kernel, 3 by default; odd.
      operations: computes it.
    """

    features: int
    dtype: Any
    stride: int = 1
    kernel_init: Initializer = nn.initializers.lecun_normal()
    side: int = 3
    operations: Operations = dataclasses.field(default_factory=XLA)

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b i j k"]:
        shape = (self.side, self.side, x.shape[-1], self.features)
        kernel = self.param("kernel", self.kernel_init, shape, jnp.float32).astype(self.dtype)
        zeros = nn.initializers.zeros_init()
        bias = self.param("bias", zeros, (self.features,), jnp.float32).astype(self.dtype)
        y = self.operations.convolve(x.astype(self.dtype), kernel, self.stride)
        return y + bias[None, None, None]
