"""Guidance by a gradient: the log-probability of a classifier that knows noised data."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from guidedflow import predictions
from guidedflow.paths import Path, interior
from guidedflow.types import (
    Cond,
    Evaluation,
    ModelFn,
    Scale,
    check_number,
    check_scale,
    evaluate,
    expand,
    init_state,
    pytree,
    scale_at,
)

LogProb = Callable[[Array, Array, Cond], Array]
"""(x: b *d, t: b, cond) -> log p(cond given x_t): b."""


@pytree
class Classifier:
    """Made by `classifier`."""

    model: ModelFn
    path: Path
    log_prob: LogProb
    scale: Scale
    margin: float

    def init(self, x: Array) -> PyTree:
        return init_state(self.model, x)

    def evaluate(
        self, state: PyTree, x: Array, t: Array, cond: Cond, at: Array
    ) -> tuple[Evaluation, PyTree]:
        base, state = evaluate(self.model, state, x, t, cond, at)
        inner = interior(t, self.margin)

        def total(x: Array) -> Array:
            return jnp.sum(self.log_prob(x, inner, cond))

        def slope(s: Array) -> Array:
            return predictions.conversion(self.path, s, predictions.score, predictions.velocity)[1]

        gradient = jax.grad(total)(x)
        coefficient = jax.vmap(slope)(inner)
        scale = expand(scale_at(self.scale, at), x)
        push = (scale * expand(coefficient, x) * gradient).astype(x.dtype)
        return base._replace(velocity=base.velocity + push, renoise=base.renoise + push), state

    def __call__(self, x: Array, t: Array, cond: Cond) -> Array:
        return self.evaluate(self.init(x), x, t, cond, t)[0].velocity


def classifier(
    model: ModelFn, path: Path, log_prob: LogProb, scale: Scale, *, margin: float = 1e-3
) -> ModelFn:
    """Guide a model by the gradient of log p(cond given x_t).

    guided = v + s (sigma^2 alpha' / alpha - sigma sigma') grad_x log p(cond given x_t),

    the factor being what turns a score into a velocity. With the true posterior, s = 1 on the
    unconditional model is the conditional one, by Bayes; s = 0 is the model. On a model of velocities
    `w` of classifier-free guidance is `1 + s` over the conditional and `s` over the null model. The
    factor is infinite where alpha = 0, and the gradient zero: both are read at t moved into
    [margin, 1 - margin].

    Args:
      model: a velocity field, conditional or not (`fixed(model, null)`).
      path: the path it was trained on.
      log_prob: (x: b *d, t: b, cond) -> b, differentiable in x, trained on noised data.
      scale: s, a number, an array of shape () or (b,), or a schedule; 0 is no guidance.
      margin: distance kept from both ends, in (0, 0.5).
    Raises:
      ValueError: scale is not a number or margin out of range.
    Source: Dhariwal & Nichol 2021, eq. 10 and 14; for flows Zheng et al. 2023, lemma 1.
    """
    check_scale(scale)
    check_number("margin", margin, 1e-6, 0.499)
    return Classifier(model, path, log_prob, scale, margin)
