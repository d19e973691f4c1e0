"""Diffusion transformer with AdaLN-Zero blocks.

Peebles & Xie 2023, "Scalable Diffusion Models with Transformers".  Parameter names and layouts are
those of the public DiT and SiT checkpoints, with `kernel` for a transposed `weight`.
"""

import dataclasses
import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import linen as nn
from jaxtyping import Array, Float

from guidedflow.nn.capabilities import Capabilities
from guidedflow.nn.conditioning import Modulation, check_input, embed_condition
from guidedflow.nn.embeddings import grid_positions
from guidedflow.nn.linear import MLP, Dense
from guidedflow.nn.operations import XLA, Operations
from guidedflow.nn.patches import patchify, unpatchify
from guidedflow.nn.perturbations import blur_tokens, check_perturbation
from guidedflow.nn.stacking import check_remat, rematerialized, run_stack
from guidedflow.sizes import height_and_width

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
    def __call__(self, x: Float[Array, "b n d"], active: Array | None) -> Float[Array, "b n d"]:
        dense = partial(Dense, dtype=self.dtype, operations=self.operations)
        packed = dense(3 * x.shape[-1], name="qkv")(x)

        def plain() -> Array:
            return self.operations.self_attention(packed, self.heads)

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
        self, x: Float[Array, "b n d"] | None, c: Float[Array, "b _"], active: Array | None
    ) -> Array:
        """Return the tokens after the block; without tokens, the modulation b 6·d of condition c.

        `c` is the condition, b d, or its modulation, which is then not computed again.
        """
        modulation = _modulation(x, c, 6, self.dtype, self.operations)
        if x is None:
            return modulation
        shift1, scale1, gate1, shift2, scale2, gate2 = jnp.split(modulation, 6, axis=-1)
        attend = Attention(
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
        y = x + gate1[:, None, :] * attend(inner, active)
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


class DiT(nn.Module):
    """Diffusion transformer: `network.apply({"params": p}, x, t, cond)` is a velocity field.

    Parameters are float32; products run in `dtype`; softmax and the statistics of normalisation
    are float32; the result has the dtype of `x`.  Labels are never dropped inside: the caller
    passes the null class, index `num_classes`.

    Attributes:
      image_size: (height, width) in pixels, or one number for a square.
      channels: of the image.
      patch: side of a patch; divides both sides of the image.
      width: of a token; divisible by `heads` and by 4.
      depth: number of blocks.
      heads: attention heads.
      mlp_ratio: width inside the MLP over `width`.
      num_classes: classes without the null class; None or 0 for an unconditional network, which
        does not look at `cond`.
      double_channels: give twice as many channels, the second half for a learned variance.
      scalars: names of further numbers that the network takes, as ("scale",) for a student of
        guidance distillation or ("beta",) for guidance-free training; `cond` is then a mapping
        {"label": (b,), "scale": (b,)}.  A number starts out counting for nothing.
      time_scale: multiplies the time, and further numbers, before the sinusoids.  Their
        frequencies, 1 down to 1/10000, were made for steps 0 … 999; an unscaled t in [0, 1] moves
        even the fastest by one radian, and nearby times look alike.  1000 here; SiT has 1.
      dtype: compute dtype; bfloat16 on accelerators, float32 on CPU, where it is faster.
      operations: what computes linear layers, attention and normalisation; by default XLA, for the
        platform that is attached when the network is made.
      scan_layers: compile one block and scan it; see `stacking.stack_blocks` for the parameters.
      remat: what the backward pass keeps, see `stacking.check_remat`.
      perturb_blocks: indices in [0, depth) of the blocks that `perturbation` is done to.
      perturbation: "none", "identity_attention", "skip" (the block is left out) or "blur".
      blur_sigma: width of the blur of queries in tokens; infinity gives every query the mean.
    Raises:
      ValueError: at construction, for fields that contradict one another; when called, for inputs
        of another shape or dtype.
    """

    image_size: int | tuple[int, int]
    channels: int
    patch: int
    width: int
    depth: int
    heads: int
    mlp_ratio: float = 4.0
    num_classes: int | None = None
    double_channels: bool = False
    scalars: tuple[str, ...] = ()
    time_scale: float = 1000.0
    dtype: Any = jnp.float32
    operations: Operations = dataclasses.field(default_factory=XLA)
    scan_layers: bool = False
    remat: str = "none"
    perturb_blocks: tuple[int, ...] = ()
    perturbation: str = "none"
    blur_sigma: float = math.inf

    def __post_init__(self) -> None:
        height, width = self.size
        if self.patch < 1 or height % self.patch or width % self.patch:
            raise ValueError(f"patch: {self.patch} does not divide the image {height}×{width}")
        if self.heads < 1 or self.width % self.heads:
            raise ValueError(f"heads: {self.heads} does not divide the width {self.width}")
        if self.width % 4:
            raise ValueError(f"width: expected a multiple of 4, got {self.width}")
        check_remat(self.remat)
        check_perturbation(self.perturbation, self.perturb_blocks, self.depth, self.blur_sigma)
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
        """A field whose blocks can be perturbed, its modulations tabulated, its batch cut."""
        rows, (height, width) = self.operations.rows_per_turn, self.grid
        return Capabilities(
            takes=frozenset({"label", "scalars"}),
            takes_scalars=True,
            transformer=True,
            perturbed=True,
            tabulated=bool(self.num_classes) and not self.scalars,
            examples_per_turn=None if rows is None else max(1, rows // (height * width)),
        )

    def perturbed(self, how: str) -> "DiT":
        """Return the network with its middle block perturbed, with the same parameters.

        Args:
          how: as `perturbation` has it.
        """
        return self.clone(perturbation=how, perturb_blocks=(self.depth // 2,))

    @nn.compact
    def __call__(
        self,
        x: Any,
        t: Float[Array, " b"],
        cond: Any = None,
        *,
        modulations_only: bool = False,
    ) -> Any:
        """Return the velocity at `x` and `t`, (b, *size, channels).

        Args:
          x: images, (b, *size, channels).
          t: times in [0, 1], 0 noise, 1 data.
          cond: integer labels in [0, num_classes]; or a mapping, see `scalars`; or the
            `Modulation` that this call returned for them and `t` with `modulations_only`.
          modulations_only: do nothing with `x`, which may be None.
        """
        if not modulations_only:
            check_input(x, t, self.size, self.channels)
        if isinstance(cond, Modulation):
            c, last = cond.blocks, cond.last
        else:
            c = last = embed_condition(
                t,
                cond,
                self.width,
                self.num_classes,
                self.scalars,
                self.time_scale,
                self.dtype,
                self.operations,
            )
        tokens = None
        if not modulations_only:
            embed = Dense(
                self.width, dtype=self.dtype, operations=self.operations, name="x_embedder"
            )
            tokens = embed(patchify(x, self.patch))
            tokens += jnp.asarray(grid_positions(self.grid, self.width), self.dtype)[None]
        tokens = run_stack(
            self._make_block,
            tokens,
            c,
            depth=self.depth,
            scan=self.scan_layers,
            perturbed=self.perturb_blocks if self.perturbation != "none" else (),
            perturbation=self.perturbation,
        )
        features = self.patch**2 * self.channels * (2 if self.double_channels else 1)
        final = FinalLayer(features, self.dtype, self.operations, name="final_layer")
        if modulations_only:
            return Modulation(tokens, final(None, last))
        values = final(tokens, last)
        return unpatchify(values, self.patch, self.grid).astype(x.dtype)

    def _make_block(self, name: str, perturbation: str) -> nn.Module:
        block = rematerialized(Block, self.remat, self.scan_layers)
        hidden = round(self.mlp_ratio * self.width)
        return block(
            self.heads,
            hidden,
            perturbation,
            self.grid,
            self.blur_sigma,
            self.dtype,
            self.operations,
            name=name,
        )
