"""Tokens that a network is told: checked, attended to, or pooled into one vector."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Bool, Float

from guidedflow.nn.operations import Operations


class Context(NamedTuple):
    """Token features of a condition.

    Attributes:
      tokens: zero where the mask is False.
      mask: True for the tokens that count; None for all.
    """

    tokens: Float[Array, "b m d"]
    mask: Bool[Array, "b m"] | None


def take_tokens(cond: Mapping[str, Any], size: int, width: int) -> Context:
    """Return the tokens and the mask of a condition.

    Args:
      cond: with "tokens" (b, m, width), floating, and, where not all count, "mask" (b, m), boolean.
      size: b.
      width: of a token.
    Raises:
      ValueError: another shape or dtype, or no token at all.
    """
    tokens, mask = cond["tokens"], cond.get("mask")
    shape = jnp.shape(tokens)
    if len(shape) != 3 or shape[0] != size or shape[1] < 1 or shape[2] != width:
        raise ValueError(f"tokens: expected shape ({size}, m, {width}), m at least 1, got {shape}")
    if not jnp.issubdtype(tokens.dtype, jnp.floating):
        raise ValueError(f"tokens: expected features of a floating dtype, got {tokens.dtype}")
    if mask is None:
        return Context(tokens, None)
    if jnp.shape(mask) != shape[:2] or mask.dtype != bool:
        raise ValueError(
            f"mask: expected booleans of shape {shape[:2]}, got {mask.dtype} of {jnp.shape(mask)}"
        )
    # Whatever stands in the padding, NaN too, must not reach a product.
    return Context(jnp.where(mask[:, :, None], tokens, 0), mask)


def attend(
    operations: Operations,
    q: Float[Array, "b n h_d"],
    k: Float[Array, "b m h_d"],
    v: Float[Array, "b m h_d"],
    heads: int,
    mask: Bool[Array, "b m"] | None,
) -> Float[Array, "b n h_d"]:
    """Attend with several heads, whose features lie side by side; zero where no key counts.

    See `nn.attention.attention`.
    """
    q, k, v = (rearrange(part, "b n (h d) -> b n h d", h=heads) for part in (q, k, v))
    mixed = rearrange(operations.attention(q, k, v, mask), "b n h d -> b n (h d)")
    if mask is None:
        return mixed
    # Without a key, attention gives the mean of the padding, which depends on how much there is.
    return jnp.where(mask.any(axis=1)[:, None, None], mixed, 0)


def mean_token(context: Context) -> Float[Array, "b d"]:
    """Return the mean of the tokens that count; zero where none does."""
    if context.mask is None:
        return context.tokens.mean(axis=1)
    count = jnp.maximum(context.mask.sum(axis=1), 1)
    return context.tokens.sum(axis=1) / count[:, None].astype(context.tokens.dtype)
