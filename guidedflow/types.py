"""The types of the core: model functions, scales and evaluations, and the checks they share.

A *model function* is any callable `(x, t, cond) -> velocity`. A model that carries a state from step
to step defines two more methods; a plain function needs neither:

  init(x) -> state                                     what the method remembers between steps
  evaluate(state, x, t, cond, at) -> Evaluation, state one evaluation of the step that began at `at`
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar, dataclass_transform

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

Cond = Any
"""A pytree of conditions, every leaf with the batch first."""
ModelFn = Callable[[Float[Array, "b *d"], Float[Array, " b"], Cond], Float[Array, "b *d"]]
Scale = float | Array | Callable[[Array], Array]
"""A guidance scale: a number, an array (shape () or (b,)), or a schedule over t.

A Python number is compiled into the program. An array is an argument of the program, so a sweep
over arrays compiles once.
"""


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["output", "velocity", "slope"],
    meta_fields=["predicts"],
)
@dataclasses.dataclass(frozen=True)
class Native:
    """A network's own prediction, if it is not a velocity.

    Guidance changes the velocity. A changed velocity stands for the output

      output + (velocity - self.velocity) / slope.

    A method that is affine in the predictions therefore gives the same result in both spaces. If
    guidance changes nothing, the output is the network's own to the last bit. Samplers use this
    through `predictions.read`.

    Attributes:
      output: the network's prediction, b *d.
      velocity: the velocity that the prediction was converted to, b *d.
      slope: d(velocity) / d(output), b.
      predicts: the type of the prediction, (path, t) -> (a, b).
    """

    output: Array
    velocity: Array
    slope: Array
    predicts: Callable[..., Any]


class Evaluation(NamedTuple):
    """What one evaluation of a guided model returns to a sampler; arrays are `b *d`.

    Attributes:
      velocity: the guided velocity.
      conditional: the velocity of the conditional branch alone.
      renoise: the velocity whose noise estimate renoises a data estimate (CFG++: the null branch).
      variance: the position in [-1, 1] between the smallest and the largest log variance of an
        ancestral step, if the network predicts it; otherwise None.
      shift: a score. An ancestral step adds it, times the step's variance, to the mean; or None.
      native: the network's own prediction, if it is not a velocity; otherwise None. Guidance
        does not change it. A method that replaces the velocity altogether sets None.
    """

    velocity: Array
    conditional: Array
    renoise: Array
    variance: Array | None = None
    shift: Array | None = None
    native: Native | None = None

    @classmethod
    def plain(cls, velocity: Array) -> "Evaluation":
        """The evaluation of a model without guidance: every field is its velocity."""
        return cls(velocity, velocity, velocity)


def init_state(model: ModelFn, x: Array) -> PyTree:
    """Return the state of `model` before the first step; empty for a plain function."""
    return model.init(x) if hasattr(model, "init") else ()


def evaluate(
    model: ModelFn, state: PyTree, x: Array, t: Array, cond: Cond, at: Array
) -> tuple[Evaluation, PyTree]:
    """Evaluate `model` at `(x, t)` within the step that began at time `at`.

    Schedules of the scale are evaluated at `at`, so that all evaluations of one step have the same
    guidance scale.
    """
    if hasattr(model, "evaluate"):
        return model.evaluate(state, x, t, cond, at)
    velocity = model(x, t, cond)
    if jnp.shape(velocity) != jnp.shape(x):
        raise ValueError(
            f"the model must return a velocity of x's shape {jnp.shape(x)}, got "
            f"{jnp.shape(velocity)}; a network with extra output channels goes through "
            "predictions.as_velocity"
        )
    return Evaluation.plain(velocity), state


RENOISE = "renoise"
SHIFT = "shift"


def needs(model: ModelFn) -> frozenset[str]:
    """Return the fields of an Evaluation, besides velocity, that `model` needs its sampler to use.

    A model class names them in its attribute `needs`. Models inside the model count too.
    """
    own: frozenset[str] = getattr(model, "needs", frozenset())
    if not dataclasses.is_dataclass(model) or isinstance(model, type):
        return own
    parts = (getattr(model, field.name) for field in dataclasses.fields(model))
    return own.union(*(needs(part) for part in parts if callable(part)))


T = TypeVar("T")


@dataclass_transform(frozen_default=True)
def pytree(cls: type[T]) -> type[T]:
    """Make `cls` a frozen dataclass whose fields are pytree children.

    A sampler is not compiled again for a new object with equal static parts and other arrays.
    """
    cls = dataclasses.dataclass(frozen=True)(cls)
    names = [field.name for field in dataclasses.fields(cls)]  # type: ignore[arg-type]
    return jax.tree_util.register_dataclass(cls, data_fields=names, meta_fields=[])


def scale_at(scale: Scale, t: Array) -> Array | float:
    """Return the scale at time `t`."""
    return scale(t) if callable(scale) else scale


def wide(value: Array) -> Array:
    """Return `value` in float32, or in its own dtype if that is wider."""
    # jnp.promote_types raises under jax_numpy_dtype_promotion=strict.
    return value if jnp.finfo(value.dtype).bits > 32 else value.astype(jnp.float32)


def weight_at(scale: Scale, t: Array, like: Array) -> Array:
    """Return the scale at time `t` as a weight on `like`, b *d, in float32 or wider."""
    weight = jnp.asarray(scale_at(scale, t), wide(like).dtype)
    return jnp.asarray(expand(weight, like))


def expand(weight: Array | float, like: Array) -> Array | float:
    """Give a per-example weight `b` the trailing axes of `like`, `b *d`; numbers pass.

    Raises:
      ValueError: as `check_batch_scale`.
    """
    if jnp.ndim(weight) == 0:
        return weight
    check_batch_scale(weight, jnp.shape(like)[0])
    return jnp.reshape(weight, (-1,) + (1,) * (jnp.ndim(like) - 1))


def concrete(value: Any) -> np.ndarray | None:
    """Return `value` as a numpy array if its numbers are known while tracing, else None."""
    return None if isinstance(value, jax.core.Tracer) else np.asarray(value)


def check_floating(name: str, value: Array) -> None:
    """Raise ValueError unless `value` is a floating-point array."""
    if not jnp.issubdtype(jnp.result_type(value), jnp.floating):
        raise ValueError(f"{name} must be floating point, got {jnp.result_type(value)}")


def check_number(name: str, value: Any, low: float = -np.inf, high: float = np.inf) -> None:
    """Raise ValueError unless `value` is a finite number, or array of them, in [low, high]."""
    if callable(value) or isinstance(value, str | bool) or value is None:
        raise ValueError(f"{name} must be a number, got {value!r}")
    known = concrete(value)
    if known is None:
        return
    if known.dtype.kind not in "fiu" and jnp.result_type(value) != jnp.bfloat16:
        raise ValueError(f"{name} must be a number, got {value!r}")
    numbers = known.astype(np.float64)
    if not np.all(np.isfinite(numbers) & (numbers >= low) & (numbers <= high)):
        raise ValueError(f"{name} must be a finite number in [{low:g}, {high:g}], got {value}")


def check_scale(scale: Any) -> None:
    """Raise ValueError unless `scale` is a number, an array of shape () or (b,), or a callable."""
    if callable(scale):
        return
    check_number("scale", scale)
    if jnp.ndim(scale) > 1:
        raise ValueError(f"scale must have shape () or (batch,), got {jnp.shape(scale)}")


def check_batch_scale(scale: Array | float, batch: int) -> None:
    """Raise ValueError unless `scale` is one number, or one number per example."""
    if jnp.shape(scale) not in ((), (batch,)):
        raise ValueError(
            f"scale must be one number or one an example, shape () or ({batch},) for this batch of "
            f"{batch}, got {jnp.shape(scale)}"
        )


def check_times(t: Array, shape: tuple[int, ...]) -> None:
    """Raise ValueError unless `t` is floating point of `shape`, with values, if known, in [0, 1]."""
    check_floating("t", t)
    if jnp.shape(t) != shape:
        hint = "; vmap over the batch" if shape == () else ""
        raise ValueError(f"t must have shape {shape}, got {jnp.shape(t)}{hint}")
    known = concrete(t)
    if known is not None and not np.all((known >= 0) & (known <= 1)):
        raise ValueError(f"times must lie in [0, 1], t = 0 noise and t = 1 data, got {known}")


def check_batch(name: str, tree: PyTree, batch: int) -> None:
    """Raise ValueError unless every leaf of `tree` has a leading axis of size `batch`."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        if jnp.ndim(leaf) == 0 or jnp.shape(leaf)[0] != batch:
            where = name + jax.tree_util.keystr(path)
            raise ValueError(f"{where} must have {batch} examples first, got {jnp.shape(leaf)}")


def broadcast_null(null: Cond, cond: Cond) -> Cond:
    """Give the null condition the batch axis of `cond`, leaf by leaf.

    A leaf with the shape of cond's leaf holds one null condition per example (negative prompts). A
    leaf without the batch axis is used for all examples.

    Raises:
      ValueError: the structures, shapes or dtypes of the two do not match.
    """
    ours, theirs = str(jax.tree.structure(cond)), str(jax.tree.structure(null))
    if ours != theirs:
        raise ValueError(f"null must have the structure of cond, {ours}, got {theirs}")

    def give(where: tuple, one: Array, many: Array) -> Array:
        shape, dtype = jnp.shape(many), jnp.result_type(many)
        same_kind = any(
            jnp.issubdtype(dtype, kind) and jnp.issubdtype(jnp.result_type(one), kind)
            for kind in (jnp.floating, jnp.integer, jnp.bool_)
        )
        if jnp.shape(one) not in (shape, shape[1:]) or not same_kind:
            raise ValueError(
                f"null{jax.tree_util.keystr(where)} must have shape {shape[1:]} or {shape} and a "
                f"dtype like {dtype}, got {jnp.shape(one)} {jnp.result_type(one)}"
            )
        return jnp.broadcast_to(jnp.asarray(one, dtype), shape)

    return jax.tree_util.tree_map_with_path(give, null, cond)
