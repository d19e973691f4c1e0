"""Training a network that guides itself: distilled from a teacher, or guidance-free from the start."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, PyTree
from ml_collections import ConfigDict

from guidedflow import data, distillation, guidance, losses, paths, predictions
from guidedflow.distillation import Student
from guidedflow.keys import fold_each
from guidedflow.methods import GUIDANCE
from guidedflow.registry import choose
from guidedflow.training.flow import draw_time_and_noise
from guidedflow.training.step import Batch, LossFn
from guidedflow.training.velocity import learning
from guidedflow.types import ModelFn, Scale


@dataclass(frozen=True)
class _Named:
    """Puts the label and the number into the mapping that a network with `scalars` takes."""

    name: str

    def __call__(self, model: ModelFn, x: Array, t: Array, cond: Array, number: Array) -> Array:
        return model(x, t, {"label": cond, self.name: number})


def student(model: ModelFn, name: str) -> Student:
    """Return a velocity field of {"label", name} as one of (x, t, label, number)."""
    return jax.tree_util.Partial(_Named(name), model)


def load_teacher(
    config: ConfigDict, dataset: data.Dataset, path: paths.Path
) -> Callable[[Scale], ModelFn]:
    """Return the teacher of a distillation, guided by any scale.

    Raises:
      ValueError: there is none, it is of another kind, or it knows other images, classes or times.
    """
    # It builds a task in its turn, and tasks import this module.
    from guidedflow.training.trained import load

    section = config.distillation
    guide = choose("guidance", section.guidance, GUIDANCE)
    if not section.teacher:
        raise ValueError("config.distillation.teacher is missing: the workdir of a trained run")
    teacher = load(Path(section.teacher))
    task = teacher.task.config.task
    if task != "flow":
        raise ValueError(
            f"config.distillation.teacher={section.teacher} must hold a run of task 'flow', "
            f"got {task!r}"
        )
    name = f"the teacher {section.teacher}"
    teacher.check_fits(name, dataset.image_shape, dataset.num_classes, path)
    # On the host, so that the constants of the step belong to no device.
    model = teacher.task.model(jax.device_get(teacher.params))
    null = jnp.int32(dataset.num_classes)
    return lambda scale: guide(model, null, scale, path)


def distillation_loss(
    config: ConfigDict,
    network: nn.Module,
    path: paths.Path,
    predicts: predictions.Prediction,
    dataset: data.Dataset,
) -> LossFn:
    """Return the loss of a student that takes the scale and learns what the guided teacher says.

    `distillation.guidance_distillation` with w even over [config.distillation.low, high). The
    teacher's averaged parameters are constants of the compiled step.

    Raises:
      ValueError: the teacher is missing or does not fit, or a weighting is set.
    """
    _check_unweighted(config)
    low, high = config.distillation.low, config.distillation.high
    if not low <= high:
        raise ValueError(f"config.distillation.low={low} must not exceed high={high}")
    guided = load_teacher(config, dataset, path)
    draw = draw_time_and_noise(config)

    def loss_fn(params: PyTree, batch: Batch, key: Array) -> Array:
        key_t, key_noise, key_scale = jax.random.split(key, 3)
        t, noise = draw(key_t, key_noise, batch)
        scale = distillation.draw_scale(key_scale, config.batch, low, high)[batch["index"]]
        learner = student(learning(network, params, path, predicts), "scale")
        return distillation.guidance_distillation(
            learner, guided, path, batch["image"], noise, t, batch["label"], scale
        )

    return loss_fn


def guidance_free_loss(
    config: ConfigDict,
    network: nn.Module,
    path: paths.Path,
    predicts: predictions.Prediction,
    dataset: data.Dataset,
) -> LossFn:
    """Return the loss of a network that takes beta = 1 / w and learns guided sampling from data.

    `distillation.guidance_free` with beta even over [config.guidance_free.low, 1), conditions dropped.

    Raises:
      ValueError: no condition is dropped, or a weighting is set.
    """
    _check_unweighted(config)
    if config.drop_rate == 0:
        raise ValueError("config.drop_rate must be above 0: guidance-free training needs the null")
    draw, null = draw_time_and_noise(config), jnp.int32(dataset.num_classes)

    def loss_fn(params: PyTree, batch: Batch, key: Array) -> Array:
        key_t, key_noise, key_drop, key_beta = jax.random.split(key, 4)
        t, noise = draw(key_t, key_noise, batch)
        coins = fold_each(key_drop, batch["index"])
        cond = losses.drop_condition(coins, batch["label"], null, config.drop_rate)
        low = config.guidance_free.low
        beta = distillation.draw_scale(key_beta, config.batch, low, 1.0)[batch["index"]]
        learner = student(learning(network, params, path, predicts), "beta")
        return distillation.guidance_free(learner, path, batch["image"], noise, t, cond, null, beta)

    return loss_fn


def _check_unweighted(config: ConfigDict) -> None:
    if config.weighting.name != "none":
        raise ValueError(
            f"config.task={config.task!r} takes no weighting, got {config.weighting.name!r}"
        )


def distilled_number(config: ConfigDict, scale: float) -> float:
    """Return what a distilled student takes for the scale w: itself.

    Raises:
      ValueError: it was not trained at that scale.
    """
    low, high = config.distillation.low, config.distillation.high
    if not low <= scale <= high:
        raise ValueError(
            f"this student was distilled for scales in [{low:g}, {high:g}], got {scale:g}"
        )
    return scale


def guidance_free_number(config: ConfigDict, scale: float) -> float:
    """Return beta = 1 / w.

    Raises:
      ValueError: beta lies outside what was trained.
    """
    low = config.guidance_free.low
    if scale < 1 or 1 / scale < low:
        most = f"to {1 / low:g}" if low else "on"
        raise ValueError(f"this guidance-free model knows scales from 1 {most}, got {scale:g}")
    return 1 / scale


def distilled(model: ModelFn, null: Array, scale: Scale) -> ModelFn:
    """Return a distilled student at a scale: one branch."""
    return distillation.at_scale(student(model, "scale"), scale)


def guidance_free(model: ModelFn, null: Array, beta: Scale) -> ModelFn:
    """Return a network of guidance-free training at a beta: one branch."""
    return distillation.at_scale(student(model, "beta"), beta)


def distilled_null(config: ConfigDict, model: ModelFn, null: Array) -> ModelFn:
    """Return a student's unconditional model, which it is at w = 0."""
    return distilled(model, null, distilled_number(config, 0.0))


def guidance_free_null(config: ConfigDict, model: ModelFn, null: Array) -> ModelFn:
    """Return the unconditional model of guidance-free training: the null label at beta = 1."""
    return guidance.fixed(guidance_free(model, null, 1.0), null)
