"""U-ViT: a transformer to which everything is a token, its halves joined by long skips.

Bao et al. 2023, "All are Worth Words: A ViT Backbone for Diffusion Models".
"""

import dataclasses
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from guidedflow.nn.capabilities import Capabilities
from guidedflow.nn.conditioning import (
    check_input,
    check_numbers,
    split_condition,
    take_labels,
    take_vector,
    takes,
)
from guidedflow.nn.context import attend, take_tokens
from guidedflow.nn.convolutions import Convolution
from guidedflow.nn.embeddings import LabelEmbedding, ScalarEmbedding
from guidedflow.nn.linear import MLP, Dense
from guidedflow.nn.operations import XLA, Operations
from guidedflow.nn.patches import patchify, unpatchify
from guidedflow.nn.stacking import check_remat, rematerialized
from guidedflow.sizes import height_and_width

_SMALL = nn.initializers.truncated_normal(0.02)


class Block(nn.Module):
    """x ← W[x, skip] where there is a skip; x ← x + attention(norm(x)); x ← x + mlp(norm(x)).

    Bao et al. 2023.

    Attributes:
      heads: number of heads.
      hidden: width inside the MLP.
      dtype: compute dtype.
      operations: what computes it.
    """

    heads: int
    hidden: int
    dtype: Any
    operations: Operations

    @nn.compact
    def __call__(
        self, x: Float[Array, "b n d"], mask: Array | None, skip: Array | None = None
    ) -> Float[Array, "b n d"]:
        width = x.shape[-1]

        def dense(features: int, name: str, **fields: Any) -> Dense:
            return Dense(
                features, _SMALL, dtype=self.dtype, operations=self.operations, name=name, **fields
            )

        def normed(name: str) -> Array:
            return nn.LayerNorm(epsilon=1e-5, dtype=self.dtype, name=name)(x)

        if skip is not None:
            x = dense(width, "skip_linear")(jnp.concatenate([x, skip], axis=-1))
        packed = dense(3 * width, "attn_qkv", use_bias=False)(normed("norm1"))
        if mask is None:
            mixed = self.operations.self_attention(packed, self.heads)
        else:
            q, k, v = jnp.split(packed, 3, axis=-1)
            mixed = attend(self.operations, q, k, v, self.heads, mask)
        x = x + dense(width, "attn_proj")(mixed)
        return x + MLP(self.hidden, self.dtype, self.operations, name="mlp")(normed("norm2"))


class UViT(nn.Module):
    """Time, class, numbers, vector, tokens and patches are one sequence of tokens.

    A skip joins block i to block depth − 1 − i by concatenation and a linear layer. A new network
    gives zero.  Dtypes, labels and numbers as in `DiT`.

    Attributes:
      image_size, channels, patch: as in `DiT`.
      width: of a token; divisible by `heads`.
      depth: number of blocks; odd, the middle one has no skip.
      heads: attention heads.
      mlp_ratio: width inside the MLP over `width`.
      token_width: width of "tokens" (b, m, token_width) with an optional "mask" (b, m); None for a
        network without them.
      token_positions: the most tokens, m; each place has a learned position.
      vector_width: width of "vector" (b, vector_width); None for none.
      remat: what the backward pass keeps of a block, see `stacking.check_remat`.
      num_classes, double_channels, scalars, time_scale, dtype, operations: as in `DiT`.
    Raises:
      ValueError: as `DiT` does.
    """

    image_size: int | tuple[int, int]
    channels: int
    patch: int
    width: int
    depth: int
    heads: int
    mlp_ratio: float = 4.0
    token_width: int | None = None
    token_positions: int = 77
    vector_width: int | None = None
    num_classes: int | None = None
    double_channels: bool = False
    scalars: tuple[str, ...] = ()
    time_scale: float = 1000.0
    dtype: Any = jnp.float32
    operations: Operations = dataclasses.field(default_factory=XLA)
    remat: str = "none"

    def __post_init__(self) -> None:
        height, width = self.size
        if self.patch < 1 or height % self.patch or width % self.patch:
            raise ValueError(f"patch: {self.patch} does not divide the image {height}×{width}")
        if self.heads < 1 or self.width % self.heads:
            raise ValueError(f"heads: {self.heads} does not divide the width {self.width}")
        if self.depth < 1 or self.depth % 2 == 0:
            raise ValueError(f"depth: expected an odd number of blocks, got {self.depth}")
        if self.token_positions < 1:
            raise ValueError(f"token_positions: expected at least 1, got {self.token_positions}")
        check_remat(self.remat)
        super().__post_init__()

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the image."""
        return height_and_width(self.image_size)

    @property
    def grid(self) -> tuple[int, int]:
        """Patches in a column, patches in a row."""
        return self.size[0] // self.patch, self.size[1] // self.patch

    @property
    def capabilities(self) -> Capabilities:
        """A field that takes further numbers, and tokens and a vector where they have a width."""
        rows, (height, width) = self.operations.rows_per_turn, self.grid
        return Capabilities(
            takes=takes(self.vector_width, self.token_width),
            takes_scalars=True,
            examples_per_turn=None if rows is None else max(1, rows // (height * width)),
        )

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], t: Float[Array, " b"], cond: Any = None
    ) -> Float[Array, "b h w c_out"]:
        """Return the velocity at `x` and `t`; arguments as of `DiT`."""
        check_input(x, t, self.size, self.channels)
        patches = self._dense("patch_embed")(patchify(x, self.patch))
        told, mask = self._tell(t, cond)
        h = self._place(told, patches)
        before = h.shape[1] - patches.shape[1]
        if mask is not None:
            ones = jnp.ones((len(t), h.shape[1] - mask.shape[1] - patches.shape[1]), bool)
            mask = jnp.concatenate([ones, mask, jnp.ones(patches.shape[:2], bool)], axis=1)
        skips, half = [], self.depth // 2
        for index in range(half):
            h = self._make_block(f"in_blocks_{index}")(h, mask)
            skips.append(h)
        h = self._make_block("mid_block")(h, mask)
        for index in range(half):
            h = self._make_block(f"out_blocks_{index}")(h, mask, skips.pop())
        h = nn.LayerNorm(epsilon=1e-5, dtype=self.dtype, name="norm")(h[:, before:])
        channels = self.channels * (2 if self.double_channels else 1)
        values = self._dense("decoder_pred", self.patch**2 * channels)(h)
        zeros = nn.initializers.zeros_init()
        last = Convolution(
            channels,
            self.dtype,
            kernel_init=zeros,
            operations=self.operations,
            name="final_layer",
        )
        return last(unpatchify(values, self.patch, self.grid)).astype(x.dtype)

    def _tell(self, t: Array, cond: Any) -> tuple[list[Array], Array | None]:
        """Return what the network is told, each b k d, the tokens last; and the tokens' mask."""
        size = len(t)
        cond = split_condition(
            cond, self.num_classes, self.scalars, self.vector_width, self.token_width
        )

        def number(name: str, value: Array) -> Array:
            embed = ScalarEmbedding(
                self.width,
                self.time_scale,
                dtype=self.dtype,
                operations=self.operations,
                name=name,
            )
            return embed(value)

        told = [number("time_embed", t)]
        if self.num_classes:
            label = take_labels(cond["label"], size)
            told.append(
                LabelEmbedding(
                    self.num_classes, self.width, self.dtype, self.operations, name="label_emb"
                )(label)
            )
        for name in self.scalars:
            check_numbers(name, cond[name], size)
            told.append(number(f"{name}_embed", cond[name]))
        if self.vector_width:
            told.append(self._dense("vector_embed")(take_vector(cond, size, self.vector_width)))
        told = [one[:, None] for one in told]
        if not self.token_width:
            return told, None
        context = take_tokens(cond, size, self.token_width)
        if context.tokens.shape[1] > self.token_positions:
            raise ValueError(
                f"tokens: expected at most {self.token_positions}, got {context.tokens.shape[1]}"
            )
        return [*told, self._dense("context_embed")(context.tokens)], context.mask

    def _place(self, told: list[Array], patches: Array) -> Array:
        """Return one sequence of all, with its learned positions; a short prompt has the first."""
        sequence = jnp.concatenate([*told, patches], axis=1)
        missing = self.token_positions - told[-1].shape[1] if self.token_width else 0
        places = (1, sequence.shape[1] + missing, self.width)
        positions = self.operations.whole(self.param("pos_embed", _SMALL, places, jnp.float32))
        before = sequence.shape[1] - patches.shape[1]
        own = [positions[:, :before], positions[:, before + missing :]]
        return sequence + jnp.concatenate(own, axis=1).astype(self.dtype)

    def _dense(self, name: str, features: int | None = None) -> nn.Module:
        return Dense(
            features or self.width,
            _SMALL,
            dtype=self.dtype,
            operations=self.operations,
            name=name,
        )

    def _make_block(self, name: str) -> nn.Module:
        return rematerialized(Block, self.remat, False)(
            self.heads,
            round(self.mlp_ratio * self.width),
            self.dtype,
            self.operations,
            name=name,
        )
