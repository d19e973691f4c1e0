"""The workload of the benchmark: a network, the arrays of one sampling job, guidance modes and solvers."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from jax.tree_util import Partial
from jaxtyping import Array, PyTree

from guidedflow import guidance, samplers, times
from guidedflow.bundle import Apply
from guidedflow.models.modulations import tabulated
from guidedflow.nn.microbatching import for_device
from guidedflow.target import attached
from guidedflow.types import ModelFn

SCALE = 1.5
EVERY = 3
# Guidance in the middle half of the grid, and nowhere: no time of a grid lies in (1e-6, 2e-6).
MODES: Mapping[str, Callable[[ModelFn, int], ModelFn]] = {
    "none": lambda model, null: model,
    "vmapped": lambda model, null: guidance.classifier_free(
        model, null, SCALE, branches=guidance.vmapped
    ),
    "concatenated": lambda model, null: guidance.classifier_free(
        model, null, SCALE, branches=guidance.concatenated
    ),
    "sequential": lambda model, null: guidance.classifier_free(
        model, null, SCALE, branches=guidance.sequential
    ),
    "interval": lambda model, null: guidance.classifier_free(
        model, null, guidance.interval(SCALE, 0.25, 0.75)
    ),
    "outside": lambda model, null: guidance.classifier_free(
        model, null, guidance.interval(SCALE, 1e-6, 2e-6)
    ),
    "reuse": lambda model, null: guidance.reuse(model, null, SCALE, every=EVERY),
}


def image_channels(network: nn.Module) -> Callable[..., Array]:
    """Return (params, x, t, labels) -> only the network's image channels; equal for equal networks."""
    return Partial(_image_channels, Apply(network))


@dataclasses.dataclass(frozen=True)
class Workload:
    """A network and the arrays of one sampling job.

    Attributes:
      network: class-conditional, called as (x, t, labels).
      params: its parameters.
      noise: b h w c.
      labels: b.
      ts: the grid.
      solver: a name of RUNGE_KUTTA.
      conditioning: "each", the network's modulations computed at each step, or "once", tabulated
        for the whole grid at the start of the job.
    """

    network: nn.Module
    params: PyTree
    noise: Array
    labels: Array
    ts: times.Grid
    solver: str
    conditioning: str = "each"

    @property
    def batch(self) -> int:
        return self.noise.shape[0]

    @property
    def steps(self) -> int:
        return len(self.ts) - 1

    @property
    def devices(self) -> int:
        """The number of devices that the batch is spread over."""
        return len(self.noise.sharding.device_set)


def _image_channels(model: Callable[..., Array], *arguments: Any) -> Array:
    *_, x, _, _ = arguments
    return model(*arguments)[..., : x.shape[-1]]


def model_of(work: Workload, params: PyTree, labels: Array, ts: Array) -> ModelFn:
    """Return the unguided model of a job at the times `ts`, in micro-batches that suit the device."""
    network = work.network
    model: ModelFn = Partial(_image_channels, Partial(Apply(network), params))
    if work.conditioning == "once":
        known = jnp.append(labels, jnp.int32(network.num_classes))
        model = Partial(_image_channels, tabulated(network, params, ts, known))
    return for_device(model, network)


def random_params(network: nn.Module, shape: tuple[int, ...], seed: int = 0) -> PyTree:
    """Return parameters without the zeros of a new network, because matmuls by zeros could be skipped."""
    x, t, labels = jnp.zeros((1, *shape)), jnp.zeros(1), jnp.zeros(1, jnp.int32)

    def make(key: Array) -> PyTree:
        params = network.init(key, x, t, labels)["params"]
        leaves, treedef = jax.tree.flatten(params)
        keys = jax.random.split(jax.random.fold_in(key, 1), len(leaves))
        noisy = [
            leaf + 0.02 * jax.random.normal(k, leaf.shape)
            for leaf, k in zip(leaves, keys, strict=True)
        ]
        return jax.tree.unflatten(treedef, noisy)

    return jax.jit(make)(jax.random.key(seed))


def make_workload(
    network: nn.Module,
    batch: int,
    steps: int,
    solver: str = "euler",
    seed: int = 0,
    params: PyTree = None,
    conditioning: str = "each",
) -> Workload:
    """Return a sampling job of `batch` images over `steps` steps.

    Args:
      params: parameters of the network; None for random ones.
      conditioning: as in `Workload`.
    """
    shape = (*network.size, network.channels)
    noise = samplers.draw_noise(jax.random.key(seed), (batch, *shape))
    labels = jnp.arange(batch, dtype=jnp.int32) % network.num_classes
    params = random_params(network, shape, seed) if params is None else params
    return Workload(network, params, noise, labels, times.uniform_grid(steps), solver, conditioning)


def over_devices(work: Workload) -> Workload:
    """Return the same job with its batch spread over all devices, as in `guidedflow sample`.

    Raises:
      ValueError: the batch is not divisible by the number of devices.
    """
    mesh = attached().mesh()
    if work.batch % mesh.size:
        raise ValueError(f"a batch of {work.batch} does not divide over {mesh.size} devices")
    noise, labels = jax.device_put((work.noise, work.labels), NamedSharding(mesh, P("data")))
    params = jax.device_put(work.params, NamedSharding(mesh, P()))
    return dataclasses.replace(work, params=params, noise=noise, labels=labels)
