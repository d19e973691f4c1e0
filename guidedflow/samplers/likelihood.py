"""The density of data under a velocity field, by solving the ODE backwards.

  log p(x_1) = log p_0(x_0) - integral_0^1 div v(x_t, t) dt,   dx/dt = v.

The state and the integral are one system of equations, which the loop of the samplers solves.
"""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from guidedflow.keys import example_keys
from guidedflow.paths import Path
from guidedflow.samplers.ode import rk4
from guidedflow.samplers.scan import Solver, run
from guidedflow.times import GridLike, as_grid
from guidedflow.types import (
    Cond,
    ModelFn,
    check_batch,
    check_floating,
    check_number,
    init_state,
    pytree,
)

Field = Callable[[Array], Array]


class Likelihood(NamedTuple):
    """The result of `log_likelihood`.

    Attributes:
      log_density: log p at ts[-1] in nats, one per example.
      noise: the state that the ODE reaches from each example at ts[0]; b *d.
    """

    log_density: Float[Array, " b"]
    noise: Float[Array, "b *d"]


def _trace(field: Field, x: Array, probes: Array) -> tuple[Array, Array]:
    """Return v(x) and the sum over the probes e of e . (dv/dx) e, for one example."""
    velocity, push = jax.linearize(field, x)
    return velocity, jnp.sum(jax.vmap(lambda e: jnp.sum(e * push(e)))(probes))


@pytree
class Backward:
    """The system for (x, integral of div v), flattened, against backward time u = 1 - t."""

    model: ModelFn
    probes: Array | None
    shape: tuple[int, ...]

    def __call__(self, state: Array, u: Array, cond: Cond) -> Array:
        shape, size = self.shape, math.prod(self.shape)

        def one(x: Array, u: Array, cond: Cond, probes: Array | None) -> Array:
            def field(x: Array) -> Array:
                batched = jax.tree.map(lambda leaf: leaf[None], cond)
                return self.model(x[None], (1 - u)[None], batched)[0]

            if probes is None:
                basis = jnp.eye(size, dtype=x.dtype).reshape(size, *shape)
                velocity, divergence = _trace(field, x, basis)
            else:
                velocity, divergence = _trace(field, x, probes)
                divergence = divergence / probes.shape[0]
            return -jnp.append(velocity.reshape(-1), divergence).astype(x.dtype)

        x = state[:, :-1].reshape(-1, *shape)
        return jax.vmap(one)(x, u, cond, self.probes)


def log_likelihood(
    model: ModelFn,
    data: Float[Array, "b *d"],
    ts: GridLike,
    cond: Cond = None,
    *,
    path: Path,
    probes: int | None = None,
    key: PRNGKeyArray | None = None,
    step: Solver = rk4,
) -> Likelihood:
    """Return the log density of data under a velocity field.

    log p(data) = log N(x_0; 0, sigma(ts[0])^2) - integral of div v along the ODE.

    The divergence is either exact, with one derivative per coordinate, or Hutchinson's unbiased estimate,
    div v = E[e . (dv/dx) e] over vectors e of random signs. The estimate uses `probes` vectors, which
    stay fixed along the trajectory. The density is that of x at ts[-1]. If the velocity of the path is
    infinite at t = 1, end the grid before it; the result is then the density of slightly noised data.

    Args:
      model: a velocity field, guided or not, that keeps no state between steps.
      data: points at ts[-1], b *d.
      ts: increasing times in [0, 1], as for sampling; the state at ts[0] counts as noise.
      cond: condition, every leaf with the batch first.
      path: gives sigma(ts[0]), the standard deviation of the noise.
      probes: None for the exact divergence, or the number of probes, at least 1.
      key: needed with probes; one key, or one key per example.
      step: a fixed-step ODE solver.
    Returns:
      log p in nats, and the noise. Bits per dimension are -log p / (d log 2).
    Raises:
      ValueError: probes is below 1 or has no key, or the model keeps a state; otherwise as `sample_ode`.
    Source: Chen et al. 2018, eq. 8; Grathwohl et al. 2019, eq. 8; Song et al. 2021, eq. 39.
    """
    ts = as_grid(ts)
    check_floating("data", data)
    batch, shape = jnp.shape(data)[0], jnp.shape(data)[1:]
    check_batch("cond", cond, batch)
    if jax.tree.leaves(init_state(model, data)):
        raise ValueError("the model keeps a state from step to step and so has no density")
    drawn = None
    if probes is not None:
        check_number("probes", probes, 1)
        if key is None:
            raise ValueError("Hutchinson's estimate draws probes: pass key=jax.random.key(seed)")
        draw = functools.partial(jax.random.rademacher, shape=(int(probes), *shape))
        drawn = jax.vmap(lambda k: draw(k, dtype=jnp.result_type(data)))(example_keys(key, batch))
    data = jnp.asarray(data)
    state = jnp.concatenate([data.reshape(batch, -1), jnp.zeros((batch, 1), data.dtype)], 1)
    backward = 1 - jnp.asarray(ts)[::-1]
    end = run(Backward(model, drawn, shape), state, backward, cond, step)
    noise, integral = end[:, :-1], end[:, -1]
    sigma = path.sigma(jnp.asarray(ts)[0])
    gaussian = -0.5 * jnp.sum((noise / sigma) ** 2, 1)
    constant = math.prod(shape) * (0.5 * math.log(2 * math.pi) + jnp.log(sigma))
    return Likelihood(gaussian - constant + integral, noise.reshape(batch, *shape))
