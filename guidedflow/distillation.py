"""Networks that learn guided sampling, so that sampling needs one branch: two training losses.

`guidance_distillation` learns from a guided teacher, `guidance_free` from data alone. A *student* takes
one more argument than a model function, `student(x, t, cond, number) -> velocity`; number has shape (b,).
It is the scale w of a distilled student, or beta = 1 / w of a network from guidance-free training.
`at_scale` fixes the number and returns a model function.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from guidedflow.keys import threefry
from guidedflow.losses import mean_square
from guidedflow.paths import Path, interpolate
from guidedflow.types import (
    Cond,
    Evaluation,
    ModelFn,
    Scale,
    broadcast_null,
    check_batch,
    check_batch_scale,
    check_number,
    check_scale,
    check_times,
    pytree,
    scale_at,
)

Student = Callable[[Array, Array, Cond, Array], Array]
"""(x: b *d, t: b, cond, number: b) -> velocity: b *d."""


def draw_scale(
    key: PRNGKeyArray, batch: int, low: float = 2.0, high: float = 14.0
) -> Float[Array, " b"]:
    """Draw one scale per example, uniformly in [low, high); (0, 1) for guidance-free training.

    Raises:
      ValueError: low or high is not a number, or they are out of order.
    Source: Meng et al. 2022, section 3.1.
    """
    check_number("low", low)
    check_number("high", high, low)
    return jax.random.uniform(threefry(key), (batch,), minval=low, maxval=high)


def _points(
    path: Path, data: Array, noise: Array, t: Array, cond: Cond, number: Array
) -> tuple[Array, Array]:
    """Check one batch of a loss and return x_t and dx_t/dt."""
    if jnp.shape(data) != jnp.shape(noise) or jnp.ndim(data) < 1:
        raise ValueError(
            "data and noise must have one shape with the batch first, got "
            f"{jnp.shape(data)} and {jnp.shape(noise)}"
        )
    batch = jnp.shape(data)[0]
    check_times(t, (batch,))
    check_batch("cond", cond, batch)
    if jnp.shape(number) != (batch,):
        raise ValueError(
            f"the student's number must be one an example ({batch},), got {jnp.shape(number)}"
        )
    return jax.vmap(lambda d, n, s: interpolate(path, d, n, s))(data, noise, t)


def guidance_distillation(
    student: Student,
    guided: Callable[[Scale], ModelFn],
    path: Path,
    data: Float[Array, "b *d"],
    noise: Float[Array, "b *d"],
    t: Float[Array, " b"],
    cond: Cond,
    scale: Float[Array, " b"],
) -> Float[Array, " b"]:
    """The loss of a student that learns the predictions of a guided teacher at every scale.

    L_i = mean over d of (student(x_t, t, cond, w) - stop_gradient guided(w)(x_t, t, cond))^2.

    At the minimum the student at w is the teacher guided by w, in one branch. `cond` is not dropped: the
    null model is the student at w = 0, if w = 0 is among the scales drawn.

    Args:
      student: takes w, embedded as the time is.
      guided: w -> the guided teacher, `lambda w: classifier_free(teacher, null, w)`; any method that
        takes one scale per example.
      path, data, noise, t, cond: as for `losses.flow_matching`.
      scale: w, one per example, from `draw_scale`.
    Returns:
      float32 losses.
    Raises:
      ValueError: shapes, dtypes or times are off.
    Source: Meng et al. 2022 (on distillation of guided diffusion models), eq. 5.
    """
    x, _ = _points(path, data, noise, t, cond, scale)
    target = jax.lax.stop_gradient(guided(scale)(x, t, cond))
    return mean_square(student(x, t, cond, scale) - target)


def guidance_free(
    student: Student,
    path: Path,
    data: Float[Array, "b *d"],
    noise: Float[Array, "b *d"],
    t: Float[Array, " b"],
    cond: Cond,
    null: Cond,
    beta: Float[Array, " b"],
) -> Float[Array, " b"]:
    """The loss of a student that learns guided sampling from data alone, without a teacher.

    L_i = mean over d of (beta student(x_t, t, cond, beta)
                          + (1 - beta) stop_gradient student(x_t, t, null, 1) - dx_t/dt)^2.

    At the minimum student(cond, beta) = u + (c - u) / beta, the model guided by w = 1 / beta. beta = 1 is
    guided flow matching. The null model is learnt from the examples whose cond was dropped, so pass
    `cond` through `losses.drop_condition` first; beta is drawn for these examples like for the others.

    Args:
      student: takes beta, embedded as the time is; beta = 1 is the conditional model.
      path, data, noise, t, cond: as for `losses.flow_matching`.
      null: the null condition: one for all examples, or one per example.
      beta: one per example, in [0, 1], from `draw_scale(key, batch, 0, 1)`.
    Returns:
      float32 losses.
    Raises:
      ValueError: shapes, dtypes, times or beta are off.
    Source: Chen et al. 2025 (visual generation without guidance), eq. 11 and algorithm 1.
    """
    x, target = _points(path, data, noise, t, cond, beta)
    check_number("beta", beta, 0, 1)
    ones = jnp.ones_like(beta)
    weak = jax.lax.stop_gradient(student(x, t, broadcast_null(null, cond), ones))
    strong = student(x, t, cond, beta)

    def mix(b: Array, s: Array, w: Array) -> Array:
        return b * s + (1 - b) * w

    return mean_square(jax.vmap(mix)(beta, strong, weak) - target)


@pytree
class AtScale:
    """Made by `at_scale`."""

    student: Student
    scale: Scale

    def init(self, x: Array) -> PyTree:
        return ()

    def evaluate(
        self, state: PyTree, x: Array, t: Array, cond: Cond, at: Array
    ) -> tuple[Evaluation, PyTree]:
        number = jnp.asarray(scale_at(self.scale, at), jnp.float32)
        check_batch_scale(number, jnp.shape(x)[0])
        velocity = self.student(x, t, cond, jnp.broadcast_to(number, jnp.shape(t)))
        return Evaluation.plain(velocity), state

    def __call__(self, x: Array, t: Array, cond: Cond) -> Array:
        return self.evaluate((), x, t, cond, t)[0].velocity


def at_scale(student: Student, scale: Scale) -> ModelFn:
    """Return a model function: the student at a fixed number.

    Args:
      student: (x, t, cond, number) -> velocity.
      scale: the number: w, or beta = 1 / w; a number, an array of shape () or (b,), or a schedule.
    Raises:
      ValueError: scale is not a number.
    """
    check_scale(scale)
    return AtScale(student, scale)
