"""Operations of a network, by the compiler's count and by the closed formula, and a device's peak."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array

from guidedflow.benchmark.workload import EVERY, Workload, image_channels
from guidedflow.nn.capabilities import capabilities
from guidedflow.nn.operations import XLA, Operations
from guidedflow.pipelines.methods import RUNGE_KUTTA

# What the two counts may differ by: softmax, normalisation and activations are in one of them alone.
AGREE = 0.1


def dit_flops(network: Any) -> float:
    """Return the floating-point operations of one DiT evaluation of one image, 2 a multiply-add.

    Each block: 2 n d (3 d + d + 2 m d) for the products of n tokens of width d, 4 n^2 d for
    attention, 12 d^2 for the modulation; the embedders and the final layer around them. Softmax,
    normalisation and activations are left out, as is usual.
    """
    n, d = network.grid[0] * network.grid[1], network.width
    hidden = round(network.mlp_ratio * d)
    values = network.patch**2 * network.channels
    block = 2 * n * d * (4 * d + 2 * hidden) + 4 * n * n * d + 12 * d * d
    ends = 2 * n * values * d * (3 if network.double_channels else 2) + 4 * d * d
    return float(network.depth * block + ends + 2 * (256 * d + d * d))


def counted_flops(work: Workload) -> float:
    """Return XLA's count of the operations of one unguided evaluation of the whole batch."""
    shapes = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype),
        (work.params, work.noise, jnp.zeros(work.batch), work.labels),
    )
    cost = jax.jit(image_channels(work.network)).lower(*shapes).cost_analysis() or {}
    return float(cost.get("flops", 0.0))


def network_flops(work: Workload) -> tuple[float, dict[str, float | str]]:
    """Return the operations of one evaluation of the batch, and where the number is from.

    The compiler's count, held against the formula for a DiT. It does not see into fused attention or
    the turns of a loop over layers: where the two are more than a tenth apart the formula counts.
    """
    counted = counted_flops(work)
    about: dict[str, float | str] = {"flops_per_image_by_compiler": counted / work.batch}
    if not capabilities(work.network).transformer:
        return counted, about | {"flops_from": "the compiled program"}
    formula = dit_flops(work.network)
    about["flops_per_image_by_formula"] = formula
    if abs(counted / (formula * work.batch) - 1) <= AGREE:
        return counted, about | {"flops_from": "the compiled program, as the formula says"}
    return formula * work.batch, about | {
        "flops_from": "the formula; the compiler counts otherwise"
    }


def guided_steps(starts: np.ndarray, mode: str) -> int:
    """Return how many of the steps that begin at these times evaluate a second branch."""
    if mode in ("none", "outside"):
        return 0
    if mode == "interval":
        return int(((starts >= 0.25) & (starts <= 0.75)).sum())
    if mode == "reuse":
        # The line's two differences, and one more every EVERY steps.
        return min(2, len(starts)) + max(0, len(starts) - 2) // EVERY
    return len(starts)


def evaluations(work: Workload, mode: str) -> float:
    """Return the evaluations of the whole batch that one run of this mode takes."""
    _, each = RUNGE_KUTTA[work.solver]
    starts = np.asarray(work.ts[:-1])
    return float(each * (len(starts) + guided_steps(starts, mode)))


@dataclasses.dataclass(frozen=True)
class Matmul:
    """A run of matrix products of a network's own MLP shape.

    Attributes:
      run: runs them and waits.
      operations: floating-point operations of one run.
    """

    run: Callable[[], None]
    operations: float


def matmuls(network: Any, batch: int, dtype: Any) -> dict[str, Matmul]:
    """Return runs of matrix products of the network's own MLP shape, by who computes them.

    The shape is that of both branches' tokens times the widest kernel: the products that most of the
    network's time goes to, with nothing around them. XLA computes one run and the network's kernels,
    where it has others, another; the peak is that of the faster, whatever the network uses.
    """
    own: Operations = network.operations
    xla = XLA(own.platform)
    candidates: dict[str, Operations] = {"matmul by XLA": xla}
    if own.name != xla.name:
        candidates[f"matmul by {own.name}"] = own
    return {name: _matmul(made, network, batch, dtype) for name, made in candidates.items()}


def matmul_peak(
    products: Mapping[str, Matmul], seconds: dict[str, list[float]]
) -> tuple[np.ndarray, str]:
    """Take the products' rounds out of `seconds`; return the peak in each round and whose it is."""
    rates = {
        name: made.operations / np.asarray(seconds.pop(name)) for name, made in products.items()
    }
    best = max(rates, key=lambda name: float(np.median(rates[name])))
    return rates[best], best


def _matmul(operations: Operations, network: Any, batch: int, dtype: Any) -> Matmul:
    rows, width = 2 * batch * network.grid[0] * network.grid[1], network.width
    hidden = round(network.mlp_ratio * width)
    if operations.rows_per_turn is not None:
        # Sampling takes a batch in turns. XLA's product of so many rows is faster than a large one:
        # against the large one utilisation came out above 1. Kernels like both branches' rows.
        turns = 1 if operations.name == "xla" else 2
        rows = min(rows, turns * operations.rows_per_turn)
    # A product that the call itself outlasts would measure the call.
    rows *= max(1, round(1e8 / (2.0 * rows * width * hidden)))
    keys = jax.random.split(jax.random.key(0))
    a = jax.random.normal(keys[0], (rows, width), dtype)
    b = jax.random.normal(keys[1], (width, hidden), dtype)
    one = 2.0 * rows * width * hidden
    # Long enough for the clock: about what a twentieth of a second of 200 GFLOP/s holds on a CPU.
    target = 1e10 if operations.platform == "cpu" else 2e13
    count = max(1, round(target / one))

    @jax.jit
    def chain(a: Array, b: Array) -> Array:
        # In one program, as the network's are, each product waiting for the one before: a call of its
        # own puts its result into fresh memory, and takes up to a fifth longer.
        def once(_: int, a: Array) -> Array:
            return a.at[0, 0].set(jnp.tanh(operations.matmul(a, b)[0, 0]))

        return lax.fori_loop(0, count, once, a)

    return Matmul(lambda: jax.block_until_ready(chain(a, b)), one * count)
