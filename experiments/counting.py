"""Counting of model evaluations while a program runs, instead of by a formula."""

from collections.abc import Callable
from typing import Any

import jax
from jaxtyping import Array


class Counter:
    """Counts the calls of the model functions that it wraps, also inside compiled loops."""

    def __init__(self) -> None:
        self.calls = 0

    def wrap(self, function: Callable[..., Array]) -> Callable[..., Array]:
        """Return `function`, counted; under `vmap` every branch counts."""

        def counted(x: Array, t: Array, cond: Any) -> Array:
            # Called once for every value of what it is given, so it is given all that may be mapped.
            jax.debug.callback(self._add, (x, t, cond))
            return function(x, t, cond)

        return counted

    def _add(self, _: Any) -> None:
        self.calls += 1


def evaluations(job: Callable[[Counter], Array]) -> int:
    """Return how many evaluations `job` takes; it wraps its models with the counter it is given."""
    counter = Counter()
    jax.block_until_ready(job(counter))
    jax.effects_barrier()
    return counter.calls
