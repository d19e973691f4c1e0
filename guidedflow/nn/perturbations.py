"""Perturbations of transformer blocks, which make the weak network that guidance extrapolates from.

Perturbed attention (Ahn et al. 2024), skip layer (Stable Diffusion 3.5) and smoothed energy
guidance (Hong 2024) extrapolate from a network with some perturbed blocks and the same parameters.
"""

import math

import jax.numpy as jnp
from jaxtyping import Array, Float

from guidedflow.registry import choose

PERTURBATIONS = ("none", "identity_attention", "skip", "blur")


def check_perturbation(name: str, blocks: tuple[int, ...], depth: int, sigma: float) -> None:
    """Check a perturbation.

    Raises:
      ValueError: the name is unknown, a block is outside [0, depth), or the blur is not positive.
    """
    choose("perturbation", name, dict.fromkeys(PERTURBATIONS))
    for block in blocks:
        if not 0 <= block < depth:
            raise ValueError(f"perturb_blocks: expected indices in [0, {depth}), got {block}")
    if not sigma > 0:
        raise ValueError(f"blur_sigma: expected a positive number of tokens, got {sigma}")


def blur_tokens(
    x: Float[Array, "b n h d"], grid: tuple[int, int], sigma: float
) -> Float[Array, "b n h d"]:
    """Gaussian blur of tokens over their 2-d grid.

    x'_i = Σ_j g_ij·x_j with g_ij ∝ exp(−distance²/(2σ²)), Σ_j g_ij = 1 over all tokens of the grid.

    Args:
      x: one vector per token and head; tokens are in rows from the top left.
      grid: number of tokens in a column and in a row.
      sigma: width in tokens; infinity gives every token the mean, zero is no blur.
    Source: Hong 2024, section 4.2, where the queries are blurred.
    """
    columns, rows = (_gaussian(size, sigma) for size in grid)
    tokens = x.reshape(x.shape[0], *grid, *x.shape[2:])
    kernel = (columns.astype(x.dtype), rows.astype(x.dtype))
    return jnp.einsum("iy,jx,byxhd->bijhd", *kernel, tokens).reshape(x.shape)


def _gaussian(size: int, sigma: float) -> Float[Array, "n n"]:
    distance = jnp.arange(size)[:, None] - jnp.arange(size)[None, :]
    inverse = 0.0 if math.isinf(sigma) else 0.5 / sigma**2
    weights = jnp.exp(-inverse * jnp.square(distance).astype(jnp.float32))
    return weights / weights.sum(axis=1, keepdims=True)
