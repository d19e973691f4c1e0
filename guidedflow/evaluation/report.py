"""Scores over guidance scales as a table, as JSON and as a plot."""

import dataclasses
import json
import textwrap
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, StrMethodFormatter

from guidedflow.evaluation.judge import Scores
from guidedflow.registry import choose

# Column head, field of Scores, format.
_COLUMNS = (
    ("images", "count", "d"),
    ("accuracy", "accuracy", ".4f"),
    ("FD pixels", "frechet_pixels", ".3f"),
    ("FD features", "frechet_features", ".3f"),
    ("to train", "nearest_train", ".3f"),
    ("precision", "precision", ".3f"),
    ("recall", "recall", ".3f"),
    ("IS", "inception", ".2f"),
)

_LEGEND = (
    "accuracy: of the class asked for, by a classifier that learned from real training images; "
    "FD: squared Fréchet distance to the {reference}, pixels in [-1, 1] and classifier "
    "features, random convolutions where there is one class; to train: mean distance to the nearest "
    "training image; precision and recall: k = 3 in the features. Images of more than 32 pixels a "
    "side are made smaller before they are judged. The row of real images: {real}"
)
_REAL = {
    "held-out images": (
        "FD is of training against held-out images, the rest is the held-out images' own."
    ),
    "training images": (
        "one half of the training images against the other. No images were held out, so that a "
        "model that copies its training images scores best: watch the distance to them."
    ),
}


@dataclasses.dataclass(frozen=True)
class Report:
    """The scores of one model at several guidance scales, and how they were measured.

    Attributes:
      scales: guidance scales in any order; 1 is the conditional model.
      scores: one per scale.
      floor: scores of real images by the same judge.
      settings: other settings that change the figures: solver, steps, seed, images, parameters, step.
      compares_with: the images that distances are measured to, "held-out images" or "training images".
    """

    scales: tuple[float, ...]
    scores: tuple[Scores, ...]
    floor: Scores
    settings: dict[str, Any]
    compares_with: str = "held-out images"

    def __post_init__(self) -> None:
        choose("set to compare with", self.compares_with, _REAL)
        if len(self.scales) != len(self.scores) or not self.scales:
            raise ValueError(
                f"a report has one score a scale, got {len(self.scales)} scales and "
                f"{len(self.scores)} scores"
            )

    @property
    def best(self) -> int:
        """The index of the scale with the smallest Fréchet distance, in pixels if it was computed."""
        return int(np.argmin([getattr(score, self.distance) for score in self.scores]))

    @property
    def distance(self) -> str:
        """The field of the distance that `best` uses: in pixels, or in features for larger images."""
        taken = np.isfinite(self.floor.frechet_pixels)
        return "frechet_pixels" if taken else "frechet_features"

    def has(self, field: str) -> bool:
        """Return whether any set of images has this figure."""
        return any(np.isfinite(getattr(score, field)) for score in (*self.scores, self.floor))


def heading(report: Report) -> str:
    """Return the title of the table."""
    title = f"Samples compared with the {report.compares_with}"
    return title + ("" if report.compares_with == "held-out images" else ": none were held out")


def table(report: Report) -> str:
    """Return a text table: one row per scale, real images last, only columns that were computed."""
    columns = [column for column in _COLUMNS if report.has(column[1])]
    rows = [["scale", *(head for head, _, _ in columns)]]
    for scale, scores in zip(report.scales, report.scores, strict=True):
        rows.append([f"{scale:g}", *(_cell(scores, column) for column in columns)])
    rows.append(["real", *(_cell(report.floor, column) for column in columns)])
    widths = [max(len(row[i]) for row in rows) for i in range(len(columns) + 1)]
    lines = ["  ".join(c.rjust(w) for c, w in zip(row, widths, strict=True)) for row in rows]
    return "\n".join(lines)


def _cell(scores: Scores, column: tuple[str, str, str]) -> str:
    value = getattr(scores, column[1])
    return format(value, column[2]) if np.isfinite(value) else "-"


def figures(name: str, scores: Scores) -> str:
    """Return the figures of one set of images as one line, for display during an evaluation."""
    told = (f"{c[0]} {_cell(scores, c)}" for c in _COLUMNS if np.isfinite(getattr(scores, c[1])))
    return f"{name}: {', '.join(told)}"


def legend(report: Report) -> str:
    """Return the explanation of the table's columns."""
    return _LEGEND.format(reference=report.compares_with, real=_REAL[report.compares_with])


def to_json(report: Report) -> str:
    """Return the report as JSON text, with the explanation of its columns."""
    raw = {
        "settings": report.settings,
        "scales": [
            {"scale": scale, **dataclasses.asdict(scores)}
            for scale, scores in zip(report.scales, report.scores, strict=True)
        ],
        "real": dataclasses.asdict(report.floor),
        "best_scale": report.scales[report.best],
        "compared_with": report.compares_with,
        "legend": legend(report),
    }
    return json.dumps(_finite(raw), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _finite(value: Any) -> Any:
    """JSON has no NaN, so a class without images and a figure that was not computed become null."""
    if isinstance(value, dict):
        return {key: _finite(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value


def plot(report: Report) -> Figure:
    """Draw accuracy, both Fréchet distances and the distance to training images over the scale."""
    order = np.argsort(report.scales)
    scales = np.asarray(report.scales)[order]
    figure = Figure(figsize=(10, 3.7), dpi=120, layout="constrained")
    figure.suptitle("\n".join(textwrap.wrap(_title(report), 120)), fontsize=9)
    axes = figure.subplots(1, 3)

    def curve(ax: Axes, field: str, label: str, colour: str) -> None:
        if not report.has(field):
            return
        values = [getattr(report.scores[i], field) for i in order]
        ax.plot(scales, values, "o-", color=colour, markersize=4, label=label)
        ax.axhline(
            getattr(report.floor, field),
            color=colour,
            linestyle=":",
            linewidth=1.2,
            label=f"real images: {getattr(report.floor, field):.3g}",
        )

    curve(axes[0], "accuracy", "class accuracy", "tab:blue")
    curve(axes[0], "recall", "recall", "tab:orange")
    axes[0].set(title="Faithful, and varied", ylabel="share of images")
    curve(axes[1], "frechet_pixels", "pixels in [-1, 1]", "tab:green")
    curve(axes[1], "frechet_features", "features", "tab:red")
    axes[1].set(
        title=f"Distance to {report.compares_with}", ylabel="squared Fréchet distance", yscale="log"
    )
    axes[1].yaxis.set_minor_locator(LogLocator(subs=(2, 4)))
    axes[1].yaxis.set_minor_formatter(StrMethodFormatter("{x:g}"))
    axes[1].yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    curve(axes[2], "nearest_train", "to the nearest training image", "tab:purple")
    axes[2].set(title="Memorising would fall to 0", ylabel="Euclidean distance")
    axes[2].set_ylim(0, 1.25 * axes[2].dataLim.y1)
    for ax in axes:
        ax.set_xlabel("guidance scale w")
        ax.grid(alpha=0.3)
        ax.legend(frameon=False, fontsize=7)
    return figure


def _title(report: Report) -> str:
    told = ", ".join(
        f"{key} {value}"
        for key, value in report.settings.items()
        if key != "workdir" and value is not None and value is not False
    )
    return f"{report.scores[0].count} images a scale" + (f": {told}" if told else "")


def summary(report: Report, wanted: Sequence[float] = (1.0, 2.0)) -> list[str]:
    """Return a few sentences: accuracy at the given scales, and the best distance."""
    lines = [
        f"accuracy {report.scores[report.scales.index(scale)].accuracy:.4f} at scale {scale:g}"
        for scale in wanted
        if scale in report.scales and report.has("accuracy")
    ]
    best, field = report.scores[report.best], report.distance
    lines.append(
        f"Fréchet distance in {field.removeprefix('frechet_')} {getattr(best, field):.3f} at scale "
        f"{report.scales[report.best]:g} (real against real {getattr(report.floor, field):.3f})"
    )
    return lines
