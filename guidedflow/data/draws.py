"""Random numbers as a function of integers, the same on every machine and library version.

A batch must have the same numbers on every machine and in every order of reading, so nothing here
has state.  The mixing function is the finaliser of SplitMix64 (Steele, Lea and Flood 2014, "Fast
splittable pseudorandom number generators", section 4).
"""

import numpy as np
from jaxtyping import Bool, Float32, Int, UInt64

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_FIRST = np.uint64(0xBF58476D1CE4E5B9)
_SECOND = np.uint64(0x94D049BB133111EB)


def _mix(state: UInt64[np.ndarray, "*n"]) -> UInt64[np.ndarray, "*n"]:
    state = (state ^ (state >> np.uint64(30))) * _FIRST
    state = (state ^ (state >> np.uint64(27))) * _SECOND
    return state ^ (state >> np.uint64(31))


def hash64(*words: Int[np.ndarray, "*n"] | UInt64[np.ndarray, "*n"] | int) -> np.ndarray:
    """Mix non-negative integers, broadcast against one another, into uniform 64-bit words.

    h_0 = 0,  h_k = mix((h_{k-1} + golden ratio) xor word_k)
    """
    state = np.zeros((1,), np.uint64)
    for word in words:
        state = _mix((state + _GOLDEN) ^ np.asarray(word).astype(np.uint64))
    return state


def permutation(seed: int, epoch: int, length: int) -> Int[np.ndarray, "length"]:
    """Return the order of one epoch: indices sorted by their hash with the seed and the epoch."""
    return np.argsort(hash64(seed, epoch, np.arange(length)), kind="stable")


def coins(draws: UInt64[np.ndarray, "n"], purpose: int) -> Bool[np.ndarray, "n"]:
    """Return one random boolean per example, True with probability 1/2; each `purpose` is another draw."""
    return hash64(draws, purpose) >> np.uint64(63) == 1


def normals(
    draws: UInt64[np.ndarray, "n"], shape: tuple[int, ...], purpose: int
) -> Float32[np.ndarray, "n *shape"]:
    """Draw standard normal numbers of `shape` for each example (Box and Muller 1958).

    z, z' = sqrt(-2 log u1) (cos, sin)(2 pi u2),  u1 in (0, 1], u2 in [0, 1), 32 bits each

    The bits of an example are the SplitMix64 stream that starts at the hash of its draw.
    """
    count = int(np.prod(shape))
    start = hash64(draws, purpose)[:, None]
    words = _mix(start + _GOLDEN * np.arange(1, (count + 1) // 2 + 1, dtype=np.uint64))
    u1 = ((words >> np.uint64(32)).astype(np.float32) + np.float32(1)) * np.float32(2**-32)
    u2 = (words & np.uint64(0xFFFFFFFF)).astype(np.float32) * np.float32(2**-32)
    # Rounding to float32 may give 1; its logarithm, 0, is a valid radius.
    radius, angle = np.sqrt(-2 * np.log(u1)), np.float32(2 * np.pi) * u2
    pairs = np.concatenate([radius * np.cos(angle), radius * np.sin(angle)], axis=1)
    return pairs[:, :count].reshape(len(draws), *shape)
