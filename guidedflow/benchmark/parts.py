"""The time of each part of a DiT evaluation, compiled separately at the network's own shapes.

A part is repeated as often as it occurs in the network, one after another, each time with its own
parameters. If the whole network takes longer than the sum of its parts, activations leave the caches
between the parts. If it takes less, the compiler fuses operations of different parts.
"""

import dataclasses
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.tree_util import Partial
from jaxtyping import Array, PyTree

from guidedflow.benchmark.counting import matmul_peak, matmuls
from guidedflow.benchmark.sampling import description
from guidedflow.benchmark.timing import machine, spread, timed
from guidedflow.benchmark.workload import Workload, image_channels
from guidedflow.nn.capabilities import capabilities
from guidedflow.nn.conditioning import embed_condition
from guidedflow.nn.embeddings import grid_positions
from guidedflow.nn.linear import MLP, Dense
from guidedflow.nn.microbatching import for_device
from guidedflow.nn.patches import patchify, unpatchify

# (evaluations) -> None: runs this many evaluations and waits.
Evaluate = Callable[[int], None]


def _attention(net: Any, x: Array, c: Array) -> Array:
    heads = x.reshape(*x.shape[:2], net.heads, -1)
    return net.operations.attention(heads, heads, heads).reshape(x.shape)


def _projections(net: Any, x: Array, c: Array) -> Array:
    dense = partial(Dense, dtype=net.dtype, operations=net.operations)
    q, k, v = jnp.split(dense(3 * net.width)(x), 3, axis=-1)
    return dense(net.width)(q + k + v)


def _mlp(net: Any, x: Array, c: Array) -> Array:
    return MLP(round(net.mlp_ratio * net.width), net.dtype, net.operations)(x)


def _modulation(net: Any, x: Array, c: Array) -> Array:
    six = Dense(6 * net.width, dtype=net.dtype, operations=net.operations)(nn.silu(c))
    return jnp.sum(six.reshape(*c.shape[:-1], 6, -1), axis=-2)


def _normalisation(net: Any, x: Array, c: Array) -> Array:
    for _ in range(2):
        x = x + c[:, None, :] * net.operations.adaptive_normalize(x, c, c).astype(net.dtype)
    return x


# The parts of every block, by name: (network, tokens, condition) -> tokens or condition.
BLOCK: Mapping[str, Callable[[Any, Array, Array], Array]] = {
    "attention": _attention,
    "attention's projections": _projections,
    "MLP": _mlp,
    "modulation": _modulation,
    "normalisation and gates": _normalisation,
}


class Repeated(nn.Module):
    """One part of a block, once for every block of the network."""

    source: Any
    part: str

    @nn.compact
    def __call__(self, x: Array, t: Array, c: Array) -> Array:
        for _ in range(self.source.depth):
            out = BLOCK[self.part](self.source, x, c)
            x, c = (out, c) if out.ndim == 3 else (x, out)
        return c if self.part == "modulation" else x


class Embedding(nn.Module):
    """Patches, positions, time and label: everything before the blocks."""

    source: Any

    @nn.compact
    def __call__(self, x: Array, t: Array, labels: Array) -> Array:
        net = self.source
        embed = Dense(net.width, dtype=net.dtype, operations=net.operations)
        tokens = embed(patchify(x, net.patch))
        tokens += jnp.asarray(grid_positions(net.grid, net.width), net.dtype)[None]
        c = embed_condition(
            t,
            labels,
            net.width,
            net.num_classes,
            net.scalars,
            net.time_scale,
            net.dtype,
            net.operations,
        )
        return tokens + c[:, None, :]


class Final(nn.Module):
    """The last modulation, normalisation and linear layer, and the conversion of tokens to an image."""

    source: Any

    @nn.compact
    def __call__(self, x: Array, t: Array, c: Array) -> Array:
        net = self.source
        dense = partial(Dense, dtype=net.dtype, operations=net.operations)
        shift, scale = jnp.split(dense(2 * net.width)(nn.silu(c)), 2, axis=-1)
        values = net.patch**2 * net.channels * (2 if net.double_channels else 1)
        inner = net.operations.adaptive_normalize(x, shift, scale).astype(net.dtype)
        return unpatchify(dense(values)(inner), net.patch, net.grid)


@dataclasses.dataclass(frozen=True)
class _Call:
    module: nn.Module

    def __call__(self, params: PyTree, x: Array, t: Array, cond: Array) -> Array:
        out: Any = self.module.apply({"params": params}, x, t, cond)
        return out


def _run_of(model: Callable, params: PyTree, inputs: tuple, network: Any) -> Evaluate:
    """Compile one evaluation of the batch and return a function that runs a number of them."""

    def evaluate(params: PyTree, *inputs: Array) -> Array:
        return for_device(Partial(model, params), network)(*inputs)

    compiled = jax.jit(evaluate).lower(params, *inputs).compile()

    def run(times: int) -> None:
        for _ in range(times):
            out = compiled(params, *inputs)
        out.block_until_ready()

    return run


def part_runs(work: Workload) -> dict[str, Evaluate]:
    """Return runs of the whole network, "whole", and of each of its parts.

    Raises:
      ValueError: the network is not a DiT whose only condition is labels.
    """
    net = work.network
    if not capabilities(net).transformer or net.scalars:
        raise ValueError(f"the parts of a DiT with labels are known, not of a {type(net).__name__}")
    keys = jax.random.split(jax.random.key(1), 3)
    n = net.grid[0] * net.grid[1]
    x = jax.random.normal(keys[0], (work.batch, n, net.width), net.dtype)
    c = 0.1 * jax.random.normal(keys[1], (work.batch, net.width), net.dtype)
    t = jnp.full(work.batch, 0.5)
    image = (work.noise, t, work.labels)
    runs = {"whole": _run_of(image_channels(net), work.params, image, net)}
    parts: dict[str, tuple[nn.Module, tuple]] = {
        name: (Repeated(net, name), (x, t, c)) for name in BLOCK
    }
    parts |= {"embedding": (Embedding(net), image), "final layer": (Final(net), (x, t, c))}
    for name, (module, inputs) in parts.items():
        variables = jax.jit(module.init)(keys[2], *inputs)
        runs[name] = _run_of(_Call(module), variables.get("params", {}), inputs, net)
    return runs


def bench_parts(
    work: Workload, repeats: int, report: Callable[[str], None], times: int = 0
) -> dict[str, Any]:
    """Return milliseconds of one unguided evaluation of the batch, and of each of its parts.

    Args:
      times: evaluations per round; 0 takes as many as fit in about a twentieth of a second.
    """
    report("compiling the parts")
    compiled = part_runs(work)
    if not times:
        probe = timed({"once": partial(compiled["whole"], 1)}, 2, lambda line: None)
        times = max(1, round(0.05 / min(probe["once"])))
    runs = {name: partial(run, times) for name, run in compiled.items()}
    dtype = getattr(work.network, "dtype", jnp.float32)
    products = matmuls(work.network, work.batch, dtype)
    timings: dict[str, Callable[[], None]] = dict(runs)
    timings |= {name: product.run for name, product in products.items()}
    seconds = timed(timings, repeats, report)
    peak, _ = matmul_peak(products, seconds)
    each = {name: spread(1e3 * np.asarray(taken) / times) for name, taken in seconds.items()}
    whole = each.pop("whole")
    return {
        "machine": machine(),
        "workload": description(work),
        "peak_flops": spread(peak),
        "milliseconds": each,
        "whole": whole,
        "rest": whole["median"] - sum(one["median"] for one in each.values()),
    }


def parts_table(figures: Mapping[str, Any]) -> str:
    """Return the figures of `bench_parts` as text."""
    whole = figures["whole"]["median"]
    lines = [f"{'part, all blocks together':28} {'ms an evaluation':>24} {'share':>7}"]
    for name, one in [*figures["milliseconds"].items(), ("whole", figures["whole"])]:
        three = f"{one['median']:.3g} ({one['min']:.3g} .. {one['max']:.3g})"
        lines.append(f"{name:28} {three:>24} {one['median'] / whole:7.0%}")
    lines.append(
        f"{'whole less the sum':28} {figures['rest']:>24.3g} {figures['rest'] / whole:7.0%}"
    )
    return "\n".join(lines)
