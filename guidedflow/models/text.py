"""CLIP's text transformer: token numbers to features of every position and of the whole prompt.

Radford et al. 2021, "Learning Transferable Visual Models From Natural Language Supervision".
Parameter names are those of transformers' CLIPTextModel, with `kernel` for a transposed `weight`,
`embedding` for an embedding's, `scale` for a normalisation's, and `layers_3` for `layers.3`.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int

from guidedflow.registry import choose

# A file of this end unit was written with a wrong one: its prompts end at their largest number.
LEGACY_END = 2


def quick_gelu(x: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """Return x sigmoid(1.702 x), the GELU of the first CLIP models.   Hendrycks & Gimpel 2016."""
    return x * jax.nn.sigmoid(1.702 * x)


def gelu(x: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """Return x Φ(x), exactly, by the error function.   Hendrycks & Gimpel 2016."""
    return jax.nn.gelu(x, approximate=False)


ACTIVATIONS: dict[str, Callable[[Array], Array]] = {"quick_gelu": quick_gelu, "gelu": gelu}


class _Sizes(NamedTuple):
    """What the parts of a `TextEncoder` share of its attributes."""

    vocabulary: int
    width: int
    depth: int
    heads: int
    hidden: int
    positions: int
    activation: str
    dtype: Any


class TextFeatures(NamedTuple):
    """What a text encoder says about prompts.

    Attributes:
      tokens: one vector a position, after the final normalisation.
      pooled: the vector at the end unit, projected where the encoder has a projection.
    """

    tokens: Float[Array, "b n d"]
    pooled: Float[Array, "b p"]


class TextEncoder(nn.Module):
    """CLIP's text transformer: position i sees positions 0 to i, and the end unit sees all.

    Attributes:
      vocabulary: how many units there are.
      end: number of the end unit, where `pooled` is read; 2 stands for the largest number of the
        prompt, as files of the first CLIP models mean it.
      width, depth, heads: of the transformer; the MLP is 4 times as wide unless `hidden` says.
      hidden: width inside the MLP, or None.
      positions: the most positions of a prompt.
      activation: "quick_gelu" or "gelu".
      projection: width of `pooled` after a linear map without bias; None leaves it.
      dtype: compute dtype; parameters, softmax and the statistics of normalisations are float32.
    Raises:
      ValueError: at the first call: an unknown activation, a width that the heads do not divide,
        tokens or a mask of another form.
    """

    vocabulary: int
    end: int
    width: int = 512
    depth: int = 12
    heads: int = 8
    hidden: int | None = None
    positions: int = 77
    activation: str = "quick_gelu"
    projection: int | None = None
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, tokens: Int[Array, "b n"], mask: Bool[Array, "b n"] | None = None
    ) -> TextFeatures:
        """Return features of prompts.

        Args:
          tokens: unit numbers in [0, vocabulary), n at most `positions`.
          mask: True where a position may be seen; None shows padding too, as Stable Diffusion does.
        """
        self._check(tokens, mask)
        hidden = 4 * self.width if self.hidden is None else self.hidden
        sizes = _Sizes(
            self.vocabulary,
            self.width,
            self.depth,
            self.heads,
            hidden,
            self.positions,
            self.activation,
            self.dtype,
        )
        x = _Embeddings(sizes, name="embeddings")(tokens)
        x = _Encoder(sizes, name="encoder")(x, _visible(tokens, mask))
        x = _normalize(sizes, "final_layer_norm")(x)
        pooled = jnp.take_along_axis(x, _ends(tokens, self.end)[:, None, None], axis=1)[:, 0]
        if self.projection is not None:
            std = self.width**-0.5
            pooled = _dense(sizes, self.projection, std, "text_projection", use_bias=False)(pooled)
        return TextFeatures(x, pooled)

    def _check(self, tokens: Array, mask: Array | None) -> None:
        choose("activation", self.activation, ACTIVATIONS)
        if self.heads < 1 or self.width % self.heads:
            raise ValueError(f"{self.heads} heads do not divide a width of {self.width}")
        if tokens.ndim != 2 or not jnp.issubdtype(tokens.dtype, jnp.integer):
            raise ValueError(
                f"expected integer tokens (b, n), got {tokens.dtype} of shape {tokens.shape}"
            )
        if tokens.shape[1] > self.positions:
            raise ValueError(f"expected at most {self.positions} tokens, got {tokens.shape[1]}")
        if mask is not None and (mask.shape != tokens.shape or mask.dtype != bool):
            raise ValueError(
                f"expected a mask of booleans {tokens.shape}, got {mask.dtype} of shape {mask.shape}"
            )


def _visible(tokens: Array, mask: Array | None) -> Bool[Array, "b 1 n n"]:
    """Return which keys each query sees: itself and those before it, where the mask lets it."""
    length = tokens.shape[1]
    before = jnp.tril(jnp.ones((1, 1, length, length), bool))
    return before if mask is None else before & mask[:, None, None, :]


def _ends(tokens: Int[Array, "b n"], end: int) -> Int[Array, "b"]:
    """Return where each prompt ends: at the first end unit, or by the legacy rule."""
    return jnp.argmax(tokens if end == LEGACY_END else tokens == end, axis=-1)


def _dense(sizes: _Sizes, features: int, std: float, name: str, **options: Any) -> nn.Dense:
    init = nn.initializers.normal(std)
    return nn.Dense(features, dtype=sizes.dtype, kernel_init=init, name=name, **options)


def _normalize(sizes: _Sizes, name: str) -> nn.LayerNorm:
    return nn.LayerNorm(epsilon=1e-5, dtype=sizes.dtype, name=name)


class _Embeddings(nn.Module):
    sizes: _Sizes

    @nn.compact
    def __call__(self, tokens: Int[Array, "b n"]) -> Float[Array, "b n d"]:
        embed = partial(nn.Embed, features=self.sizes.width, dtype=self.sizes.dtype)
        words = embed(
            self.sizes.vocabulary,
            embedding_init=nn.initializers.normal(0.02),
            name="token_embedding",
        )
        places = embed(
            self.sizes.positions,
            embedding_init=nn.initializers.normal(0.01),
            name="position_embedding",
        )
        return words(tokens) + places(jnp.arange(tokens.shape[1]))[None]


class _Encoder(nn.Module):
    sizes: _Sizes

    @nn.compact
    def __call__(self, x: Float[Array, "b n d"], visible: Array) -> Float[Array, "b n d"]:
        for number in range(self.sizes.depth):
            x = _Layer(self.sizes, name=f"layers_{number}")(x, visible)
        return x


class _Layer(nn.Module):
    """x ← x + attention(normalize(x)), then x ← x + mlp(normalize(x))."""

    sizes: _Sizes

    @nn.compact
    def __call__(self, x: Float[Array, "b n d"], visible: Array) -> Float[Array, "b n d"]:
        normed = _normalize(self.sizes, "layer_norm1")(x)
        x = x + _SelfAttention(self.sizes, name="self_attn")(normed, visible)
        normed = _normalize(self.sizes, "layer_norm2")(x)
        return x + _MLP(self.sizes, name="mlp")(normed)


class _SelfAttention(nn.Module):
    sizes: _Sizes

    @nn.compact
    def __call__(self, x: Float[Array, "b n d"], visible: Array) -> Float[Array, "b n d"]:
        sizes = self.sizes
        into = sizes.width**-0.5

        def heads(name: str) -> Float[Array, "b n h k"]:
            features = _dense(sizes, sizes.width, into, name)(x)
            return rearrange(features, "b n (h k) -> b n h k", h=sizes.heads)

        q, k, v = heads("q_proj"), heads("k_proj"), heads("v_proj")
        mixed = jax.nn.dot_product_attention(q, k, v, mask=visible, implementation="xla")
        out = into * (2 * sizes.depth) ** -0.5
        return _dense(sizes, sizes.width, out, "out_proj")(rearrange(mixed, "b n h k -> b n (h k)"))


class _MLP(nn.Module):
    sizes: _Sizes

    @nn.compact
    def __call__(self, x: Float[Array, "b n d"]) -> Float[Array, "b n d"]:
        sizes = self.sizes
        x = _dense(sizes, sizes.hidden, (2 * sizes.width) ** -0.5, "fc1")(x)
        x = ACTIVATIONS[sizes.activation](x)
        return _dense(sizes, sizes.width, sizes.width**-0.5 * (2 * sizes.depth) ** -0.5, "fc2")(x)
