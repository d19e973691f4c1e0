"""Corrections of a guided prediction: rescaling, dynamic thresholding, channels, zero-init.

Each takes a guided model function. It uses only the guided velocity and the conditional branch, so it
costs no further evaluation. The state of the model function passes through.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from guidedflow import loops, predictions
from guidedflow.guidance.branches import Branches, vmapped
from guidedflow.guidance.extrapolation import classifier_free
from guidedflow.guidance.projections import magnitude, norm, optimized_scale
from guidedflow.guidance.spaces import MARGIN, check_space, to_space
from guidedflow.paths import Path
from guidedflow.types import (
    RENOISE,
    Cond,
    Evaluation,
    ModelFn,
    Scale,
    check_number,
    evaluate,
    expand,
    init_state,
    needs,
    pytree,
    wide,
)


def _corrected(model: ModelFn, base: Evaluation, velocity: Array) -> Evaluation:
    """Replace the velocity. It also becomes `renoise`, unless the model renoises with another branch."""
    velocity = velocity.astype(base.velocity.dtype)
    renoise = base.renoise if RENOISE in needs(model) else velocity
    return base._replace(velocity=velocity, renoise=renoise)


def deviation(a: Array) -> Array:
    """Return the standard deviation over all of one example; its gradient is 0 where that is 0."""
    return norm(a - jnp.mean(a)) / a.size**0.5


@pytree
class Rescale:
    """Made by `rescale`."""

    model: ModelFn
    phi: float
    path: Path | None
    predicts: predictions.Prediction

    def init(self, x: Array) -> PyTree:
        return init_state(self.model, x)

    def evaluate(
        self, state: PyTree, x: Array, t: Array, cond: Cond, at: Array
    ) -> tuple[Evaluation, PyTree]:
        base, state = evaluate(self.model, state, x, t, cond, at)

        def one(velocity: Array, conditional: Array, x: Array, t: Array) -> Array:
            p, q = to_space(self.path, self.predicts, t)
            guided, strong = (p * wide(x) + q * wide(v) for v in (velocity, conditional))
            unit = magnitude(strong, guided)
            wanted, came = deviation(strong / unit), deviation(guided / unit)
            # A constant prediction has deviation 0 and cannot be rescaled.
            some = came > 1e-12
            ratio = jnp.where(some, wanted / jnp.where(some, came, 1), 1)
            return velocity + self.phi * (ratio - 1) * guided / q

        velocity = jax.vmap(one)(wide(base.velocity), base.conditional, x, t)
        return _corrected(self.model, base, velocity), state

    def __call__(self, x: Array, t: Array, cond: Cond) -> Array:
        return self.evaluate(self.init(x), x, t, cond, t)[0].velocity


def rescale(
    model: ModelFn,
    phi: float = 0.7,
    *,
    path: Path | None = None,
    predicts: predictions.Prediction = predictions.velocity,
) -> ModelFn:
    """Rescale the guided prediction towards the standard deviation of the conditional prediction.

    g [phi std(c) / std(g) + 1 - phi],   std over all of one example.

    phi = 0 changes nothing. phi = 1 restores the deviation fully. w = 1 changes nothing at any phi.
    If std(g) = 0, nothing is changed.
    It is defined on the network's own prediction type; other types give other results.

    Args:
      model: a guided model function.
      phi: strength of the correction, in [0, 1].
      path: the model's path; needed if `predicts` is not velocity.
      predicts: what the network predicts: velocity, noise, v, data.
    Raises:
      ValueError: phi out of range, or a prediction without the path.
    Source: Lin et al. 2023 (common noise schedules are flawed), eq. 15-16.
    """
    check_number("phi", phi, 0, 1)
    check_space(path, predicts)
    return Rescale(model, phi, path, predicts)


@pytree
class DynamicThreshold:
    """Made by `dynamic_threshold`."""

    model: ModelFn
    path: Path
    quantile: float

    def init(self, x: Array) -> PyTree:
        return init_state(self.model, x)

    def evaluate(
        self, state: PyTree, x: Array, t: Array, cond: Cond, at: Array
    ) -> tuple[Evaluation, PyTree]:
        base, state = evaluate(self.model, state, x, t, cond, at)

        def one(data: Array, q: Array, velocity: Array, t: Array) -> Array:
            limit = jnp.maximum(jnp.quantile(jnp.abs(data), self.quantile), 1)
            push = (jnp.clip(data, -limit, limit) / limit - data) / q
            return velocity + jnp.where(t > 1 - MARGIN, 0, push)

        inner = jnp.minimum(t, 1 - MARGIN)
        data, q = predictions.read(
            self.path, base.native, wide(base.velocity), wide(x), inner, predictions.data
        )
        velocity = jax.vmap(one)(data, q, wide(base.velocity), t)
        return _corrected(self.model, base, velocity), state

    def __call__(self, x: Array, t: Array, cond: Cond) -> Array:
        return self.evaluate(self.init(x), x, t, cond, t)[0].velocity


def dynamic_threshold(model: ModelFn, path: Path, quantile: float = 0.995) -> ModelFn:
    """Clip each example's data estimate to its own range, and shrink that range to [-1, 1].

    s = max(1, quantile of |data|),   data <- clip(data, -s, s) / s.

    An estimate inside [-1, 1] is not changed. quantile = 1 only shrinks. The method is for pixels in
    [-1, 1], not for latents. Within 1e-3 of t = 1 a velocity cannot move the data estimate, so
    nothing is changed there.

    Args:
      model: a model function, guided or not.
      path: its path.
      quantile: in (0, 1].
    Raises:
      ValueError: quantile out of range.
    Source: Saharia et al. 2022 (Imagen), section 2.3 and appendix C.
    """
    check_number("quantile", quantile, 1e-6, 1)
    return DynamicThreshold(model, path, quantile)


@pytree
class GuideChannels:
    """Made by `guide_channels`."""

    model: ModelFn
    channels: tuple[int, ...]

    def init(self, x: Array) -> PyTree:
        return init_state(self.model, x)

    def evaluate(
        self, state: PyTree, x: Array, t: Array, cond: Cond, at: Array
    ) -> tuple[Evaluation, PyTree]:
        count = jnp.shape(x)[-1]
        if max(self.channels) >= count:
            raise ValueError(f"channels must lie in [0, {count}), got {self.channels}")
        base, state = evaluate(self.model, state, x, t, cond, at)
        mask = jnp.broadcast_to(np.isin(np.arange(count), self.channels), jnp.shape(x))
        velocity = jnp.where(mask, base.velocity, base.conditional)
        return _corrected(self.model, base, velocity), state

    def __call__(self, x: Array, t: Array, cond: Cond) -> Array:
        return self.evaluate(self.init(x), x, t, cond, t)[0].velocity


def guide_channels(model: ModelFn, channels: int | tuple[int, ...]) -> ModelFn:
    """Guide some channels; the others are those of the conditional branch.

    The published DiT samples guide 3 of their 4 latent channels: `guide_channels(model, 3)`.

    Args:
      model: a guided model function.
      channels: the number of first channels to guide, or their indices; on the last axis of x.
    Raises:
      ValueError: there is no channel, an index is negative, or (when called) x lacks a channel.
    Source: the published code of Peebles & Xie 2023 (DiT), which guides its first three channels.
    """
    chosen = tuple(range(channels)) if isinstance(channels, int) else tuple(channels)
    if not chosen or min(chosen) < 0:
        raise ValueError(f"channels must be a count of at least 1 or indices, got {channels!r}")
    return GuideChannels(model, chosen)


@pytree
class ZeroInit:
    """Made by `zero_init`."""

    model: ModelFn
    until: float

    def init(self, x: Array) -> PyTree:
        return init_state(self.model, x)

    def evaluate(
        self, state: PyTree, x: Array, t: Array, cond: Cond, at: Array
    ) -> tuple[Evaluation, PyTree]:
        still = jnp.asarray(at) < self.until

        def moving() -> tuple[Evaluation, PyTree]:
            base, after = evaluate(self.model, state, x, t, cond, at)
            mask = expand(still, x)
            return jax.tree.map(
                lambda leaf: jnp.where(mask, jnp.zeros_like(leaf), leaf), base._replace(native=None)
            ), after

        def standing() -> tuple[Evaluation, PyTree]:
            base, _ = jax.eval_shape(moving)
            return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), base), state

        return loops.cond(jnp.all(still), standing, moving)

    def __call__(self, x: Array, t: Array, cond: Cond) -> Array:
        return self.evaluate(self.init(x), x, t, cond, t)[0].velocity


def zero_init(model: ModelFn, until: float = 0.04) -> ModelFn:
    """Zero-init: in the steps that begin before `until`, the velocity is 0 and the model is not evaluated.

    On a uniform grid until = k / steps makes the first k steps zero. Use it with ODE solvers only: a
    diffusion sampler would convert the velocity 0 to a data estimate.

    Args:
      model: a model function.
      until: time in [0, 1]; 0 changes nothing.
    Raises:
      ValueError: until out of range.
    Source: Fan et al. 2025 (CFG-Zero*), section 4.2.
    """
    check_number("until", until, 0, 1)
    return ZeroInit(model, until)


def zero_star(
    model: ModelFn,
    null: Cond,
    scale: Scale,
    *,
    until: float = 0.04,
    branches: Branches = vmapped,
) -> ModelFn:
    """CFG-Zero*: classifier-free guidance with an optimised null branch and zero first steps.

    v = 0 in steps that begin before `until`, then s u + w (c - s u) as in `optimized_scale`.

    With until = 0 no step is zero, and w = 1 is the conditional model. Usually about 4% of the steps
    are zero.

    Args:
      model, null, scale, branches: as for `classifier_free`.
      until: time in [0, 1].
    Raises:
      ValueError: as `classifier_free`, or until out of range.
    Source: Fan et al. 2025 (CFG-Zero*), algorithm 1.
    """
    guided = classifier_free(model, null, scale, rule=optimized_scale(), branches=branches)
    return zero_init(guided, until)
