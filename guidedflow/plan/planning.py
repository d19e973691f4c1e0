"""A plan: what a config's program needs on a target, as numbers."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
from jaxtyping import PyTree
from ml_collections import ConfigDict

from guidedflow.data import Dataset
from guidedflow.pipelines import Method
from guidedflow.plan import program
from guidedflow.plan.chips import CHIPS, least_seconds
from guidedflow.plan.hlo import Collective, collectives
from guidedflow.plan.topology import target_of
from guidedflow.training.parallel import SMALLEST_SHARDED
from guidedflow.training.state import leaf_names


@dataclasses.dataclass(frozen=True)
class Plan:
    """What one program needs; bytes are of one device, and of the busiest where they differ.

    Attributes:
      topology, devices, strategy, batch, work: what was compiled.
      refusal: the compiler's, in one line; "" where it compiled.
      fits: changes of the config with which it compiles, where it does not.
      state, ideal: bytes of parameters, averages and optimiser, and their even share.
      whole: leaves of at least `SMALLEST_SHARDED` numbers that every device holds whole.
      temporaries, code: bytes beside arguments and results.
      memory: what the chip has, 0 where that is not known.
      moved: kind of collective to {"count", "bytes"}: how many run, and bytes of their arrays.
      warnings: one line for each layer of which an activation moves.
      operations: of the matrix products, over all devices.
      bound: seconds below which one step, or one chunk of images, cannot come; by the chip's limits.
    """

    topology: str
    devices: int
    strategy: str
    batch: int
    work: str
    refusal: str = ""
    fits: tuple[str, ...] = ()
    state: int = 0
    ideal: int = 0
    whole: tuple[str, ...] = ()
    temporaries: int = 0
    code: int = 0
    memory: float = 0.0
    moved: dict[str, dict[str, int]] = dataclasses.field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    operations: float = 0.0
    bound: dict[str, float] = dataclasses.field(default_factory=dict)

    @property
    def bytes_moved(self) -> int:
        """Bytes of the arrays of all collectives."""
        return sum(kind["bytes"] for kind in self.moved.values())


def plan(config: ConfigDict, topology: str, dataset: Dataset, method: Method | None = None) -> Plan:
    """Compile a config's training step for a topology, or the sampling of one batch.

    Args:
      config: as `build` takes it.
      topology: see `target_of`.
      dataset: whose shape and classes count.
      method: of sampling; None for training.
    Raises:
      ValueError: an unknown topology, or parts that do not fit one another or the devices.
      RuntimeError: the topology's compiler is not installed.
    """
    target = target_of(topology)
    setup = program.setup_for(config, target, dataset)
    state = program.state_of(setup)
    chip = CHIPS.get(topology.partition(":")[0])
    about = Plan(
        topology=topology,
        devices=target.count,
        strategy="data" if method else setup.config.parallel.strategy,
        batch=config.batch,
        work="sampling" if method else "training step",
        memory=chip.memory if chip else 0.0,
    )
    try:
        if method is None:
            compiled, held, operations = program.compile_step(setup, state), state, setup.flops()
        else:
            compiled, held, operations = program.compile_sampling(setup, method, config.batch)
    except program.RefusedError as error:
        return dataclasses.replace(about, refusal=str(error), **_held(state, target.count))
    found = collectives(compiled.as_text(), target.count)
    needs = compiled.memory_analysis()
    traffic = needs.argument_size_in_bytes + needs.output_size_in_bytes
    sent = sum(one.sent for one in found)
    bound = least_seconds(chip, operations / target.count, traffic, sent) if chip else {}
    return dataclasses.replace(
        about,
        **_held(held, target.count),
        temporaries=needs.temp_size_in_bytes,
        code=needs.generated_code_size_in_bytes,
        moved=_by_kind(found),
        warnings=tuple(activations(found, held, target.count)),
        operations=operations,
        bound=bound,
    )


def _held(state: PyTree, devices: int) -> dict[str, Any]:
    """Return bytes of a state on a device, their even share, and what is whole on each."""
    leaves = {name: leaf for name, leaf in leaf_names(state).items() if hasattr(leaf, "sharding")}
    held = total = 0
    whole = []
    for name, leaf in leaves.items():
        width = leaf.dtype.itemsize
        shard = leaf.sharding.shard_shape(leaf.shape)
        held += width * math.prod(shard)
        total += width * leaf.size
        if shard == leaf.shape and leaf.size >= SMALLEST_SHARDED and devices > 1:
            whole.append(name)
    return {"state": held, "ideal": math.ceil(total / devices), "whole": tuple(whole)}


def _by_kind(found: Sequence[Collective]) -> dict[str, dict[str, int]]:
    kinds = dict.fromkeys(sorted(one.kind for one in found))
    return {
        kind: {
            "count": sum(one.times for one in found if one.kind == kind),
            "bytes": sum(one.moved for one in found if one.kind == kind),
        }
        for kind in kinds
    }


def activations(found: Sequence[Collective], state: PyTree, devices: int) -> list[str]:
    """Return one line for each layer with a collective of arrays that are no parameter's.

    An array is a parameter's where it has as many numbers as one, as one block's part of a stack of
    blocks, or as a shard of these. Where an activation has as many by chance, it is not seen.

    Args:
      found: collectives of a program.
      state: whose leaves, and shards of them, may move.
      devices: of the program.
    """
    sizes = set()
    for leaf in jax.tree.leaves(state):
        sizes.add(leaf.size)
        if leaf.ndim:
            sizes.add(leaf.size // leaf.shape[0])
    parts = [part for part in range(1, devices + 1) if devices % part == 0]
    known = {size // part for size in sizes for part in parts if size % part == 0}
    lines: dict[tuple[str, str], list[int]] = {}
    for one in found:
        large = [shape for shape in one.shapes if math.prod(shape) > SMALLEST_SHARDED]
        strange = [shape for shape in large if math.prod(shape) not in known]
        if strange:
            shape = max(strange, key=lambda shape: math.prod(shape))
            place = one.layer or "a layer that the program does not name"
            key = (place, f"{one.kind} of {'×'.join(map(str, shape))}")
            count = lines.setdefault(key, [0, 0])
            count[0] += one.times
            count[1] += one.moved
    return [
        f"an activation moves in {place}: {times} {what}, {moved / 1e6:.1f} MB"
        for (place, what), (times, moved) in sorted(lines.items())
    ]
