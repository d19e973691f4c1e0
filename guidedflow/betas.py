"""Tables of betas, beta_1 ... beta_N of a discrete diffusion, and their rescaling to zero terminal SNR."""

import dataclasses
import functools
from collections.abc import Callable

import numpy as np


def linear_betas(steps: int, low: float = 1e-4, high: float = 0.02) -> np.ndarray:
    """Return betas evenly spaced from `low` to `high`.  Ho et al. 2020, section 4."""
    return np.linspace(low, high, steps, dtype=np.float64)


def scaled_linear_betas(steps: int, low: float = 0.00085, high: float = 0.012) -> np.ndarray:
    """Return betas whose square roots are evenly spaced.  Rombach et al. 2022, appendix."""
    return np.linspace(low**0.5, high**0.5, steps, dtype=np.float64) ** 2


def cosine_betas(steps: int, offset: float = 0.008, limit: float = 0.999) -> np.ndarray:
    """Return betas of alpha_bar(u) = cos^2((u + offset) / (1 + offset) pi / 2), u in [0, 1].

    beta_k = min(1 - alpha_bar(k + 1) / alpha_bar(k), limit).   Nichol & Dhariwal 2021, eq. 17.
    """
    u = np.arange(steps + 1, dtype=np.float64) / steps
    alpha_bar = np.cos((u + offset) / (1 + offset) * np.pi / 2) ** 2
    return np.minimum(1 - alpha_bar[1:] / alpha_bar[:-1], limit)


@dataclasses.dataclass(frozen=True)
class zero_snr:
    """A table of betas rescaled so that its last step is pure noise: zero terminal SNR.

    a_k <- (a_k - a_last) a_first / (a_first - a_last),   a_k = sqrt(alpha_bar_k),

    and again beta_k = 1 - (a_k / a_(k-1))^2, so that the last beta is 1. At that step x contains no
    data. Train on `predictions.v` or `data`, because a noise prediction cannot give the data there.
    Sample on `times.trailing_grid`, which begins at that step.

    Attributes:
      betas: the table to rescale, `steps -> table`, of at least two steps.
    Raises:
      ValueError: when called, steps < 2.
    Source: Lin et al. 2024 (common noise schedules are flawed), algorithm 1.
    """

    betas: Callable[[int], np.ndarray]

    def __call__(self, steps: int) -> np.ndarray:
        if steps < 2:
            raise ValueError(f"a table rescaled to zero SNR needs at least 2 steps, got {steps}")
        root = np.sqrt(np.cumprod(1 - np.asarray(self.betas(steps), np.float64)))
        root = (root - root[-1]) * (root[0] / (root[0] - root[-1]))
        return 1 - (root / np.append(1.0, root[:-1])) ** 2


@functools.lru_cache(maxsize=32)
def log_alpha_table(betas: Callable[[int], np.ndarray], steps: int) -> np.ndarray:
    table = np.asarray(betas(steps), np.float64)
    if table.shape != (steps,) or not np.all((table > 0) & (table <= 1)) or 1 in table[:-1]:
        raise ValueError(
            f"betas must be {steps} numbers in (0, 1), of which only the last may be 1, got shape "
            f"{table.shape}"
        )
    with np.errstate(divide="ignore"):
        return np.concatenate([[0.0], 0.5 * np.cumsum(np.log1p(-table))])
