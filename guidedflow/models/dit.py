"""Diffusion transformer with AdaLN-Zero blocks.

Peebles & Xie 2023, "Scalable Diffusion Models with Transformers".  Parameter names and layouts are
those of the public DiT and SiT checkpoints, with `kernel` for a transposed `weight`.
"""

import dataclasses
import math
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from guidedflow.nn.capabilities import Capabilities
from guidedflow.nn.conditioning import Modulation, check_input, embed_condition, takes
from guidedflow.nn.context import Context, mean_token, take_tokens
from guidedflow.nn.embeddings import grid_positions
from guidedflow.nn.linear import Dense
from guidedflow.nn.operations import XLA, Operations
from guidedflow.nn.patches import patchify, unpatchify
from guidedflow.nn.perturbations import check_perturbation
from guidedflow.nn.stacking import check_remat, rematerialized, run_stack
from guidedflow.nn.transformer import Block, FinalLayer
from guidedflow.registry import choose
from guidedflow.sizes import height_and_width

INJECTIONS = ("cross_attention", "in_context", "adaptive")


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
      token_width: width of "tokens" (b, m, token_width), which `cond` then holds, with a "mask" (b, m)
        of those that count; None for a network without them.
      inject: how tokens come in, one or more of "cross_attention", after the self-attention of every
        block and zero at first; "in_context", as further tokens of the sequence; "adaptive", their
        mean added to the time's embedding, zero at first.
      vector_width: width of "vector" (b, vector_width), whose projection, zero at first, is added to
        the time's embedding; None for a network without it.
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
    token_width: int | None = None
    inject: tuple[str, ...] = ("cross_attention",)
    vector_width: int | None = None
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
        self._check_injection()
        super().__post_init__()

    def _check_injection(self) -> None:
        if isinstance(self.inject, str) or not self.inject:
            raise ValueError(f"inject: expected some of {INJECTIONS}, got {self.inject!r}")
        for way in self.inject:
            choose("injection", way, dict.fromkeys(INJECTIONS))
        if self.perturbation == "blur" and self._injects("in_context"):
            raise ValueError("perturbation 'blur' is of patches, and in_context adds other tokens")

    def _injects(self, way: str) -> bool:
        return bool(self.token_width) and way in self.inject

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
        labelled = not self.token_width and not self.vector_width
        return Capabilities(
            takes=takes(self.vector_width, self.token_width),
            takes_scalars=True,
            transformer=labelled,
            perturbed=True,
            tabulated=bool(self.num_classes) and not self.scalars and labelled,
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
        context = None
        if isinstance(cond, Modulation):
            if self.token_width:
                raise ValueError("cond: modulations alone say nothing of the tokens")
            c, last = cond.blocks, cond.last
        else:
            c, context = self._embed(t, cond)
            last = c
        tokens = mask = None
        if not modulations_only:
            embed = self._dense("x_embedder")
            tokens = embed(patchify(x, self.patch))
            tokens += jnp.asarray(grid_positions(self.grid, self.width), self.dtype)[None]
        crossed, before = None, 0
        if context is not None and tokens is not None:
            crossed = context if self._injects("cross_attention") else None
            if self._injects("in_context"):
                before = context.tokens.shape[1]
                tokens, mask = _prepend(context, tokens)
        tokens = run_stack(
            self._make_block,
            tokens,
            c,
            depth=self.depth,
            scan=self.scan_layers,
            perturbed=self.perturb_blocks if self.perturbation != "none" else (),
            perturbation=self.perturbation,
            shared=() if context is None else (crossed, mask),
        )
        features = self.patch**2 * self.channels * (2 if self.double_channels else 1)
        final = FinalLayer(features, self.dtype, self.operations, name="final_layer")
        if modulations_only:
            return Modulation(tokens, final(None, last))
        values = final(tokens[:, before:], last)
        return unpatchify(values, self.patch, self.grid).astype(x.dtype)

    def _embed(self, t: Array, cond: Any) -> tuple[Array, Context | None]:
        """Return the condition as a vector, and the tokens at the network's width."""
        c = embed_condition(
            t,
            cond,
            self.width,
            self.num_classes,
            self.scalars,
            self.time_scale,
            self.dtype,
            self.operations,
            self.vector_width,
            self.token_width,
        )
        if not self.token_width:
            return c, None
        context = take_tokens(cond, len(t), self.token_width)
        if self._injects("adaptive"):
            zeros = nn.initializers.zeros_init()
            c += self._dense("mean_embedder", kernel_init=zeros)(mean_token(context))
        if not self._injects("cross_attention") and not self._injects("in_context"):
            return c, None
        return c, Context(self._dense("token_embedder")(context.tokens), context.mask)

    def _dense(self, name: str, **fields: Any) -> nn.Module:
        return Dense(self.width, dtype=self.dtype, operations=self.operations, name=name, **fields)

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


def _prepend(context: Context, tokens: Array) -> tuple[Array, Array | None]:
    """Return the tokens behind those of the context, and which of all may be attended to."""
    joined = jnp.concatenate([context.tokens, tokens], axis=1)
    if context.mask is None:
        return joined, None
    return joined, jnp.concatenate([context.mask, jnp.ones(tokens.shape[:2], bool)], axis=1)
