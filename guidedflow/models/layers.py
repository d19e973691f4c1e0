"""Layers that every network here is made of: products, normalisation, modulation, patches."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import linen as nn
from jaxtyping import Array, Float

from guidedflow.models.products import affine

Initializer = Callable[..., Array]


class Dense(nn.Module):
    """y = x·kernel + bias over the last axis, as one product of two matrices.

    All leading axes are folded into rows first; on CPU so is an axis that `vmap` adds (`folding`).

    Attributes:
      features: k, the size of the last axis of the result.
      kernel_init, bias_init: initialisers of the float32 parameters `kernel` (d, k), `bias` (k,).
      dtype: of the product and of the result.
      products: who computes it, see `products.product`.
      gelu: whether GELU, in its hyperbolic-tangent form, follows.
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
        return dense(x.shape[-1], name="fc2")(dense(self.hidden, gelu=True, name="fc1")(x))


def normalize(x: Float[Array, "*rows d"], epsilon: float = 1e-6) -> Float[Array, "*rows d"]:
    """Layer normalisation without parameters: (x − mean)/√(variance + ε) over the last axis.

    The statistics, and the result, are float32 whatever the dtype of `x` (at least; float64 stays).
    Ba et al. 2016, eq. 4, without gain and bias.
    """
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    centred = x - x.mean(axis=-1, keepdims=True)
    variance = jnp.square(centred).mean(axis=-1, keepdims=True)
    return centred * jax.lax.rsqrt(variance + epsilon)


def modulate(
    x: Float[Array, "b n d"], shift: Float[Array, "b d"], scale: Float[Array, "b d"]
) -> Float[Array, "b n d"]:
    """Adaptive normalisation: x·(1 + scale) + shift, one scale and shift for all tokens.

    Peebles & Xie 2023, section 3.2.  Zero shift and scale leave `x` as it is.
    """
    return x * (1 + scale[:, None, :]) + shift[:, None, :]


@jax.checkpoint
def adaptive_normalize(
    x: Float[Array, "b n d"], shift: Float[Array, "b d"], scale: Float[Array, "b d"]
) -> Float[Array, "b n d"]:
    """Return `modulate(normalize(x), shift, scale)`; a derivative keeps its arguments alone."""
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
