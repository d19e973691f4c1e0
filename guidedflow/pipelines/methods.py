"""Names of solvers, grids and ways of guiding, as a command line gives them, to objects."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, PRNGKeyArray

from guidedflow import guidance, samplers, times
from guidedflow.guidance import classifier_free
from guidedflow.paths import Path
from guidedflow.registry import choose
from guidedflow.types import Cond, ModelFn, Scale, check_number

Solve = Callable[[ModelFn, Array, Array, Cond, PRNGKeyArray, Path], Array]
"""(model, noise, ts, cond, keys, path) -> images."""
Guide = Callable[[ModelFn, Cond, Scale, Path], ModelFn]
"""(model, null, scale, path) -> guided model."""


def _ode(step: Callable) -> Solve:
    return lambda model, noise, ts, cond, keys, path: samplers.sample_ode(
        model, noise, ts, cond, step=step
    )


def _on_path(sample: Callable, **options: Any) -> Solve:
    return lambda model, noise, ts, cond, keys, path: sample(
        model, noise, ts, cond, path=path, **options
    )


def _drawing(sample: Callable, **options: Any) -> Solve:
    return lambda model, noise, ts, cond, keys, path: sample(
        model, noise, ts, cond, path=path, key=keys, **options
    )


def _adaptive(
    model: ModelFn, noise: Array, ts: Array, cond: Cond, keys: PRNGKeyArray, path: Path
) -> Array:
    """Take what steps a tolerance of 1e-4 asks for, between the ends of the grid."""
    try:
        return samplers.sample_ode_adaptive(
            model, noise, cond, low=float(ts[0]), high=float(ts[-1])
        ).x
    except ImportError as error:
        raise ValueError(str(error)) from error


RUNGE_KUTTA: Mapping[str, tuple[samplers.scan.Solver, int]] = {
    "euler": (samplers.euler, 1),
    "midpoint": (samplers.midpoint, 2),
    "heun": (samplers.heun, 2),
    "rk4": (samplers.rk4, 4),
}
"""One-step solvers of the ODE, each with its evaluations a step."""
SOLVERS: dict[str, Solve] = {
    **{name: _ode(step) for name, (step, _) in RUNGE_KUTTA.items()},
    "ab2": _ode(samplers.adams_bashforth(2)),
    "ab3": _ode(samplers.adams_bashforth(3)),
    "ab4": _ode(samplers.adams_bashforth(4)),
    "ddim": _on_path(samplers.sample_ddim),
    "dpmpp-2m": _on_path(samplers.sample_dpmpp, order=2),
    "dpmpp-3m": _on_path(samplers.sample_dpmpp, order=3),
    "dpmpp-2s": _on_path(samplers.sample_dpmpp_singlestep),
    "unipc": _on_path(samplers.sample_unipc),
    "edm": _on_path(samplers.sample_edm),
    "ddpm": _drawing(samplers.sample_ddpm),
    "dpmpp-2m-sde": _drawing(samplers.sample_dpmpp, order=2, eta=1.0),
    # A coefficient that fades with the noise needs no smaller steps near the data.
    "sde": _drawing(samplers.sample_sde, diffusion=samplers.proportional(1.0)),
    "sde-heun": _drawing(
        samplers.sample_sde,
        diffusion=samplers.proportional(1.0),
        step=samplers.stochastic_heun,
    ),
    "edm-churn": _drawing(samplers.sample_edm, churn=10.0),
    "ddpm-learned": _drawing(samplers.sample_ddpm, variance=samplers.learned),
    "adaptive": _adaptive,
}
ON_GRID = frozenset(SOLVERS) - {"midpoint", "rk4", "ab4", "edm-churn", "ddpm-learned", "adaptive"}
"""Solvers that evaluate a model at the grid's own times alone."""
GRIDS: dict[str, Callable[[int, Path], times.Grid]] = {
    "uniform": lambda steps, path: times.uniform_grid(steps),
    "shifted": lambda steps, path: times.shifted_grid(steps),
    "quadratic": lambda steps, path: times.quadratic_grid(steps),
    "karras": times.karras_grid,
    "log-snr": times.log_snr_grid,
}
GUIDANCE: dict[str, Guide] = {
    "classifier-free": lambda model, null, scale, path: classifier_free(model, null, scale),
    "apg": lambda model, null, scale, path: classifier_free(
        model, null, scale, rule=guidance.projected(path)
    ),
    "zero-star": lambda model, null, scale, path: guidance.zero_star(model, null, scale),
    "mambo-g": lambda model, null, scale, path: classifier_free(
        model, null, scale, rule=guidance.magnitude_aware()
    ),
    "tangential": lambda model, null, scale, path: classifier_free(
        model, null, scale, rule=guidance.tangential()
    ),
    "rescale": lambda model, null, scale, path: guidance.rescale(
        classifier_free(model, null, scale)
    ),
    "dynamic-threshold": lambda model, null, scale, path: guidance.dynamic_threshold(
        classifier_free(model, null, scale), path
    ),
    # The noise levels that served EDM2-XXL best, Kynkäänniemi et al. 2024, table 1.
    "interval": lambda model, null, scale, path: classifier_free(
        model, null, guidance.sigma_interval(scale, path, 0.28, 1.61)
    ),
    "frequency-decoupled": lambda model, null, scale, path: classifier_free(
        model, null, scale, rule=guidance.frequency_decoupled()
    ),
    # Approximate: two branches in one step of three.
    "reuse": lambda model, null, scale, path: guidance.reuse(model, null, scale),
    "plus-plus": lambda model, null, scale, path: guidance.plus_plus(model, null, scale),
    "none": lambda model, null, scale, path: model,
}
WEAKER: Mapping[str, str] = {
    "autoguidance": "another run",
    "perturbed-attention": "identity_attention",
    "skip-layer": "skip",
    "smoothed-energy": "blur",
}
"""Ways of guiding away from a weaker model: another run, or the network with its middle block so
perturbed. A scale of 1 is the model itself here too, where the papers' s is 0."""


@dataclasses.dataclass(frozen=True)
class Method:
    """How images are drawn: names of tables above, and numbers.

    Attributes:
      scale: guidance scale w; 1 is the conditional model, 0 the null one.
      interval: (low, high) times in [0, 1] outside which w is 1, or None for everywhere.
      solver, steps, grid: of the sampler.
      guidance: how the branches are joined, or what is led away from.
      unconditional: leave the condition out of the model; a classifier may put it in again.
      classifier_scale: s of the classifier's gradient, where there is a classifier.
    Raises:
      ValueError: an unknown name (the message says the nearest), or a number out of range.
    """

    scale: float = 1.0
    interval: tuple[float, float] | None = None
    solver: str = "heun"
    steps: int = 32
    grid: str = "uniform"
    guidance: str = "classifier-free"
    unconditional: bool = False
    classifier_scale: float = 1.0

    def __post_init__(self) -> None:
        check_number("scale", self.scale)
        choose("solver", self.solver, SOLVERS)
        choose("grid", self.grid, GRIDS)
        check_number("classifier_scale", self.classifier_scale)
        choose("guidance", self.guidance, {**GUIDANCE, **WEAKER})
        times.uniform_grid(self.steps)
        self.schedule(self.scale)

    def schedule(self, scale: float) -> Scale:
        """Return a scale, inside the interval if there is one, as guidance takes it.

        A scale of exactly 1 stays a Python number, which costs one branch; others are arrays, so
        that a sweep compiles once.
        """
        if scale == 1:
            return 1.0
        number = jnp.float32(scale)
        return guidance.interval(number, *self.interval) if self.interval else number
