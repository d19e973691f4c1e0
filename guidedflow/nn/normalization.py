"""Layer normalisation and its modulation by a condition, as XLA computes them."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


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
