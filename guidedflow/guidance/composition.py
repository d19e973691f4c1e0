"""Guidance by several conditions at once; all branches come from one call of the model."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from guidedflow.guidance.branches import Branches, check_stateless, vmapped
from guidedflow.guidance.extrapolation import where_guided
from guidedflow.guidance.projections import along
from guidedflow.types import (
    Cond,
    Evaluation,
    ModelFn,
    Scale,
    broadcast_null,
    check_batch_scale,
    check_number,
    check_scale,
    evaluate,
    pytree,
    scale_at,
    weight_at,
    wide,
)


def _branches(
    branches: Branches, model: ModelFn, null: Cond, x: Array, t: Array, conds: Cond, at: Array
) -> Evaluation:
    """Evaluate all conditions, the null condition last, on a new first axis."""
    return branches(model, x, t, (*conds, broadcast_null(null, conds[0])), at)


def _check_conditions(name: str, cond: Cond, count: int) -> None:
    if not isinstance(cond, tuple | list) or len(cond) != count:
        came = f"{len(cond)} of them" if isinstance(cond, tuple | list) else type(cond).__name__
        raise ValueError(f"{name} takes a tuple of {count} conditions as cond, got {came}")


@pytree
class Compose:
    """Made by `compose`."""

    model: ModelFn
    null: Cond
    scales: tuple[Scale, ...]
    branches: Branches

    def init(self, x: Array) -> PyTree:
        return ()

    def evaluate(
        self, state: PyTree, x: Array, t: Array, cond: Cond, at: Array
    ) -> tuple[Evaluation, PyTree]:
        _check_conditions("compose", cond, len(self.scales))
        each = _branches(self.branches, self.model, self.null, x, t, cond, at)
        *branches, null = wide(each.velocity)
        velocity = null
        for scale, branch in zip(self.scales, branches, strict=True):
            velocity = velocity + weight_at(scale, at, null) * (branch - null)
        velocity = velocity.astype(each.velocity.dtype)
        first = jax.tree.map(lambda leaf: leaf[0], each)
        return first._replace(velocity=velocity, renoise=velocity), state

    def __call__(self, x: Array, t: Array, cond: Cond) -> Array:
        return self.evaluate((), x, t, cond, t)[0].velocity


def compose(
    model: ModelFn, null: Cond, scales: Sequence[Scale], *, branches: Branches = vmapped
) -> ModelFn:
    """Guide by N conditions, each with its own scale, away from one null branch.

    guided = u + sum_i w_i (c_i - u).

    With one condition it is classifier-free guidance. A negative w_i guides away from its condition.
    All N + 1 branches come from one call of the model, at every step. For independent conditions and
    w_i = 1 it is the score of p(x given c_1, .., c_N) at t = 1, and approximately so at earlier times.

    Args:
      model, null, branches: as for `classifier_free`.
      scales: N scales, each a number, an array of shape () or (b,), or a schedule.
    Returns:
      A model function whose cond is a tuple of N conditions. `rescale` and `guide_channels` take
      the first as the conditional branch.
    Raises:
      ValueError: there is no scale, a scale is not a number, or (when called) the number of
        conditions differs.
    Source: Liu et al. 2022 (composable diffusion), eq. 11 and 13.
    """
    scales = tuple(scales)
    if not scales:
        raise ValueError("compose needs at least one scale")
    for scale in scales:
        check_scale(scale)
    check_stateless("compose", model)
    return Compose(model, null, scales, branches)


@pytree
class Perpendicular:
    """Made by `perpendicular`."""

    model: ModelFn
    null: Cond
    scale: Scale
    negative: Scale
    branches: Branches

    def init(self, x: Array) -> PyTree:
        return ()

    def evaluate(
        self, state: PyTree, x: Array, t: Array, cond: Cond, at: Array
    ) -> tuple[Evaluation, PyTree]:
        _check_conditions("perpendicular", cond, 2)
        w = scale_at(self.scale, at)

        def positive_alone() -> Evaluation:
            return evaluate(self.model, (), x, t, cond[0], at)[0]

        def one(strong: Array, against: Array, null: Array, n: Array) -> Array:
            forward, backward = wide(strong) - wide(null), wide(against) - wide(null)
            return forward - n * (backward - along(backward, forward))

        def guided() -> Evaluation:
            each = _branches(self.branches, self.model, self.null, x, t, cond, at)
            strong, null = each.velocity[0], wide(each.velocity[2])
            n = jnp.asarray(scale_at(self.negative, at), null.dtype)
            check_batch_scale(n, jnp.shape(x)[0])
            n = jnp.broadcast_to(n, jnp.shape(x)[:1])
            push = jax.vmap(one)(each.velocity[0], each.velocity[1], each.velocity[2], n)
            weight = weight_at(self.scale, at, null)
            velocity = (null + weight * push).astype(strong.dtype)
            velocity = jnp.where(jnp.broadcast_to(weight == 1, x.shape), strong, velocity)
            first = jax.tree.map(lambda leaf: leaf[0], each)
            return first._replace(velocity=velocity, renoise=velocity)

        return where_guided(self.scale, w, guided, positive_alone), state

    def __call__(self, x: Array, t: Array, cond: Cond) -> Array:
        return self.evaluate((), x, t, cond, t)[0].velocity


def perpendicular(
    model: ModelFn,
    null: Cond,
    scale: Scale = 8.0,
    negative: Scale = 1.0,
    *,
    branches: Branches = vmapped,
) -> ModelFn:
    """Guide away from a negative condition, but only orthogonally to the positive one.

    guided = u + w (dp - n (dn - proj of dn onto dp)),   dp = c_positive - u,   dn = c_negative - u.

    The projection is per example. The part that both conditions have in common is kept; a negative
    prompt in place of the null condition would cancel it. n = 0 is classifier-free guidance. As
    everywhere in this package, w = 1 exactly means no guidance: the result is the positive branch.
    If w = 1 is known from the number or the schedule, only that branch is evaluated.

    Args:
      model, null, branches: as for `classifier_free`; all three branches come from one call.
      scale: w, a number, an array of shape () or (b,), or a schedule.
      negative: n, likewise.
    Returns:
      A model function whose cond is the pair (positive, negative).
    Raises:
      ValueError: a scale is not a number, or cond is not a pair when called.
    Source: Armandpour et al. 2023 (Perp-Neg), eq. 7-8.
    """
    check_scale(scale)
    check_scale(negative)
    check_number("negative", 0 if callable(negative) else negative)
    check_stateless("perpendicular", model)
    return Perpendicular(model, null, scale, negative, branches)
