"""What would fit where a program does not: changes of a config, tried one after another."""

import math
from collections.abc import Iterator
from typing import Any

from ml_collections import ConfigDict

from guidedflow.data import Dataset
from guidedflow.nn.stacking import REMAT
from guidedflow.plan.planning import Plan, plan
from guidedflow.plan.topology import target_of

_MOST = 4
"""Programs that are compiled to find one that fits."""

Change = dict[str, Any]


def changes(config: ConfigDict, devices: int) -> Iterator[Change]:
    """Yield changes of a config that need less memory each than the one before, with those kept.

    First the state in shards, then a backward pass that computes more again, then micro-batches.
    """
    kept: Change = {}
    if config.parallel.strategy not in ("fsdp", "mesh") and devices > 1:
        kept["parallel.strategy"] = "fsdp"
        yield dict(kept)
    # From what keeps most to what keeps least.
    policies = [name for name in ("none", "dots", "full") if name in REMAT]
    for policy in policies[policies.index(config.network.remat or "none") + 1 :]:
        kept["network.remat"] = policy
        yield dict(kept)
    parts = config.accumulate * 2
    while config.batch % (devices * parts) == 0:
        kept["accumulate"] = parts
        yield dict(kept)
        parts *= 2


def with_changes(config: ConfigDict, change: Change) -> ConfigDict:
    """Return a copy of a config with these fields changed."""
    changed = config.copy_and_resolve_references()
    for name, value in change.items():
        section, _, field = name.rpartition(".")
        (changed[section] if section else changed)[field] = value
    return changed


def that_fit(refused: Plan, config: ConfigDict, dataset: Dataset) -> tuple[str, ...]:
    """Return options of the command line with which a training step compiles, or none.

    Raises:
      ValueError, RuntimeError: as `plan` has it.
    """
    devices = target_of(refused.topology).count
    tried = 0
    for change in changes(config, devices):
        # A state that alone is larger than the memory needs no compiler.
        hopeless = "parallel.strategy" not in change and refused.state > (
            refused.memory or math.inf
        )
        if hopeless or tried == _MOST:
            continue
        tried += 1
        if not plan(with_changes(config, change), refused.topology, dataset).refusal:
            return (" ".join(f"--config.{name}={value}" for name, value in change.items()),)
    return ()
