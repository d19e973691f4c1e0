"""Frequency-decoupled guidance: a guidance scale for each level of a Laplacian pyramid."""

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from guidedflow.types import check_number


def _shrink(x: Array, axis: int) -> Array:
    """Blur one axis by (1 4 6 4 1) / 16 with repeated edges, and keep every second sample."""
    size = x.shape[axis]
    padded = jnp.pad(x, [(2, 2) if i == axis else (0, 0) for i in range(x.ndim)], mode="edge")
    parts = [jnp.take(padded, jnp.arange(k, k + size, 2), axis=axis) for k in range(5)]
    return (parts[0] + 4 * parts[1] + 6 * parts[2] + 4 * parts[3] + parts[4]) / 16


def _grow(x: Array, axis: int, size: int) -> Array:
    """Double one axis by linear interpolation, repeat the last sample, and cut the axis to `size`."""
    count = x.shape[axis]
    following = jnp.take(x, jnp.minimum(jnp.arange(1, count + 1), count - 1), axis=axis)
    doubled = jnp.stack([x, 0.5 * (x + following)], axis + 1)
    shape = (*x.shape[:axis], 2 * count, *x.shape[axis + 1 :])
    return jnp.take(doubled.reshape(shape), jnp.arange(size), axis=axis)


def pyramid(x: Float[Array, "h w c"], levels: int) -> list[Array]:
    """Split an image into `levels` bands, the finest first; the last is a small blurred image.

    band_k = g_k - grow(g_(k+1)),   g_(k+1) = shrink(g_k),   g_0 = x;   the last band is g itself.

    Source: Burt & Adelson 1983.
    """
    bands = []
    for _ in range(levels - 1):
        smaller = _shrink(_shrink(x, 0), 1)
        bands.append(x - _enlarge(smaller, x.shape))
        x = smaller
    return [*bands, x]


def rebuild(bands: list[Array]) -> Float[Array, "h w c"]:
    """Return the image from its bands: the exact inverse of `pyramid`, linear in the bands."""
    x = bands[-1]
    for band in reversed(bands[:-1]):
        x = band + _enlarge(x, band.shape)
    return x


def _enlarge(x: Array, shape: tuple[int, ...]) -> Array:
    return _grow(_grow(x, 0, shape[0]), 1, shape[1])


@dataclasses.dataclass(frozen=True)
class frequency_decoupled:
    """Guide each frequency band of an image with its own scale.

    band_k of the guided = u_k + w_k (c_k - u_k),   w_k = 1 + (w - 1) gain_k, the finest band first.

    The published scales 10 (high) and 5 (low) are `scale=10` with gains (1, 4/9). w = 1 is the
    conditional model. With all gains 1 it is classifier-free guidance. The method is defined on data
    estimates. The weights of each band sum to 1 and the pyramid is linear, so velocities give the
    same result and no conversion is needed.

    Attributes:
      gains: one per level, finest first, at least one; the last is for the blurred image.
    Raises:
      ValueError: there is no gain, or a gain is not a number; when called, x is not an image h w c
        or is too small for the levels.
    Source: Sadat et al. 2025 (frequency-decoupled guidance), eq. 4-6 and algorithm 1.
    """

    gains: tuple[float, ...] = (1.0, 4 / 9)

    def __post_init__(self) -> None:
        if not isinstance(self.gains, tuple) or not self.gains:
            raise ValueError(f"gains must be a tuple of at least one number, got {self.gains!r}")
        for gain in self.gains:
            check_number("gains", gain)

    def init(self, x: Array) -> PyTree:
        smallest = 2 ** (len(self.gains) - 1)
        if x.ndim != 3 or min(x.shape[:2]) < smallest:
            raise ValueError(
                f"{len(self.gains)} levels need images h w c of at least {smallest} pixels a side, "
                f"got {x.shape}"
            )
        return ()

    def __call__(
        self, c: Array, u: Array, w: Array, x: Array, t: Array, memory: PyTree
    ) -> tuple[Array, PyTree]:
        bands = pyramid(c - u, len(self.gains))
        pushed = [(w - 1) * gain * band for gain, band in zip(self.gains, bands, strict=True)]
        return c + rebuild(pushed), memory
