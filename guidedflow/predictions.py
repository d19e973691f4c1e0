"""What a network may predict, and the one conversion between any two of them.

Every prediction is linear in data and noise: prediction = a * data + b * noise. With
x = alpha * data + sigma * noise that makes two equations in two unknowns, so one 2x2 solve turns any
prediction into any other. A prediction type is the function (path, t) -> (a, b).

Where the solve has no answer (its determinant alpha * b - sigma * a is 0, or a coefficient is
infinite):

| known    | has no answer for the others at |
|----------|---------------------------------|
| velocity | t = 1 of VP and discrete-beta paths (sigma' = -inf) and of EDM (sigma' = 0) |
| noise    | alpha = 0: t = 0 of the linear and trigonometric paths |
| score    | alpha = 0 likewise, and sigma = 0: t = 1 |
| data     | sigma = 0: t = 1 |
| v        | nowhere on variance-preserving paths |

`convert` says so with inf or nan; `as_velocity` stays a margin away from both ends.
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
    PyTree,
    check_floating,
    check_number,
    check_times,
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


def conversion(path: Path, t: Time, src: Prediction, dst: Prediction) -> tuple[Time, Time]:
    """Return (p, q) with dst = p * x + q * src at one time.

    With src = a data + b noise, dst = c data + d noise and x = alpha data + sigma noise:

      p = (b c - a d) / det,   q = (alpha d - sigma c) / det,   det = alpha b - sigma a.
    """
    t = jnp.asarray(t)
    if src is dst:
        return jnp.zeros_like(t), jnp.ones_like(t)
    alpha, sigma = path.alpha(t), path.sigma(t)
    a, b = src(path, t)
    c, d = dst(path, t)
    determinant = alpha * b - sigma * a
    return (b * c - a * d) / determinant, (alpha * d - sigma * c) / determinant


def convert(
    path: Path,
    value: Float[Array, "*d"],
    x: Float[Array, "*d"],
    t: Time,
    src: Prediction,
    dst: Prediction,
) -> Float[Array, "*d"]:
    """Turn one example's prediction of type `src` at (x, t) into one of type `dst`.

    The solution of  alpha data + sigma noise = x,  a data + b noise = value,  read off as
    c data + d noise; for equal types the value itself, to the bit.

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
    p, q = conversion(path, t, src, dst)
    return p * wide(x) + q * wide(value)


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
        inner = interior(t, self.margin)
        value = convert_batch(self.path, output, x, inner, self.predicts, velocity)
        return Evaluation(value, value, value, variance), state

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

    v(x, t) = p x + q network(x, t, cond), with (p, q) of `conversion` read at t moved into
    [margin, 1 - margin], so that it is finite at both ends; the network itself is called at t.
    Where the output has twice x's channels, the second half is kept as the ancestral sampler's
    learned variance.

    Args:
      network: (x: b *d, t: b, cond) -> b *d, or with twice the channels.
      path: the path it was trained on.
      predicts: velocity, score, noise, data or v; velocity converts nothing.
      margin: distance kept from both ends, in (0, 0.5); too small amplifies the network's error
        by 1 / margin there.
    Raises:
      ValueError: margin out of range; when called, an output of another shape.
    """
    check_number("margin", margin, 1e-6, 0.499)
    return AsVelocity(network, path, predicts, margin)
