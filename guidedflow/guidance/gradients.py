"""Guidance by a gradient: of a classifier trained on noised data, or of any loss on the data estimate.

The gradient of log p(cond given x_t) enters the samplers in three forms, which are equal in the limit
of small steps:

| form | what is changed | function |
|---|---|---|
| flow | velocity by s (sigma^2 alpha' / alpha - sigma sigma') grad | `classifier` |
| DDIM | noise by - sigma s grad | `classifier`: the same change, converted to the noise |
| ancestral | the step's mean by s variance grad | `ancestral_classifier`, with `sample_ddpm` |

With `sample_ddpm` on a variance-preserving path, the first form moves the mean by alpha_s / alpha_t
times as much as the third form does with the `largest` variance.
"""

from collections.abc import Callable
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from guidedflow import predictions
from guidedflow.paths import Path, interior
from guidedflow.types import (
    SHIFT,
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
    weight_at,
    wide,
)

LogProb = Callable[[Array, Array, Cond], Array]
"""(x: b *d, t: b, cond) -> log p(cond given x_t): b."""


def _push(path: Path, gradient: Array, t: Array, weight: Array, like: Array) -> Array:
    """Return the change of the velocity `like`, b *d, that corresponds to `weight` times a score."""

    def slope(s: Array) -> Array:
        return predictions.conversion(path, s, predictions.score, predictions.velocity)[1]

    coefficient = expand(jax.vmap(slope)(t), like)
    return (weight * coefficient * wide(gradient)).astype(like.dtype)


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

        weight = weight_at(self.scale, at, x)
        push = _push(self.path, jax.grad(total)(x), inner, weight, base.velocity)
        return base._replace(velocity=base.velocity + push, renoise=base.renoise + push), state

    def __call__(self, x: Array, t: Array, cond: Cond) -> Array:
        return self.evaluate(self.init(x), x, t, cond, t)[0].velocity


def classifier(
    model: ModelFn, path: Path, log_prob: LogProb, scale: Scale, *, margin: float = 1e-3
) -> ModelFn:
    """Guide a model by the gradient of log p(cond given x_t).

    guided = v + s (sigma^2 alpha' / alpha - sigma sigma') grad_x log p(cond given x_t),

    The factor converts a score to a velocity. By Bayes' rule, the unconditional model with the true
    posterior and s = 1 is the conditional model; s = 0 is the model itself. The scale `w` of
    classifier-free guidance corresponds to s = w - 1 on the conditional model and to s = w on the
    null model. Where alpha = 0, the factor is infinite and the gradient is zero; both are therefore
    computed at t clipped to [margin, 1 - margin].

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


@pytree
class AncestralClassifier:
    """Made by `ancestral_classifier`."""

    model: ModelFn
    log_prob: LogProb
    scale: Scale
    needs: ClassVar[frozenset[str]] = frozenset({SHIFT})

    def init(self, x: Array) -> PyTree:
        return init_state(self.model, x)

    def evaluate(
        self, state: PyTree, x: Array, t: Array, cond: Cond, at: Array
    ) -> tuple[Evaluation, PyTree]:
        base, state = evaluate(self.model, state, x, t, cond, at)
        gradient = jax.grad(lambda x: jnp.sum(self.log_prob(x, t, cond)))(x)
        shift = (weight_at(self.scale, at, x) * wide(gradient)).astype(x.dtype)
        if base.shift is not None:
            shift = shift + base.shift
        return base._replace(shift=shift), state

    def __call__(self, x: Array, t: Array, cond: Cond) -> Array:
        return self.evaluate(self.init(x), x, t, cond, t)[0].velocity


def ancestral_classifier(model: ModelFn, log_prob: LogProb, scale: Scale = 1.0) -> ModelFn:
    """Guide an ancestral sampler by moving the mean of each step along the classifier's gradient.

    mean <- mean + s variance grad_x log p(cond given x_t),   with the variance of the step.

    The velocity is not changed. Only `sample_ddpm` uses the shift; other samplers raise. s = 0 is the
    model itself.

    Args:
      model: a velocity field, conditional or not (`fixed(model, null)`).
      log_prob: (x: b *d, t: b, cond) -> b, differentiable in x, trained on noised data.
      scale: s, a number, an array of shape () or (b,), or a schedule; published values are 1 to 4 for a
        conditional and 10 for an unconditional model.
    Raises:
      ValueError: scale is not a number. Samplers that have no mean to move raise it too.
    Source: Dhariwal & Nichol 2021, algorithm 1.
    """
    check_scale(scale)
    return AncestralClassifier(model, log_prob, scale)


Loss = Callable[[Array, Cond], Array]
"""(data estimate: b *d, cond) -> loss: b."""


@pytree
class LossGuidance:
    """Made by `loss_guidance`."""

    model: ModelFn
    path: Path
    loss: Loss
    scale: Scale
    margin: float

    def init(self, x: Array) -> PyTree:
        return init_state(self.model, x)

    def evaluate(
        self, state: PyTree, x: Array, t: Array, cond: Cond, at: Array
    ) -> tuple[Evaluation, PyTree]:
        inner = interior(t, self.margin)

        def total(x: Array) -> tuple[Array, tuple[Evaluation, PyTree]]:
            base, after = evaluate(self.model, state, x, t, cond, at)
            data = predictions.convert_batch(
                self.path, base.velocity, x, inner, predictions.velocity, predictions.data
            )
            losses = self.loss(data, cond)
            if jnp.shape(losses) != jnp.shape(t):
                raise ValueError(
                    f"loss must return one number an example {jnp.shape(t)}, got "
                    f"{jnp.shape(losses)}"
                )
            return -jnp.sum(losses), (base, after)

        gradient, (base, after) = jax.grad(total, has_aux=True)(x)
        weight = weight_at(self.scale, at, x)
        push = _push(self.path, gradient, inner, weight, base.velocity)
        return base._replace(velocity=base.velocity + push, renoise=base.renoise + push), after

    def __call__(self, x: Array, t: Array, cond: Cond) -> Array:
        return self.evaluate(self.init(x), x, t, cond, t)[0].velocity


def loss_guidance(
    model: ModelFn, path: Path, loss: Loss, scale: Scale = 1.0, *, margin: float = 1e-3
) -> ModelFn:
    """Guide a model by any differentiable loss on its data estimate; no classifier on noised data is needed.

    noise <- noise + s sigma grad_x loss(data estimate at (x, t)).

    The gradient goes through the model; the change is converted to the velocity. exp(-loss) takes the
    place of p(cond given x_t). If the model generates latents, the loss decodes them first. CLIP
    guidance is the loss `1 - cosine(embed_image(decode(data)), embed_text(cond))`. s = 0 is the model
    itself. A call costs one evaluation and its gradient. `samplers.recurrent` repeats each step, as
    universal guidance does.

    Args:
      model: a velocity field, conditional, guided, or `fixed`.
      path: its path.
      loss: (data estimate: b *d, cond) -> b, one loss per example.
      scale: s, a number, an array of shape () or (b,), or a schedule.
      margin: distance kept from both ends, in (0, 0.5), as for `classifier`.
    Raises:
      ValueError: scale is not a number, margin out of range, or (when called) a loss of another shape.
    Source: Bansal et al. 2023 (universal guidance), eq. 6 and algorithm 1, with s(t) = s sigma(t).
    """
    check_scale(scale)
    check_number("margin", margin, 1e-6, 0.499)
    return LossGuidance(model, path, loss, scale, margin)
