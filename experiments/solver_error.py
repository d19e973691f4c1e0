"""Error against the number of evaluations for every solver, with the order each one converges at.

  python -m experiments.solver_error

The problem has no network: classifier-free guidance, w = 2, on a Gaussian mixture in the plane whose
velocities are known, from t = 0.05 to t = 0.95 on the trigonometric path, in float64. Reference: 4,096
Runge-Kutta steps. Evaluations are counted while the program runs. Solvers that add noise have no exact
trajectory to compare with. For them, with the conditional model, 20,000 samples are compared with the exact
distribution of x_t by the Wasserstein distance along both axes; it cannot be smaller than that of as many
exact draws.

Run on 2 shared, busy cores in 9 minutes, nearly all of it compilation: fitted orders of 15 ODE solvers
within 0.14 of those of their sources.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array
from matplotlib.figure import Figure

from experiments.closed_form import PLANE
from experiments.counting import evaluations
from experiments.results import options, save, say
from guidedflow import paths, samplers
from guidedflow.guidance import classifier_free
from guidedflow.types import ModelFn

SHOWS = (
    "Every solver's error on a guided flow that is known exactly, and the order it converges at."
)
PATH = paths.Trigonometric()
LOW, HIGH = 0.05, 0.95
LABEL, SCALE = 0, 2.0

Job = Callable[..., Array]
"""(model, x, ts, cond, key) -> x at ts[-1]."""


def even_in_time(steps: int) -> np.ndarray:
    """Return a uniform grid."""
    return np.linspace(LOW, HIGH, steps + 1)


def even_in_log_snr(steps: int) -> np.ndarray:
    """Return the grid exponential integrators are made for; alpha / sigma = tan(pi t / 2)."""
    ends = np.log(np.tan(np.pi / 2 * np.array([LOW, HIGH])))
    times = 2 / np.pi * np.arctan(np.exp(np.linspace(*ends, steps + 1)))
    return np.concatenate([[LOW], times[1:-1], [HIGH]])


@dataclasses.dataclass(frozen=True)
class Entry:
    """A solver in the comparison.

    Attributes:
      job: how it is called.
      cost: evaluations a step, about; what is plotted is counted.
      grid: its grid.
      order: what its source says, for the table.
    """

    job: Job
    cost: int
    grid: Callable[[int], np.ndarray]
    order: int


def _ode(step: Any) -> Job:
    return lambda model, x, ts, cond, key: samplers.sample_ode(model, x, ts, cond, step=step)


def _on_path(sampler: Callable, **fields: Any) -> Job:
    return lambda model, x, ts, cond, key: sampler(model, x, ts, cond, path=PATH, **fields)


def _noisy(sampler: Callable, **fields: Any) -> Job:
    return lambda model, x, ts, cond, key: sampler(model, x, ts, cond, path=PATH, key=key, **fields)


_unipc = partial(samplers.sample_unipc, lower_order_final=False)
_dpmpp = partial(samplers.sample_dpmpp, lower_order_final=False)
DETERMINISTIC = {
    "Euler": Entry(_ode(samplers.euler), 1, even_in_time, 1),
    "midpoint": Entry(_ode(samplers.midpoint), 2, even_in_time, 2),
    "Heun": Entry(_ode(samplers.heun), 2, even_in_time, 2),
    "RK4": Entry(_ode(samplers.rk4), 4, even_in_time, 4),
    "Adams–Bashforth 2": Entry(_ode(samplers.adams_bashforth(2)), 1, even_in_time, 2),
    "Adams–Bashforth 3": Entry(_ode(samplers.adams_bashforth(3)), 1, even_in_time, 3),
    "Adams–Bashforth 4": Entry(_ode(samplers.adams_bashforth(4)), 1, even_in_time, 4),
    "DDIM": Entry(_on_path(samplers.sample_ddim), 1, even_in_log_snr, 1),
    "EDM Heun": Entry(_on_path(samplers.sample_edm), 2, even_in_log_snr, 2),
    "DPM-Solver++ 2S": Entry(_on_path(samplers.sample_dpmpp_singlestep), 1, even_in_log_snr, 2),
    "DPM-Solver++ 2M": Entry(_on_path(_dpmpp), 1, even_in_log_snr, 2),
    "DPM-Solver++ 3M, published": Entry(_on_path(_dpmpp, order=3), 1, even_in_log_snr, 2),
    "DPM-Solver++ 3M, exact": Entry(
        _on_path(_dpmpp, order=3, moments=samplers.exact), 1, even_in_log_snr, 3
    ),
    # The corrector raises the predictor's order by one.
    "UniPC 2": Entry(_on_path(_unipc), 1, even_in_log_snr, 3),
    "UniPC 3": Entry(_on_path(_unipc, order=3), 1, even_in_log_snr, 4),
}
STOCHASTIC = {
    "Euler–Maruyama, g² = σ": Entry(
        _noisy(samplers.sample_sde, diffusion=samplers.proportional(1.0), last=None),
        1,
        even_in_time,
        1,
    ),
    "DDPM ancestral, smallest": Entry(_noisy(samplers.sample_ddpm), 1, even_in_log_snr, 1),
    "DDIM, η = 1": Entry(_noisy(samplers.sample_ddim, eta=1.0), 1, even_in_time, 1),
    "DPM-Solver++ 2M SDE": Entry(_noisy(_dpmpp, eta=1.0), 1, even_in_log_snr, 2),
    "EDM Heun, churn 10": Entry(_noisy(samplers.sample_edm, churn=10.0), 2, even_in_log_snr, 2),
}


def order_of(evaluated: list[int], errors: list[float]) -> float:
    """Return minus the slope of log error over log evaluations, from the last three points."""
    return -float(np.polyfit(np.log(evaluated[-3:]), np.log(errors[-3:]), 1)[0])


def run(entry: Entry, model: ModelFn, x: Array, budget: int) -> tuple[Array, int]:
    """Return the solver's end state and how many evaluations it took."""
    ts = jnp.asarray(entry.grid(budget // entry.cost), x.dtype)
    labels = jnp.full(len(x), LABEL)
    results = []

    def job(counter: Any) -> Array:
        counted = counter.wrap(lambda x, t, cond: model(x, t, cond))
        results.append(entry.job(counted, x, ts, labels, jax.random.key(1)))
        return results[-1]

    count = evaluations(job)
    return results[-1], count


def deterministic(budgets: list[int], points: int, fine: int) -> dict[str, Any]:
    """Return evaluations, errors and fitted order of every deterministic solver."""
    model = classifier_free(PLANE.velocity(PATH), jnp.asarray(PLANE.null), SCALE)
    x = jax.random.normal(jax.random.key(0), (points, 2), jnp.float64)
    labels = jnp.full(points, LABEL)
    reference = samplers.sample_ode(
        model, x, jnp.asarray(even_in_time(fine)), labels, step=samplers.rk4
    )
    results = {}
    for name, entry in DETERMINISTIC.items():
        pairs = [run(entry, model, x, budget) for budget in budgets]
        evaluated = [count for _, count in pairs]
        errors = [float(jnp.sqrt(jnp.mean((end - reference) ** 2))) for end, _ in pairs]
        fitted = order_of(evaluated, errors)
        results[name] = {
            "evaluations": evaluated,
            "error": errors,
            "order": entry.order,
            "fitted": fitted,
        }
        say(f"{name}: order {fitted:.2f}, error {errors[-1]:.1e} at {evaluated[-1]} evaluations")
    return results


def _distance(a: np.ndarray, b: np.ndarray) -> float:
    """The larger Wasserstein-1 distance of the two axes, of sets of one size."""
    return float(np.abs(np.sort(a, axis=0) - np.sort(b, axis=0)).mean(axis=0).max())


def stochastic(budgets: list[int], points: int) -> tuple[dict[str, Any], float]:
    """Return evaluations and distance of every stochastic solver, and the distance's floor."""

    def exact(seed: int, t: float) -> np.ndarray:
        draw, normal = jax.random.split(jax.random.key(seed))
        data = PLANE.sample(draw, points, LABEL)
        noised = PATH.alpha(t) * data + PATH.sigma(t) * jax.random.normal(normal, data.shape)
        return np.asarray(noised)

    model, begin = PLANE.velocity(PATH), jnp.asarray(exact(10, LOW), jnp.float32)
    # Against so many exact draws that only the solver's own samples fluctuate.
    law = np.sort(np.concatenate([exact(seed, HIGH) for seed in range(20, 40)]), axis=0)[10::20]
    floor = float(np.mean([_distance(exact(seed, HIGH), law) for seed in range(40, 45)]))
    results = {}
    for name, entry in STOCHASTIC.items():
        pairs = [run(entry, model, begin, budget) for budget in budgets]
        errors = [_distance(np.asarray(end), law) for end, _ in pairs]
        results[name] = {"evaluations": [count for _, count in pairs], "distance": errors}
        say(f"{name}: distance {errors[-1]:.4f} at {budgets[-1]} evaluations, floor {floor:.4f}")
    return results, floor


def draw(ode: dict[str, Any], sde: dict[str, Any], floor: float, points: int) -> Figure:
    """Draw both families."""
    figure = Figure(figsize=(13, 5), dpi=90, layout="constrained")
    axes = figure.subplots(1, 2, width_ratios=(1.25, 1))
    figure.suptitle(
        f"Solvers on a Gaussian mixture with known velocities, t = {LOW} to {HIGH}", fontsize=11
    )
    colours = {1: "tab:gray", 2: "tab:blue", 3: "tab:orange", 4: "tab:red"}
    markers = "os^Dv<>Ph*Xpd8"
    used: dict[int, int] = {}
    for name, one in ode.items():
        place = used[one["order"]] = used.get(one["order"], -1) + 1
        axes[0].loglog(
            one["evaluations"],
            one["error"],
            marker=markers[place],
            color=colours[one["order"]],
            linewidth=1,
            markersize=4.5,
            alpha=0.85,
            label=f"{name}: {one['fitted']:.2f}",
        )
    axes[0].set(
        title=f"ODE, guided with w = {SCALE:g}; colour: order of the source",
        xlabel="evaluations of the guided velocity",
        ylabel="root mean square error of x, units of the data",
    )
    axes[0].legend(
        fontsize=7.5,
        frameon=False,
        title="solver: fitted order",
        loc="upper left",
        bbox_to_anchor=(1.0, 1.0),
    )
    for (name, one), marker in zip(sde.items(), markers, strict=False):
        axes[1].loglog(
            one["evaluations"],
            one["distance"],
            marker=marker,
            linewidth=1,
            markersize=4.5,
            label=name,
        )
    axes[1].axhline(
        floor, color="black", linestyle=":", linewidth=1, label="as many exact draws, mean of 5"
    )
    axes[1].set(
        title=f"SDE, conditional model, {points:,} samples",
        xlabel="evaluations of the velocity",
        ylabel="Wasserstein distance to the exact law",
    )
    axes[1].legend(fontsize=8, frameon=False)
    for ax in axes:
        ax.grid(alpha=0.3, which="both", linewidth=0.5)
    for ax, results in zip(axes, (ode, sde), strict=True):
        ticks = next(iter(results.values()))["evaluations"]
        ax.set_xticks(ticks, [str(tick) for tick in ticks])
        ax.set_xticks([], minor=True)
    return figure


def main() -> None:
    """Measure, draw, write."""
    given = options(__doc__)
    budgets = [8, 16, 32] if given.quick else [16, 32, 64, 128, 256]
    points = 200 if given.quick else 20_000
    with jax.enable_x64(True):
        ode = deterministic(budgets, 64, 64 if given.quick else 4096)
    sde, floor = stochastic(budgets[:-1] if not given.quick else budgets, points)
    off = max(abs(one["fitted"] - one["order"]) for one in ode.values())
    best = min(ode, key=lambda name: ode[name]["error"][1])
    measured = (
        f"Measured: fitted orders of {len(ode)} ODE solvers differ from those of their sources by at "
        f"most {off:.2f}; at {ode[best]['evaluations'][1]} evaluations {best} is nearest "
        f"({ode[best]['error'][1]:.1e}) and Euler at {ode['Euler']['error'][1]:.1e}."
    )
    numbers = {"ode": ode, "sde": sde, "sde_floor": floor, "scale": SCALE, "times": [LOW, HIGH]}
    save("solver_error", draw(ode, sde, floor, points), numbers, SHOWS, measured, given.out)


if __name__ == "__main__":
    main()
