"""The product that every layer is made of, behind one function that picks who computes it."""

import functools
import logging
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from guidedflow.models import native
from guidedflow.models.folding import fold_mapped
from guidedflow.models.matrix_units import multiply
from guidedflow.registry import choose

BACKENDS = {"xla": "XLA, wherever it runs", "amx": "`matrix_units`"}
_log = logging.getLogger(__name__)
# With fewer rows than this, packing the kernel for the matrix units takes longer than they save.
LEAST_ROWS = 256


def product(
    x: Float[Array, "rows d"], kernel: Float[Array, "d k"], backend: str = "xla"
) -> Float[Array, "rows k"]:
    """Return x·kernel in their dtype, accumulated in float32 or wider on a CPU.

    Args:
      x, kernel: of one dtype.
      backend: "xla"; or "amx", float32 products on the matrix units of some CPUs (`matrix_units`), as
        exact as XLA's and from 256 rows on faster, where `pick` finds it possible; fewer rows are
        XLA's.
    Raises:
      ValueError: an unknown backend.
    """
    name, _ = pick(backend, x.dtype)
    if name == "amx" and len(x) >= LEAST_ROWS:
        return multiply(x, kernel)
    if jax.default_backend() == "cpu":
        return folded_product(x, kernel)
    # Accelerators' compilers fold a mapped axis themselves, and a reshape would tear a batch that is
    # sharded over devices.
    return x @ kernel


def pick(backend: str, dtype: Any) -> tuple[str, str]:
    """Return the backend that runs on the default device, and why.

    Args:
      backend: a name.
      dtype: of the operands.
    Raises:
      ValueError: an unknown backend.
    """
    choose("products", backend, BACKENDS)
    if backend == "xla":
        return "xla", "asked for"
    platform = jax.default_backend()
    if platform != "cpu" or jnp.dtype(dtype) != jnp.float32:
        reason = f"amx is for float32 on a CPU, here are {platform} and {jnp.dtype(dtype)}"
    else:
        try:
            native.load()
            return "amx", "asked for"
        except native.Unavailable as error:
            reason = f"no amx here: {error}"
    say_once(f"products run on xla: {reason}")
    return "xla", reason


@functools.cache
def say_once(message: str) -> None:
    """Warn of what this process falls back to, the first time alone."""
    _log.warning(message)


def _cpu_product(x: Float[Array, "rows d"], kernel: Float[Array, "d k"]) -> Float[Array, "rows k"]:
    # XLA's CPU compiler has fast 16-bit products (AMX) only for those that end in float32.
    dtype = jnp.promote_types(x.dtype, jnp.float32)
    return jnp.matmul(x, kernel, preferred_element_type=dtype).astype(x.dtype)


folded_product = fold_mapped(_cpu_product, (True, False))
