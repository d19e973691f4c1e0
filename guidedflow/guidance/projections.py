"""Rules that use the angle between the two branches or their lengths: APG, CFG-Zero*, TCFG, MAMBO-G.

Each rule is defined for one example, so no projection or norm mixes examples.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from guidedflow import predictions
from guidedflow.guidance.spaces import MARGIN, to_space
from guidedflow.paths import Path
from guidedflow.types import check_number, wide


def dot(a: Float[Array, "*d"], b: Float[Array, "*d"]) -> Float[Array, ""]:
    """Return the inner product over every axis, in float32 or wider."""
    return jnp.sum(wide(a) * wide(b))


def magnitude(*values: Float[Array, "*d"]) -> Float[Array, ""]:
    """Return the largest absolute entry, or 1 if all are 0; it is a constant for differentiation.

    Formulas that do not depend on the unit of their arguments divide them by it first, so that squares
    and the gradients of squares stay in the range of float32.
    """
    largest = jnp.max(jnp.stack([jnp.max(jnp.abs(wide(a))) for a in values]))
    return jax.lax.stop_gradient(jnp.where(largest > 0, largest, 1))


def norm(a: Float[Array, "*d"]) -> Float[Array, ""]:
    """Return the Euclidean length over every axis; its gradient at 0 is 0."""
    unit = magnitude(a)
    square = dot(a / unit, a / unit)
    return unit * jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1)), 0)


def along(a: Float[Array, "*d"], direction: Float[Array, "*d"]) -> Float[Array, "*d"]:
    """Return the part of `a` parallel to `direction`; 0 if `direction` is 0."""
    direction = wide(direction) / magnitude(direction)
    square = dot(direction, direction)
    inverse = jnp.where(square > 0, 1 / jnp.where(square > 0, square, 1), 0)
    return dot(a, direction) * inverse * direction


@dataclasses.dataclass(frozen=True)
class projected:
    """Adaptive projected guidance: reduce the part of the difference parallel to the data estimate.

    d = D(c) - D(u) + momentum d_before,   d <- d min(1, threshold / |d|),

    D = D(c) + (w - 1) (d_orthogonal + parallel d_parallel),   both parts relative to D(c),

    D is the data estimate; d_before is d of the last step before it was shortened. w = 1 is the
    conditional model, whatever the other numbers. parallel = 1, momentum = 0, threshold = inf is
    classifier-free guidance. Within 1e-3 of t = 1 a velocity cannot move the data estimate, so the
    momentum is left out there.

    Attributes:
      path: the path of the model.
      momentum: weight of the last step's difference, in (-1, 1); a negative weight subtracts it.
      threshold: largest length of a difference, positive. It should grow with the square root of the
        size of an example; 15 is for latents of 4 x 128 x 128.
      parallel: weight of the parallel part; 0 removes it.
    Raises:
      ValueError: a number is out of range.
    Source: Sadat et al. 2024 (APG), section 4 and algorithm 1; defaults from its table for SDXL.
    """

    path: Path
    momentum: float = -0.5
    threshold: float = 15.0
    parallel: float = 0.0

    def __post_init__(self) -> None:
        check_number("momentum", self.momentum, -0.999, 0.999)
        if self.threshold != float("inf"):
            check_number("threshold", self.threshold, 1e-12)
        check_number("parallel", self.parallel)

    def init(self, x: Array) -> PyTree:
        return () if self.momentum == 0 else jnp.zeros_like(wide(x))

    def __call__(
        self, c: Array, u: Array, w: Array, x: Array, t: Array, memory: PyTree
    ) -> tuple[Array, PyTree]:
        c, u, x = wide(c), wide(u), wide(x)
        p, q = to_space(self.path, predictions.data, t)
        difference = q * (c - u)
        if self.momentum != 0:
            kept = jnp.where(t > 1 - MARGIN, 0.0, self.momentum)
            difference = difference + kept * memory
            memory = difference
        if self.threshold != float("inf"):
            length = norm(difference)
            longer = length > self.threshold
            shrink = jnp.where(longer, self.threshold / jnp.where(longer, length, 1), 1)
            difference = difference * shrink
        lengthwise = along(difference, p * x + q * c)
        push = difference - (1 - self.parallel) * lengthwise
        return c + (w - 1) * push / q, memory


@dataclasses.dataclass(frozen=True)
class optimized_scale:
    """CFG-Zero*'s rule: scale the null velocity so that it is closest to the conditional velocity.

    s u + w (c - s u),   s = <c, u> / (|u|^2 + 1e-8), one number per example, in float32.

    w = 1 is the conditional model; `optimize=False` sets s = 1, which is classifier-free guidance.
    Defined on velocities. `zero_star` adds the zero first steps.

    Source: Fan et al. 2025 (CFG-Zero*), eq. 7-9.
    """

    optimize: bool = True

    def init(self, x: Array) -> PyTree:
        return ()

    def __call__(
        self, c: Array, u: Array, w: Array, x: Array, t: Array, memory: PyTree
    ) -> tuple[Array, PyTree]:
        weak = wide(u)
        if self.optimize:
            weak = dot(c, u) / (dot(u, u) + 1e-8) * weak
        return weak + w * (c - weak), memory


@dataclasses.dataclass(frozen=True)
class tangential:
    """TCFG: keep only the part of the null branch along the main common direction of both branches.

    u' + w (c - u'),   u' = <u, r> r,   r the first right singular vector of the matrix [c; u].

    Let G be the 2 x 2 Gram matrix of c and u, and a = (cos th, sin th) its first eigenvector. Then r is
    a_1 c + a_2 u up to length, and u' = a_2 (a_1 c + a_2 u). No SVD of long vectors is needed, and the
    gradient exists unless both singular values are equal; in that case u' = u.
    w = 1 is the conditional model. If c and u are parallel, it is classifier-free guidance.
    Defined on the network's own prediction; for a noise network use `in_space(tangential(), path,
    predictions.noise)`.

    Source: Kwon et al. 2025 (TCFG), algorithm 1.
    """

    def init(self, x: Array) -> PyTree:
        return ()

    def __call__(
        self, c: Array, u: Array, w: Array, x: Array, t: Array, memory: PyTree
    ) -> tuple[Array, PyTree]:
        c, u = wide(c), wide(u)
        unit = magnitude(c, u)
        # |c|^2 - |u|^2 in units of the largest entry, in a form without cancellation.
        apart, across = dot((c + u) / unit, (c - u) / unit), 2 * dot(c / unit, u / unit)
        square = apart**2 + across**2
        length = jnp.sqrt(jnp.where(square > 0, square, 1))
        cosine = jnp.where(square > 0, apart / length, -1)
        sine = jnp.where(square > 0, across / length, 0)
        weak = 0.5 * (sine * c + (1 - cosine) * u)
        return weak + w * (c - weak), memory


@dataclasses.dataclass(frozen=True)
class magnitude_aware:
    """MAMBO-G: guide less if the difference is long compared with the null velocity.

    u + [1 + (w - 1) exp(-damping |c - u| / |u|)] (c - u).

    w = 1 is the conditional model; damping = 0 is classifier-free guidance. Defined on velocities.
    Usual values: w = 10, damping = 8.

    Raises:
      ValueError: damping is negative.
    Source: Zhu et al. 2025 (MAMBO-G), the damped scale of section 3.
    """

    damping: float = 8.0

    def __post_init__(self) -> None:
        check_number("damping", self.damping, 0)

    def init(self, x: Array) -> PyTree:
        return ()

    def __call__(
        self, c: Array, u: Array, w: Array, x: Array, t: Array, memory: PyTree
    ) -> tuple[Array, PyTree]:
        difference = wide(c) - wide(u)
        unit = magnitude(difference, u)
        moved, weak = norm(difference / unit), norm(u / unit)
        # If the null velocity is 0, the ratio is infinite for every difference.
        some = weak > 1e-12
        damped = jnp.exp(-self.damping * moved / jnp.where(some, weak, 1))
        damped = jnp.where(some, damped, 1.0 if self.damping == 0 else 0.0)
        return u + (1 + (w - 1) * damped) * difference, memory
