"""Samples of every guidance method, from one noise, on a mixture whose velocity is known.

  python -m experiments.guidance_gallery

The mixture has two overlapping classes of Gaussian components in the plane; class 0 is requested. Every panel
shows the samples of one method with exact velocities. Two numbers are given: the mean probability of the
requested class under the exact posterior, and the samples' spread, the root mean square distance to their
mean. Guidance raises the first and lowers the second.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array
from matplotlib.figure import Figure

from experiments.closed_form import PLANE
from experiments.results import options, save, say
from guidedflow import guidance, paths, predictions, samplers
from guidedflow.times import uniform_grid
from guidedflow.types import ModelFn

SHOWS = "Samples of every guidance method on a known mixture, panel by panel."
PATH = paths.Linear()
LABEL, OTHER, SCALE, STEPS = 0, 1, 3.0, 32
EXTENT = 3.0
TARGET = jnp.array([-1.1, 0.6])

Sample = Callable[[Array], Array]
"""noise -> samples."""


def _ode(model: ModelFn, cond: Any = LABEL, step: Any = samplers.heun, **fields: Any) -> Sample:
    """Return what draws samples of a model; every example has the same condition."""

    def sample(noise: Array) -> Array:
        conds = jax.tree.map(lambda one: jnp.full(len(noise), one), cond)
        return samplers.sample_ode(model, noise, uniform_grid(STEPS), conds, step=step, **fields)

    return sample


def _on_path(sampler: Callable[..., Array], model: ModelFn, **fields: Any) -> Sample:
    return lambda noise: sampler(
        model, noise, uniform_grid(STEPS), jnp.full(len(noise), LABEL), path=PATH, **fields
    )


def _image_of(points: Array) -> Array:
    """Return points (a, b) as images of 2 × 2 pixels, a b over b a: a mean and a difference."""
    a, b = points.T
    return jnp.stack([a, b, b, a], axis=-1).reshape(-1, 2, 2, 1)


def _point_of(images: Array) -> Array:
    return images[:, 0, :, 0]


def _on_images(model: ModelFn, x: Array, t: Array, cond: Any) -> Array:
    return _image_of(model(_point_of(x), t, cond))


def _loss(data: Array, cond: Any) -> Array:
    return jnp.sum((data - TARGET) ** 2, axis=-1)


def methods() -> dict[str, tuple[tuple[str, ...], Sample]]:
    """Return every method by name: the functions of `guidedflow.guidance` it shows, and its samples."""
    model, null = PLANE.velocity(PATH), jnp.asarray(PLANE.null)
    worse, log_prob = PLANE.widened(2.0).velocity(PATH), PLANE.log_prob(PATH)
    free = partial(guidance.classifier_free, model, null)
    guided, unconditional = free(SCALE), guidance.fixed(model, null)
    key = jax.random.key(1)
    by_loss = guidance.loss_guidance(unconditional, PATH, _loss, 1.0)
    image = guidance.classifier_free(
        partial(_on_images, model), null, SCALE, rule=guidance.frequency_decoupled((1.0, 0.25))
    )
    return {
        "conditional model, w = 1": ((), _ode(model)),
        "classifier-free": (("classifier_free",), _ode(guided)),
        "interval": (("interval",), _ode(free(guidance.interval(SCALE, 0.3, 0.8)))),
        "interval in σ": (
            ("sigma_interval",),
            _ode(free(guidance.sigma_interval(SCALE, PATH, 0.5, 5.0))),
        ),
        "linear schedule": (("linear",), _ode(free(guidance.linear(1.0, 2 * SCALE - 1)))),
        "cosine schedule": (("cosine",), _ode(free(guidance.cosine(1.0, 2 * SCALE - 1)))),
        "power schedule": (("power",), _ode(free(guidance.power(1.0, 2 * SCALE - 1)))),
        "stepwise schedule": (
            ("stepwise",),
            _ode(free(guidance.stepwise((0.3, 0.7), (1.0, SCALE, 1.0)))),
        ),
        "reuse, every 3rd": (("reuse",), _ode(guidance.reuse(model, null, SCALE))),
        "rescale, φ = 0.7": (("rescale",), _ode(guidance.rescale(guided))),
        "dynamic thresholding": (
            ("dynamic_threshold",),
            _ode(guidance.dynamic_threshold(guided, PATH)),
        ),
        "some channels: first coordinate": (
            ("guide_channels",),
            _ode(guidance.guide_channels(guided, 1)),
        ),
        "APG": (("projected",), _ode(free(SCALE, rule=guidance.projected(PATH, threshold=2.5)))),
        "CFG-Zero*": (
            ("zero_star", "zero_init", "optimized_scale"),
            _ode(guidance.zero_star(model, null, SCALE)),
        ),
        "CFG++, λ = 0.2, DDIM": (
            ("plus_plus",),
            _on_path(samplers.sample_ddim, guidance.plus_plus(model, null, 0.2)),
        ),
        "MAMBO-G": (
            ("magnitude_aware",),
            _ode(free(SCALE, rule=guidance.magnitude_aware(2.0))),
        ),
        "TCFG": (("tangential",), _ode(free(SCALE, rule=guidance.tangential()))),
        "TCFG on noise predictions": (
            ("in_space",),
            _ode(
                free(
                    SCALE,
                    rule=guidance.in_space(guidance.tangential(), PATH, predictions.noise),
                )
            ),
        ),
        "frequency-decoupled, mean less": (
            ("frequency_decoupled",),
            lambda noise: _point_of(_ode(image)(_image_of(noise))),
        ),
        "autoguidance, 2× as wide": (
            ("extrapolate",),
            _ode(guidance.extrapolate(model, worse, SCALE)),
        ),
        "perturbed, in a window": (
            ("perturbed", "window"),
            _ode(guidance.perturbed(model, worse, guidance.window(SCALE - 1, 0.1, 0.8))),
        ),
        "negative condition as null, w = 1.5": (
            ("classifier_free",),
            _ode(guidance.classifier_free(model, jnp.asarray(OTHER), 1.5)),
        ),
        "composition, other class w = -1": (
            ("compose",),
            _ode(guidance.compose(model, null, (SCALE, -1.0)), (LABEL, OTHER)),
        ),
        "perpendicular negative": (
            ("perpendicular",),
            _ode(guidance.perpendicular(model, null, SCALE), (LABEL, OTHER)),
        ),
        "classifier, s = 3": (
            ("classifier", "fixed"),
            _ode(guidance.classifier(unconditional, PATH, log_prob, SCALE)),
        ),
        "classifier, ancestral form": (
            ("ancestral_classifier",),
            _on_path(
                samplers.sample_ddpm,
                guidance.ancestral_classifier(unconditional, log_prob, SCALE),
                key=key,
            ),
        ),
        "loss: distance to a point": (("loss_guidance",), _ode(by_loss)),
        "the same, each step 4 times": (
            ("loss_guidance", "recurrent"),
            _ode(by_loss, step=samplers.recurrent(samplers.heun, PATH, 4), key=key),
        ),
    }


def measure(points: Array) -> dict[str, float]:
    """Return the mean posterior of the class asked for, and the samples' spread."""
    ones = jnp.ones(len(points))
    labels = jnp.full(len(points), LABEL)
    posterior = jnp.exp(PLANE.log_prob(PATH)(points, ones, labels))
    away = points - jnp.mean(points, axis=0, keepdims=True)
    return {
        "posterior": float(jnp.mean(posterior)),
        "spread": float(jnp.sqrt(jnp.mean(jnp.sum(away**2, axis=-1)))),
    }


def draw(drawn: dict[str, np.ndarray], numbers: dict[str, dict[str, Any]]) -> Figure:
    """Draw every method's samples over the data of all classes and of the class asked for."""
    columns = 4
    rows = -(-len(drawn) // columns)
    figure = Figure(figsize=(12, 3.0 * rows), dpi=80, layout="constrained")
    axes = figure.subplots(rows, columns, sharex=True, sharey=True).ravel()
    figure.suptitle(
        f"Every guidance method, w = {SCALE:g} unless its title says more: its samples (red)\n"
        "over exact samples of both classes (grey) and of the class asked for (dark)"
    )
    everything = np.asarray(PLANE.sample(jax.random.key(2), 1500, PLANE.null))
    asked = np.asarray(PLANE.sample(jax.random.key(3), 700, LABEL))
    for ax, (name, points) in zip(axes, drawn.items(), strict=False):
        ax.scatter(*everything.T, s=2, color="0.85", linewidths=0)
        ax.scatter(*asked.T, s=2, color="0.55", linewidths=0)
        ax.scatter(*points[:700].T, s=2, color="tab:red", linewidths=0)
        ax.set_title(name, fontsize=10)
        both = numbers[name]
        ax.text(
            0.03,
            0.03,
            f"p(class) {both['posterior']:.2f}, spread {both['spread']:.2f}",
            transform=ax.transAxes,
            fontsize=8,
        )
        ax.set(xlim=(-EXTENT, EXTENT), ylim=(-EXTENT, EXTENT), aspect="equal")
    for ax in axes[len(drawn) :]:
        ax.set_axis_off()
    return figure


def main() -> None:
    """Sample, measure, draw, write."""
    given = options(__doc__)
    noise = samplers.draw_noise(jax.random.key(0), (64 if given.quick else 2000, 2))
    drawn, numbers = {}, {}
    for name, (functions, sample) in methods().items():
        points = sample(noise)
        drawn[name] = np.asarray(points)
        numbers[name] = {"functions": functions, **measure(points)}
        say(f"{name}: {numbers[name]}")
    alone, plain = (numbers[name] for name in list(numbers)[:2])
    measured = (
        f"Measured with {len(noise):,} samples: the exact posterior of the class asked for is "
        f"{alone['posterior']:.3f} on the mean for the conditional model and {plain['posterior']:.3f} for "
        f"classifier-free guidance at w = {SCALE:g}; the spread is {alone['spread']:.2f} and "
        f"{plain['spread']:.2f}."
    )
    record = {"scale": SCALE, "steps": STEPS, "samples": len(noise), "methods": numbers}
    save("guidance_gallery", draw(drawn, numbers), record, SHOWS, measured, given.out)


if __name__ == "__main__":
    main()
