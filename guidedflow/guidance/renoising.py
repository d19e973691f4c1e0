"""CFG++: guide the data estimate, but not the noise that renoises it."""

from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from guidedflow.guidance.branches import Branches, check_stateless, vmapped
from guidedflow.types import (
    RENOISE,
    Cond,
    Evaluation,
    ModelFn,
    Scale,
    broadcast_null,
    check_number,
    pytree,
    weight_at,
    wide,
)


@pytree
class PlusPlus:
    """Made by `plus_plus`."""

    model: ModelFn
    null: Cond
    scale: Scale
    branches: Branches
    needs: ClassVar[frozenset[str]] = frozenset({RENOISE})

    def init(self, x: Array) -> PyTree:
        return ()

    def evaluate(
        self, state: PyTree, x: Array, t: Array, cond: Cond, at: Array
    ) -> tuple[Evaluation, PyTree]:
        conds = (cond, broadcast_null(self.null, cond))
        both = self.branches(self.model, x, t, conds, at)
        strong, weak = (jax.tree.map(lambda leaf, i=i: leaf[i], both) for i in range(2))
        c, u = wide(strong.velocity), wide(weak.velocity)
        velocity = (u + weight_at(self.scale, at, x) * (c - u)).astype(strong.velocity.dtype)
        return strong._replace(velocity=velocity, renoise=weak.velocity), state

    def __call__(self, x: Array, t: Array, cond: Cond) -> Array:
        return self.evaluate((), x, t, cond, t)[0].velocity


def plus_plus(
    model: ModelFn, null: Cond, scale: Scale = 0.6, *, branches: Branches = vmapped
) -> ModelFn:
    """CFG++: interpolate the data estimate between the branches and renoise it with the null branch.

    x_s = alpha_s data(g) + sigma_s noise(u),   g = u + scale (c - u).

    It needs a sampler that renoises: `sample_ddim`, `sample_ddpm` and those built on them. One DDIM step
    equals that of classifier-free guidance with w = scale r / (r - sigma_s), r = alpha_s sigma_t /
    alpha_t: a scale that falls along the grid. scale = 0 is the null model. scale = 1 is not the
    conditional model: it takes the conditional data estimate but renoises with the null branch.

    Args:
      model, null, branches: as for `classifier_free`.
      scale: lambda in [0, 1], a number, an array of shape () or (b,), or a schedule.
    Raises:
      ValueError: scale outside [0, 1]. Samplers that do not renoise raise it too.
    Source: Chung et al. 2024 (CFG++), eq. 10 and algorithm 2.
    """
    if not callable(scale):
        check_number("scale", scale, 0, 1)
        if jnp.ndim(scale) > 1:
            raise ValueError(f"scale must have shape () or (batch,), got {jnp.shape(scale)}")
    check_stateless("plus_plus", model)
    return PlusPlus(model, null, scale, branches)
