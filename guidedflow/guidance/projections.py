"""Rules that look at the angle or the length of the two branches: APG, CFG-Zero*, TCFG, MAMBO-G.

Each is written for one example, so no projection or norm ever mixes examples.
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
    """Return the largest absolute entry, 1 where all are 0, as a constant to differentiation.

    What does not depend on the unit of its arguments is computed on them divided by it, so that no
    square leaves the range of float32, nor does the gradient of one.
    """
    largest = jnp.max(jnp.stack([jnp.max(jnp.abs(wide(a))) for a in values]))
    return jax.lax.stop_gradient(jnp.where(largest > 0, largest, 1))


def norm(a: Float[Array, "*d"]) -> Float[Array, ""]:
    """Return the Euclidean length over every axis; its gradient at 0 is 0."""
    unit = magnitude(a)
    square = dot(a / unit, a / unit)
    return unit * jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1)), 0)


def along(a: Float[Array, "*d"], direction: Float[Array, "*d"]) -> Float[Array, "*d"]:
    """Return the part of `a` parallel to `direction`; 0 where that is 0."""
    direction = wide(direction) / magnitude(direction)
    square = dot(direction, direction)
    inverse = jnp.where(square > 0, 1 / jnp.where(square > 0, square, 1), 0)
    return dot(a, direction) * inverse * direction


@dataclasses.dataclass(frozen=True)
class projected:
    """Adaptive projected guidance: damp the part of the difference along the data estimate.

    d = D(c) - D(u) + momentum d_before,   d <- d min(1, threshold / |d|),

    D = D(c) + (w - 1) (d_orthogonal + parallel d_parallel),   both parts relative to D(c),

    where D is the data estimate; d_before is what the last step's d was before its shortening. w = 1
    is the conditional model, whatever the other numbers; parallel = 1, momentum = 0,
    threshold = inf is classifier-free guidance. Within 1e-3 of t = 1 no velocity can move the data
    estimate, and the momentum is left out.

    Attributes:
      path: the path of the model.
      momentum: weight of the last step's difference, in (-1, 1); negative counts against it.
      threshold: largest length of a difference, positive; grows with the root of the size of an
        example, 15 is for latents of 4 x 128 x 128.
      parallel: share of the parallel part, 0 for none of it.
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
    """CFG-Zero*'s rule: the null velocity times the factor that brings it nearest to the conditional.

    s u + w (c - s u),   s = <c, u> / (|u|^2 + 1e-8), one number an example, in float32.

    w = 1 is the conditional model; `optimize=False` forces s = 1, which is classifier-free guidance.
    Defined on velocities. `zero_star` adds the still first steps.

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
    """TCFG: keep only that part of the null branch which lies in the branches' common direction.

    u' + w (c - u'),   u' = <u, r> r,   r the first right singular vector of the matrix [c; u].

    With G the 2 x 2 Gram matrix of c and u and a = (cos th, sin th) its first eigenvector, r is
    a_1 c + a_2 u up to length and u' = a_2 (a_1 c + a_2 u): no decomposition of long vectors, and a
    gradient everywhere but where both singular values agree; there u' = u.
    w = 1 is the conditional model; where c and u are parallel it is classifier-free guidance.
    Defined on the network's own prediction; for one of noise `in_space(tangential(), path,
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
        # |c|^2 - |u|^2, without the cancellation of the two lengths, in units of the largest entry.
        apart, across = dot((c + u) / unit, (c - u) / unit), 2 * dot(c / unit, u / unit)
        square = apart**2 + across**2
        length = jnp.sqrt(jnp.where(square > 0, square, 1))
        cosine = jnp.where(square > 0, apart / length, -1)
        sine = jnp.where(square > 0, across / length, 0)
        weak = 0.5 * (sine * c + (1 - cosine) * u)
        return weak + w * (c - weak), memory


@dataclasses.dataclass(frozen=True)
class magnitude_aware:
    """MAMBO-G: guide less where the difference is long beside the null velocity.

    u + [1 + (w - 1) exp(-damping |c - u| / |u|)] (c - u).

    w = 1 is the conditional model; damping = 0 is classifier-free guidance. Defined on velocities;
    usual values w 10, damping 8.

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
        # Beside no null velocity at all every difference is long.
        some = weak > 1e-12
        damped = jnp.exp(-self.damping * moved / jnp.where(some, weak, 1))
        damped = jnp.where(some, damped, 1.0 if self.damping == 0 else 0.0)
        return u + (1 + (w - 1) * damped) * difference, memory
