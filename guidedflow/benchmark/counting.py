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

# Largest difference of the two counts; softmax, normalisation and activations are only in one of them.
AGREE = 0.1


def dit_flops(network: Any) -> float:
    """Return the floating-point operations of one DiT evaluation of one image, 2 per multiply-add.

    Each block has 2 n d (3 d + d + 2 m d) for the linear layers of n tokens of width d, 4 n^2 d for
    attention and 12 d^2 for the modulation. The embedders and the final layer are added. Softmax,
    normalisation and activations are left out, as usual.
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
    """Return the operations of one evaluation of the batch, and the source of the number.

    It is the compiler's count, checked against the formula for a DiT. The compiler does not count inside
    fused attention nor the iterations of a loop over layers. If the two differ by more than a tenth, the
    formula is used.
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
    """Return the number of steps, of those beginning at these times, that evaluate the null branch."""
    if mode in ("none", "outside"):
        return 0
    if mode == "interval":
        return int(((starts >= 0.25) & (starts <= 0.75)).sum())
    if mode == "reuse":
        # Linear extrapolation takes two differences at first, and one more every EVERY steps.
        return min(2, len(starts)) + max(0, len(starts) - 2) // EVERY
    return len(starts)


def evaluations(work: Workload, mode: str) -> float:
    """Return the number of evaluations of the whole batch in one run of this mode."""
    _, each = RUNGE_KUTTA[work.solver]
    starts = np.asarray(work.ts[:-1])
    return float(each * (len(starts) + guided_steps(starts, mode)))


@dataclasses.dataclass(frozen=True)
class Matmul:
    """A run of matmuls with the shape of a network's own MLP.

    Attributes:
      run: runs them and waits.
      operations: floating-point operations of one run.
    """

    run: Callable[[], None]
    operations: float


def matmuls(network: Any, batch: int, dtype: Any) -> dict[str, Matmul]:
    """Return runs of matmuls with the shape of the network's own MLP, by implementation.

    The shape is the tokens of both branches times the widest kernel. Most of the network's time goes to
    these matmuls; here nothing else is computed. One run is by XLA. If the network has other kernels,
    they compute another run. The peak is that of the faster one, whichever the network uses.
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
    """Take the matmul's rounds out of `seconds`; return the peak of each round and its implementation."""
    rates = {
        name: made.operations / np.asarray(seconds.pop(name)) for name, made in products.items()
    }
    best = max(rates, key=lambda name: float(np.median(rates[name])))
    return rates[best], best


def _matmul(operations: Operations, network: Any, batch: int, dtype: Any) -> Matmul:
    rows, width = 2 * batch * network.grid[0] * network.grid[1], network.width
    hidden = round(network.mlp_ratio * width)
    if operations.rows_per_turn is not None:
        # Sampling evaluates a batch in micro-batches. XLA's matmul of so few rows is faster than a large
        # one; relative to the large one, utilisation was above 1. Kernels take the rows of both branches.
        turns = 1 if operations.name == "xla" else 2
        rows = min(rows, turns * operations.rows_per_turn)
    # A very short matmul would measure the overhead of the call.
    rows *= max(1, round(1e8 / (2.0 * rows * width * hidden)))
    keys = jax.random.split(jax.random.key(0))
    a = jax.random.normal(keys[0], (rows, width), dtype)
    b = jax.random.normal(keys[1], (width, hidden), dtype)
    one = 2.0 * rows * width * hidden
    # Long enough for the clock: on a CPU about a twentieth of a second at 200 GFLOP/s.
    target = 1e10 if operations.platform == "cpu" else 2e13
    count = max(1, round(target / one))

    @jax.jit
    def chain(a: Array, b: Array) -> Array:
        # All in one program, as in the network, and each matmul depends on the one before. A separate
        # call writes its result to fresh memory and takes up to a fifth longer.
        def once(_: int, a: Array) -> Array:
            return a.at[0, 0].set(jnp.tanh(operations.matmul(a, b)[0, 0]))

        return lax.fori_loop(0, count, once, a)

    return Matmul(lambda: jax.block_until_ready(chain(a, b)), one * count)
