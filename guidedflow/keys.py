"""Per-example keys: each example's draws depend on its own key alone, for any generator the caller chose.

A threefry draw depends only on the key and on the position of the number. A draw of `rbg` or `unsafe_rbg`
depends on the whole batch: under vmap all examples draw from the first key, and `unsafe_rbg` folds in the
same way. A key of another generator is therefore hashed to a threefry key before anything is drawn for an
example. A threefry key is not changed.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, PRNGKeyArray

THREEFRY = "threefry2x32"


def _is_typed(key: Any) -> bool:
    dtype = getattr(key, "dtype", None)
    return dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key)


def threefry(key: PRNGKeyArray) -> PRNGKeyArray:
    """Return `key` if it is a threefry key, else a threefry key made from all its words.

    Args:
      key: one key or an array of keys, also of the old style (uint32, its words on the last axis).
    Raises:
      ValueError: `key` is not a key.
    """
    if _is_typed(key):
        if str(jax.random.key_impl(key)) == THREEFRY:
            return key
        words = jax.random.key_data(key)
    elif getattr(key, "dtype", None) == jnp.uint32 and key.shape[-1:] in ((2,), (4,)):
        words = jnp.asarray(key)
        if words.shape[-1] == 2:
            return jax.random.wrap_key_data(words, impl=THREEFRY)
    else:
        raise ValueError(f"key must be made by jax.random.key(seed), got {key!r}")
    fold = jax.random.fold_in
    for _ in words.shape[:-1]:
        fold = jax.vmap(fold)
    hashed = jax.random.wrap_key_data(jnp.zeros_like(words[..., :2]), impl=THREEFRY)
    for place in range(words.shape[-1]):
        hashed = fold(hashed, words[..., place])
    return hashed


def fold_each(key: PRNGKeyArray, index: Int[Array, " b"]) -> PRNGKeyArray:
    """Return one threefry key per example: fold_in(key, i) for every i of `index`.

    Raises:
      ValueError: `key` is not a key.
    """
    return jax.vmap(jax.random.fold_in, (None, 0))(threefry(key), index)


def example_keys(key: PRNGKeyArray, batch: int) -> PRNGKeyArray:
    """Return one key per example: `fold_in(key, i)`, or `key` itself if it is already a batch.

    Raises:
      ValueError: `key` is not a key, or is a batch of another size.
    """
    keys = threefry(key)
    if keys.ndim == 0:
        return fold_each(keys, jnp.arange(batch))
    if keys.shape != (batch,):
        raise ValueError(f"key must be one key or one an example ({batch},), got {keys.shape}")
    return keys
