"""A student distilled from a guided teacher, compared with the teacher: one branch instead of two.

  python -m experiments.distilled_student

The teacher is the shared generator with classifier-free guidance. The student has the same network with one
more input, w, and starts with the teacher's parameters. It is trained on the guided velocity at w drawn from
[1, 4]. Both take equal steps of Heun's method from the same noise. Compared are the difference of the images,
accuracy, Fréchet distances, counted evaluations, and seconds (minimum of several runs in turn, without
compilation).

Run on 2 shared cores in 2 minutes after training (the student's 800 steps took 2.7): half the evaluations,
images from the same noise 0.04 apart at w = 2, Fréchet distance within 1%.
"""

import functools
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from jaxtyping import Array, PyTree
from matplotlib.figure import Figure

from experiments.counting import Counter, evaluations
from experiments.results import options, save, say, spread
from experiments.trained import Bench, cached, generator_params, task_of_digits, train
from guidedflow import distillation
from guidedflow.guidance import classifier_free
from guidedflow.samplers import draw_noise, sample_ode
from guidedflow.times import uniform_grid
from guidedflow.training.build import Setup
from guidedflow.types import ModelFn

SHOWS = "A student distilled from guided velocities takes one branch for what its teacher takes two for."
RANGE = (1.0, 4.0)


def _apply(
    network: nn.Module, params: PyTree, x: Array, t: Array, label: Array, scale: Array
) -> Array:
    return network.apply({"params": params}, x, t, {"label": label, "scale": scale})


def distil(
    task: Setup, teacher: ModelFn, teacher_params: PyTree, steps: int
) -> distillation.Student:
    """Return the student after so many steps."""
    network = task.network.clone(scalars=("scale",))
    data, batch = task.dataset.take(), task.config.batch
    null = jnp.int32(task.dataset.num_classes)
    x, one = jnp.zeros((1, *task.dataset.image_shape)), jnp.zeros(1)
    cond = {"label": jnp.zeros(1, jnp.int32), "scale": one}
    fresh = network.init(jax.random.key(2), x, one, cond)["params"]
    # The embedding of the scale ends in zeros: the student begins as the teacher at w = 1.
    start = {**fresh, **teacher_params}

    def loss_fn(params: PyTree, batch: dict[str, Array], key: Array) -> Array:
        key_t, key_noise, key_scale = jax.random.split(key, 3)
        image, label = batch["image"], batch["label"]
        return distillation.guidance_distillation(
            functools.partial(_apply, network, params),
            lambda w: classifier_free(teacher, null, w),
            task.path,
            image,
            draw_noise(key_noise, image.shape),
            jax.random.uniform(key_t, label.shape),
            label,
            distillation.draw_scale(key_scale, len(label), *RANGE),
        )

    def batches(step: int) -> dict[str, np.ndarray]:
        chosen = np.random.default_rng(step).integers(len(data["label"]), size=batch)
        return {"image": data["image"][chosen], "label": data["label"][chosen]}

    def make() -> PyTree:
        schedule = optax.warmup_cosine_decay_schedule(0.0, 1e-3, steps // 10, steps)
        optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(schedule))
        return train(loss_fn, start, optimizer, batches, steps, ema_decay=0.99, name="student")[0]

    # The parameters that it starts from are part of what it is.
    origin = float(sum(jnp.sum(jnp.abs(leaf)) for leaf in jax.tree.leaves(teacher_params)))
    facts = [repr(network), origin, steps, batch, RANGE]
    params = cached("student", facts, make, start)
    return jax.tree_util.Partial(functools.partial(_apply, network), params)


def measure(
    bench: Bench,
    teacher: ModelFn,
    student: distillation.Student,
    scales: list[float],
    steps: int,
    seeds: int,
) -> dict[str, Any]:
    """Return both models' scores over w, how far their images differ, evaluations and seconds."""
    null = jnp.int32(bench.task.dataset.num_classes)

    def teachers(w: Any, model: ModelFn = teacher) -> ModelFn:
        return classifier_free(model, null, w)

    def students(w: Any, learnt: distillation.Student = student) -> ModelFn:
        return distillation.at_scale(learnt, w)

    def images(model: ModelFn, seed: int) -> Array:
        return sample_ode(model, bench.noise(seed), uniform_grid(steps), bench.labels)

    def count(make: Any) -> int:
        def job(counter: Counter) -> Array:
            return sample_ode(
                make(counter), bench.noise(0)[:1], uniform_grid(steps), bench.labels[:1]
            )

        return evaluations(job)

    def counted(counter: Counter) -> distillation.Student:
        def one(x: Array, t: Array, label: Array, scale: Array) -> Array:
            return counter.wrap(lambda x, t, label: student(x, t, label, scale))(x, t, label)

        return one

    rows = []
    for w in scales:
        pairs = [
            (images(teachers(jnp.float32(w)), seed), images(students(jnp.float32(w)), seed))
            for seed in range(seeds)
        ]
        scores = [[bench.score(one) for one in pair] for pair in pairs]
        apart = [float(jnp.sqrt(jnp.mean((one - other) ** 2))) for one, other in pairs]
        row: dict[str, Any] = {"w": w, "difference": spread(apart)}
        for index, name in enumerate(("teacher", "student")):
            row[name] = {
                field: spread([pair[index][field] for pair in scores]) for field in scores[0][0]
            }
        rows.append(row)
        say(
            f"w = {w:g}: images differ by {row['difference']['mean']:.3f}, distance "
            f"{row['teacher']['frechet_pixels']['mean']:.3f} and "
            f"{row['student']['frechet_pixels']['mean']:.3f}, accuracy "
            f"{row['teacher']['accuracy']['mean']:.4f} and {row['student']['accuracy']['mean']:.4f}"
        )
    seconds = {"teacher": np.inf, "student": np.inf}
    for _ in range(5):
        for name, model in (
            ("teacher", teachers(jnp.float32(2))),
            ("student", students(jnp.float32(2))),
        ):
            began = time.perf_counter()
            jax.block_until_ready(images(model, 0))
            seconds[name] = min(seconds[name], time.perf_counter() - began)
    return {
        "rows": rows,
        "steps": steps,
        "seconds": seconds,
        "evaluations": {
            "teacher": count(lambda counter: teachers(2.0, counter.wrap(teacher))),
            "student": count(lambda counter: students(2.0, counted(counter))),
        },
        "pictures": [np.asarray(one)[:10] for one in pairs_at(teachers, students, images)],
    }


def pairs_at(teachers: Any, students: Any, images: Any) -> list[Array]:
    """Return the images of one seed at w = 2, the teacher's and the student's."""
    return [images(make(jnp.float32(2)), 0) for make in (teachers, students)]


def draw(results: dict[str, Any], floor: Any) -> Figure:
    """Draw both models' curves over w, their difference, and ten pairs of images."""
    figure = Figure(figsize=(13, 5.6), dpi=100, layout="constrained")
    figure.suptitle(
        f"Distilled student against its teacher on digits, {results['steps']} Heun steps: "
        f"{results['evaluations']['teacher']} and {results['evaluations']['student']} evaluations an "
        f"image, {results['seconds']['teacher']:.2f} and {results['seconds']['student']:.2f} s a batch",
        fontsize=11,
    )
    grid = figure.add_gridspec(2, 3, height_ratios=(3, 1.15))
    axes = [figure.add_subplot(grid[0, i]) for i in range(3)]
    scales = [row["w"] for row in results["rows"]]
    panels = (
        ("accuracy", "share of images of their class"),
        ("frechet_pixels", "squared distance"),
    )
    titles = ("Accuracy", "Fréchet distance to held-out, pixels")
    for ax, (field, ylabel), title in zip(axes, panels, titles, strict=False):
        for name, style in (("teacher", "o-"), ("student", "s--")):
            values = [row[name][field] for row in results["rows"]]
            ax.errorbar(
                scales,
                [value["mean"] for value in values],
                [value["std"] for value in values],
                fmt=style,
                markersize=4,
                capsize=2,
                linewidth=1.3,
                label=f"{name}: {results['evaluations'][name]} evaluations",
            )
        ax.axhline(
            getattr(floor, field), color="black", linestyle=":", linewidth=1, label="real images"
        )
        ax.set(title=title, ylabel=ylabel)
        ax.legend(fontsize=8, frameon=False)
    apart = [row["difference"] for row in results["rows"]]
    axes[2].errorbar(
        scales,
        [one["mean"] for one in apart],
        [one["std"] for one in apart],
        fmt="D-",
        color="tab:purple",
        markersize=4,
        capsize=2,
    )
    axes[2].set(
        title="Student and teacher from the same noise",
        ylabel="rms difference, pixels in [-1, 1]",
        ylim=(0, None),
    )
    for ax in axes:
        ax.set_xlabel("scale w")
        ax.grid(alpha=0.3)
    _pictures(figure.add_subplot(grid[1, :]), results["pictures"])
    return figure


def _pictures(ax: Any, pairs: list[np.ndarray]) -> None:
    rows = [
        np.concatenate([np.pad(i[..., 0], 1, constant_values=1) for i in row], 1) for row in pairs
    ]
    ax.imshow(np.concatenate(rows), cmap="gray", vmin=-1, vmax=1)
    ax.set_title("the same noise at w = 2", fontsize=9)
    ax.set_yticks([4.5, 14.5], ["teacher", "student"])
    ax.set_xticks(10 * np.arange(len(pairs[0])) + 4.5, [str(i) for i in range(len(pairs[0]))])
    ax.tick_params(length=0)
    for spine in ax.spines.values():
        spine.set_visible(False)


def main() -> None:
    """Train or load, distil, measure, draw, write."""
    given = options(__doc__)
    if given.quick:
        task, early, images, seeds = task_of_digits(20, preset="tiny"), (5, 8, 10), 100, 2
        learning, steps, scales = 10, 2, [1.0, 2.0]
    else:
        task, early, images, seeds = task_of_digits(), (100, 200, 400, 800), 1000, 3
        learning, steps, scales = 800, 8, [1.0, 1.5, 2.0, 4.0]
    params = generator_params(task, early)[-1]
    teacher = task.model(params)
    student = distil(task, teacher, params, learning)
    bench = Bench(task, images)
    results = measure(bench, teacher, student, scales, steps, seeds)
    figure = draw(results, bench.judge.floor)
    del results["pictures"]
    at = next(row for row in results["rows"] if row["w"] == 2.0)
    counts, seconds = results["evaluations"], results["seconds"]
    measured = (
        f"Measured after {learning} steps of distillation, at w = 2: the student takes "
        f"{counts['student']} evaluations where the teacher takes {counts['teacher']}, "
        f"{seconds['student']:.2f} s where it takes {seconds['teacher']:.2f} s ({images:,} images); "
        f"pixel Fréchet distance {at['student']['frechet_pixels']['mean']:.3f} against "
        f"{at['teacher']['frechet_pixels']['mean']:.3f}, accuracy "
        f"{at['student']['accuracy']['mean']:.4f} against {at['teacher']['accuracy']['mean']:.4f}, images "
        f"from the same noise {at['difference']['mean']:.3f} apart (root mean square)."
    )
    numbers = {"distillation_steps": learning, "images": images, "seeds": seeds, **results}
    save("distilled_student", figure, numbers, SHOWS, measured, given.out)


if __name__ == "__main__":
    main()
