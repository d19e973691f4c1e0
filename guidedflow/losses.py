"""Per-example losses of guided generation: regression targets, weightings, condition dropping.

No loss takes a key. The caller draws data, noise, t and the dropped conditions, so the same draw
gives the same loss on any number of devices.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from guidedflow import predictions
from guidedflow.keys import example_keys
from guidedflow.paths import Path, interior, interpolate, log_snr
from guidedflow.types import (
    Cond,
    ModelFn,
    broadcast_null,
    check_batch,
    check_floating,
    check_number,
    check_times,
    expand,
)

Weighting = Callable[[Path, Array], Array]
"""The weight on the squared error *of the data estimate* at one time; `denoising` converts it."""


def mean_square(value: Float[Array, "b *d"]) -> Float[Array, " b"]:
    """Return each example's mean of squares, in float32."""
    axes = tuple(range(1, value.ndim))
    return jnp.mean(jnp.square(value.astype(jnp.float32)), axis=axes)


def _check(data: Array, noise: Array, t: Array, cond: Cond) -> None:
    if jnp.ndim(data) < 1 or jnp.shape(data) != jnp.shape(noise):
        raise ValueError(
            "data and noise must have one shape with the batch first, got "
            f"{jnp.shape(data)} and {jnp.shape(noise)}"
        )
    check_floating("data", data)
    check_floating("noise", noise)
    check_times(t, jnp.shape(data)[:1])
    check_batch("cond", cond, jnp.shape(data)[0])


def _error(output: Array, target: Array) -> Array:
    # Subtracting alone would broadcast an output with axes of size 1.
    if jnp.shape(output) != jnp.shape(target):
        raise ValueError(
            f"the network must return x's shape {jnp.shape(target)}, got {jnp.shape(output)}"
        )
    return output - target


def flow_matching(
    model: ModelFn,
    path: Path,
    data: Float[Array, "b *d"],
    noise: Float[Array, "b *d"],
    t: Float[Array, " b"],
    cond: Cond = None,
) -> Float[Array, " b"]:
    """The conditional flow-matching loss of each example.

    L_i = mean over d of (model(x_t, t, cond) - dx_t/dt)^2,   x_t = alpha(t) data + sigma(t) noise.

    With `cond` passed through `drop_condition` this is guided flow matching: one network learns the
    conditional and the null velocity.

    Args:
      data, noise: two batches of equal shape; noise is standard normal.
      t: times in [0, 1], one per example.
      cond: condition, every leaf with the batch first; None for none.
    Returns:
      float32 losses.
    Raises:
      ValueError: shapes, dtypes or times are off.
    Source: Lipman et al. 2023, eq. 14; dropping as in Ho & Salimans 2022, algorithm 1.
    """
    _check(data, noise, t, cond)
    x, target = jax.vmap(lambda d, n, s: interpolate(path, d, n, s))(data, noise, t)
    return mean_square(_error(model(x, t, cond), target))


def denoising(
    network: Callable[[Array, Array, Cond], Array],
    path: Path,
    data: Float[Array, "b *d"],
    noise: Float[Array, "b *d"],
    t: Float[Array, " b"],
    cond: Cond = None,
    *,
    predicts: predictions.Prediction = predictions.noise,
    weighting: Weighting | None = None,
) -> Float[Array, " b"]:
    """The denoising loss of each example for a network that predicts `predicts`.

    L_i = W(t) mean over d of (network(x_t, t, cond) - (a data + b noise))^2

    with (a, b) of the prediction at t. Without a weighting, W = 1 on the network's own target: this is
    the simple loss of DDPM for `noise`, and denoising score matching for `score`. A weighting is defined
    on the error of the data estimate. The slope of the conversion, q = d(data) / d(prediction), carries
    it over to the target: W = weighting * q^2. For `score` and with a weighting, a or W may be
    infinite at the ends, so times are kept at least 1e-3 away from them.

    Args:
      data, noise, t, cond: as for `flow_matching`.
      predicts: a prediction type of `predictions`.
      weighting: unit, min_snr, edm, sigmoid, ...; None for 1 on the target.
    Raises:
      ValueError: shapes, dtypes or times are off.
    Source: Ho et al. 2020, eq. 14; Song et al. 2021, eq. 7; Hang et al. 2023, section 3.4.
    """
    _check(data, noise, t, cond)
    if predicts is predictions.score or weighting is not None:
        t = interior(t)

    def point(d: Array, n: Array, s: Array) -> tuple[Array, Array]:
        a, b = predicts(path, s)
        return path.alpha(s) * d + path.sigma(s) * n, a * d + b * n

    x, target = jax.vmap(point)(data, noise, t)
    error = _error(network(x, t, cond), target)
    if weighting is None:
        return mean_square(error)

    def root(s: Array) -> Array:
        # Near clean data the weight may be too large for float32, or the slope's square too small.
        _, slope = predictions.conversion(path, s, predicts, predictions.data)
        if isinstance(weighting, BySNR):
            return jnp.exp(0.5 * weighting.log(log_snr(path, s)) + jnp.log(jnp.abs(slope)))
        return jnp.sqrt(weighting(path, s)) * jnp.abs(slope)

    return mean_square(expand(jax.vmap(root)(t), error) * error)


def unit(path: Path, t: Array) -> Array:
    """Weight 1 on the error of the data estimate, whatever the network predicts."""
    return jnp.ones_like(t)


class BySNR:
    """A weighting that depends on the log-SNR alone: `log(level)` is its logarithm.

    It is computed in logarithms, so it is finite at every noise level at which its limit is finite.
    """

    def log(self, level: Array) -> Array:
        """Return the logarithm of the weight at log-SNR = level; level may be infinite."""
        raise NotImplementedError

    def __call__(self, path: Path, t: Array) -> Array:
        return jnp.exp(self.log(log_snr(path, t)))


def _log_softly_least(level: Array, cap: Array) -> Array:
    """Return log(1 / (exp(-level) + exp(-cap))), a smooth minimum of the two."""
    return -jnp.logaddexp(-level, -cap)


@dataclasses.dataclass(frozen=True)
class min_snr(BySNR):
    """min(SNR, gamma) on the data error: the noise loss, with a cap at low noise.

    SNR = alpha^2 / sigma^2.  Hang et al. 2023, eq. 7.  `soft` gives SNR gamma / (SNR + gamma), its
    smooth form (Crowson et al. 2024, section 3.4).
    """

    gamma: float = 5.0
    soft: bool = False

    def __post_init__(self) -> None:
        check_number("gamma", self.gamma, 0)

    def log(self, level: Array) -> Array:
        cap = jnp.log(jnp.asarray(self.gamma, level.dtype))
        return _log_softly_least(level, cap) if self.soft else jnp.minimum(level, cap)


@dataclasses.dataclass(frozen=True)
class truncated_snr(BySNR):
    """max(SNR, 1) on the data error.  Salimans & Ho 2022, section 4."""

    def log(self, level: Array) -> Array:
        return jnp.maximum(level, 0.0)


@dataclasses.dataclass(frozen=True)
class edm(BySNR):
    """(s^2 + sigma_data^2) / (s sigma_data)^2 on the data error, s = sigma / alpha.

    With it the loss of EDM's preconditioned network has unit size at every noise level.
    Karras et al. 2022, table 1, "loss weighting".
    """

    sigma_data: float = 0.5

    def __post_init__(self) -> None:
        check_number("sigma_data", self.sigma_data, 1e-12)

    def log(self, level: Array) -> Array:
        return jnp.logaddexp(level, -2 * jnp.log(jnp.asarray(self.sigma_data, level.dtype)))


@dataclasses.dataclass(frozen=True)
class sigmoid(BySNR):
    """SNR sigmoid(bias - log SNR) on the data error; on the noise error, sigmoid(bias - log SNR).

    Kingma & Gao 2023, section 4; Hoogeboom et al. 2024, eq. 8.  A larger bias gives low noise more weight.
    """

    bias: float = 0.0

    def log(self, level: Array) -> Array:
        return _log_softly_least(level, jnp.asarray(self.bias, level.dtype))


def uncertainty(loss: Float[Array, " b"], log_variance: Float[Array, " b"]) -> Float[Array, " b"]:
    """Weigh each loss by a learned variance of its time:  loss / exp(u) + u.

    Karras et al. 2024 (EDM2), eq. 21. At the optimum, u = log E[loss at t], all times have equal weight.

    Raises:
      ValueError: the shapes differ.
    """
    if jnp.shape(loss) != jnp.shape(log_variance):
        raise ValueError(
            f"log_variance must be one an example {jnp.shape(loss)}, got {jnp.shape(log_variance)}"
        )
    return loss * jnp.exp(-log_variance) + log_variance


def drop_condition(
    key: PRNGKeyArray,
    cond: Cond,
    null: Cond,
    rate: float,
    parts: Sequence[tuple[Sequence[str], float]] = (),
) -> Cond:
    """Replace each example's whole condition by the null one with probability `rate`.

    Examples are dropped independently. Example i draws from fold_in(key, i), or from its own key if
    `key` holds one key per example.

    Args:
      cond: every leaf with the batch first.
      null: the null condition: one for all examples, or one per example.
      rate: probability in [0, 1]; 0.1 is usual. 0 trains the conditional model alone.
      parts: (entries, rate) of a condition that is a mapping: these entries are replaced together with
        a probability of their own, each part by another coin.
    Raises:
      ValueError: a rate outside [0, 1], or structures that do not match.
    Source: Ho & Salimans 2022, algorithm 1.
    """
    check_number("rate", rate, 0, 1)
    leaves = jax.tree.leaves(cond)
    if not leaves:
        return cond
    batch = jnp.shape(leaves[0])[0] if jnp.ndim(leaves[0]) else 1
    check_batch("cond", cond, batch)
    keys = example_keys(key, batch)
    null = broadcast_null(null, cond)
    kept = _replaced(jax.vmap(lambda k: jax.random.bernoulli(k, rate))(keys), null, cond)
    for number, (names, own_rate) in enumerate(parts):
        check_number("rate", own_rate, 0, 1)
        if not isinstance(kept, Mapping) or not set(names) <= set(kept):
            got = list(kept) if isinstance(kept, Mapping) else type(kept).__name__
            raise ValueError(f"expected a condition with the entries {list(names)}, got {got}")

        def coin(k: Array, number: int = number, own_rate: float = own_rate) -> Array:
            return jax.random.bernoulli(jax.random.fold_in(k, number), own_rate)

        coins = jax.vmap(coin)(keys)
        kept = {**kept, **{name: _replaced(coins, null[name], kept[name]) for name in names}}
    return kept


def _replaced(dropped: Bool[Array, " b"], null: Cond, cond: Cond) -> Cond:
    """Return `null` where an example is dropped, else `cond`."""

    def choose(nothing: Array, kept: Array) -> Array:
        return jnp.where(expand(dropped, kept), nothing, kept)

    return jax.tree.map(choose, null, cond)
