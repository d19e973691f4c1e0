"""One training step: a pure function `(state, batch, key) -> (state, metrics)`."""

from collections.abc import Callable
from functools import partial
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jaxtyping import Array, Float, Key, PyTree

from guidedflow.training.state import TrainState

Batch: TypeAlias = (
    Any  # pytree of arrays "b ...", including "index": the examples' positions in the global batch
)
Metrics = dict[str, Array]
LossFn = Callable[[PyTree, Batch, Key[Array, ""]], Float[Array, "b"]]
StepFn = Callable[[TrainState, Batch, Key[Array, ""]], tuple[TrainState, Metrics]]
Schedule = Callable[[Array], Array]


def ema_schedule(decay: float, warm_up: bool = True) -> Schedule:
    """Decay of the parameters' EMA at a step.

    With warm-up, d(n) = min(decay, (1 + n) / (10 + n)), so that even a short run forgets its start;
    without, d(n) = decay.

    Args:
      decay: in [0, 1); with 0 the average is the newest parameters.
      warm_up: whether the decay grows with the step.
    Raises:
      ValueError: decay is outside [0, 1).
    """
    if not 0.0 <= decay < 1.0:
        raise ValueError(f"ema decay must lie in [0, 1), got {decay}")

    def schedule(step: Array) -> Array:
        return jnp.minimum(decay, (1.0 + step) / (10.0 + step)) if warm_up else jnp.float32(decay)

    return schedule


def _split(batch: Batch, parts: int) -> Batch:
    """Cut the leading axis into `parts` micro-batches."""

    def cut(leaf: Array) -> Array:
        if leaf.shape[0] % parts:
            raise ValueError(
                f"a batch of {leaf.shape[0]} examples a device does not divide into "
                f"{parts} accumulation steps"
            )
        # Strided, so that each micro-batch of a sharded batch stays spread over all devices.
        return jnp.swapaxes(leaf.reshape(-1, parts, *leaf.shape[1:]), 0, 1)

    return jax.tree.map(cut, batch)


def _gradient(loss_fn: LossFn, params: PyTree, batch: Batch, key: Array, parts: int):
    """Mean loss and its gradient, accumulated over `parts` micro-batches."""

    def share_of_mean(params: PyTree, piece: Batch) -> Array:
        return jnp.mean(loss_fn(params, piece, key)) / parts

    value_and_grad = jax.value_and_grad(share_of_mean)
    if parts == 1:
        return value_and_grad(params, batch)

    def accumulate(total, piece):
        return jax.tree.map(jnp.add, total, value_and_grad(params, piece)), None

    zero = (jnp.zeros(()), jax.tree.map(jnp.zeros_like, params))
    return lax.scan(accumulate, zero, _split(batch, parts))[0]


def make_step(
    loss_fn: LossFn,
    optimizer: optax.GradientTransformation,
    *,
    ema_decay: Schedule,
    learning_rate: Schedule,
    accumulate: int = 1,
    axis_name: str | None = None,
    in_turn: bool = False,
) -> StepFn:
    """Build the training step.

    params <- params + optimizer(mean gradient),   ema <- d ema + (1 - d) params.
    If the loss or gradient is not finite, params, ema and optimiser state do not change and only the
    step is counted. A parameter that would overflow does not change. A non-finite update therefore
    never reaches a checkpoint. The training loop decides whether the run goes on. Random numbers come
    from fold_in(key, step), so a step depends only on the state, the batch and the run's key.

    Args:
      loss_fn: (params, batch, key) to one loss per example. Draws for example i must depend only on
        the key and `batch["index"]`; then the result does not depend on the number of devices.
      optimizer: optax transformation.
      ema_decay: step to decay d in [0, 1).
      learning_rate: step to learning rate, for the metrics only.
      accumulate: micro-batches per step; more need less memory and give the same result.
      axis_name: name of the mapped axis to average over, under `pmap` only.
      in_turn: update one leaf after another, which saves memory on a CPU.
    Returns:
      the step; its metrics are float32 scalars `loss`, `grad_norm`, `param_norm`,
      `learning_rate` and `finite` (1, or 0 if any of these was not finite).
    Raises:
      ValueError: accumulate is not positive.
    """
    if accumulate < 1:
        raise ValueError(f"accumulate must be at least 1, got {accumulate}")
    average = partial(lax.pmean, axis_name=axis_name) if axis_name else lambda tree: tree

    def step(state: TrainState, batch: Batch, key: Array) -> tuple[TrainState, Metrics]:
        step_key = jax.random.fold_in(key, state.step)
        loss, grads = average(_gradient(loss_fn, state.params, batch, step_key, accumulate))
        grad_norm = optax.tree.norm(grads)
        finite = jnp.isfinite(loss) & jnp.isfinite(grad_norm)
        # With `cond` instead of `where`, XLA's CPU compiler writes the new state over the old state,
        # in less than half the time.
        update = partial(_updated, optimizer, ema_decay, in_turn)
        kept, param_norm = lax.cond(finite, update, _unchanged, state, grads)

        metrics = {
            "loss": loss,
            "grad_norm": grad_norm,
            "param_norm": param_norm,
            "learning_rate": jnp.asarray(learning_rate(state.step), jnp.float32),
            "finite": (finite & jnp.isfinite(param_norm)).astype(jnp.float32),
        }
        return TrainState(state.step + 1, *kept), metrics

    return step


Kept = tuple[PyTree, PyTree, PyTree]


def _updated(
    optimizer: optax.GradientTransformation,
    ema_decay: Schedule,
    in_turn: bool,
    state: TrainState,
    grads: PyTree,
) -> tuple[Kept, Array]:
    """Return parameters, average and optimiser state after the update, and the parameters' norm.

    A parameter that overflows does not change; the norm is then not finite.
    """
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params, param_norm = _moved(state.params, updates, in_turn)
    decay = ema_decay(state.step)
    ema = jax.tree.map(lambda old, new: decay * old + (1 - decay) * new, state.ema, params)
    return (params, ema, opt_state), param_norm


def _moved(params: PyTree, updates: PyTree, in_turn: bool) -> tuple[PyTree, Array]:
    """Return the updated parameters and their norm. A parameter that overflows keeps its old value,
    but the norm is that of the overflowed value."""
    leaves, tree = jax.tree.flatten(params)
    squares, kept = jnp.zeros(()), []
    for old, update in zip(leaves, jax.tree.leaves(updates), strict=True):
        # Squares are never negative, so this only makes a leaf wait for the one before. Otherwise XLA's
        # CPU compiler updates all leaves before it takes any norm, which needs memory for another model.
        start = jnp.where(squares < 0, jnp.zeros_like(old), old) if in_turn else old
        new = optax.apply_updates(start, update)
        squares += jnp.sum(new * new)
        kept.append(jnp.where(jnp.isfinite(new), new, old))
    return jax.tree.unflatten(tree, kept), jnp.sqrt(squares)


def _unchanged(state: TrainState, grads: PyTree) -> tuple[Kept, Array]:
    return (state.params, state.ema, state.opt_state), optax.tree.norm(state.params)
