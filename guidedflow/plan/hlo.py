"""Collectives of a compiled program, read from its text (XLA's HLO).

A collective in the body of a loop counts as often as the loop runs; an asynchronous one, whose text
may repeat it, is known by its channel and counts once.
"""

import dataclasses
import math
import re
from collections.abc import Iterator

KINDS = (
    "all-gather",
    "all-reduce",
    "reduce-scatter",
    "collective-permute",
    "all-to-all",
    "ragged-all-to-all",
    "collective-broadcast",
)
_BITS = {"pred": 8, "c64": 64, "c128": 128, "token": 0}

_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) \(.*\{\s*$")
_COLLECTIVE = re.compile(rf"^\s*(?:ROOT )?%?[\w.\-]+ = (.*?) ({'|'.join(KINDS)})(-start)?\(")
_ARRAY = re.compile(r"(\w+)\[([\d,]*)\]")
_CALLED = re.compile(
    r"\b(calls|to_apply|body|condition|branch_computations|true_computation|false_computation)"
    r"=(\{[^}]*\}|%?[\w.\-]+)"
)
_TRIPS = re.compile(r'known_trip_count"?[:=]\s*\{"?n"?:\s*"?(\d+)')
_CHANNEL = re.compile(r"channel_id=(\d+)")
_OP_NAME = re.compile(r'op_name="([^"]*)"')
_LISTED = re.compile(r"replica_groups=\{\{([\d,]*)\}")
_COUNTED = re.compile(r"replica_groups=\[([\d,]+)\]<=")


@dataclasses.dataclass(frozen=True)
class Collective:
    """One collective operation of a program.

    Attributes:
      kind: of `KINDS`.
      shapes: of the whole arrays, as they are before a scatter and after a gather.
      bytes: of these arrays, once.
      group: how many devices take part.
      times: how often it runs.
      layer: the part of the network that it is from, as "blocks/mlp"; "" where that is not known.
    """

    kind: str
    shapes: tuple[tuple[int, ...], ...]
    bytes: int
    group: int
    times: int
    layer: str

    @property
    def moved(self) -> int:
        """Bytes of the arrays over all times that it runs."""
        return self.bytes * self.times

    @property
    def sent(self) -> float:
        """Bytes that a device sends at least over all times: of n devices in a ring, each sends
        (n - 1)/n of the array for a gather, a scatter or an exchange, twice that for a sum."""
        if self.kind in ("collective-permute", "collective-broadcast"):
            return float(self.moved)
        share = (self.group - 1) / max(self.group, 1)
        return self.moved * share * (2 if self.kind == "all-reduce" else 1)


def collectives(text: str, devices: int) -> list[Collective]:
    """Return the collectives of a compiled program.

    Args:
      text: of the program, `compiled.as_text()`.
      devices: that it runs on, for collectives that name no group.
    """
    bodies, entry = _computations(text)
    found: list[Collective] = []
    seen: set[str] = set()
    for name, times in _times(bodies, entry).items():
        for line in bodies[name]:
            one = _collective(line, name, times, devices)
            if one is None:
                continue
            channel = _CHANNEL.search(line)
            if channel is not None:
                if channel[1] in seen:
                    continue
                seen.add(channel[1])
            found.append(one)
    return found


def _computations(text: str) -> tuple[dict[str, list[str]], str]:
    """Return the lines of every computation by its name, and the name of the first to run."""
    bodies: dict[str, list[str]] = {}
    entry, lines = "", list[str]()
    for line in text.splitlines():
        head = _COMPUTATION.match(line)
        if head:
            lines = bodies[head[1]] = []
            entry = head[1] if line.startswith("ENTRY") else entry
        else:
            lines.append(line)
    return bodies, entry


def _times(bodies: dict[str, list[str]], entry: str) -> dict[str, int]:
    """Return how often each computation that runs does so."""
    edges = {
        name: [edge for line in lines for edge in _edges(line) if edge[0] in bodies]
        for name, lines in bodies.items()
    }
    times: dict[str, int] = {}
    for name in _callers_first(edges, entry):
        times.setdefault(name, 1)
        for called, often in edges[name]:
            times[called] = times.get(called, 0) + times[name] * often
    return times


def _edges(line: str) -> Iterator[tuple[str, int]]:
    """Yield what a line calls, and how often."""
    trips = _TRIPS.search(line)
    for how, names in _CALLED.findall(line):
        often = int(trips[1]) if trips and how in ("body", "condition") else 1
        for name in names.strip("{}").split(","):
            yield name.strip().lstrip("%"), often


def _callers_first(edges: dict[str, list[tuple[str, int]]], entry: str) -> list[str]:
    """Return the computations that `entry` reaches, each after all that call it."""
    order: list[str] = []
    done: set[str] = set()
    stack = [(entry, False)] if entry else []
    while stack:
        name, left = stack.pop()
        if left:
            order.append(name)
        elif name not in done:
            done.add(name)
            stack.append((name, True))
            stack += [(called, False) for called, _ in edges[name] if called not in done]
    return order[::-1]


def _collective(line: str, computation: str, times: int, devices: int) -> Collective | None:
    found = _COLLECTIVE.match(line)
    if found is None:
        return None
    result, kind, starts = found.groups()
    arrays = _arrays(result, kind, bool(starts))
    group = _group(line, devices)
    # The TPU compiler writes a scatter of a sum as a computation of this name around the sum.
    if kind == "all-reduce" and "reduce-scatter" in computation:
        kind = "reduce-scatter"
    elif kind == "reduce-scatter":
        arrays = [(dtype, (*shape[:-1], shape[-1] * group)) for dtype, shape in arrays]
    name = _OP_NAME.search(line)
    return Collective(
        kind=kind,
        shapes=tuple(shape for _, shape in arrays),
        bytes=sum(_width(dtype) * math.prod(shape) for dtype, shape in arrays) // 8,
        group=group,
        times=times,
        layer=layer_of(name[1]) if name else "",
    )


def _arrays(result: str, kind: str, starts: bool) -> list[tuple[str, tuple[int, ...]]]:
    """Return (dtype, shape) of what a collective gives."""
    arrays = [
        (dtype, tuple(int(size) for size in sizes.split(",") if size))
        for dtype, sizes in _ARRAY.findall(re.sub(r"\{[^{}]*\}", "", result))
    ]
    if starts and kind == "collective-permute":
        return arrays[:1]
    # A pair of what goes in and what comes out.
    return arrays[len(arrays) // 2 :] if starts and kind != "all-reduce" else arrays


def _group(line: str, devices: int) -> int:
    listed, counted = _LISTED.search(line), _COUNTED.search(line)
    if listed:
        return len(listed[1].split(","))
    return int(counted[1].split(",")[-1]) if counted else devices


def _width(dtype: str) -> int:
    """Bits of a number of XLA's dtype."""
    if dtype in _BITS:
        return _BITS[dtype]
    digits = re.search(r"\d+", dtype)
    return int(digits[0]) if digits else 0


# Wrappers of JAX's transformations around a module's name, as in "transpose(jvp(DiT))".
_WRAPPER = re.compile(r"^(?:jvp|transpose|vmap|remat|checkpoint|jit|pjit)\((.*)\)$")
_PLUMBING = frozenset(
    {"while", "body", "cond", "closed_call", "checkpoint", "rematted_computation", "branch_0_fun"}
    | {"branch_1_fun", "remat", "step", "shard_map", ""}
)


def layer_of(op_name: str) -> str:
    """Return the network's part in an operation's name: without JAX's own steps and the operation.

    "jit(step)/transpose(jvp(DiT))/while/body/blocks/mlp/dot_general" is "DiT/blocks/mlp".
    """
    parts: list[str] = []
    for part in op_name.split("/")[:-1]:
        while wrapped := _WRAPPER.match(part):
            part = wrapped[1]
        if part not in _PLUMBING and (not parts or parts[-1] != part):
            parts.append(part)
    return "/".join(parts)
