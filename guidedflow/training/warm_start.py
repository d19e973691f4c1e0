"""A run that begins with the parameters of another one, those that fit by name and shape."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import PyTree

from guidedflow.registry import nearest
from guidedflow.target import Target
from guidedflow.training.load import load_bundle
from guidedflow.training.state import TrainState, leaf_names

Leaves = Mapping[str, Any]


@dataclass(frozen=True)
class Match:
    """Which parameters of another network fit.

    Attributes:
      taken: name here to name there.
      missing: names here that the other has not.
      reshaped: names here whose shape is another there, with both shapes.
      left_out: names there that are not taken.
    """

    taken: dict[str, str]
    missing: list[str]
    reshaped: list[str]
    left_out: list[str]

    def lines(self) -> list[str]:
        """Return one line for each kind of parameter that was not taken, counted and listed."""
        kinds = {
            "only here, fresh": self.missing,
            "of another shape, fresh": self.reshaped,
            "only there, left out": self.left_out,
        }
        return [
            f"  {kind}: {len(names)}: {', '.join(names)}" for kind, names in kinds.items() if names
        ]


def match(there: Leaves, here: Leaves, renames: Mapping[str, str]) -> Match:
    """Return which leaves fit by name and shape.

    Args:
      there: leaves of the other network by path, as "blocks_0/attn/qkv/kernel".
      here: those of this one.
      renames: path there, of a leaf or of everything below it, to path here.
    Raises:
      ValueError: a path of `renames` that the other network has not, two leaves of one name, or
        nothing fits.
    """
    renamed = {_renamed(name, renames): name for name in there}
    for old in renames:
        if not any(_below(name, old) for name in there):
            parts = sorted({above for name in there for above in _paths(name)})
            raise ValueError(
                f"--rename: the other run has no parameter {old!r}{nearest(old, parts)}"
            )
    if len(renamed) < len(there):
        lost = next(name for name in there if renamed[_renamed(name, renames)] != name)
        raise ValueError(f"--rename: two parameters would be {_renamed(lost, renames)!r}")
    both = [name for name in here if name in renamed]
    taken = {name: renamed[name] for name in both if _same(here[name], there[renamed[name]])}
    if not taken:
        raise ValueError(
            f"no parameter fits by name and shape: the other run has {_some(list(there))}, this one "
            f"{_some(list(here))}; --rename=old:new gives names"
        )
    return Match(
        taken=taken,
        missing=[name for name in here if name not in renamed],
        reshaped=[
            f"{name} {list(there[renamed[name]].shape)} there, {list(here[name].shape)} here"
            for name in both
            if name not in taken
        ],
        left_out=[old for name, old in renamed.items() if name not in here],
    )


def _below(name: str, path: str) -> bool:
    return name == path or name.startswith(f"{path}/")


def _paths(name: str) -> list[str]:
    """Return "a", "a/b" and "a/b/c" of "a/b/c"."""
    parts = name.split("/")
    return ["/".join(parts[: index + 1]) for index in range(len(parts))]


def _renamed(name: str, renames: Mapping[str, str]) -> str:
    for old, new in renames.items():
        if _below(name, old):
            return new + name[len(old) :]
    return name


def _same(here: Any, there: Any) -> bool:
    return tuple(here.shape) == tuple(there.shape)


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


@dataclass(frozen=True)
class Parameters:
    """What is taken from another run: its newest and its averaged parameters, by our names."""

    params: Leaves
    ema: Leaves

    def put_into(self, state: TrainState) -> TrainState:
        """Return a fresh state with these parameters in place of its own, placed as they were."""
        return state._replace(
            params=_replaced(state.params, self.params), ema=_replaced(state.ema, self.ema)
        )


def _replaced(tree: PyTree, by_name: Leaves) -> PyTree:
    def put(name: str, leaf: Any) -> Any:
        if name not in by_name:
            return leaf
        return jax.device_put(np.asarray(by_name[name], leaf.dtype), leaf.sharding)

    leaves = [put(name, leaf) for name, leaf in leaf_names(tree).items()]
    return jax.tree.unflatten(jax.tree.structure(tree), leaves)


def read(
    folder: Path,
    here: PyTree,
    renames: Mapping[str, str],
    target: Target,
    say: Callable[[str], None] = print,
) -> Parameters:
    """Return the parameters of another run that fit, and say which did not.

    Args:
      folder: the other run's workdir.
      here: this run's parameters, or their shapes.
      renames: as of `match`.
      target: the devices.
    Raises:
      ValueError: no run or checkpoint there, or as `match` does.
    """
    newest = load_bundle(folder, ema=False, target=target, say=say)
    averaged = load_bundle(folder, target=target, say=lambda line: None)
    there = {"params": newest.params, "ema": averaged.params}
    leaves = {field: leaf_names(jax.device_get(tree)) for field, tree in there.items()}
    found, wanted = leaves["params"], leaf_names(here)
    fit = match(found, wanted, renames)
    say(f"{len(fit.taken)} of {len(wanted)} parameters are those of {folder} at step {newest.step}")
    for line in fit.lines():
        say(line)
    return Parameters(
        **{
            field: {name: tree[old] for name, old in fit.taken.items()}
            for field, tree in leaves.items()
        }
    )
