"""Multistep methods: the history of evaluations, the weights, and Adams-Bashforth.

A multistep method fits a polynomial to its last evaluations and integrates it over the next step.
`lagrange` computes one weight per evaluation from the positions of the evaluations, in units of the
step, and the moments of the integral. Exponential integrators differ only in the moments.
"""

import dataclasses
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from guidedflow import loops
from guidedflow.samplers.ode import heun, rk4
from guidedflow.samplers.scan import Step


class History(NamedTuple):
    """The last evaluations, newest first.

    Attributes:
      values: k b *d; zeros for evaluations that do not exist yet.
      at: when each was taken, in the method's own time.
      seen: how many evaluations there have been.
    """

    values: Float[Array, "k b *d"]
    at: Float[Array, " k"]
    seen: Int[Array, ""]

    @classmethod
    def empty(cls, x: Array, length: int) -> "History":
        """An empty history with room for `length` evaluations like x."""
        at = jnp.zeros((length,), x.dtype)
        return cls(jnp.zeros((length, *x.shape), x.dtype), at, jnp.zeros((), jnp.int32))

    def push(self, value: Array, at: Array) -> "History":
        """Return the history with one more evaluation, without the oldest."""
        return History(
            jnp.concatenate([value.astype(self.values.dtype)[None], self.values[:-1]]),
            jnp.concatenate([at.astype(self.at.dtype)[None], self.at[:-1]]),
            self.seen + 1,
        )


def lagrange(nodes: list[Array], moments: list[Array]) -> Float[Array, " k"]:
    """Return the weights with sum_j w_j f(u_j) = integral of f, for every polynomial f of degree < k.

    w_j = sum_n m_n [u^n] l_j(u),   l_j(u) = prod over i != j of (u - u_i) / (u_j - u_i).

    Args:
      nodes: k different positions u_j.
      moments: m_n, the integral of u^n, n < k.
    Source: Hairer, Nørsett & Wanner 1993, section III.1, on any grid.
    """
    weights = []
    for j, own in enumerate(nodes):
        basis = [jnp.ones_like(own)]
        for i, other in enumerate(nodes):
            if i != j:
                gap = own - other
                raised = [jnp.zeros_like(own), *basis]
                lowered = [*basis, jnp.zeros_like(own)]
                basis = [(a - other * b) / gap for a, b in zip(raised, lowered, strict=True)]
        weights.append(sum(c * m for c, m in zip(basis, moments, strict=False)))
    return jnp.stack(weights)


def padded(weights: Array, length: int) -> Array:
    """Return the weights with zeros appended, `length` in all."""
    return jnp.concatenate([weights, jnp.zeros((length - weights.shape[0],), weights.dtype)])


def combine(weights: Array, values: Array) -> Array:
    """Return sum_j weights[j] values[j]; weights k, values k b *d."""
    return jnp.tensordot(weights.astype(values.dtype), values, axes=1)


@dataclasses.dataclass(frozen=True)
class AdamsBashforth:
    """Made by `adams_bashforth`."""

    order: int

    def init(self, x: Array) -> History:
        return History.empty(x, self.order)

    def __call__(self, step: Step) -> tuple[Array, History]:
        h = step.s - step.t
        history = step.memory.push(step.first.velocity, step.t)
        nodes = [(at - step.t) / h for at in history.at]
        moments = [jnp.ones_like(h) / (n + 1) for n in range(self.order)]
        rows = [padded(lagrange(nodes[:k], moments), self.order) for k in range(1, self.order + 1)]
        weights = jnp.stack(rows)[jnp.minimum(history.seen, self.order) - 1]

        def multistep() -> Array:
            x = step.x + h * combine(weights, history.values)
            return x.astype(step.x.dtype)

        def one_step() -> Array:
            x, _ = (heun if self.order == 3 else rk4)(step)
            return x.astype(step.x.dtype)

        if self.order <= 2:
            return multistep(), history
        return loops.cond(history.seen <= self.order - 2, one_step, multistep), history


def adams_bashforth(order: int = 2) -> AdamsBashforth:
    """Return the Adams-Bashforth step for `sample_ode`: order 2 to 4 with one evaluation per step.

    x_s = x_t + integral from t to s of the polynomial through the last `order` velocities. For order 2 on
    an evenly spaced grid this is x + h (3 v_0 - v_1) / 2. The weights follow the spacing of the grid.

    While the history is shorter than order - 1, order 3 takes a Heun step and order 4 takes Runge-Kutta
    steps; these cost 1 and 6 more evaluations in all. Without them the method would have order 2.
    Otherwise the polynomial goes through the evaluations in the history. Order 2 never evaluates the
    model at ts[-1]; nor do the others, if the grid is longer than these first steps.

    Raises:
      ValueError: order is not 1, 2, 3 or 4; 1 is Euler's method.
    Source: Hairer, Nørsett & Wanner 1993, eq. III.1.5.
    """
    if isinstance(order, bool) or order not in (1, 2, 3, 4):
        raise ValueError(f"Adams-Bashforth has order 1, 2, 3 or 4, got {order!r}")
    return AdamsBashforth(order)
