"""The training state, and an integer fingerprint of it."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from jax import lax
from jaxtyping import Array, Int, Key, PyTree, UInt32


class TrainState(NamedTuple):
    """The values that a step changes.

    Attributes:
      step: number of steps done, an int32 scalar.
      params: network parameters, float32.
      ema: exponential moving average of `params`.
      opt_state: the optimiser's state.
    """

    step: Int[Array, ""]
    params: PyTree
    ema: PyTree
    opt_state: PyTree


def create(params: PyTree, optimizer: optax.GradientTransformation) -> TrainState:
    """Return the state before the first step; the average starts at the parameters themselves."""
    # A copy, because a donated state must not contain the same buffer twice.
    ema = jax.tree.map(jnp.copy, params)
    return TrainState(jnp.zeros((), jnp.int32), params, ema, optimizer.init(params))


def fresh(
    network: nn.Module,
    image_shape: tuple[int, ...],
    inputs: tuple[Any, ...],
    optimizer: optax.GradientTransformation,
    key: Key[Array, ""],
) -> TrainState:
    """Return the state with new parameters for images of this shape and these further inputs."""
    x, t = jnp.zeros((1, *image_shape)), jnp.zeros(1)
    params = network.init(key, x, t, *inputs)["params"]
    return create(params, optimizer)


def leaf_names(tree: PyTree) -> dict[str, Any]:
    """Return the leaves of `tree` by their path, `params/Dense_0/kernel`."""
    flat, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in flat}


def _mix(word: UInt32[Array, "*d"]) -> UInt32[Array, "*d"]:
    """Mix 32 bits by a bijection (xor-shifts and odd multiplications, the finaliser of murmur3)."""
    word = (word ^ (word >> 16)) * jnp.uint32(0x85EBCA6B)
    word = (word ^ (word >> 13)) * jnp.uint32(0xC2B2AE35)
    return word ^ (word >> 16)


def _words(leaf: Array) -> UInt32[Array, "*d"]:
    """The bits of `leaf` as unsigned 32-bit words."""
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    if leaf.dtype == jnp.bool_:
        return leaf.astype(jnp.uint32)
    width = leaf.dtype.itemsize
    unsigned = {1: jnp.uint8, 2: jnp.uint16}.get(width, jnp.uint32)
    return lax.bitcast_convert_type(leaf, unsigned).astype(jnp.uint32)


@jax.jit  # traced once per shape; a deep network has many leaves of one shape
def _hash(leaf: Array) -> UInt32[Array, ""]:
    """h = sum_i mix(word_i ^ mix(i)) mod 2^32: any one changed word changes h."""
    words = _words(leaf)
    index = jnp.zeros(words.shape, jnp.uint32)
    for axis, size in enumerate(words.shape):
        index = index * jnp.uint32(size) + lax.broadcasted_iota(jnp.uint32, words.shape, axis)
    return jnp.sum(_mix(words ^ _mix(index)), dtype=jnp.uint32)


@jax.jit
def _hashes(leaves: list[Array]) -> list[Array]:
    return [_hash(leaf) for leaf in leaves]


def fingerprint(state: PyTree) -> dict[str, int]:
    """Return one integer per leaf that depends on all its bits and not on its sharding.

    h = sum_i mix(word_i ^ mix(i)) mod 2^32, with mix a bijection of 32-bit words. Integer sums do
    not depend on their order, so h is the same on any number of devices. Because mix is one-to-one,
    a change of any single word always changes h.

    Args:
      state: arrays of any dtype and sharding.
    Returns:
      leaf path to hash, in [0, 2^32).
    """
    named = leaf_names(state)
    values = jax.device_get(_hashes(list(named.values())))
    return {name: int(value) for name, value in zip(named, values, strict=True)}


def structure(state: PyTree) -> dict[str, str]:
    """Return leaf path to `float32[3,4]`, for concrete or abstract leaves."""

    def describe(leaf: Any) -> str:
        return f"{leaf.dtype.name}[{','.join(map(str, leaf.shape))}]"

    return {name: describe(leaf) for name, leaf in leaf_names(state).items()}


def state_bytes(state: PyTree, device: jax.Device) -> int:
    """Return the bytes that `state` holds on one device, counting this device's shards only."""
    on_device = partial(_shard_bytes, device=device)
    return sum(map(on_device, jax.tree.leaves(state)))


def _shard_bytes(leaf: Array, device: jax.Device) -> int:
    return sum(shard.data.nbytes for shard in leaf.addressable_shards if shard.device == device)
