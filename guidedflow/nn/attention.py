"""Softmax attention behind one function, which picks an arrangement for the device and names it."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Float

from guidedflow.nn.vmapped_rows import fold_mapped
from guidedflow.nn.operations import say_once
from guidedflow.registry import choose

_HALF = (jnp.bfloat16, jnp.float16)


def attention(
    q: Float[Array, "b n h d"],
    k: Float[Array, "b m h d"],
    v: Float[Array, "b m h d"],
    backend: str = "auto",
) -> Float[Array, "b n h d"]:
    """Attend to `k` and `v` from `q`, head by head.

    softmax(q·kᵀ/√d)·v, the softmax in float32.   Vaswani et al. 2017, eq. 1.

    Args:
      q, k, v: queries, keys and values with h heads of d values each, of one dtype.
      backend: "xla"; "cudnn", fused, for GPUs and 16-bit dtypes; "cpu", laid out for XLA's CPU
        compiler, also under `vmap`; "auto", what `pick` says.
    Returns:
      The dtype and shape of `q`.
    Raises:
      ValueError: an unknown backend.
    """
    name, _ = pick(backend, q.dtype)
    return _BACKENDS[name](q, k, v)


def pick(backend: str, dtype: Any) -> tuple[str, str]:
    """Return the backend that runs on the default device, and why.

    Args:
      backend: a name, or "auto".
      dtype: of queries, keys and values.
    Raises:
      ValueError: an unknown backend.
    """
    choose("attention backend", backend, {"auto": None, **_BACKENDS})
    platform = jax.default_backend()
    fused = platform == "gpu" and jnp.dtype(dtype) in _HALF
    if backend == "auto":
        if platform == "cpu":
            return "cpu", "the default device is a CPU"
        if fused:
            return "cudnn", f"the default device is a GPU and {jnp.dtype(dtype)} has 16 bits"
        return "xla", f"neither a CPU nor a GPU with 16 bits: {platform}, {jnp.dtype(dtype)}"
    if backend == "cudnn" and not fused:
        reason = f"cuDNN needs a GPU and 16 bits, here are {platform} and {jnp.dtype(dtype)}"
        say_once(f"attention runs on xla: {reason}")
        return "xla", reason
    return backend, "asked for"


def _xla(q: Array, k: Array, v: Array) -> Array:
    return jax.nn.dot_product_attention(q, k, v, implementation="xla")


def _cudnn(q: Array, k: Array, v: Array) -> Array:
    # No mask is ever passed: cuDNN attention with one under vmap has failed in released JAX.
    try:
        return jax.nn.dot_product_attention(q, k, v, implementation="cudnn")
    except (RuntimeError, NotImplementedError, ValueError) as error:
        say_once(f"attention runs on xla: cuDNN refused {q.shape} {q.dtype}: {error}")
        return _xla(q, k, v)


def _cpu(q: Array, k: Array, v: Array) -> Array:
    rows, keys, values = (rearrange(part, "b n h d -> (b h) n d") for part in (_scaled(q), k, v))
    mixed = _attend(rows, keys, values)
    return rearrange(mixed, "(b h) n d -> b n h d", h=q.shape[2])


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
    logits = _multiply(q, jnp.swapaxes(k, 1, 2))
    largest = jax.lax.stop_gradient(logits.max(axis=-1, keepdims=True))
    weights = jnp.exp(logits - largest)
    total = weights.sum(axis=-1, keepdims=True)
    mixed = _multiply(weights.astype(v.dtype), v)
    return (mixed / total).astype(q.dtype)


_attend = fold_mapped(_attend_rows, (True, True, True))

_BACKENDS: dict[str, Callable[[Array, Array, Array], Array]] = {
    "xla": _xla,
    "cudnn": _cudnn,
    "cpu": _cpu,
}
