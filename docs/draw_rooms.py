"""Draw docs/images/rooms.png: the parts of the package, each above everything that it may import.

  python docs/draw_rooms.py

The rows are those of the table in tests/test_imports.py, which holds the imports to them.
"""

from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

PROGRAMS, NETWORKS, CORE, BASE = "#f4ead2", "#d9efd6", "#cfe3f6", "#eeeeee"
# (row, left, right, colour, name, what it holds); the width of the picture is 12.
ROOMS = (
    (8, 0, 12, PROGRAMS, "cli, commands", "the program: one file a subcommand"),
    (7, 0, 4, PROGRAMS, "evaluation", "judges and distances"),
    (7, 4, 8, PROGRAMS, "plan", "programs for devices that are not there"),
    (7, 8, 12, PROGRAMS, "benchmark", "steps a second, share of the peak"),
    (
        6,
        0,
        12,
        PROGRAMS,
        "training",
        "config to run: step, strategies, checkpoints; tasks/, one file each",
    ),
    (
        5,
        4,
        12,
        PROGRAMS,
        "pipelines",
        "a bundle and conditions to images; solvers and guidance by name",
    ),
    (4, 4, 12, PROGRAMS, "bundle", "what was trained, without its data"),
    (4, 0, 4, NETWORKS, "data", "examples by index, batches by step"),
    (5, 0, 4, NETWORKS, "native", "CPU kernels; deletable"),
    (3, 0, 6, NETWORKS, "models", "networks, one a file"),
    (2, 0, 6, NETWORKS, "nn", "layers, and the operations they call"),
    (1, 0, 6, NETWORKS, "conditions", "labels and other conditions, their nulls"),
    (3, 6, 12, CORE, "scales, distillation", "networks that take the scale"),
    (2, 6, 8, CORE, "guidance", ""),
    (2, 8, 10, CORE, "samplers", ""),
    (2, 10, 12, CORE, "losses", ""),
    (1, 6, 12, CORE, "paths, predictions, times", "what noise becomes data by"),
    (0, 0, 12, BASE, "types, target, registry, sizes, files", "model functions, devices, names"),
)


def main() -> None:
    """Draw the picture."""
    figure = Figure(figsize=(9.5, 6.2), dpi=110, layout="constrained")
    axes = figure.add_subplot()
    axes.set_axis_off()
    for row, left, right, colour, name, holds in ROOMS:
        box = {"facecolor": colour, "edgecolor": "0.35", "linewidth": 0.8}
        axes.bar((left + right) / 2, 0.86, right - left - 0.12, row + 0.07, **box)
        middle = (left + right) / 2
        axes.text(middle, row + (0.64 if holds else 0.5), name, ha="center", va="center", size=11)
        axes.text(middle, row + 0.29, holds, ha="center", va="center", size=8.5, color="0.25")
    axes.set(xlim=(0, 12), ylim=(0, 9))
    axes.set_title(
        "A part imports only what lies below it. Blue needs JAX alone; green needs Flax or NumPy"
    )
    FigureCanvasAgg(figure)
    figure.savefig(Path(__file__).parent / "images" / "rooms.png")


if __name__ == "__main__":
    main()
