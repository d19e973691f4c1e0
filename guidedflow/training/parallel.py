"""Strategies over devices: each places state and batch, and compiles the same step function."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Key, PyTree

from guidedflow.target import Target
from guidedflow.training.step import StepFn

# Leaves smaller than this stay whole: sharding them costs a message and saves nothing.
SMALLEST_SHARDED = 256


class Strategy(Protocol):
    """How one step runs on many devices."""

    @property
    def mesh(self) -> Mesh:
        """All devices; a batch is spread over all its axes."""

    @property
    def axis_name(self) -> str | None:
        """Name of the mapped axis inside the step, if it has one."""

    @property
    def mesh_inside(self) -> Mesh | None:
        """The mesh that a step is compiled over; None where each device runs its own program."""

    def shardings(self, state: PyTree) -> PyTree:
        """Where each leaf of a (concrete or abstract) state lives."""

    def place_batch(self, batch: PyTree) -> PyTree:
        """Put this process's part of a batch, numpy `b ...`, onto its devices."""

    def compile(self, step: StepFn, state: PyTree, batch: PyTree, key: Array) -> Any:
        """Compile `step` for arguments like these, placed; the state passed in is donated."""


def local_devices(mesh: Mesh) -> int:
    """Return how many of a mesh's devices belong to this process."""
    return sum(d.process_index == jax.process_index() for d in mesh.devices.flat)


def _check_divides(batch: PyTree, mesh: Mesh) -> None:
    local, total = local_devices(mesh), mesh.size
    size = jax.tree.leaves(batch)[0].shape[0]
    if size % local:
        raise ValueError(
            f"a batch of {size} examples in this process does not divide over its {local} "
            f"devices ({total} in all); choose a batch that is a multiple of {total}"
        )


def _put(batch: PyTree, sharding: NamedSharding) -> PyTree:
    """Make global arrays of this process's rows."""
    if jax.process_count() == 1:
        return jax.device_put(batch, sharding)
    return jax.tree.map(lambda leaf: jax.make_array_from_process_local_data(sharding, leaf), batch)


def make_mesh(target: Target, data: int, fsdp: int) -> Mesh:
    """Return a mesh of all the target's devices, `data` × `fsdp`; 0 for one of them fits it.

    `fsdp` is an axis for each of its prime factors, `fsdp_0`, `fsdp_1`, …: an axis of a parameter that
    not all of `fsdp` divides is sharded over the factors that do, and another axis over the others.

    Raises:
      ValueError: data × fsdp is not the number of devices.
    """
    count = target.count
    if data < 0 or fsdp < 0 or (data == 0 and fsdp == 0):
        raise ValueError(f"a mesh needs sizes of at least 1, at most one of them 0: {data}×{fsdp}")
    data = data or count // fsdp
    fsdp = fsdp or count // data
    if data * fsdp != count:
        raise ValueError(f"a mesh of data={data} × fsdp={fsdp} does not fit {count} devices")
    shape = (data, fsdp)
    whole = jax.make_mesh(shape, ("data", "fsdp"), (AxisType.Auto,) * 2, devices=target.devices)
    parts = prime_factors(fsdp)
    names = ("data", *(f"fsdp_{i}" for i in range(len(parts))))
    return Mesh(whole.devices.reshape(data, *parts), names)


def prime_factors(number: int) -> list[int]:
    """Return the prime factors of a number, the largest first."""
    factors, divisor = [], 2
    while number > 1:
        while number % divisor == 0:
            factors.append(divisor)
            number //= divisor
        divisor += 1
    return factors[::-1]


def fsdp_axes(mesh: Mesh) -> dict[str, int]:
    """Return the axes of a mesh that the state is sharded over, and their sizes."""
    return {name: size for name, size in mesh.shape.items() if name != "data"}


def fsdp_spec(shape: tuple[int, ...], axes: Mapping[str, int]) -> P:
    """Shard the largest axis of a leaf over every mesh axis that divides it, the next over the rest.

    Args:
      shape: of the leaf; one of fewer than SMALLEST_SHARDED numbers stays whole.
      axes: names and sizes of the mesh axes.
    """
    if np.prod(shape) < SMALLEST_SHARDED:
        return P()
    left = list(shape)
    names: list[list[str]] = [[] for _ in shape]
    for name, size in axes.items():
        divisible = [axis for axis, rest in enumerate(left) if rest % size == 0]
        if divisible:
            # Where sizes are equal, the axis that is sharded already.
            best = max(divisible, key=lambda axis: (shape[axis], len(names[axis])))
            left[best] //= size
            names[best].append(name)
    if not any(names):
        return P()
    return P(*(tuple(own) if own else None for own in names))


@dataclass(frozen=True)
class Pmap:
    """`jax.pmap` over all devices: replicated state, gradients averaged by `lax.pmean`.

    State passes through unmapped (`in_axes=None`), so it has no device axis and its checkpoint is
    that of any other strategy.
    """

    mesh: Mesh
    axis_name: str = "batch"
    mesh_inside: None = None

    def shardings(self, state: PyTree) -> PyTree:
        return jax.tree.map(lambda _: NamedSharding(self.mesh, P()), state)

    def place_batch(self, batch: PyTree) -> PyTree:
        _check_divides(batch, self.mesh)
        local = local_devices(self.mesh)
        split = jax.tree.map(lambda leaf: leaf.reshape(local, -1, *leaf.shape[1:]), batch)
        return _put(split, NamedSharding(self.mesh, P(self.mesh.axis_names)))

    def compile(self, step: StepFn, state: PyTree, batch: PyTree, key: Array) -> Any:
        mapped = jax.pmap(
            step,
            axis_name=self.axis_name,
            in_axes=(None, 0, None),
            out_axes=(None, None),
            donate_argnums=0,
        )
        # `lower` counts this process's devices where the compiled program counts all of them.
        local = local_devices(self.mesh)
        batch = jax.tree.map(lambda leaf: np.zeros((local, *leaf.shape[1:]), leaf.dtype), batch)
        return mapped.lower(state, batch, key).compile()


@dataclass(frozen=True)
class Sharded:
    """`jax.jit` over a `data × fsdp` mesh: the batch on both axes, the state on `fsdp`.

    fsdp = 1 is plain data parallel with the state replicated; data = 1 shards all of it.
    """

    mesh: Mesh
    axis_name: None = None

    @property
    def mesh_inside(self) -> Mesh:
        """The whole mesh."""
        return self.mesh

    def shardings(self, state: PyTree) -> PyTree:
        axes = fsdp_axes(self.mesh)
        return jax.tree.map(
            lambda leaf: NamedSharding(self.mesh, fsdp_spec(leaf.shape, axes)), state
        )

    def place_batch(self, batch: PyTree) -> PyTree:
        _check_divides(batch, self.mesh)
        return _put(batch, NamedSharding(self.mesh, P(self.mesh.axis_names)))

    def compile(self, step: StepFn, state: PyTree, batch: PyTree, key: Array) -> Any:
        whole = NamedSharding(self.mesh, P())
        places = self.shardings(state)
        batches = NamedSharding(self.mesh, P(self.mesh.axis_names))
        jitted = jax.jit(
            step,
            in_shardings=(places, batches, whole),
            out_shardings=(places, whole),
            donate_argnums=0,
        )
        return jitted.lower(state, batch, key).compile()


def pmap(target: Target) -> Pmap:
    """Replicated data parallel by `jax.pmap` over all of the target's devices."""
    return Pmap(make_mesh(target, 0, 1))


def data(target: Target) -> Sharded:
    """Replicated data parallel over all of the target's devices."""
    return Sharded(make_mesh(target, 0, 1))


def fsdp(target: Target) -> Sharded:
    """Parameters, average and optimiser state sharded over all of the target's devices."""
    return Sharded(make_mesh(target, 1, 0))


def abstract_state(init: Callable[[Key[Array, ""]], PyTree], strategy: Strategy) -> PyTree:
    """Return shapes, dtypes and shardings of what `init` makes, without computing anything."""
    shapes = jax.eval_shape(init, jax.random.key(0))
    places = strategy.shardings(shapes)
    return jax.tree.map(
        lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
        shapes,
        places,
    )
