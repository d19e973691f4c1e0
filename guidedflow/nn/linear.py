"""Layers that every network here is made of: products, adaptive normalisation, patches."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import linen as nn
from jaxtyping import Array, Float

from guidedflow.native.normalization import adaptive_normalize as native_normalize
from guidedflow.nn.normalization import modulate, normalize
from guidedflow.nn.operations import affine, pick

Initializer = Callable[..., Array]


class Dense(nn.Module):
    """y = x·kernel + bias over the last axis, as one product of two matrices.

    All leading axes are folded into rows first; on CPU so is an axis that `vmap` adds (`folding`).

    Attributes:
      features: k, the size of the last axis of the result.
      kernel_init, bias_init: initialisers of the float32 parameters `kernel` (d, k), `bias` (k,).
      dtype: of the product and of the result.
      products: who computes it, see `products.product`.
      gelu: whether x passes through GELU, in its hyperbolic-tangent form, first.
    """

    features: int
    kernel_init: Initializer = nn.initializers.xavier_uniform()
    bias_init: Initializer = nn.initializers.zeros_init()
    dtype: Any = jnp.float32
    products: str = "xla"
    gelu: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "*rows d"]) -> Float[Array, "*rows k"]:
        kernel = self.param("kernel", self.kernel_init, (x.shape[-1], self.features), jnp.float32)
        bias = self.param("bias", self.bias_init, (self.features,), jnp.float32)
        rows = x.astype(self.dtype).reshape(-1, x.shape[-1])
        operands = rows, kernel.astype(self.dtype), bias.astype(self.dtype)
        y = affine(*operands, self.products, self.gelu)
        return y.reshape(*x.shape[:-1], self.features)


class MLP(nn.Module):
    """y = W₂·gelu(W₁·x), the hyperbolic-tangent form of GELU, as DiT has it.

    Attributes:
      hidden: width between the two layers.
      dtype: compute dtype.
      products: see `products.product`.
    """

    hidden: int
    dtype: Any = jnp.float32
    products: str = "xla"

    @nn.compact
    def __call__(self, x: Float[Array, "*rows d"]) -> Float[Array, "*rows d"]:
        dense = partial(Dense, dtype=self.dtype, products=self.products)
        return dense(x.shape[-1], gelu=True, name="fc2")(dense(self.hidden, name="fc1")(x))


def adaptive_normalize(
    x: Float[Array, "b n d"],
    shift: Float[Array, "b d"],
    scale: Float[Array, "b d"],
    products: str = "xla",
) -> Float[Array, "b n d"]:
    """Return `modulate(normalize(x), shift, scale)`; a derivative keeps its arguments alone.

    Args:
      x, shift, scale: tokens, and one shift and scale for all tokens of an example.
      products: see `products.product`; where `products.pick` finds units for it, normalisation and
        its gradient are each one program.
    Raises:
      ValueError: an unknown backend.
    """
    dtype = jnp.result_type(x, shift, scale)
    units, _ = pick(products, dtype)
    if units == "xla":
        return _recomputed(x, shift, scale)
    x, shift, scale = (v.astype(dtype) for v in (x, shift, scale))
    return native_normalize(x, shift, scale, units)


@jax.checkpoint
def _recomputed(
    x: Float[Array, "b n d"], shift: Float[Array, "b d"], scale: Float[Array, "b d"]
) -> Float[Array, "b n d"]:
    return modulate(normalize(x), shift, scale)


def patchify(x: Float[Array, "b h w c"], patch: int) -> Float[Array, "b n p"]:
    """Cut an image into patches: tokens in rows from the top left, values in order (p, q, c)."""
    return rearrange(x, "b (h p) (w q) c -> b (h w) (p q c)", p=patch, q=patch)


def unpatchify(
    tokens: Float[Array, "b n p"], patch: int, grid: tuple[int, int]
) -> Float[Array, "b h w c"]:
    """Put an image together from its patches; the inverse of `patchify`.

    Args:
      tokens: values of each patch in order (p, q, c), c fastest.
      patch: side of a patch.
      grid: patches in a column, patches in a row.
    """
    return rearrange(
        tokens,
        "b (h w) (p q c) -> b (h p) (w q) c",
        h=grid[0],
        w=grid[1],
        p=patch,
        q=patch,
    )
