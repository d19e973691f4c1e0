"""Applying a method in the space it is defined in (data, noise or velocity), and converting back.

At one (x, t) a conversion of predictions is affine, value = p x + q velocity. A method that changes the
value by d therefore changes the velocity by d / q. The functions here add such changes to the given
velocity, so a method that changes nothing returns it bit by bit.
"""

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, PyTree

from guidedflow import predictions
from guidedflow.guidance.extrapolation import Rule
from guidedflow.paths import Path

MARGIN = 1e-3
"""Smallest distance from t = 1, and except for data from t = 0, at which a conversion is computed."""


def check_space(path: Path | None, space: predictions.Prediction) -> None:
    """Raise ValueError if `space` is not velocity and there is no path to convert by."""
    if path is None and space is not predictions.velocity:
        raise ValueError(f"to work on the {space.__name__} prediction, pass the model's path")


def to_space(path: Path | None, space: predictions.Prediction, t: Array) -> tuple[Array, Array]:
    """Return (p, q) with value = p x + q velocity at one time, finite at both ends."""
    if path is None or space is predictions.velocity:
        return jnp.zeros_like(t), jnp.ones_like(t)
    # The data estimate is defined at t = 0. The others cannot change anything there: x is the noise.
    low = 0.0 if space is predictions.data else MARGIN
    inner = jnp.clip(t, low, 1 - MARGIN)
    return predictions.conversion(path, inner, predictions.velocity, space)


@dataclasses.dataclass(frozen=True)
class in_space:
    """Apply a rule in another prediction space and convert its result to a velocity.

    v = c + (rule(c', u') - c') / q,   c' = p x + q c,   u' = p x + q u.

    A rule whose weights sum to 1, such as `Affine`, gives the same result in every space; others do not.

    Attributes:
      rule: the rule.
      path: the path of the model.
      space: predictions.data, noise, v, score or velocity.
    Within 1e-3 of t = 1, and except for data of t = 0, the nearest time outside is used instead.
    """

    rule: Rule
    path: Path
    space: predictions.Prediction

    def init(self, x: Array) -> PyTree:
        return self.rule.init(x)

    def __call__(
        self, c: Array, u: Array, w: Array, x: Array, t: Array, memory: PyTree
    ) -> tuple[Array, PyTree]:
        p, q = to_space(self.path, self.space, t)
        strong, weak = p * x + q * c, p * x + q * u
        guided, memory = self.rule(strong, weak, w, x, t, memory)
        return c + (guided - strong) / q, memory
