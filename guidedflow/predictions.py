"""Prediction types of a network, and the one conversion between any two of them.

Every prediction is linear in data and noise: prediction = a * data + b * noise. Together with
x = alpha * data + sigma * noise these are two equations in two unknowns. One 2x2 solve therefore
converts any prediction into any other. A prediction type is the function (path, t) -> (a, b).

The solve has no solution where its determinant alpha * b - sigma * a is 0, or where a coefficient is
infinite:

| known    | no solution at |
|----------|------------------|
| velocity | t = 1 of EDM (sigma' = 0), except for data |
| noise    | alpha = 0: t = 0 of the linear, trigonometric and zero-SNR paths, for data, velocity and v |
| score    | alpha = 0, likewise |
| data     | sigma = 0: t = 1, for noise, score, v and infinite velocities |
| v        | t = 1, for infinite velocities and scores |

There `convert` returns inf or nan; if the solution has a finite limit, it returns the limit. The velocity
of `as_velocity` is computed a margin away from the ends. `read` avoids this margin: it converts the
network's own prediction to the type that a sampler needs.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from guidedflow.paths import Path, Time, derivatives, interior
from guidedflow.types import (
    Cond,
    Evaluation,
    ModelFn,
    Native,
    PyTree,
    check_floating,
    check_number,
    check_times,
    expand,
    pytree,
    wide,
)

Prediction = Callable[[Path, Time], tuple[Time, Time]]


def velocity(path: Path, t: Time) -> tuple[Time, Time]:
    """dx_t/dt = alpha' data + sigma' noise.  Lipman et al. 2023, eq. 15."""
    _, _, alpha_dot, sigma_dot = derivatives(path, t)
    return alpha_dot, sigma_dot


def score(path: Path, t: Time) -> tuple[Time, Time]:
    """grad log p(x_t given data) = -noise / sigma.  Song et al. 2021, eq. 7."""
    sigma = path.sigma(t)
    return jnp.zeros_like(sigma), -1 / sigma


def noise(path: Path, t: Time) -> tuple[Time, Time]:
    """The noise itself, epsilon.  Ho et al. 2020, eq. 12."""
    one = jnp.ones_like(path.sigma(t))
    return jnp.zeros_like(one), one


def data(path: Path, t: Time) -> tuple[Time, Time]:
    """The clean data, also written x_0.  Karras et al. 2022, eq. 2."""
    one = jnp.ones_like(path.sigma(t))
    return one, jnp.zeros_like(one)


def v(path: Path, t: Time) -> tuple[Time, Time]:
    """v = alpha noise - sigma data.  Salimans & Ho 2022, appendix D."""
    return -path.sigma(t), path.alpha(t)


def _solve(path: Path, t: Time, src: Prediction, dst: Prediction) -> tuple[Time, Time]:
    alpha, sigma = path.alpha(t), path.sigma(t)
    a, b = src(path, t)
    c, d = dst(path, t)
    determinant = alpha * b - sigma * a
    return (b * c - a * d) / determinant, (alpha * d - sigma * c) / determinant


NEAR = 1e-5
"""Distance from an end at which a coefficient is computed if it is undefined (0 / 0) at the end itself."""


def conversion(path: Path, t: Time, src: Prediction, dst: Prediction) -> tuple[Time, Time]:
    """Return (p, q) with dst = p * x + q * src at one time.

    With src = a data + b noise, dst = c data + d noise and x = alpha data + sigma noise:

      p = (b c - a d) / det,   q = (alpha d - sigma c) / det,   det = alpha b - sigma a.

    At the ends of a path this may be 0 / 0 and so nan; `limits` returns the limit there.
    """
    t = jnp.asarray(t)
    if src is dst:
        return jnp.zeros_like(t), jnp.ones_like(t)
    return _solve(path, t, src, dst)


def limits(path: Path, t: Time, src: Prediction, dst: Prediction) -> tuple[Time, Time]:
    """Return (p, q) of `conversion`, and their limits at the ends.

    If a coefficient is 0 / 0, 0 inf or inf / inf, the coefficient at distance `NEAR` from the end is
    returned, unless it grows there as 1 / t or 1 / (1 - t). Computed in float32 or wider, returned in
    t's dtype.
    """
    t = jnp.asarray(t)
    if src is dst:
        return jnp.zeros_like(t), jnp.ones_like(t)
    exact = wide(t)

    def settled(at: Array, near: Array) -> Array:
        limit = jnp.where(jnp.abs(near) < 0.5 / NEAR, near, jnp.nan)
        return jnp.where(jnp.isnan(at), limit, at).astype(t.dtype)

    at, near = (_solve(path, s, src, dst) for s in (exact, interior(exact, NEAR)))
    return settled(at[0], near[0]), settled(at[1], near[1])


def convert(
    path: Path,
    value: Float[Array, "*d"],
    x: Float[Array, "*d"],
    t: Time,
    src: Prediction,
    dst: Prediction,
) -> Float[Array, "*d"]:
    """Turn one example's prediction of type `src` at (x, t) into one of type `dst`.

    It solves  alpha data + sigma noise = x,  a data + b noise = value  for data and noise, and returns
    c data + d noise. If the two types are equal, it returns the value itself, to the last bit.

    Args:
      value: the prediction, of x's shape.
      x: the point of the path.
      t: scalar in [0, 1]; vmap for a batch.
      src, dst: prediction types of this module.
    Raises:
      ValueError: the shapes differ or t is not a scalar in [0, 1].
    The module's docstring lists the ends at which a conversion is not defined.
    """
    if jnp.shape(value) != jnp.shape(x):
        raise ValueError(
            f"value and x must have one shape, got {jnp.shape(value)} and {jnp.shape(x)}"
        )
    check_floating("value", value)
    check_floating("x", x)
    check_times(t, ())
    if src is dst:
        return value
    p, q = limits(path, t, src, dst)
    result = p * wide(x) + q * wide(value)
    wider = x if jnp.finfo(x.dtype).bits > jnp.finfo(value.dtype).bits else value
    return result.astype(wider.dtype)


def convert_batch(
    path: Path,
    value: Float[Array, "b *d"],
    x: Float[Array, "b *d"],
    t: Float[Array, " b"],
    src: Prediction,
    dst: Prediction,
) -> Float[Array, "b *d"]:
    """`convert` over a batch, t of shape (b,)."""
    one = functools.partial(convert, path, src=src, dst=dst)
    return jax.vmap(one)(value, x, t)


def read(
    path: Path,
    native: Native | None,
    value: Float[Array, "b *d"],
    x: Float[Array, "b *d"],
    t: Array,
    what: Prediction,
) -> tuple[Float[Array, "b *d"], Array]:
    """Return the prediction `what` that a velocity stands for, and its derivative by the velocity.

    It is converted once, at t itself, from the network's own prediction. If there is none, or if it
    cannot be converted at t (the module's table), it is converted from the velocity.

    Args:
      path: the path of the model.
      native: field of the evaluation that the velocity belongs to.
      value: the velocity, guided or not.
      x, t: where it was evaluated; t is a scalar or has shape (b,).
      what: the prediction type to return.
    """

    def at(t: Time) -> tuple[tuple[Time, Time], tuple[Time, Time], Array]:
        from_velocity = conversion(path, t, velocity, what)
        if native is None:
            return from_velocity, from_velocity, jnp.zeros(jnp.shape(t), bool)
        a, b = native.predicts(path, t)
        determinant = path.alpha(t) * b - path.sigma(t) * a
        says = jnp.isfinite(determinant) & (determinant != 0)
        return from_velocity, conversion(path, t, native.predicts, what), says

    (p, q), (own_p, own_q), says = jax.vmap(at)(t) if jnp.ndim(t) else at(t)
    if native is None:
        return expand(p, x) * x + expand(q, x) * value, q
    output = native.output + (value - native.velocity) / expand(native.slope, x)
    source = jnp.where(expand(says, x), output, value)
    p, weight = jnp.where(says, own_p, p), jnp.where(says, own_q, q)
    slope = jnp.where(says, own_q / native.slope, q)
    return expand(p, x) * x + expand(weight, x) * source, slope


@pytree
class AsVelocity:
    """A network that predicts something else, as a model function; made by `as_velocity`."""

    network: Callable[[Array, Array, Cond], Array]
    path: Path
    predicts: Prediction
    margin: float

    def init(self, x: Array) -> PyTree:
        return ()

    def evaluate(
        self, state: PyTree, x: Array, t: Array, cond: Cond, at: Array
    ) -> tuple[Evaluation, PyTree]:
        output = self.network(x, t, cond)
        channels = jnp.shape(x)[-1]
        variance = None
        if jnp.shape(output) == (*jnp.shape(x)[:-1], 2 * channels):
            output, variance = output[..., :channels], output[..., channels:]
        elif jnp.shape(output) != jnp.shape(x):
            raise ValueError(
                f"the network must return x's shape {jnp.shape(x)}, or twice its channels with a "
                f"learned variance, got {jnp.shape(output)}"
            )
        if self.predicts is velocity:
            return Evaluation(output, output, output, variance), state
        check_floating("the network's output", output)
        # Data and v can be converted to the other predictions at t = 0, even if alpha = 0 there.
        low = 0.0 if self.predicts in (data, v) else self.margin
        one = functools.partial(conversion, self.path, src=self.predicts, dst=velocity)
        p, q = jax.vmap(one)(jnp.clip(t, low, 1 - self.margin))
        value = expand(p, x) * x + expand(q, x) * output
        native = Native(output, value, q, self.predicts)
        return Evaluation(value, value, value, variance, native=native), state

    def __call__(self, x: Array, t: Array, cond: Cond = None) -> Array:
        return self.evaluate((), x, t, cond, t)[0].velocity


def as_velocity(
    network: Callable[[Array, Array, Cond], Array],
    path: Path,
    predicts: Prediction = velocity,
    *,
    margin: float = 1e-3,
) -> ModelFn:
    """Return a network that predicts `predicts` as a velocity field, a model function.

    v(x, t) = p x + q network(x, t, cond), with (p, q) of `conversion`. To stay finite at both ends,
    (p, q) is computed at t clipped to [margin, 1 - margin], for data and v to [0, 1 - margin]; the
    network itself is called at t. Samplers that step by data, noise or score use the network's own
    prediction instead, without the margin: see `read`.
    If the output has twice x's channels, the second half is the learned variance of the ancestral
    sampler.

    Args:
      network: (x: b *d, t: b, cond) -> b *d, or with twice the channels.
      path: the path it was trained on.
      predicts: velocity, score, noise, data or v; velocity converts nothing.
      margin: distance kept from the ends, in (0, 0.5). The network's error is amplified by
        1 / margin there, so a small margin amplifies it much.
    Raises:
      ValueError: margin out of range; when called, an output of another shape.
    """
    check_number("margin", margin, 1e-6, 0.499)
    return AsVelocity(network, path, predicts, margin)
