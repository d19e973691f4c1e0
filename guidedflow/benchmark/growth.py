"""Growth of the cost: seconds of one job over batch, tokens, depth and steps, with a fit and a limit."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from guidedflow.benchmark.counting import evaluations, matmul_peak, matmuls, network_flops
from guidedflow.benchmark.sampling import compile_mode, description
from guidedflow.benchmark.timing import machine, spread, timed
from guidedflow.benchmark.workload import Workload, make_workload
from guidedflow.nn.capabilities import capabilities

# The values of a quantity, as multiples of its value in the requested job.
FACTORS = (0.25, 0.5, 1.0, 1.5, 2.0)
QUANTITIES = ("batch", "tokens", "depth", "steps")


def sized(network: Any, tokens: int) -> Any:
    """Return the network for a square image with about this many tokens."""
    side = max(1, round(tokens**0.5))
    return network.clone(image_size=network.patch * side)


def jobs(
    network: Any, batch: int, steps: int, solver: str, factors: tuple[float, ...] = FACTORS
) -> dict[str, list[tuple[int, Workload]]]:
    """Return, for each quantity, its values and their jobs; the other quantities stay as requested.

    Raises:
      ValueError: the network is not a DiT; only there depth and tokens can be changed.
    """
    if not capabilities(network).transformer:
        raise ValueError(f"--grow takes a DiT, got a {type(network).__name__}")

    def values(middle: int) -> list[int]:
        return sorted({max(1, round(middle * factor)) for factor in factors})

    n = network.grid[0] * network.grid[1]
    nets = {net.grid[0] * net.grid[1]: net for net in (sized(network, v) for v in values(n))}
    deepest = network.clone(depth=max(values(network.depth)))
    params = make_workload(deepest, 1, 1, solver).params

    def job(network: Any, batch: int, steps: int) -> Workload:
        return make_workload(network, batch, steps, solver, params=_first(params, network.depth))

    return {
        "batch": [(v, job(network, v, steps)) for v in values(batch)],
        "tokens": [(v, job(net, batch, steps)) for v, net in sorted(nets.items())],
        "depth": [(v, job(network.clone(depth=v), batch, steps)) for v in values(network.depth)],
        "steps": [(v, job(network, batch, v)) for v in values(steps)],
    }


def _first(params: dict[str, Any], depth: int) -> dict[str, Any]:
    """Return the parameters of the first `depth` blocks of a deeper network, with all others."""
    kept = {f"blocks_{index}" for index in range(depth)}
    return {name: leaf for name, leaf in params.items() if name in kept or "blocks_" not in name}


def size_of(work: Workload) -> tuple[int, int, int, int]:
    """Return batch, tokens, depth and steps."""
    net = work.network
    return work.batch, net.grid[0] * net.grid[1], net.depth, work.steps


def fitted(values: list[int], seconds: list[float], degree: int = 1) -> dict[str, Any]:
    """Return the least-squares polynomial, highest power first, and the share of variance it explains."""
    coefficients = np.polyfit(values, seconds, min(degree, len(values) - 1))
    left = np.asarray(seconds) - np.polyval(coefficients, values)
    total = np.asarray(seconds) - np.mean(seconds)
    share = 1 - float(left @ left) / max(float(total @ total), 1e-30)
    return {"coefficients": [float(c) for c in coefficients], "r_squared": share}


def bench_growth(
    network: Any,
    batch: int,
    steps: int,
    solver: str,
    mode: str,
    repeats: int,
    report: Callable[[str], None],
    factors: tuple[float, ...] = FACTORS,
) -> dict[str, Any]:
    """Measure one mode of guidance over each quantity; all jobs and the device's peak are timed in turn.

    Returns:
      `machine`, `workload` (the job in the middle), `mode`, `peak_flops`, and for each quantity its
      `values`, `seconds` (min, median, max), `limit` (the seconds of the operations at the peak) and
      `fit`: a line, or for tokens a parabola, because attention grows with their square.
    """
    varied = jobs(network, batch, steps, solver, factors)
    # The job in the middle is a point of all four curves and is measured only once.
    distinct = {size_of(work): work for points in varied.values() for _, work in points}
    runs = {}
    for size, work in distinct.items():
        report(f"compiling batch {size[0]}, {size[1]} tokens, depth {size[2]}, {size[3]} steps")
        runs[str(size)] = compile_mode(work, mode).run
    products = matmuls(network, batch, network.dtype)
    runs |= {name: product.run for name, product in products.items()}
    seconds = timed(runs, repeats, report)
    peak = spread(matmul_peak(products, seconds)[0])
    grown = {}
    for quantity, points in varied.items():
        values = [value for value, _ in points]
        taken = [spread(seconds[str(size_of(work))]) for _, work in points]
        operations_of = [evaluations(work, mode) * network_flops(work)[0] for _, work in points]
        grown[quantity] = {
            "values": values,
            "seconds": taken,
            "limit": [count / peak["median"] for count in operations_of],
            "fit": fitted(
                values, [one["median"] for one in taken], 2 if quantity == "tokens" else 1
            ),
        }
    middle = make_workload(network, batch, steps, solver)
    return {
        "machine": machine(),
        "workload": description(middle),
        "mode": mode,
        "peak_flops": peak,
        "growth": grown,
    }


def growth_table(figures: Mapping[str, Any]) -> str:
    """Return the fits as text, with the fraction of the peak at both ends."""
    lines = []
    for quantity, one in figures["growth"].items():
        terms = [f"{c:.3g}" for c in one["fit"]["coefficients"]]
        powers = [f" {quantity}^{p}" if p > 1 else f" {quantity}" if p else "" for p in range(3)]
        line = " + ".join(term + powers[len(terms) - 1 - i] for i, term in enumerate(terms))
        ends = [one["limit"][i] / one["seconds"][i]["median"] for i in (0, -1)]
        lines.append(
            f"seconds over {quantity} ({one['values'][0]} .. {one['values'][-1]}): {line}, "
            f"R² {one['fit']['r_squared']:.4f}; {ends[0]:.0%} .. {ends[1]:.0%} of the peak"
        )
    return "\n".join(lines)
