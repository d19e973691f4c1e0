"""Plans as a table and as JSON."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from guidedflow.plan.planning import Plan

_LIMITS = {"products": "peak of products", "memory": "memory", "links": "links"}


def as_json(plans: Sequence[Plan]) -> list[dict[str, Any]]:
    """Return plans as plain JSON values."""
    return [{**dataclasses.asdict(plan), "bytes_moved": plan.bytes_moved} for plan in plans]


def as_table(plans: Sequence[Plan]) -> str:
    """Return a table of plans, one a column, and below it what must be read as lines."""
    kinds = sorted({kind for plan in plans for kind in plan.moved})
    rows = [
        ["", *(plan.topology for plan in plans)],
        ["program", *(plan.work for plan in plans)],
        ["devices", *(str(plan.devices) for plan in plans)],
        ["strategy", *(plan.strategy for plan in plans)],
        ["batch, all devices", *(str(plan.batch) for plan in plans)],
        ["compiles", *("no" if plan.refusal else "yes" for plan in plans)],
        ["state, MB a device", *(_mega(plan.state) for plan in plans)],
        ["  its even share", *(_mega(plan.ideal) for plan in plans)],
        ["  leaves left whole", *(str(len(plan.whole)) for plan in plans)],
        ["temporaries, MB", *(_compiled(plan, _mega(plan.temporaries)) for plan in plans)],
        ["code, MB", *(_compiled(plan, _mega(plan.code)) for plan in plans)],
        ["the chip has, MB", *(_mega(plan.memory) if plan.memory else "?" for plan in plans)],
        ["collectives, MB", *(_compiled(plan, _mega(plan.bytes_moved)) for plan in plans)],
        *([f"  {kind}", *(_moved(plan, kind) for plan in plans)] for kind in kinds),
        ["products, TFLOP", *(_compiled(plan, f"{plan.operations / 1e12:.1f}") for plan in plans)],
        ["lower bound, s", *(_bound(plan) for plan in plans)],
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)) for row in rows]
    return "\n".join([*(line.rstrip() for line in lines), *_remarks(plans)])


def _remarks(plans: Sequence[Plan]) -> list[str]:
    lines = [""]
    for plan in plans:
        name = f"{plan.topology}, {plan.strategy}"
        if plan.refusal:
            lines.append(f"{name}: the compiler refuses it, {plan.refusal}")
            fits = "; ".join(plan.fits)
            lines.append(f"{name}: " + (f"this fits: {fits}" if fits else "nothing tried fits"))
        if plan.whole and plan.strategy in ("fsdp", "mesh"):
            lines.append(f"{name}: whole on every device: {_names(plan.whole)}")
        lines += [f"warning: {name}: {line}" for line in plan.warnings]
    bounded = [plan for plan in plans if plan.bound]
    if bounded:
        lines.append(
            "The lower bound is no forecast: no program can be faster than the chip's published peaks."
        )
    return lines if len(lines) > 1 else []


def _names(whole: Sequence[str]) -> str:
    return ", ".join(whole[:3]) + (f" and {len(whole) - 3} more" if len(whole) > 3 else "")


def _mega(count: float) -> str:
    return f"{count / 1e6:,.1f}" if count < 1e8 else f"{count / 1e6:,.0f}"


def _compiled(plan: Plan, text: str) -> str:
    return "-" if plan.refusal else text


def _moved(plan: Plan, kind: str) -> str:
    one = plan.moved.get(kind)
    return f"{_mega(one['bytes'])} in {one['count']}" if one else _compiled(plan, "none")


def _bound(plan: Plan) -> str:
    if not plan.bound:
        return _compiled(plan, "?")
    limit = max(plan.bound, key=lambda name: plan.bound[name])
    return f"{plan.bound[limit]:.4f} ({_LIMITS[limit]})"
