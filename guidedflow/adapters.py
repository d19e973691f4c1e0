"""Networks of other projects as model functions: their time, their table, their scaling.

A network is called as `network(x, s, cond)`, s what it is told of the time. The options say what s is:

| option         | s                                                    | trained by                       |
|----------------|------------------------------------------------------|----------------------------------|
| none           | t itself: 0 noise, 1 data                            | this package, shortcut models    |
| `time`         | any function of t, such as `backward`: 1 noise, 0 data| most flow code, MeanFlow, score SDEs|
| `index`        | whole numbers 0 .. N - 1, 0 nearest the data          | DDPM and what followed it        |
| `precondition` | log(sigma) / 4, with EDM's scaling of input and output| EDM                              |

docs/your_network.md shows each with networks of Flax Linen, Flax NNX, Equinox, and plain functions.
"""

import dataclasses
from collections.abc import Callable
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from guidedflow import predictions
from guidedflow.paths import TINY, Path, Time
from guidedflow.types import Cond, ModelFn, check_number, expand, pytree

TimeOf = Callable[[Array], Array]
"""t: b -> what a network is told of it: b, elementwise."""


def backward(t: Array) -> Array:
    """1 - t: the time of networks for which 1 is noise and 0 is data."""
    return 1 - t


class Scaling(NamedTuple):
    """How a network F is wrapped: prediction = skip x + out F(into x, time), at one time.

    Attributes:
      skip, out, into: c_skip, c_out and c_in; None for 0, 1 and 1.
      time: c_noise, what the network is told.
    """

    skip: Time | None
    out: Time | None
    into: Time | None
    time: Time


Precondition = Callable[[Path, Time], Scaling]
"""(path, t) -> the scaling at one time."""


@dataclasses.dataclass(frozen=True)
class karras:
    """EDM's preconditioning; what it makes of the network is a prediction of the data.

    c_skip = d^2 / (r^2 + d^2),   c_out = r d / sqrt(r^2 + d^2),   c_in = 1 / sqrt(r^2 + d^2),
    c_noise = log(r) / 4,   for y = x / alpha and r = sigma / alpha, d = sigma_data.

    On a path with alpha = 1, as theirs, y is x and r is sigma. Written in x it is finite where alpha
    is 0 too; the logarithm is kept finite at both ends.

    Attributes:
      sigma_data: deviation of the data, positive.
    Raises:
      ValueError: sigma_data is not a positive number.
    Source: Karras et al. 2022; the coefficients were checked in public code that follows it.
    """

    sigma_data: float = 0.5
    makes: ClassVar[predictions.Prediction] = staticmethod(predictions.data)

    def __post_init__(self) -> None:
        check_number("sigma_data", self.sigma_data, TINY)

    def __call__(self, path: Path, t: Time) -> Scaling:
        alpha, sigma = path.alpha(t), path.sigma(t)
        length = jnp.sqrt(sigma**2 + (alpha * self.sigma_data) ** 2)
        log_ratio = jnp.log(jnp.maximum(sigma, TINY)) - jnp.log(jnp.maximum(alpha, TINY))
        return Scaling(
            skip=alpha * (self.sigma_data / length) ** 2,
            out=self.sigma_data * sigma / length,
            into=1 / length,
            time=0.25 * log_ratio,
        )


@pytree
class Adapted:
    """A network with its own time and scaling, called as ours are; made by `as_model_fn`."""

    network: Callable[[Array, Array, Cond], Array]
    path: Path
    predicts: predictions.Prediction
    time: TimeOf | None
    index: TimeOf | None
    precondition: Precondition | None

    def _time(self, t: Array) -> Array:
        if self.index is not None:
            return jnp.maximum(jnp.round(self.index(t)), 0).astype(jnp.int32)
        told = t if self.time is None else self.time(t)
        if jnp.shape(told) != jnp.shape(t):
            raise ValueError(f"time must keep t's shape {jnp.shape(t)}, got {jnp.shape(told)}")
        return told

    def _scaling(self, t: Array) -> Scaling:
        """Return the scaling at each time of the batch; None where x or the output is left alone."""
        if self.precondition is not None:
            wrapped = self.precondition
            return jax.vmap(lambda s: Scaling(*wrapped(self.path, s)))(t)
        own = self.index if self.time is None else self.time
        sign = None
        if own is not None and self.predicts is predictions.velocity:
            # A velocity is a slope over the network's own time: where that falls, it points back.
            early, late = own(jnp.asarray([0.25, 0.75], t.dtype))
            sign = jnp.where(late < early, -1, 1) * jnp.ones_like(t)
        return Scaling(None, sign, None, self._time(t))

    def __call__(self, x: Array, t: Array, cond: Cond) -> Array:
        skip, out, into, time = self._scaling(t)
        given = x if into is None else (expand(into, x) * x).astype(x.dtype)
        output = self.network(given, time, cond)
        channels = jnp.shape(x)[-1]
        sizes = [(*jnp.shape(x)[:-1], count) for count in (channels, 2 * channels)]
        if out is None or jnp.shape(output) not in sizes:
            return output  # of another shape it is refused by `as_velocity`
        scaled = expand(out, x) * output[..., :channels]
        if skip is not None:
            scaled = scaled + expand(skip, x) * x
        variance = output[..., channels:].astype(scaled.dtype)
        return jnp.concatenate([scaled, variance], -1)


def as_model_fn(
    network: Callable[[Array, Array, Cond], Array],
    path: Path,
    predicts: predictions.Prediction,
    *,
    time: TimeOf | None = None,
    index: TimeOf | None = None,
    precondition: Precondition | None = None,
    margin: float = 1e-3,
) -> ModelFn:
    """Return a network of any convention as a model function.

    `predictions.as_velocity` of  network(x, s, cond), or with a preconditioning of
    skip x + out network(into x, s, cond);   s = t, time(t), round(index(t)) or the scaling's time.

    A network that predicts `velocity` predicts dx/ds. Where s falls as t rises (`backward`, a table)
    that is noise - data on the linear path, and it is negated here: pass `predictions.velocity` and
    the network's own time, nothing else. How fast s runs does not matter, only where to.

    Parameters that are pytree leaves of `network` stay leaves: of `jax.tree_util.Partial(apply,
    parameters)`, an Equinox module or another registered class. Other parameters then do not
    recompile a sampler; nor does an equal function, but one that is made anew does.

    Args:
      network: (x: b *d, s: b, cond) -> b *d, or with twice the channels, of which the second half is
        a learned variance.
      path: the path it was trained on, in our time: alpha multiplies data, t = 1 is data.
      predicts: velocity, score, noise, data or v of `predictions`, or one's own.
      time: t -> the network's time, elementwise, such as `backward` or `lambda t: 1000 * (1 - t)`.
      index: t -> the table's step, such as `DiscreteBeta().index`; the network is given the nearest
        whole number, int32, at least 0.
      precondition: (path, t) -> Scaling, such as `karras(sigma_data=0.5)`.
      margin: as for `as_velocity`.
    Raises:
      ValueError: an argument is no function, more than one of time, index and precondition is
        given, or the preconditioning makes another prediction than `predicts`.
    """
    told = {"time": time, "index": index, "precondition": precondition}
    given = {name: value for name, value in told.items() if value is not None}
    if len(given) > 1:
        raise ValueError(f"pass one of time, index and precondition, got {' and '.join(given)}")
    for name, value in {"network": network, "predicts": predicts, **given}.items():
        if not callable(value):
            raise ValueError(f"{name} must be a function, got {value!r}")
    if not isinstance(path, Path) or isinstance(path, type):
        raise ValueError(f"path must have alpha(t) and sigma(t), as paths.Linear(), got {path!r}")
    if isinstance(precondition, type):
        raise ValueError(
            f"precondition must be an object, {precondition.__name__}(), got the class"
        )
    makes = getattr(precondition, "makes", predicts)
    if makes is not predicts:
        raise ValueError(
            f"{precondition!r} makes a prediction of {makes.__name__}, got predicts={predicts!r}"
        )
    adapted = Adapted(network, path, predicts, time, index, precondition)
    return predictions.as_velocity(adapted, path, predicts, margin=margin)
