"""Guidance by extrapolation away from a weaker model, and classifier-free guidance, its main case.

A *rule* joins the two branches of one example, (strong c, weak u) -> guided. `Affine`, u + w (c - u),
is classifier-free guidance; other rules are other methods. A rule may remember something between
steps; `init` and `__call__` carry it.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from guidedflow import loops
from guidedflow.guidance.branches import Branches, check_stateless, vmapped
from guidedflow.types import (
    Cond,
    Evaluation,
    ModelFn,
    Scale,
    broadcast_null,
    check_batch_scale,
    check_scale,
    evaluate,
    pytree,
    scale_at,
    wide,
)


class Rule(Protocol):
    """How two branches become one velocity; written for one example, vmapped over the batch."""

    def init(self, x: Array) -> PyTree:
        """Return what the rule remembers of one example x: *d before the first step."""
        ...

    def __call__(
        self, c: Array, u: Array, w: Array, x: Array, t: Array, memory: PyTree
    ) -> tuple[Array, PyTree]:
        """Return the guided velocity *d and the memory after this step; at w = 1 that is c."""
        ...


@dataclasses.dataclass(frozen=True)
class Affine:
    """u + w (c - u)."""

    def init(self, x: Array) -> PyTree:
        return ()

    def __call__(
        self, c: Array, u: Array, w: Array, x: Array, t: Array, memory: PyTree
    ) -> tuple[Array, PyTree]:
        return u + w * (c - u), memory


def apply_rule(
    rule: Rule,
    strong: Evaluation,
    weak: Evaluation,
    w: Array | float,
    x: Array,
    t: Array,
    memory: PyTree,
) -> tuple[Evaluation, PyTree]:
    """Join two branches, all `b *d`; scales () or (b,). Computed in float32 or wider."""
    c, u, x = wide(strong.velocity), wide(weak.velocity), wide(x)
    w, t = jnp.asarray(w, x.dtype), t.astype(x.dtype)
    check_batch_scale(w, jnp.shape(x)[0])
    axes = (0, 0, 0 if w.ndim else None, 0, 0, 0)
    velocity, memory = jax.vmap(rule, in_axes=axes)(c, u, w, x, t, memory)
    velocity = velocity.astype(strong.velocity.dtype)
    return strong._replace(velocity=velocity, renoise=velocity), memory


def guides_nowhere(scale: Scale) -> bool:
    """Whether the scale is the Python number 1, known while tracing."""
    return isinstance(scale, int | float) and scale == 1


def where_guided(
    scale: Scale, w: Array | float, guided: Callable[[], Any], alone: Callable[[], Any]
) -> Any:
    """Return `alone()` where a schedule is 1 and `guided()` elsewhere, evaluating no more than that.

    Args:
      scale: number, array or schedule; only a schedule chooses while the program runs.
      w: its value at this step.
    """
    if guides_nowhere(scale):
        return alone()
    if not callable(scale):
        return guided()
    return loops.cond(jnp.all(jnp.asarray(w) == 1), alone, guided)


@pytree
class ClassifierFree:
    """Made by `classifier_free`."""

    model: ModelFn
    null: Cond
    scale: Scale
    rule: Rule
    branches: Branches

    def init(self, x: Array) -> PyTree:
        return jax.vmap(self.rule.init)(x)

    def evaluate(
        self, state: PyTree, x: Array, t: Array, cond: Cond, at: Array
    ) -> tuple[Evaluation, PyTree]:
        def conditional_alone() -> tuple[Evaluation, PyTree]:
            return evaluate(self.model, (), x, t, cond, at)[0], state

        def guided() -> tuple[Evaluation, PyTree]:
            conds = (cond, broadcast_null(self.null, cond))
            both = self.branches(self.model, x, t, conds, at)
            strong, weak = (jax.tree.map(lambda leaf, i=i: leaf[i], both) for i in range(2))
            return apply_rule(self.rule, strong, weak, w, x, t, state)

        w = scale_at(self.scale, at)
        return where_guided(self.scale, w, guided, conditional_alone)

    def __call__(self, x: Array, t: Array, cond: Cond) -> Array:
        return self.evaluate(self.init(x), x, t, cond, t)[0].velocity


def classifier_free(
    model: ModelFn,
    null: Cond,
    scale: Scale,
    *,
    rule: Rule = Affine(),
    branches: Branches = vmapped,
) -> ModelFn:
    """Guide a model by the difference that its condition makes.

    guided = u + w (c - u),   c = model(x, t, cond),   u = model(x, t, null).

    w = 1 is the conditional model, w = 0 the null one, w > 1 guides. (Ho & Salimans write
    w' = w - 1.) Both branches come from one call of the model, vmapped over the stacked conditions.
    Where the scale is a schedule, the steps at which it is 1 evaluate the conditional branch alone,
    within the one compiled program; the scale of a step is read at the step's beginning.

    Args:
      model: a velocity field trained with dropped conditions; it keeps no state between steps.
      null: the null condition: what `cond` is, without the batch axis; or one an example, as
        negative prompts are. For class labels the integer num_classes.
      scale: w, a number, an array of shape () or (b,), or a schedule.
      rule: how the two branches are joined; the methods of this package.
      branches: vmapped, concatenated, or sequential: how the branches are evaluated.
    Returns:
      A model function of the same signature.
    Raises:
      ValueError: scale is not a number, null does not match cond (when called), or the model keeps
        state.
    Source: Ho & Salimans 2022, eq. 6; for velocities Zheng et al. 2023, eq. 6.
    """
    check_scale(scale)
    check_stateless("classifier_free", model)
    return ClassifierFree(model, null, scale, rule, branches)


@pytree
class Extrapolate:
    """Made by `extrapolate`."""

    model: ModelFn
    reference: ModelFn
    scale: Scale
    rule: Rule

    def init(self, x: Array) -> PyTree:
        return jax.vmap(self.rule.init)(x)

    def evaluate(
        self, state: PyTree, x: Array, t: Array, cond: Cond, at: Array
    ) -> tuple[Evaluation, PyTree]:
        def model_alone() -> tuple[Evaluation, PyTree]:
            return evaluate(self.model, (), x, t, cond, at)[0], state

        def guided() -> tuple[Evaluation, PyTree]:
            strong, weak = (
                evaluate(model, (), x, t, cond, at)[0] for model in (self.model, self.reference)
            )
            return apply_rule(self.rule, strong, weak, w, x, t, state)

        w = scale_at(self.scale, at)
        return where_guided(self.scale, w, guided, model_alone)

    def __call__(self, x: Array, t: Array, cond: Cond) -> Array:
        return self.evaluate(self.init(x), x, t, cond, t)[0].velocity


def extrapolate(
    model: ModelFn,
    reference: ModelFn,
    scale: Scale,
    *,
    rule: Rule = Affine(),
) -> ModelFn:
    """Guide a model away from a weaker one under the same condition: autoguidance.

    guided = reference + w (model - reference).

    w = 1 is the model, w = 0 the reference; with the null branch as reference it is classifier-free
    guidance. The reference may be a smaller or less trained network, or other parameters of the same.

    Args:
      model, reference: velocity fields that take the same x, t and cond.
      scale: w, a number, an array of shape () or (b,), or a schedule.
      rule: how the two are joined.
    Raises:
      ValueError: scale is not a number, or a model keeps state.
    Source: Karras et al. 2024 (autoguidance), eq. 3.
    """
    check_scale(scale)
    check_stateless("extrapolate", model)
    check_stateless("extrapolate", reference)
    return Extrapolate(model, reference, scale, rule)


@pytree
class Fixed:
    """Made by `fixed`."""

    model: ModelFn
    cond: Any

    def __call__(self, x: Array, t: Array, cond: Cond = None) -> Array:
        batch = jnp.shape(x)[0]
        given = jax.tree.map(
            lambda leaf: jnp.broadcast_to(leaf, (batch, *jnp.shape(leaf))), self.cond
        )
        return self.model(x, t, given)


def fixed(model: ModelFn, cond: Cond) -> ModelFn:
    """Return `model` under one condition for every example, whatever it is called with.

    With the null condition it is the unconditional model, as `classifier` and `extrapolate` take.

    Args:
      model: a velocity field.
      cond: a condition without the batch axis.
    """
    return Fixed(model, jax.tree.map(jnp.asarray, cond))
