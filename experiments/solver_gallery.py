"""The states of every solver in few steps, from the same noise, over the exact trajectories.

  python -m experiments.solver_gallery

The problem has no network: the conditional velocity of a Gaussian mixture in the plane on the trigonometric
path, from t = 0.02 to t = 0.98 in eight steps, or as many as an adaptive solver takes. Grey lines are the
trajectories of the ODE, from 512 Runge-Kutta steps. For a solver without noise, the root mean square distance
of its last states to these trajectories over 256 examples is given. Solvers that add noise follow no
trajectory; they are in solver_error.py.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from matplotlib.figure import Figure

from experiments.closed_form import PLANE
from experiments.results import options, save, say
from guidedflow import paths, samplers

SHOWS = "Eight steps of every solver from the same noise, over the exact trajectories."
PATH = paths.Trigonometric()
LOW, HIGH, STEPS = 0.02, 0.98, 8
SHOWN = 10
EXTENT = 3.0

States = Float[Array, "n b 2"]
Solve = Callable[[Array], States]
"""noise -> every state, or the first and the last."""


def even_in_time(steps: int) -> Array:
    """Return a uniform grid."""
    return jnp.linspace(LOW, HIGH, steps + 1)


def even_in_log_snr(steps: int) -> Array:
    """Return the grid exponential integrators are made for; alpha / sigma = tan(pi t / 2)."""
    ends = jnp.log(jnp.tan(jnp.pi / 2 * jnp.array([LOW, HIGH])))
    return 2 / jnp.pi * jnp.arctan(jnp.exp(jnp.linspace(*ends, steps + 1)))


def _call(sampler: Callable[..., Array], grid: Callable[[int], Array], **fields: Any) -> Solve:
    """Return what gives every state of a sampler on a grid."""

    def states(noise: Array) -> States:
        model, labels = PLANE.velocity(PATH), jnp.zeros(len(noise), jnp.int32)
        return sampler(model, noise, grid(STEPS), labels, trajectory=True, **fields)

    return states


def _ode(step: Any) -> Solve:
    return _call(samplers.sample_ode, even_in_time, step=step)


def _on_path(sampler: Callable[..., Array], **fields: Any) -> Solve:
    return _call(sampler, even_in_log_snr, path=PATH, **fields)


def _adaptive(solver: Any) -> Solve:
    def ends(noise: Array) -> States:
        model, labels = PLANE.velocity(PATH), jnp.zeros(len(noise), jnp.int32)
        found = samplers.sample_ode_adaptive(
            model, noise, labels, low=LOW, high=HIGH, solver=solver, rtol=1e-2, atol=1e-2
        )
        return jnp.stack([noise, found.x])

    return ends


def solvers() -> dict[str, tuple[tuple[str, ...], bool, Solve]]:
    """Return every solver by name: the functions of `guidedflow.samplers`, whether it adds noise, itself."""
    key = jax.random.key(1)
    noisy = {"path": PATH, "key": key}
    diffusion = samplers.proportional(1.0)
    sde = {**noisy, "diffusion": diffusion, "last": None}
    return {
        "Euler": (("sample_ode", "euler"), False, _ode(samplers.euler)),
        "midpoint": (("sample_ode", "midpoint"), False, _ode(samplers.midpoint)),
        "Heun": (("sample_ode", "heun"), False, _ode(samplers.heun)),
        "Runge–Kutta 4": (("sample_ode", "rk4"), False, _ode(samplers.rk4)),
        "Adams–Bashforth 2": (("adams_bashforth",), False, _ode(samplers.adams_bashforth(2))),
        "Adams–Bashforth 3": (("adams_bashforth",), False, _ode(samplers.adams_bashforth(3))),
        "Adams–Bashforth 4": (("adams_bashforth",), False, _ode(samplers.adams_bashforth(4))),
        "DDIM": (("sample_ddim",), False, _on_path(samplers.sample_ddim)),
        "DPM-Solver++ 2M": (("sample_dpmpp",), False, _on_path(samplers.sample_dpmpp)),
        "DPM-Solver++ 3M": (("sample_dpmpp",), False, _on_path(samplers.sample_dpmpp, order=3)),
        "DPM-Solver++ 2S": (
            ("sample_dpmpp_singlestep",),
            False,
            _on_path(samplers.sample_dpmpp_singlestep),
        ),
        "UniPC 2": (("sample_unipc",), False, _on_path(samplers.sample_unipc)),
        "UniPC 3": (("sample_unipc",), False, _on_path(samplers.sample_unipc, order=3)),
        "EDM Heun": (("sample_edm",), False, _on_path(samplers.sample_edm)),
        "Dormand–Prince, adaptive: ends": (
            ("sample_ode_adaptive", "dopri5"),
            False,
            _adaptive(samplers.dopri5),
        ),
        "Tsitouras, adaptive: ends": (
            ("sample_ode_adaptive", "tsit5"),
            False,
            _adaptive(samplers.tsit5),
        ),
        "Euler–Maruyama, g² = σ": (
            ("sample_sde", "euler_maruyama"),
            True,
            _call(samplers.sample_sde, even_in_time, **sde),
        ),
        "stochastic Heun, g² = σ": (
            ("sample_sde", "stochastic_heun"),
            True,
            _call(samplers.sample_sde, even_in_time, step=samplers.stochastic_heun, **sde),
        ),
        "DDPM ancestral": (
            ("sample_ddpm",),
            True,
            _call(samplers.sample_ddpm, even_in_log_snr, **noisy),
        ),
        "DDIM, η = 1": (
            ("sample_ddim",),
            True,
            _call(samplers.sample_ddim, even_in_log_snr, eta=1.0, **noisy),
        ),
        "DPM-Solver++ 2M SDE": (
            ("sample_dpmpp",),
            True,
            _call(samplers.sample_dpmpp, even_in_log_snr, eta=1.0, **noisy),
        ),
        "EDM Heun with churn": (
            ("sample_edm",),
            True,
            _call(samplers.sample_edm, even_in_log_snr, churn=4.0, **noisy),
        ),
        "recurrent Euler, each step twice": (
            ("recurrent",),
            True,
            _call(
                samplers.sample_ode,
                even_in_time,
                step=samplers.recurrent(samplers.euler, PATH, 2),
                key=key,
            ),
        ),
    }


def exact(noise: Array, steps: int = 512) -> States:
    """Return the ODE's trajectories."""
    model, labels = PLANE.velocity(PATH), jnp.zeros(len(noise), jnp.int32)
    return samplers.sample_ode(
        model, noise, even_in_time(steps), labels, step=samplers.rk4, trajectory=True
    )


def distance(ends: Array, others: Array) -> float:
    """Return the root mean square distance of pairs of points."""
    return float(jnp.sqrt(jnp.mean(jnp.sum((ends - others) ** 2, axis=-1))))


def draw(drawn: dict[str, np.ndarray], notes: dict[str, str], reference: np.ndarray) -> Figure:
    """Draw every solver's states over the exact trajectories."""
    columns = 4
    rows = -(-len(drawn) // columns)
    figure = Figure(figsize=(12, 3.0 * rows), dpi=80, layout="constrained")
    axes = figure.subplots(rows, columns, sharex=True, sharey=True).ravel()
    figure.suptitle(
        f"Every solver in {STEPS} steps, from the same noise (dots) to its last states (circles),\n"
        "over the exact trajectories of the ODE (grey)"
    )
    for ax, (name, states) in zip(axes, drawn.items(), strict=False):
        for i in range(SHOWN):
            ax.plot(*reference[:, i].T, color="0.75", linewidth=2.5)
            line = "-" if len(states) > 2 else ""
            ax.plot(*states[:, i].T, line, color="tab:red", linewidth=0.8, marker=".", markersize=2)
            ax.plot(*states[-1, i], "o", color="tab:red", markersize=4, markerfacecolor="none")
        ax.set_title(name, fontsize=10)
        ax.text(0.03, 0.03, notes[name], transform=ax.transAxes, fontsize=8)
        ax.set(xlim=(-EXTENT, EXTENT), ylim=(-EXTENT, EXTENT), aspect="equal")
    for ax in axes[len(drawn) :]:
        ax.set_axis_off()
    return figure


def main() -> None:
    """Sample, measure, draw, write."""
    given = options(__doc__)
    noise = samplers.draw_noise(jax.random.key(0), (16 if given.quick else 256, 2))
    reference = exact(noise, 64 if given.quick else 512)
    drawn, numbers, notes = {}, {}, {}
    for name, (functions, noisy, solve) in solvers().items():
        states = solve(noise)
        drawn[name] = np.asarray(states[:, :SHOWN])
        error = distance(states[-1], reference[-1])
        error_or_none = None if noisy else error
        numbers[name] = {"functions": functions, "adds_noise": noisy, "error": error_or_none}
        notes[name] = "adds noise" if noisy else f"error {error:.2g}"
        say(f"{name}: {notes[name]}")
    errors = {name: one["error"] for name, one in numbers.items() if not one["adds_noise"]}
    fixed = {name: error for name, error in errors.items() if "adaptive" not in name}
    best = min(fixed, key=lambda name: fixed[name])
    measured = (
        f"Measured over {len(noise)} examples: of {len(fixed)} solvers without noise, {best} ends nearest "
        f"to the exact trajectories, {fixed[best]:.1e} away, and Euler {errors['Euler']:.1e}; their steps "
        "take one to four evaluations (solver_error counts them)."
    )
    record = {"steps": STEPS, "times": [LOW, HIGH], "examples": len(noise), "solvers": numbers}
    picture = draw(drawn, notes, np.asarray(reference[:, :SHOWN]))
    save("solver_gallery", picture, record, SHOWS, measured, given.out)


if __name__ == "__main__":
    main()
