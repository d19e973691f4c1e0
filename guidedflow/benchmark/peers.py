"""Programs of other projects in the same benchmark: they must agree with our output, then are compared.

The programs are in the folder `benchmarks` of a checkout, because they import other frameworks.
"""

import dataclasses
import importlib.util
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from guidedflow.benchmark.timing import spread
from guidedflow.benchmark.workload import MODES, Workload, model_of


@dataclasses.dataclass(frozen=True)
class Peer:
    """Another project's program, with the workload's parameters, noise and labels.

    Attributes:
      run: samples once and waits.
      evaluate: (time) -> the guided velocity at the workload's noise, b h w c.
      relative: largest difference of the velocity from ours, relative to the largest value.
    """

    run: Callable[[], None]
    evaluate: Callable[[float], np.ndarray]
    relative: float


def load() -> Any:
    """Return the checkout's `benchmarks` package.

    Raises:
      ValueError: this is not a checkout, or a package that the programs need is not installed.
    """
    folder = Path(__file__).parents[2] / "benchmarks"
    name = "guidedflow_benchmarks"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(
        name, folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    if spec is None or spec.loader is None or not (folder / "__init__.py").is_file():
        raise ValueError(f"--against needs a checkout: there is no folder {folder}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except ImportError as error:
        del sys.modules[name]
        raise ValueError(f"--against needs the extra guidedflow[peers]: {error}") from error
    return module


def velocity(work: Workload, mode: str, t: float) -> np.ndarray:
    """Return our guided velocity at the workload's noise."""
    null = int(work.network.num_classes)

    def evaluate(params: Any, x: Any, labels: Any) -> Any:
        model = model_of(work, params, labels, jnp.array([t]))
        return MODES[mode](model, null)(x, jnp.full((work.batch,), t), labels)

    return np.asarray(jax.jit(evaluate)(work.params, work.noise, work.labels))


def distance(work: Workload, mode: str, peer: Peer, name: str) -> float:
    """Return the difference of the peer's guided velocity from ours, relative to the largest value.

    Raises:
      ValueError: it exceeds the peer's tolerance, so a comparison would mean nothing.
    """
    t = 0.3
    ours = velocity(work, mode, t)
    far = float(np.abs(peer.evaluate(t) - ours).max() / np.abs(ours).max())
    if not far <= peer.relative:
        raise ValueError(f"{name} is {far:.2e} from our output; at most {peer.relative:.0e}")
    return far


def ratios(seconds: Mapping[str, Any], ours: str, theirs: str) -> dict[str, Any]:
    """Return their seconds divided by ours, round by round; above 1 ours is faster."""
    pairs = np.asarray(seconds[theirs]) / np.asarray(seconds[ours])
    return {"times_faster": spread(pairs), "rounds": [round(float(pair), 4) for pair in pairs]}


def lines(compared: Mapping[str, Any]) -> str:
    """Return the comparison as text, with the ratios of all rounds in order."""
    out = [f"{'against':15} {'times faster: min / median / max':34} round by round"]
    for name, row in compared.items():
        ratio = row["times_faster"]
        three = f"{ratio['min']:.3f} / {ratio['median']:.3f} / {ratio['max']:.3f}"
        out.append(f"{name:15} {three:34} " + " ".join(f"{pair:.3f}" for pair in row["rounds"]))
    return "\n".join(out)
