"""How a run begins: fresh, with another run's parameters, or from its own newest checkpoint."""

import json
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from guidedflow.files import replacing
from guidedflow.registry import nearest
from guidedflow.training import config as configs
from guidedflow.training import parallel, warm_start, workdir
from guidedflow.training.build import Setup
from guidedflow.training.checkpoint import Record, restore, steps_in
from guidedflow.training.options import Start
from guidedflow.training.state import TrainState

HISTORY = "history.jsonl"


def settled_for(config: ConfigDict, folder: Path, resume: bool) -> ConfigDict:
    """Return the settled config of a run, which keeps the schedule of the run that it goes on with."""
    run = None
    if resume and steps_in(workdir.checkpoints(folder)) and (folder / workdir.CONFIG).is_file():
        run = configs.settled(configs.from_resolved(workdir.read_config(folder)))
    return configs.settled(config, run)


def check_override(names: Sequence[str], identity: Mapping[str, Any]) -> None:
    """Refuse fields that no run is refused for.

    Raises:
      ValueError: names the field.
    """
    for name in names:
        if name not in identity:
            raise ValueError(
                f"--override={name}: no such field stands in a run's identity"
                f"{nearest(name, list(identity))}; a field that is free to change needs no --override"
            )


def warm_parameters(
    setup: Setup, folder: Path, start: Start, say: Callable[[str], None]
) -> warm_start.Parameters | None:
    """Return another run's parameters; None where none are asked for or the run has begun already."""
    if start.init_from is None or steps_in(workdir.checkpoints(folder)):
        return None
    here = jax.eval_shape(setup.init, jax.random.key(0)).params
    return warm_start.read(start.init_from, here, start.renames, setup.target, say)


def start_state(
    setup: Setup,
    folder: Path,
    resume: bool,
    say: Callable[[str], None],
    override: Collection[str] = (),
    warm: warm_start.Parameters | None = None,
) -> tuple[TrainState, Record | None]:
    """Return a fresh state, or the newest good checkpoint's.

    Args:
      folder: of the checkpoints.
      override: fields that may differ from the checkpoint's.
      warm: parameters that a fresh state begins with.
    Raises:
      ValueError: the folder holds checkpoints and `resume` is off; or as `restore` has it.
    """
    abstract = parallel.abstract_state(setup.init, setup.strategy)
    if steps_in(folder):
        if not resume:
            raise ValueError(
                f"{folder.parent} already holds a run at step {steps_in(folder)[-1]}; "
                "add --resume to go on with it, or take another workdir"
            )
        free = frozenset(override)
        found = restore(folder, abstract, setup.identity, override=free, repair=True, say=say)
        if found is not None:
            return found
    places = jax.tree.map(lambda leaf: leaf.sharding, abstract)
    state = jax.jit(setup.init, out_shardings=places)(jax.random.key(setup.config.seed))
    return (state if warm is None else warm.put_into(state)), None


def changes(setup: Setup, start: Start, record: Record | None) -> dict[str, tuple[Any, Any]]:
    """Return what sets a run apart from an ordinary one from here on: field to (old, new)."""
    if record is None:
        return {"init_from": (None, str(start.init_from))} if start.init_from else {}
    before, now = record.identity, setup.identity
    return {
        name: (before.get(name), now[name])
        for name in start.override
        if before.get(name) != now[name]
    }


def write_history(folder: Path, step: int, changed: Mapping[str, tuple[Any, Any]]) -> str:
    """Add what is changed from this step on to a run's history, and return it as one line."""
    file = folder / HISTORY
    before = file.read_text() if file.is_file() else ""
    date = time.strftime("%Y-%m-%dT%H:%M:%S%z")
    lines = [
        json.dumps({"step": step, "date": date, "field": name, "old": old, "new": new})
        for name, (old, new) in changed.items()
    ]
    with replacing(file) as temporary:
        temporary.write_text(before + "".join(f"{line}\n" for line in lines))
    listed = ", ".join(f"{name} {old!r} -> {new!r}" for name, (old, new) in changed.items())
    return f"from step {step} on: {listed} (written to {file})"
