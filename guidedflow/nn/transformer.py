"""Blocks of a diffusion transformer: attention among tokens and to a context, AdaLN-Zero.

Peebles & Xie 2023, "Scalable Diffusion Models with Transformers"; the cross-attention has the place
and the parameter names that Chen et al. 2023, "PixArt-α", give it.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import linen as nn
from jaxtyping import Array, Float

from guidedflow.nn.context import Context, attend
from guidedflow.nn.linear import MLP, Dense
from guidedflow.nn.operations import Operations
from guidedflow.nn.perturbations import blur_tokens

_ZEROS = nn.initializers.zeros_init()


class Attention(nn.Module):
    """Self-attention over the tokens; the packed projection's features are (q k v), head, d.

    Attributes:
      heads: number of heads.
      perturbation: "none"; "identity_attention", each token attends to itself; "blur" of queries.
      grid, blur_sigma: of the blur.
      dtype: compute dtype.
      operations: what computes it.
    """

    heads: int
    perturbation: str
    grid: tuple[int, int]
    blur_sigma: float
    dtype: Any
    operations: Operations

    @nn.compact
    def __call__(
        self, x: Float[Array, "b n d"], active: Array | None, mask: Array | None = None
    ) -> Float[Array, "b n d"]:
        """Return the tokens mixed; `mask` b n says which may be attended to, None for all."""
        dense = partial(Dense, dtype=self.dtype, operations=self.operations)
        packed = dense(3 * x.shape[-1], name="qkv")(x)

        def plain() -> Array:
            if mask is None:
                return self.operations.self_attention(packed, self.heads)
            q, k, v = jnp.split(packed, 3, axis=-1)
            return attend(self.operations, q, k, v, self.heads, mask)

        def perturbed() -> Array:
            q, k, v = rearrange(packed, "b n (three h d) -> three b n h d", three=3, h=self.heads)
            if self.perturbation != "identity_attention":
                blurred = blur_tokens(q, self.grid, self.blur_sigma)
                v = self.operations.attention(blurred, k, v)
            return rearrange(v, "b n h d -> b n (h d)")

        if self.perturbation not in ("identity_attention", "blur"):
            mixed = plain()
        elif active is None:
            mixed = perturbed()
        else:
            mixed = jax.lax.cond(active, perturbed, plain)
        return dense(x.shape[-1], name="proj")(mixed)


class CrossAttention(nn.Module):
    """Attention from the tokens to a context; zero at first.

    Attributes:
      heads: number of heads.
      dtype: compute dtype.
      operations: what computes it.
    """

    heads: int
    dtype: Any
    operations: Operations

    @nn.compact
    def __call__(self, x: Float[Array, "b n d"], context: Context) -> Float[Array, "b n d"]:
        width = x.shape[-1]
        dense = partial(Dense, dtype=self.dtype, operations=self.operations)
        k, v = jnp.split(dense(2 * width, name="kv_linear")(context.tokens), 2, axis=-1)
        q = dense(width, name="q_linear")(x)
        mixed = attend(self.operations, q, k, v, self.heads, context.mask)
        return dense(width, kernel_init=_ZEROS, name="proj")(mixed)


def _modulation(x: Array | None, c: Array, parts: int, dtype: Any, operations: Operations) -> Array:
    """Return the modulation b parts·d of condition c, or c itself where it is one already.

    Call it inside a module's compact method, whose `adaLN_modulation` its parameters become.
    """
    if x is not None and c.shape[-1] != x.shape[-1]:
        return c
    width = parts * c.shape[-1]
    dense = Dense(width, _ZEROS, dtype=dtype, operations=operations, name="adaLN_modulation")
    return dense(nn.silu(c))


class Block(nn.Module):
    """A transformer block whose normalisations and residuals are driven by the condition.

    x ← x + gate₁·attention(modulate(normalize(x), shift₁, scale₁)), then the same with the MLP.
    Gates start at zero, so that a new block is the identity.  Peebles & Xie 2023, figure 3.
    With a context to cross to, x ← x + cross-attention(x, context) stands between the two, as in
    Chen et al. 2023, figure 4.

    Attributes: those of `Attention`, and `hidden`, the width inside the MLP.
    """

    heads: int
    hidden: int
    perturbation: str
    grid: tuple[int, int]
    blur_sigma: float
    dtype: Any
    operations: Operations

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b n d"] | None,
        c: Float[Array, "b _"],
        active: Array | None,
        context: Context | None = None,
        mask: Array | None = None,
    ) -> Array:
        """Return the tokens after the block; without tokens, the modulation b 6·d of condition c.

        `c` is the condition, b d, or its modulation, which is then not computed again. `context` is
        crossed to; `mask` b n says which of the tokens themselves may be attended to.
        """
        modulation = _modulation(x, c, 6, self.dtype, self.operations)
        if x is None:
            return modulation
        shift1, scale1, gate1, shift2, scale2, gate2 = jnp.split(modulation, 6, axis=-1)
        mix = Attention(
            self.heads,
            self.perturbation,
            self.grid,
            self.blur_sigma,
            self.dtype,
            self.operations,
            name="attn",
        )
        normalize = self.operations.adaptive_normalize
        inner = normalize(x, shift1, scale1).astype(self.dtype)
        y = x + gate1[:, None, :] * mix(inner, active, mask)
        if context is not None:
            cross = CrossAttention(self.heads, self.dtype, self.operations, name="cross_attn")
            y = y + cross(y, context)
        inner = normalize(y, shift2, scale2).astype(self.dtype)
        mlp = MLP(self.hidden, self.dtype, self.operations, name="mlp")
        y = y + gate2[:, None, :] * mlp(inner)
        if self.perturbation != "skip":
            return y
        return x if active is None else jnp.where(active, x, y)


class FinalLayer(nn.Module):
    """Adaptive normalisation and a product, both zero at first: a new network gives zero."""

    features: int
    dtype: Any
    operations: Operations

    @nn.compact
    def __call__(self, x: Float[Array, "b n d"] | None, c: Float[Array, "b _"]) -> Array:
        """Return the patches' values; without tokens, the modulation b 2·d. `c` as in `Block`."""
        modulation = _modulation(x, c, 2, self.dtype, self.operations)
        if x is None:
            return modulation
        shift, scale = jnp.split(modulation, 2, axis=-1)
        inner = self.operations.adaptive_normalize(x, shift, scale).astype(self.dtype)
        dense = Dense(
            self.features, _ZEROS, dtype=self.dtype, operations=self.operations, name="linear"
        )
        return dense(inner)
