"""Batches of a run: training batches with example indices, and held-out batches."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from guidedflow import data
from guidedflow.training import parallel
from guidedflow.training.build import Setup
from guidedflow.training.state import TrainState


class Numbered:
    """Batches with `index`, the row's position in the global batch, on which its random draws depend.

    Texts stay on the host. A condition made of texts was converted to numbers by a map of the data set.
    """

    def __init__(self, batches: data.Batches) -> None:
        self._batches = batches
        first = jax.process_index() * batches.local
        self._index = np.arange(first, first + batches.local, dtype=np.int32)

    def __getitem__(self, step: int) -> dict[str, Any]:
        batch = self._batches[step]
        numbers = {name: part for name, part in batch.items() if part.dtype != object}
        return {**numbers, "index": self._index}


class HeldOut:
    """Loss and the task's other measures on held-out examples, with the EMA parameters.

    The draws are the same every time.
    """

    def __init__(self, setup: Setup) -> None:
        self._strategy = parallel.Sharded(setup.strategy.mesh)
        self._key = jax.random.key(setup.config.seed + 1)
        source = Numbered(setup.batches(setup.held_out))
        self._batches = [source[i] for i in range(setup.config.held_out.batches)]
        whole = NamedSharding(setup.strategy.mesh, P())
        self._means = jax.jit(
            lambda params, batch, key: jax.tree.map(jnp.mean, setup.measures(params, batch, key)),
            out_shardings=whole,
        )

    def __call__(self, state: TrainState) -> dict[str, float]:
        means = [
            self._means(state.ema, self._strategy.place_batch(b), jax.random.fold_in(self._key, i))
            for i, b in enumerate(self._batches)
        ]
        return {name: float(np.mean([float(mean[name]) for mean in means])) for name in means[0]}
