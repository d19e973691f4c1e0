"""Adaptive normalisation computed once: its parameters depend on the time and the class, not on x.

On a grid of times that is known beforehand, and for the classes of a batch, a diffusion transformer's
modulations (Peebles & Xie 2023, figure 3) are a table.  It is filled by products of all its rows,
where each step's own few rows cost reading every modulation's weights again.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.tree_util import Partial
from jaxtyping import Array, Float, Int, PyTree

from guidedflow.nn.capabilities import capabilities
from guidedflow.nn.conditioning import Modulation
from guidedflow.types import ModelFn


def tabulated(
    network: nn.Module,
    params: PyTree,
    times: Float[Array, " n"],
    labels: Int[Array, " k"],
) -> ModelFn:
    """Return the network as a model function that looks its modulations up.

    modulation(t, y) = table[y = labels, t = times]: the same function, to rounding, on the grid.
    Any guidance wraps it and any sampler whose evaluations are at times of its grid calls it, which
    Euler, Heun, Adams-Bashforth, DDIM, the multistep DPM-Solver++ and UniPC are; a midpoint is not.

    Args:
      network: a `DiT` that takes labels and no further numbers.
      params: its parameters.
      times: all times that it will be asked for, n of them, as the sampler will pass them.
      labels: all labels, k of them; with guidance by a null class, that too.  The table holds
        k·n·(6·depth + 2)·width numbers.
    Returns:
      (x, t, labels) -> the network's output; NaN where a time or a label is not in the table.
    Raises:
      ValueError: the network is no DiT with labels alone, or times or labels are no vectors.
    """
    if not capabilities(network).tabulated:
        raise ValueError(
            "tabulated takes a network with modulations that takes labels and no further numbers, as "
            f"a DiT with classes; got {network}"
        )
    times, labels = jnp.asarray(times, jnp.float32), jnp.asarray(labels, jnp.int32)
    if times.ndim != 1 or labels.ndim != 1:
        raise ValueError(
            f"times and labels must be vectors, got shapes {times.shape} and {labels.shape}"
        )
    return Partial(_Looked(network), params, _table(network, params, times, labels), times, labels)


@partial(jax.jit, static_argnums=0)
def _table(network: nn.Module, params: PyTree, times: Array, labels: Array) -> Modulation:
    """Return modulations of every label at every time, the batch axes as (k, n)."""
    k, n = len(labels), len(times)
    every_t, every_label = jnp.tile(times, k), jnp.repeat(labels, n)
    value: Any = network.apply(
        {"params": params}, None, every_t, every_label, modulations_only=True
    )
    return Modulation(
        value.blocks.reshape(-1, k, n, value.blocks.shape[-1]), value.last.reshape(k, n, -1)
    )


@dataclass(frozen=True)
class _Looked:
    """A network called with what the table has for (t, label); equal for equal networks."""

    network: nn.Module

    def __call__(
        self,
        params: PyTree,
        table: Modulation,
        times: Array,
        labels: Array,
        x: Array,
        t: Array,
        cond: Array,
    ) -> Array:
        same_label = labels[None, :] == cond[:, None]
        same_time = times[None, :] == t[:, None].astype(times.dtype)
        row, column = same_label.argmax(axis=1), same_time.argmax(axis=1)
        # A time that the table lacks must not pass for another.
        known = same_label.any(axis=1) & same_time.any(axis=1)
        last = jnp.where(known[:, None], table.last[row, column], jnp.nan)
        found = Modulation(table.blocks[:, row, column], last)
        output: Any = self.network.apply({"params": params}, x, t, found)
        return output
