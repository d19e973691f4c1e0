"""Embeddings of numbers, classes and positions, in the layouts of the public DiT checkpoints."""

import dataclasses
import math
from functools import partial
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float, Int

from guidedflow.nn.linear import Dense, Initializer
from guidedflow.nn.operations import XLA, Operations

FREQUENCIES = 128
_SMALL_NORMAL = nn.initializers.normal(0.02)


def sinusoids(value: Float[Array, " b"], half: int = FREQUENCIES) -> Float[Array, "b d"]:
    """Cosines, then sines, of a number at geometrically spaced frequencies.

    (cos(ω_i·v), sin(ω_i·v)) with ω_i = 10000^(−i/half), i = 0 … half − 1; float32.

    Args:
      value: any real number; the frequencies suit the range 0 … 1000.
      half: number of frequencies; the result has twice as many values.
    Source: Vaswani et al. 2017, section 3.5, with the spacing (half, not half − 1) and the order of
      Peebles & Xie 2023.
    """
    frequencies = jnp.exp(-math.log(10_000.0) * jnp.arange(half, dtype=jnp.float32) / half)
    angles = value.astype(jnp.float32)[:, None] * frequencies[None, :]
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


class ScalarEmbedding(nn.Module):
    """Embeds one number per example: W₂·silu(W₁·sinusoids(factor·value)).

    Attributes:
      width: width of the result.
      factor: factor of the number, see `DiT.time_scale`.
      last_init: initialiser of W₂; with zeros the number has no effect at first.
      dtype: compute dtype of the two layers; the sinusoids are float32.
      operations: computes the layers.
    """

    width: int
    factor: float = 1.0
    last_init: Initializer = _SMALL_NORMAL
    dtype: Any = jnp.float32
    operations: Operations = dataclasses.field(default_factory=XLA)

    @nn.compact
    def __call__(self, value: Float[Array, " b"]) -> Float[Array, "b width"]:
        waves = sinusoids(self.factor * value)
        dense = partial(Dense, self.width, dtype=self.dtype, operations=self.operations)
        hidden = dense(kernel_init=_SMALL_NORMAL, name="mlp_0")(waves)
        return dense(kernel_init=self.last_init, name="mlp_2")(nn.silu(hidden))


class LabelEmbedding(nn.Module):
    """A learned table with one row per class; the last row is the null class.

    A label outside [0, num_classes] gives NaN, so the mistake shows. It never selects another class.

    Attributes:
      num_classes: number of classes; the null class is the row with this index.
      width: width of a row.
      dtype: dtype of the result.
      operations: gathers the table.
    """

    num_classes: int
    width: int
    dtype: Any = jnp.float32
    operations: Operations = dataclasses.field(default_factory=XLA)

    @nn.compact
    def __call__(self, label: Int[Array, " b"]) -> Float[Array, "b width"]:
        shape = (self.num_classes + 1, self.width)
        table = self.param("embedding_table", _SMALL_NORMAL, shape, jnp.float32)
        # A negative index would count from the end, which is the null class.
        row = jnp.where(label < 0, self.num_classes + 1, label)
        return jnp.take(self.operations.whole(table), row, axis=0, mode="fill").astype(self.dtype)


def grid_positions(grid: tuple[int, int], width: int) -> Float[np.ndarray, "n width"]:
    """Fixed position embeddings of a grid of tokens, in rows from the top left.

    (p(column), p(row)) with p(u) = (sin(ω_i·u), cos(ω_i·u)), ω_i = 10000^(−i/(width/4)).

    Args:
      grid: number of tokens in a column and in a row.
      width: width of the result, divisible by 4.
    Raises:
      ValueError: the width is not divisible by 4.
    Source: Peebles & Xie 2023 and their checkpoints' `pos_embed`: the column comes first.
    """
    if width % 4:
        raise ValueError(f"2-d positions need a width divisible by 4, got {width}")
    frequencies = 10_000.0 ** (-np.arange(width // 4) / (width / 4))
    row, column = np.meshgrid(np.arange(grid[0]), np.arange(grid[1]), indexing="ij")
    angles = np.stack([column.ravel(), row.ravel()], axis=1)[:, :, None] * frequencies
    waves = np.concatenate([np.sin(angles), np.cos(angles)], axis=-1)
    return waves.reshape(-1, width).astype(np.float32)
