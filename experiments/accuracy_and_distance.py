"""Accuracy and Fréchet distance over the scale for six methods, at one number of evaluations.

  python -m experiments.accuracy_and_distance

One generator (configs/digits.py), trained once. Every image of every method costs at most 32 evaluations
of a network (Heun's method, as many steps as that buys; a classifier's gradient counts as one). What a
method can be set to besides w - interval, reference, threshold - is chosen on a seed of its own by the
distance to the *training* images; figures are distances to held-out images over five other seeds.
Plain guidance gets the benefit of the doubt: its best w is the best on the held-out images, and w = 1,
the conditional model, which costs one branch, counts as plain guidance.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from experiments.counting import Counter, evaluations
from experiments.results import options, save, say, spread
from experiments.trained import Bench, generator, noisy_classifier, task_of_digits
from guidedflow import guidance
from guidedflow.samplers import sample_ode
from guidedflow.times import uniform_grid
from guidedflow.types import ModelFn, Scale, scale_at

SHOWS = (
    "Accuracy and Fréchet distance over w on digits, at an equal number of evaluations an image, "
    "5 seeds."
)
PLAIN = "CFG"


@dataclasses.dataclass(frozen=True)
class Networks:
    """What the methods are made of.

    Attributes:
      model: the generator.
      early: it after fewer steps, by their number.
      log_prob: the noisy classifier.
    """

    model: ModelFn
    early: dict[int, ModelFn]
    log_prob: Callable
    null: Any
    path: Any

    def counted(self, counter: Counter) -> "Networks":
        """Return the same networks, whose evaluations `counter` counts."""
        early = {step: counter.wrap(model) for step, model in self.early.items()}
        return dataclasses.replace(
            self,
            model=counter.wrap(self.model),
            early=early,
            log_prob=counter.wrap(self.log_prob),
        )


Setting = tuple[Any, ...]
Make = Callable[[Networks, Any, int, Setting], ModelFn]
"""(networks, w, steps, setting) -> guided model."""


@dataclasses.dataclass(frozen=True)
class Method:
    """One way of guiding.

    Attributes:
      make: builds it.
      settings: what to choose from.
      schedule: (w, setting) -> the scale over t where that saves evaluations.
    """

    make: Make
    settings: tuple[Setting, ...] = ((),)
    schedule: Callable[[Any, Setting], Scale] = lambda w, setting: w


def _within(w: Any, bounds: tuple[float, float]) -> Scale:
    return guidance.interval(w, *(jnp.float32(bound) for bound in bounds))


def _free(networks: Networks, scale: Scale, **fields: Any) -> ModelFn:
    return guidance.classifier_free(networks.model, networks.null, scale, **fields)


def _apg(networks: Networks, w: Any, steps: int, setting: Setting) -> ModelFn:
    momentum, threshold = setting
    rule = guidance.projected(networks.path, momentum=momentum, threshold=threshold)
    return _free(networks, w, rule=rule)


def _zero_star(networks: Networks, w: Any, steps: int, setting: Setting) -> ModelFn:
    still = setting[0] / steps - 1e-6 if setting[0] else 0.0
    return guidance.zero_star(networks.model, networks.null, w, until=still)


def _autoguidance(networks: Networks, w: Any, steps: int, setting: Setting) -> ModelFn:
    return guidance.extrapolate(networks.model, networks.early[setting[0]], w)


def _autoguidance_within(networks: Networks, w: Any, steps: int, setting: Setting) -> ModelFn:
    scale = _within(w, setting[1:])
    return guidance.extrapolate(networks.model, networks.early[setting[0]], scale)


def _classifier(networks: Networks, w: Any, steps: int, setting: Setting) -> ModelFn:
    return guidance.classifier(networks.model, networks.path, networks.log_prob, w - 1)


INTERVALS = ((0.0, 0.4), (0.2, 0.6), (0.4, 0.8), (0.6, 1.0))


def methods(early: tuple[int, ...]) -> dict[str, Method]:
    """Return the methods and what each may be set to."""
    return {
        PLAIN: Method(lambda networks, w, steps, setting: _free(networks, w)),
        "interval": Method(
            lambda networks, w, steps, bounds: _free(networks, _within(w, bounds)),
            INTERVALS,
            _within,
        ),
        "APG": Method(_apg, ((0.0, float("inf")), (-0.5, 2.5))),
        "CFG-Zero*": Method(_zero_star, ((0,), (1,))),
        "autoguidance": Method(_autoguidance, tuple((step,) for step in early)),
        "autoguidance in an interval": Method(
            _autoguidance_within,
            tuple((step, *bounds) for step in early[1:3] for bounds in ((0.0, 0.6), (0.4, 1.0))),
            lambda w, setting: _within(w, setting[1:]),
        ),
        "classifier guidance": Method(_classifier),
    }


def steps_within(budget: int, scale: Scale) -> int:
    """Return the most steps of Heun's method whose evaluations the budget pays for."""

    def cost(steps: int) -> int:
        ts = np.asarray(uniform_grid(steps))[:-1]
        w = np.broadcast_to(np.asarray(scale_at(scale, jnp.asarray(ts))), ts.shape)
        return int(np.sum(np.where(w == 1, 2, 4)))

    return max(steps for steps in range(1, budget // 2 + 1) if cost(steps) <= budget)


@dataclasses.dataclass(frozen=True)
class Study:
    """The comparison at one budget."""

    bench: Bench
    networks: Networks
    budget: int

    def steps(self, method: Method, w: float, setting: Setting) -> int:
        """Return how many steps the method takes."""
        return steps_within(self.budget, method.schedule(w, setting))

    def score(self, method: Method, w: float, setting: Setting, seed: int) -> dict[str, float]:
        """Draw one image a label and judge them."""
        steps = self.steps(method, w, setting)
        scale = jnp.float32(w) if w != 1 else 1.0
        model = method.make(self.networks, scale, steps, setting)
        images = sample_ode(model, self.bench.noise(seed), uniform_grid(steps), self.bench.labels)
        return self.bench.score(images)

    def count(self, method: Method, w: float, setting: Setting) -> int:
        """Return the evaluations an image takes, counted."""
        steps = self.steps(method, w, setting)

        def job(counter: Counter) -> Any:
            model = method.make(self.networks.counted(counter), w, steps, setting)
            return sample_ode(
                model, self.bench.noise(0)[:1], uniform_grid(steps), self.bench.labels[:1]
            )

        return evaluations(job)

    def choose(self, name: str, method: Method, scales: list[float]) -> Setting:
        """Return the setting whose best distance to the training images is smallest."""
        if len(method.settings) == 1:
            return method.settings[0]
        best = {
            setting: min(
                self.score(method, w, setting, seed=100)["frechet_to_training"] for w in scales
            )
            for setting in method.settings
        }
        chosen = min(best, key=lambda setting: best[setting])
        say(f"{name}: {chosen} of { ({key: round(value, 3) for key, value in best.items()}) }")
        return chosen


def measure(study: Study, table: dict[str, Method], scales: list[float], seeds: int) -> dict:
    """Return the scores of every method at every scale, seed by seed."""
    alone = table[PLAIN]
    conditional = [study.score(alone, 1, (), seed) for seed in range(seeds)]
    results = {}
    for name, method in table.items():
        setting = study.choose(name, method, scales[:3])
        rows = [{"w": 1.0, "evaluations": study.count(alone, 1, ()), "seeds": conditional}]
        for w in scales:
            scores = [study.score(method, w, setting, seed) for seed in range(seeds)]
            rows.append({"w": w, "evaluations": study.count(method, w, setting), "seeds": scores})
            distance = spread([one["frechet_pixels"] for one in scores])
            say(f"{name}, w = {w:g}: distance {distance['mean']:.3f} ± {distance['std']:.3f}")
        results[name] = {
            "setting": [str(part) for part in setting],
            "steps": study.steps(method, scales[-1], setting),
            "rows": rows,
        }
    return results


def _distances(row: dict, field: str = "frechet_pixels") -> np.ndarray:
    return np.array([one[field] for one in row["seeds"]])


def compare(results: dict) -> dict[str, dict[str, Any]]:
    """Return, for each method, its distance at its best w and its gain over plain guidance's best.

    Plain guidance's best w is the best on the held-out images, w = 1 among them; the others' is
    chosen among w > 1 by the distance to the training images.
    """
    plain_rows = results[PLAIN]["rows"]
    plain = min(plain_rows, key=lambda row: _distances(row).mean())
    guided = min(plain_rows[1:], key=lambda row: _distances(row).mean())
    table = {}
    for name, result in results.items():
        best = min(
            result["rows"][1:], key=lambda row: _distances(row, "frechet_to_training").mean()
        )
        own = plain if name == PLAIN else best
        table[name] = {
            "w": own["w"],
            "evaluations": own["evaluations"],
            "accuracy": spread(_distances(own, "accuracy")),
            "frechet_pixels": spread(_distances(own)),
            "frechet_features": spread(_distances(own, "frechet_features")),
            "gain": spread(1 - _distances(own) / _distances(plain)),
            "gain_over_w_above_1": spread(1 - _distances(own) / _distances(guided)),
        }
    return table


def draw(results: dict, floor: dict[str, float], title: str) -> Figure:
    """Draw accuracy and both distances over the scale, mean and spread over seeds."""
    figure = Figure(figsize=(13, 4.6), dpi=100, layout="constrained")
    figure.suptitle(title, fontsize=11)
    axes = figure.subplots(1, 3)
    panels = (
        ("accuracy", "Accuracy", "share of images that are of the class asked for"),
        ("frechet_pixels", "Fréchet distance, pixels in [-1, 1]", "squared distance to held-out"),
        ("frechet_features", "Fréchet distance, features", "squared distance to held-out"),
    )
    for ax, (field, name, label) in zip(axes, panels, strict=True):
        for (method, result), marker in zip(results.items(), "os^Dv<>P", strict=False):
            scales = [row["w"] for row in result["rows"]]
            values = [spread(_distances(row, field)) for row in result["rows"]]
            means = np.array([value["mean"] for value in values])
            stds = np.array([value["std"] for value in values])
            lines = ax.plot(scales, means, marker=marker, markersize=4, linewidth=1.3, label=method)
            ax.fill_between(
                scales, means - stds, means + stds, color=lines[0].get_color(), alpha=0.15
            )
        ax.axhline(floor[field], color="black", linestyle=":", linewidth=1, label="real images")
        ax.set(title=name, xlabel="scale w (1: conditional model)", ylabel=label)
        ax.grid(alpha=0.3)
    for ax in axes[1:]:
        ax.set_yscale("log")
        ax.grid(alpha=0.3, which="both", linewidth=0.5)
    axes[2].legend(fontsize=8, frameon=False)
    return figure


def report(table: dict[str, dict[str, Any]], images: int) -> str:
    """Print the table of gains and return it as one sentence."""
    for name, row in table.items():
        say(
            f"{name:28s} w {row['w']:<5g} {row['evaluations']:3d} evaluations, accuracy "
            f"{row['accuracy']['mean']:.4f}, distance {row['frechet_pixels']['mean']:.3f} ± "
            f"{row['frechet_pixels']['std']:.3f}, gain {row['gain']['mean']:+.1%} ± "
            f"{row['gain']['std']:.1%}, over CFG at w > 1 {row['gain_over_w_above_1']['mean']:+.1%}"
        )
    others = {name: row for name, row in table.items() if name != PLAIN}
    best = max(others, key=lambda name: others[name]["gain"]["mean"])
    plain, row = table[PLAIN], others[best]
    tenth = [name for name, one in others.items() if one["gain"]["mean"] >= 0.1]
    above = [name for name, one in others.items() if one["gain_over_w_above_1"]["mean"] >= 0.1]
    return (
        f"Measured with {images:,} images a point: {best} at w = {row['w']:g} has pixel distance "
        f"{row['frechet_pixels']['mean']:.3f} ± {row['frechet_pixels']['std']:.3f}, plain CFG's best "
        f"{plain['frechet_pixels']['mean']:.3f} ± {plain['frechet_pixels']['std']:.3f} at w = "
        f"{plain['w']:g}: {row['gain']['mean']:+.1%} ± {row['gain']['std']:.1%} (paired by seed). "
        f"At least 10% better than plain CFG's best, w = 1 included: {', '.join(tenth) or 'none'}; "
        f"than its best w > 1: {', '.join(above) or 'none'}."
    )


def main() -> None:
    """Train or load, choose, measure, draw, write."""
    given = options(__doc__)
    if given.quick:
        task, early, images, seeds = task_of_digits(20, preset="tiny"), (5, 8, 10), 100, 2
        scales, budget, classifier_steps, preset = [1.5, 3.0], 8, 5, "tiny-classifier"
    else:
        task, early, images, seeds = task_of_digits(), (200, 300, 400, 600), 1000, 5
        scales, budget, classifier_steps, preset = (
            [1.1, 1.25, 1.5, 2.0, 3.0],
            32,
            700,
            "digits-classifier",
        )
    *weaker, model = generator(task, early)
    networks = Networks(
        model,
        dict(zip(early, weaker, strict=True)),
        noisy_classifier(task, classifier_steps, preset),
        jnp.int32(task.dataset.num_classes),
        task.path,
    )
    study = Study(Bench(task, images), networks, budget)
    results = measure(study, methods(early), scales, seeds)
    table = compare(results)
    floor = dataclasses.asdict(study.bench.judge.floor)
    title = (
        f"Digits, at most {budget} evaluations an image, {images} images × {seeds} seeds "
        "(band: standard deviation)"
    )
    numbers = {"budget": budget, "images": images, "seeds": seeds, "best": table, "real": floor}
    measured = report(table, images)
    numbers["methods"] = results
    name = "accuracy_and_distance"
    save(
        name,
        draw(results, floor, title),
        jax.tree.map(_rounded, numbers),
        SHOWS,
        measured,
        given.out,
    )


def _rounded(value: Any) -> Any:
    return round(value, 5) if isinstance(value, float) else value


if __name__ == "__main__":
    main()
