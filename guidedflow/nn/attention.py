"""Softmax attention in the arrangement that suits a device, which is picked by name."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Bool, Float

from guidedflow.nn.fallbacks import say_once
from guidedflow.nn.vmapped_rows import fold_mapped
from guidedflow.registry import choose

_HALF = (jnp.bfloat16, jnp.float16)


def attention(
    q: Float[Array, "b n h d"],
    k: Float[Array, "b m h d"],
    v: Float[Array, "b m h d"],
    mask: Bool[Array, "b m"] | None = None,
    *,
    backend: str = "xla",
) -> Float[Array, "b n h d"]:
    """Attend to `k` and `v` from `q`, head by head.

    softmax(q·kᵀ/√d)·v over the keys that the mask keeps, the softmax in float32.
    Vaswani et al. 2017, eq. 1.

    Args:
      q, k, v: queries, keys and values with h heads of d values each, of one dtype; the keys may
        come from elsewhere and be of another number.
      mask: which keys there are, True for those that count; None for all. An example without any
        key gets the mean of its values.
      backend: "xla"; "cudnn", fused, for GPUs and 16-bit dtypes; "cpu", laid out for XLA's CPU
        compiler, also under `vmap`.
    Returns:
      The dtype and shape of `q`.
    Raises:
      ValueError: an unknown backend, or a mask of another shape.
    """
    run = choose("attention backend", backend, _BACKENDS)
    if mask is not None and mask.shape != (k.shape[0], k.shape[1]):
        raise ValueError(
            f"mask: expected shape {(k.shape[0], k.shape[1])}, one a key, got {mask.shape}"
        )
    return run(q, k, v, mask)


def pick(backend: str, platform: str, dtype: Any) -> tuple[str, str]:
    """Return the backend that runs on a platform, and why.

    Args:
      backend: a name, or "auto".
      platform: "cpu", "gpu" or "tpu".
      dtype: of queries, keys and values.
    Raises:
      ValueError: an unknown backend.
    """
    choose("attention backend", backend, {"auto": None, **_BACKENDS})
    fused = platform == "gpu" and jnp.dtype(dtype) in _HALF
    if backend == "auto":
        if platform == "cpu":
            return "cpu", "the device is a CPU"
        if fused:
            return "cudnn", f"the device is a GPU and {jnp.dtype(dtype)} has 16 bits"
        return "xla", f"neither a CPU nor a GPU with 16 bits: {platform}, {jnp.dtype(dtype)}"
    if backend == "cudnn" and not fused:
        reason = f"cuDNN needs a GPU and 16 bits, here are {platform} and {jnp.dtype(dtype)}"
        say_once(f"attention runs on xla: {reason}")
        return "xla", reason
    return backend, "asked for"


def _xla(q: Array, k: Array, v: Array, mask: Array | None) -> Array:
    whole = None if mask is None else mask[:, None, None, :]
    return jax.nn.dot_product_attention(q, k, v, mask=whole, implementation="xla")


def _cudnn(q: Array, k: Array, v: Array, mask: Array | None) -> Array:
    if mask is not None:
        # cuDNN attention with a mask under vmap has failed in released JAX.
        return _xla(q, k, v, mask)
    try:
        return jax.nn.dot_product_attention(q, k, v, implementation="cudnn")
    except (RuntimeError, NotImplementedError, ValueError) as error:
        say_once(f"attention runs on xla: cuDNN refused {q.shape} {q.dtype}: {error}")
        return _xla(q, k, v, None)


def _cpu(q: Array, k: Array, v: Array, mask: Array | None) -> Array:
    heads = q.shape[2]
    rows, keys, values = (rearrange(part, "b n h d -> (b h) n d") for part in (_scaled(q), k, v))
    if mask is None:
        mixed = _attend(rows, keys, values)
    else:
        mixed = _attend_masked(rows, keys, values, jnp.repeat(mask, heads, axis=0))
    return rearrange(mixed, "(b h) n d -> b n h d", h=heads)


def _scaled(q: Array) -> Array:
    # Once on n·d queries, not on n·m logits, where XLA's CPU compiler also reads the constant from
    # memory, written out to the size of the logits.
    return q * jnp.asarray(q.shape[-1] ** -0.5, q.dtype)


def _multiply(x: Array, y: Array) -> Array:
    return jnp.matmul(x, y, preferred_element_type=jnp.promote_types(x.dtype, jnp.float32))


def _attend_rows(
    q: Float[Array, "r n d"],
    k: Float[Array, "r m d"],
    v: Float[Array, "r m d"],
) -> Float[Array, "r n d"]:
    # One batch axis, nothing between the products but the exponential, and the division after the
    # product with v: XLA's CPU compiler makes one kernel of it.
    return _mix(_multiply(q, jnp.swapaxes(k, 1, 2)), v).astype(q.dtype)


def _attend_rows_masked(
    q: Float[Array, "r n d"],
    k: Float[Array, "r m d"],
    v: Float[Array, "r m d"],
    mask: Bool[Array, "r m"],
) -> Float[Array, "r n d"]:
    logits = _multiply(q, jnp.swapaxes(k, 1, 2))
    # The least finite number and not −∞, so that an example without any key stays finite.
    logits = jnp.where(mask[:, None, :], logits, jnp.finfo(logits.dtype).min)
    return _mix(logits, v).astype(q.dtype)


def _mix(logits: Float[Array, "r n m"], v: Float[Array, "r m d"]) -> Float[Array, "r n d"]:
    largest = jax.lax.stop_gradient(logits.max(axis=-1, keepdims=True))
    weights = jnp.exp(logits - largest)
    total = weights.sum(axis=-1, keepdims=True)
    return _multiply(weights.astype(v.dtype), v) / total


_attend = fold_mapped(_attend_rows, (True, True, True))
_attend_masked = fold_mapped(_attend_rows_masked, (True, True, True, True))

_BACKENDS: dict[str, Callable[[Array, Array, Array, Array | None], Array]] = {
    "xla": _xla,
    "cudnn": _cudnn,
    "cpu": _cpu,
}
