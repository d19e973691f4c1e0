"""Grids of times for sampling: numpy arrays of steps + 1 increasing times, known while a sampler is traced.

Samplers also take a list or a tuple of numbers as a grid.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from guidedflow.paths import TINY, DiscreteBeta, Path, log_snr
from guidedflow.times.draws import shift, time_of_ratio
from guidedflow.types import check_number, concrete

Grid = Float[np.ndarray, " steps+1"]
GridLike = Grid | Float[Array, " n"] | Sequence[float]


def _check_steps(steps: int) -> None:
    if isinstance(steps, bool) or not isinstance(steps, int | np.integer) or steps < 1:
        raise ValueError(f"steps must be a whole number of at least 1, got {steps!r}")


def _check_interval(low: float, high: float) -> None:
    check_number("low", low, 0, 1)
    check_number("high", high, 0, 1)
    if not low < high:
        raise ValueError(f"the grid's ends must be in order, low < high, got {low} and {high}")


def as_grid(ts: GridLike) -> Grid | Float[Array, " n"]:
    """Check `ts` by `check_grid` and return it; a list or tuple of numbers becomes an array.

    Raises:
      ValueError: as `check_grid`.
    """
    grid: Any = ts
    if isinstance(ts, list | tuple):
        width = jnp.result_type(float)
        try:
            known = not any(isinstance(time, jax.Array) for time in ts)
            grid = (
                np.asarray(ts, width) if known else jnp.stack([jnp.asarray(t, width) for t in ts])
            )
        except (TypeError, ValueError) as error:
            raise ValueError(f"ts must be a 1-d grid of numbers, got {ts!r}") from error
    check_grid(grid)
    return grid


def check_grid(ts: Grid | Float[Array, " n"]) -> None:
    """Raise ValueError unless `ts` is a 1-d grid of at least 2 increasing times in [0, 1].

    Values are checked if they are known while tracing. Those of a grid from this module always are.
    """
    if isinstance(ts, str | list | tuple) or not hasattr(ts, "shape"):
        raise ValueError(f"ts must be an array of times, got {ts!r}")
    if jnp.ndim(ts) != 1 or jnp.shape(ts)[0] < 2:
        raise ValueError(f"ts must be a 1-d grid of at least 2 times, got shape {jnp.shape(ts)}")
    if not jnp.issubdtype(jnp.result_type(ts), jnp.floating):
        raise ValueError(f"ts must be floating point, got {jnp.result_type(ts)}")
    known = concrete(ts)
    if known is None:
        return
    if not np.all((known >= 0) & (known <= 1)):
        raise ValueError(f"times must lie in [0, 1], t = 0 noise and t = 1 data, got {known}")
    if not np.all(np.diff(known) > 0):
        raise ValueError(f"the grid must increase from noise (0) to data (1), got {known}")


def uniform_grid(steps: int, low: float = 0.0, high: float = 1.0) -> Grid:
    """Return steps + 1 evenly spaced times from `low` to `high`.

    Raises:
      ValueError: steps is not a whole number of at least 1, or not 0 <= low < high <= 1.
    """
    _check_steps(steps)
    _check_interval(low, high)
    return np.linspace(low, high, steps + 1, dtype=np.float64).astype(np.float32)


def shifted_grid(steps: int, factor: float = 3.0, low: float = 0.0, high: float = 1.0) -> Grid:
    """Return a uniform grid after `shift`; factor > 1 takes smaller steps near the noise.

    sigma_i -> factor sigma_i / (1 + (factor - 1) sigma_i).  Esser et al. 2024, eq. 23.
    """
    return shift(uniform_grid(steps, low, high).astype(np.float64), factor).astype(np.float32)


def quadratic_grid(steps: int, low: float = 0.0, high: float = 1.0) -> Grid:
    """Return a grid with 1 - t_i = (1 - u_i)^2 for evenly spaced u_i: smaller steps near the data.

    The quadratic spacing of Song, Meng & Ermon 2021 (DDIM), appendix D.2.
    """
    u = uniform_grid(steps).astype(np.float64)
    _check_interval(low, high)
    return (low + (high - low) * (1 - (1 - u) ** 2)).astype(np.float32)


def karras_grid(
    steps: int,
    path: Path,
    sigma_min: float | None = None,
    sigma_max: float | None = None,
    rho: float = 7.0,
) -> Grid:
    """Return the times at which sigma / alpha has Karras's levels, then t = 1: `steps` steps in all.

    sigma_i = (sigma_max^(1/rho) + i / (steps - 1) (sigma_min^(1/rho) - sigma_max^(1/rho)))^rho,
    i < steps, and sigma_steps = the path's own end.   Karras et al. 2022, eq. 5.

    If sigma_min is the path's own end, as on `VarianceExploding`, it is sigma_steps itself, and the
    levels are spread over `steps` instead of `steps - 1` intervals.

    Args:
      sigma_min, sigma_max: the range of sigma / alpha, within the range of the path. None means the
        usual 0.002 and 80, or the path's own end if the path does not reach these.
      rho: curvature, at least 1.
    Raises:
      ValueError: steps < 1, not 0 < sigma_min < sigma_max, rho < 1, the range exceeds that of the
        path, or two times of the grid are equal in float32.
    """
    _check_steps(steps)
    least, most = _reach(path)
    if sigma_min is None:
        sigma_min = 0.002 if least < 0.002 < most else least
    if sigma_max is None:
        sigma_max = 80.0 if least < 80 < most else most
    check_number("sigma_min", sigma_min, TINY)
    check_number("sigma_max", sigma_max, sigma_min)
    check_number("rho", rho, 1)
    if sigma_min < least * (1 - SLACK) or sigma_max > most * (1 + SLACK):
        raise ValueError(
            f"the path's sigma / alpha runs from {most:.3g} to {least:.3g}, which does not hold "
            f"sigma_max = {sigma_max:g} to sigma_min = {sigma_min:g}"
        )
    ends_there = sigma_min <= least * (1 + SLACK)
    fractions = np.arange(steps) / max(steps - (not ends_there), 1)
    ends = sigma_max ** (1 / rho), sigma_min ** (1 / rho)
    ratios = (ends[0] + fractions * (ends[1] - ends[0])) ** rho
    return _grid_at(path, ratios)


def log_snr_grid(steps: int, path: Path, low: float = 1e-3, high: float = 1 - 1e-3) -> Grid:
    """Return a grid evenly spaced in log-SNR from low to high, then t = 1: `steps` steps in all.

    Lu et al. 2022 (DPM-Solver), section 3.4. The log-SNR is infinite where alpha or sigma is 0, so
    low and high must not be such times.
    """
    _check_steps(steps)
    _check_interval(low, high)
    with jax.core.eval_context():
        ends = [float(log_snr(path, jnp.float32(t))) for t in (low, high)]
    if not np.all(np.isfinite(ends)):
        raise ValueError(f"log-SNR must be finite at low and high, got {ends}; move them inside")
    levels = np.linspace(ends[0], ends[1], steps) if steps > 1 else np.asarray(ends[:1])
    return _grid_at(path, np.exp(-0.5 * levels))


def _grid_of_steps(path: DiscreteBeta, table_steps: np.ndarray) -> Grid:
    """Return the times of falling table steps, then t = 1."""
    if not np.all((table_steps >= 0) & (table_steps < path.steps)):
        raise ValueError(f"the table has steps 0 .. {path.steps - 1}, asked for {table_steps}")
    times = 1 - (table_steps.astype(np.float64) + 1) / path.steps
    return np.append(times, 1.0).astype(np.float32)


def _check_respacing(steps: int, path: DiscreteBeta, most: int) -> None:
    _check_steps(steps)
    if not isinstance(path, DiscreteBeta):
        raise ValueError(f"discrete spacings need a DiscreteBeta path, got {path!r}")
    if steps > most:
        raise ValueError(f"steps must be at most {most} on a table of {path.steps}, got {steps}")


def leading_grid(steps: int, path: DiscreteBeta, offset: int = 0, drop_last: bool = False) -> Grid:
    """Return `steps` table steps 0, r, 2 r, ... from the data end, and t = 1.

    k_i = i floor(K / steps) + offset, K the table's length.  Lin et al. 2024, table 2, "leading":
    respaced DDPM and DDIM as first published. This grid never begins at pure noise.

    Args:
      steps: steps of the sampler, at most K.
      path: the table.
      offset: added to every k; 1 in Stable Diffusion.
      drop_last: make a spacing of one more step and leave out its k nearest to the data, as the
        multistep solvers of diffusers do.
    Raises:
      ValueError: steps out of range, another kind of path, or k outside the table.
    """
    points = steps + 1 if drop_last else steps
    _check_respacing(steps, path, path.steps - drop_last if isinstance(path, DiscreteBeta) else 1)
    table_steps = np.arange(points)[::-1] * (path.steps // points) + offset
    return _grid_of_steps(path, table_steps[:steps])


def trailing_grid(steps: int, path: DiscreteBeta) -> Grid:
    """Return `steps` table steps K - 1, K - 1 - r, ... from the noise end, and t = 1.

    k_i = round(K - i K / steps) - 1.  Lin et al. 2024, table 2, "trailing": it begins at pure noise. If
    `steps` divides K, it is the uniform grid.

    Raises:
      ValueError: steps outside 1 .. K, or another kind of path.
    """
    _check_respacing(steps, path, path.steps if isinstance(path, DiscreteBeta) else 1)
    table_steps = np.round(path.steps - np.arange(steps) * (path.steps / steps)) - 1
    return _grid_of_steps(path, table_steps)


def linspace_grid(steps: int, path: DiscreteBeta, drop_last: bool = False) -> Grid:
    """Return `steps` evenly spaced, rounded table steps from K - 1 to 0, both included, and t = 1.

    Lin et al. 2024, table 2, "linspace"; Nichol & Dhariwal 2021, section 4. The last step, from k = 0,
    is as small as a step of the table.

    Args:
      steps, path: as for `leading_grid`; a single step is at k = K - 1.
      drop_last: as for `leading_grid`; the last step is then as large as the others.
    Raises:
      ValueError: steps outside 1 .. K, or another kind of path.
    """
    _check_respacing(steps, path, path.steps - drop_last if isinstance(path, DiscreteBeta) else 1)
    points = steps + 1 if drop_last else steps
    table_steps = np.linspace(path.steps - 1, 0, points).round()
    return _grid_of_steps(path, table_steps[:steps])


SLACK = 1e-5
"""Relative difference up to which a float32 ratio counts as the path's own end."""


def _reach(path: Path) -> tuple[float, float]:
    """Return the smallest and the largest sigma / alpha of the path: at t = 1 and at t = 0."""
    with jax.core.eval_context():
        ends = [(float(path.sigma(t)), float(path.alpha(t))) for t in (jnp.ones(()), jnp.zeros(()))]
    least, most = (sigma / alpha if alpha > 0 else np.inf for sigma, alpha in ends)
    return least, most


def _grid_at(path: Path, ratios: np.ndarray) -> Grid:
    least, most = _reach(path)
    with jax.core.eval_context():
        times = np.asarray(time_of_ratio(path, jnp.asarray(ratios, jnp.float32)))
    times = np.where(ratios >= most * (1 - SLACK), 0.0, times)
    grid = np.append(times, 1.0).astype(np.float32)
    if not np.all(np.diff(grid) > 0):
        raise ValueError(
            f"the path's sigma / alpha runs from {most:.3g} to {least:.3g} and does not "
            f"hold {len(ratios)} distinct times from {ratios[0]:.3g} to {ratios[-1]:.3g}"
        )
    return grid
