"""Task "distillation": a student that takes the guidance scale and learns what a guided teacher says."""

import jax
from jaxtyping import Array, PyTree
from ml_collections import ConfigDict

from guidedflow import distillation
from guidedflow.bundle import Bundle, model_fn
from guidedflow.pipelines.methods import GUIDANCE
from guidedflow.registry import choose
from guidedflow.scales import ByScale, TakesScale, student
from guidedflow.training.step import Batch, LossFn
from guidedflow.training.tasks.task import Parts, Task, check_unweighted, draw_time_and_noise
from guidedflow.types import ModelFn, Scale


def takes_scale(config: ConfigDict) -> TakesScale:
    """Return the scales that the student learns, [config.distillation.low, high].

    Raises:
      ValueError: they are out of order.
    """
    low, high = config.distillation.low, config.distillation.high
    if not low <= high:
        raise ValueError(f"config.distillation.low={low} must not exceed high={high}")
    return ByScale(low, high)


def teacher_workdir(config: ConfigDict) -> str:
    """Return where the teacher is.

    Raises:
      ValueError: the config names none, or a weighting is set.
    """
    check_unweighted(config)
    if not config.distillation.teacher:
        raise ValueError("config.distillation.teacher is missing: the workdir of a trained run")
    return config.distillation.teacher


def check_teacher(parts: Parts) -> Bundle:
    """Return the teacher.

    Raises:
      ValueError: it is of another task, or it knows other images, conditions or times.
    """
    teacher = parts.teacher
    if teacher is None or teacher.task != "flow":
        raise ValueError(
            f"config.distillation.teacher={parts.config.distillation.teacher} must hold a run of "
            f"task 'flow', got {teacher and teacher.task!r}"
        )
    name = f"the teacher {teacher.name}"
    teacher.check_fits(name, parts.image_shape, parts.condition, parts.path)
    return teacher


def distillation_loss(parts: Parts) -> LossFn:
    """Return the loss of a student that takes the scale and learns what the guided teacher says.

    `distillation.guidance_distillation` with w even over [config.distillation.low, high). The
    teacher's parameters are constants of the compiled step.

    Raises:
      ValueError: the teacher does not fit.
    """
    section = parts.config.distillation
    guide = choose("guidance", section.guidance, GUIDANCE)
    teacher, null = check_teacher(parts), parts.condition.null()
    # On the host, so that the constants of the step belong to no device.
    taught = model_fn(
        teacher.network, jax.device_get(teacher.params), teacher.path, teacher.predicts
    )
    draw = draw_time_and_noise(parts.config)

    def guided(scale: Scale) -> ModelFn:
        return guide(taught, null, scale, parts.path)

    def loss_fn(params: PyTree, batch: Batch, key: Array) -> Array:
        key_t, key_noise, key_scale = jax.random.split(key, 3)
        t, noise = draw(key_t, key_noise, batch)
        scale = distillation.draw_scale(key_scale, parts.config.batch, section.low, section.high)
        network = model_fn(parts.network, params, parts.path, parts.predicts, whole=True)
        return distillation.guidance_distillation(
            student(network, "scale"),
            guided,
            parts.path,
            batch["image"],
            noise,
            t,
            parts.condition.from_batch(batch),
            scale[batch["index"]],
        )

    return loss_fn


TASK = Task(distillation_loss, takes_scale=takes_scale, teacher=teacher_workdir)
