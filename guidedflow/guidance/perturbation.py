"""Guidance away from the same network with some blocks perturbed: PAG, SLG, SEG."""

import jax.numpy as jnp
from jaxtyping import Array, PyTree

from guidedflow import loops
from guidedflow.guidance.branches import check_stateless
from guidedflow.types import (
    Cond,
    Evaluation,
    ModelFn,
    Scale,
    check_scale,
    evaluate,
    init_state,
    pytree,
    weight_at,
    wide,
)


@pytree
class Perturbed:
    """Made by `perturbed`."""

    model: ModelFn
    disturbed: ModelFn
    scale: Scale

    def init(self, x: Array) -> PyTree:
        return init_state(self.model, x)

    def evaluate(
        self, state: PyTree, x: Array, t: Array, cond: Cond, at: Array
    ) -> tuple[Evaluation, PyTree]:
        base, state = evaluate(self.model, state, x, t, cond, at)
        s = weight_at(self.scale, at, x)

        def pushed() -> Evaluation:
            weak = evaluate(self.disturbed, (), x, t, cond, at)[0].velocity
            push = (s * (wide(base.conditional) - wide(weak))).astype(base.velocity.dtype)
            return base._replace(velocity=base.velocity + push, renoise=base.renoise + push)

        if callable(self.scale):
            return loops.cond(jnp.all(s == 0), lambda: base, pushed), state
        return pushed(), state

    def __call__(self, x: Array, t: Array, cond: Cond) -> Array:
        return self.evaluate(self.init(x), x, t, cond, t)[0].velocity


def perturbed(model: ModelFn, disturbed: ModelFn, scale: Scale = 3.0) -> ModelFn:
    """Guide a model, guided or not, away from a perturbed network under the same condition.

    guided = g + s (c - p),   c the conditional branch of g, p = disturbed(x, t, cond).

    The conditional branch is not evaluated again. In steps where a schedule is 0 (`window`), the
    perturbed network is not evaluated either. s = 0 is the model itself. On an unguided model, s
    corresponds to w = 1 + s of `extrapolate`. The network's own fields choose the perturbed blocks and
    the kind of perturbation; the parameters are the same:

    | method | the network's `perturbation` | usual s | where |
    |---|---|---|---|
    | perturbed attention (PAG), Ahn et al. 2024, eq. 15 | "identity_attention" | 3 | the middle block |
    | skip layer (SLG), Stable Diffusion 3.5 | "skip" | 2.5 to 2.8 | blocks 7-9 of 24, t in [0.01, 0.2] |
    | smoothed energy (SEG), Hong 2024, eq. 12 | "blur" of the queries | 3 | the middle blocks |

    Args:
      model: a model function; what it remembers passes through.
      disturbed: a stateless model function that takes the same x, t and cond.
      scale: s, a number, an array of shape () or (b,), or a schedule.
    Raises:
      ValueError: scale is not a number, or `disturbed` keeps state.
    """
    check_scale(scale)
    check_stateless("perturbed", disturbed)
    return Perturbed(model, disturbed, scale)
