"""Guidance by extrapolation from a weaker model; classifier-free guidance is the main case.

A *rule* combines the two branches of one example, (strong c, weak u) -> guided. `Affine`, u + w (c - u),
is classifier-free guidance; other rules are other methods. A rule may keep a state between steps, which
`init` creates and `__call__` updates.
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
    """How two branches are combined into one velocity: defined for one example, vmapped over the batch."""

    def init(self, x: Array) -> PyTree:
        """Return the rule's state for one example x: *d before the first step."""
        ...

    def __call__(
        self, c: Array, u: Array, w: Array, x: Array, t: Array, memory: PyTree
    ) -> tuple[Array, PyTree]:
        """Return the guided velocity *d, which is c at w = 1, and the state after this step."""
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
    """Combine two branches `b *d`; scales have shape () or (b,). Computed in float32 or wider."""
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
    """Return `alone()` if a schedule is 1 at this step, else `guided()`; only the one returned is run.

    Args:
      scale: number, array or schedule. Only a schedule makes the choice while the program runs.
      w: the value of the scale at this step.
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
    """Guide a model by the difference between its conditional and its null branch.

    guided = u + w (c - u),   c = model(x, t, cond),   u = model(x, t, null).

    w = 1 is the conditional model, w = 0 the null model, and w > 1 guides. (Ho & Salimans write
    w' = w - 1.) Both branches come from one call of the model, vmapped over the stacked conditions.
    The scale of a step is evaluated at the step's beginning. If a schedule is 1 in a step, that step
    evaluates only the conditional branch; the program is compiled once.

    Args:
      model: a velocity field trained with dropped conditions; it keeps no state between steps.
      null: the null condition, like `cond` but without the batch axis; or one per example, for
        negative prompts. For class labels it is the integer num_classes.
      scale: w, a number, an array of shape () or (b,), or a schedule.
      rule: how the two branches are combined; other methods of this package are other rules.
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
    """Guide a model away from a weaker model under the same condition: autoguidance.

    guided = reference + w (model - reference).

    w = 1 is the model, w = 0 the reference. With the null branch as the reference it is classifier-free
    guidance. The reference may be a smaller or less trained network, or the same network with other
    parameters.

    Args:
      model, reference: velocity fields that take the same x, t and cond.
      scale: w, a number, an array of shape () or (b,), or a schedule.
      rule: how the two are combined.
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
    """Return `model` under one fixed condition for all examples; its argument `cond` is ignored.

    With the null condition it is the unconditional model, for use in `classifier` and `extrapolate`.

    Args:
      model: a velocity field.
      cond: a condition without the batch axis.
    """
    return Fixed(model, jax.tree.map(jnp.asarray, cond))
