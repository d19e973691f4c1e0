"""Draws of t for training: `(key, batch) -> t: b` in [0, 1); set parameters with functools.partial."""

from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from guidedflow.keys import threefry
from guidedflow.paths import TINY, Path
from guidedflow.types import check_number

Draw = Callable[[PRNGKeyArray, int], Float[Array, " b"]]
Times = TypeVar("Times", Array, np.ndarray)
# t = 1 is never drawn, because the velocity of some paths is infinite there.
LAST = float(np.nextafter(np.float32(1), np.float32(0)))


def draw_uniform(key: PRNGKeyArray, batch: int) -> Float[Array, " b"]:
    """Draw t uniformly in [0, 1)."""
    return jax.random.uniform(threefry(key), (batch,))


def draw_stratified(key: PRNGKeyArray, batch: int) -> Float[Array, " b"]:
    """Draw one t in each of `batch` equal parts of [0, 1), in random order of the parts.

    t_i = (pi(i) + u_i) / batch.  Low-discrepancy times of Kingma et al. 2021, appendix I.1.
    """
    order, inside = jax.random.split(threefry(key))
    parts = jax.random.permutation(order, batch)
    t = (parts + jax.random.uniform(inside, (batch,))) / batch
    return jnp.minimum(t, LAST)


def draw_logit_normal(
    key: PRNGKeyArray, batch: int, mean: float = 0.0, std: float = 1.0
) -> Float[Array, " b"]:
    """Draw t = sigmoid(mean + std z), z standard normal.  Esser et al. 2024, eq. 19.

    A larger mean gives more times near the data.
    """
    check_number("std", std, 0)
    normal = jax.random.normal(threefry(key), (batch,))
    return jnp.minimum(jax.nn.sigmoid(mean + std * normal), LAST)


def draw_cosmap(key: PRNGKeyArray, batch: int) -> Float[Array, " b"]:
    """Draw t so that the log-SNR of the linear path is distributed as on the trigonometric path.

    t = tan(pi u / 2) / (1 + tan(pi u / 2)).  Esser et al. 2024, eq. 21, written in our time.
    """
    u = jax.random.uniform(threefry(key), (batch,))
    sine, cosine = jnp.sin(0.5 * jnp.pi * u), jnp.sin(0.5 * jnp.pi * (1 - u))
    return jnp.minimum(sine / (sine + cosine), LAST)


def draw_log_normal_sigma(
    key: PRNGKeyArray, batch: int, path: Path, mean: float = -1.2, std: float = 1.2
) -> Float[Array, " b"]:
    """Draw t with log(sigma / alpha) normal, clipped to the range of the path.

    log(sigma / alpha) = mean + std z.  Karras et al. 2022, table 1, "noise distribution".
    """
    check_number("std", std, 0)
    ratio = jnp.exp(mean + std * jax.random.normal(threefry(key), (batch,)))
    return jnp.minimum(time_of_ratio(path, ratio), LAST)


def shift(t: Times, factor: float) -> Times:
    """Move times towards the noise end if factor > 1; factor 1 does not change them.

    s -> factor s / (1 + (factor - 1) s) on s = 1 - t.  Esser et al. 2024, eq. 23, where factor is
    the square root of the ratio of the numbers of pixels.
    """
    check_number("factor", factor, TINY)
    return t / (t + factor * (1 - t))


def draw_shifted(
    key: PRNGKeyArray, batch: int, draw: Draw = draw_uniform, factor: float = 3.0
) -> Float[Array, " b"]:
    """Draw from `draw`, then apply `shift` with `factor`.  Esser et al. 2024, section 5.3.2."""
    return jnp.minimum(shift(draw(key, batch), factor), LAST)


def time_of_ratio(path: Path, ratio: Array) -> Array:
    """Return the t at which sigma(t) / alpha(t) = ratio, by bisection; the nearest end if there is none.

    The ratio falls with t on every path, so forty bisections find t to float32's last digit.
    """
    ratio = jnp.asarray(ratio, jnp.float32)

    def halve(_: int, bounds: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = bounds
        middle = 0.5 * (low + high)
        noisier = path.sigma(middle) > ratio * path.alpha(middle)
        return jnp.where(noisier, middle, low), jnp.where(noisier, high, middle)

    ends = jnp.zeros_like(ratio), jnp.ones_like(ratio)
    low, high = jax.lax.fori_loop(0, 40, halve, ends)
    reaches_end = path.sigma(jnp.ones_like(ratio)) >= ratio * path.alpha(jnp.ones_like(ratio))
    return jnp.where(reaches_end, high, 0.5 * (low + high))
