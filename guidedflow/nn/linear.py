"""Linear layers over the last axis, computed by the operations that a network is given."""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from guidedflow.nn.operations import XLA, Operations

Initializer = Callable[..., Array]


class Dense(nn.Module):
    """y = x·kernel + bias over the last axis, as one matmul.

    All leading axes are folded into rows first.

    Attributes:
      features: k, the size of the last axis of the result.
      kernel_init, bias_init: initialisers of the float32 parameters `kernel` (d, k), `bias` (k,).
      dtype: of the product and of the result.
      operations: what computes it; by default XLA for what is attached.
      gelu: whether x passes through GELU, in its hyperbolic-tangent form, first.
      use_bias: whether there is a bias; `gelu` needs one.
    """

    features: int
    kernel_init: Initializer = nn.initializers.xavier_uniform()
    bias_init: Initializer = nn.initializers.zeros_init()
    dtype: Any = jnp.float32
    operations: Operations = dataclasses.field(default_factory=XLA)
    gelu: bool = False
    use_bias: bool = True

    @nn.compact
    def __call__(self, x: Float[Array, "*rows d"]) -> Float[Array, "*rows k"]:
        kernel = self.param("kernel", self.kernel_init, (x.shape[-1], self.features), jnp.float32)
        rows = x.astype(self.dtype).reshape(-1, x.shape[-1])
        operands = rows, kernel.astype(self.dtype)
        if self.use_bias:
            bias = self.param("bias", self.bias_init, (self.features,), jnp.float32)
            y = self.operations.linear(*operands, bias.astype(self.dtype), self.gelu)
        else:
            y = self.operations.matmul(*operands)
        return y.reshape(*x.shape[:-1], self.features)


class MLP(nn.Module):
    """y = W₂·gelu(W₁·x) with the hyperbolic-tangent form of GELU, as in DiT.

    Attributes:
      hidden: width between the two layers.
      dtype: compute dtype.
      operations: as in `Dense`.
    """

    hidden: int
    dtype: Any = jnp.float32
    operations: Operations = dataclasses.field(default_factory=XLA)

    @nn.compact
    def __call__(self, x: Float[Array, "*rows d"]) -> Float[Array, "*rows d"]:
        dense = partial(Dense, dtype=self.dtype, operations=self.operations)
        return dense(x.shape[-1], gelu=True, name="fc2")(dense(self.hidden, name="fc1")(x))
