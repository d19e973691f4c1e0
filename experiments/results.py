"""The output of an experiment: a plot, its numbers as JSON, and its line in README.md."""

import argparse
import json
import os
import platform
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from matplotlib.figure import Figure

from guidedflow.files import replacing
from guidedflow.training.plots import save_figure

FOLDER = Path(__file__).parent
_BEGAN = time.monotonic()


def say(line: str) -> None:
    """Print one line of progress with the seconds since the start."""
    print(f"[{time.monotonic() - _BEGAN:6.1f} s] {line}", flush=True)


def options(description: str | None) -> argparse.Namespace:
    """Return what every experiment takes: where results go, and whether they are only a rehearsal."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=FOLDER, help="folder of the results")
    parser.add_argument(
        "--quick", action="store_true", help="tiny sizes, whose figures mean nothing"
    )
    return parser.parse_args()


def spread(values: Any) -> dict[str, float]:
    """Return mean and standard deviation over seeds."""
    values = np.asarray(values, np.float64)
    return {
        "mean": float(values.mean()),
        "std": float(values.std(ddof=1)) if values.size > 1 else 0.0,
    }


def save(
    name: str, figure: Figure, numbers: dict[str, Any], shows: str, measured: str, folder: Path
) -> None:
    """Write NAME.png and NAME.json and replace NAME's line in README.md, each whole or not at all.

    Args:
      name: of the script.
      figure: the picture.
      numbers: JSON values; the machine and the seconds since the start are added.
      shows: what the experiment shows, one sentence.
      measured: what this run measured, one sentence.
      folder: where they go.
    """
    folder.mkdir(parents=True, exist_ok=True)
    save_figure(figure, folder / f"{name}.png")
    machine = {
        "seconds": round(time.monotonic() - _BEGAN, 1),
        "date": time.strftime("%Y-%m-%d"),
        "device": f"{jax.devices()[0].device_kind}, {os.cpu_count()} cores",
        "jax": jax.__version__,
        "python": platform.python_version(),
    }
    with replacing(folder / f"{name}.json") as temporary:
        temporary.write_text(json.dumps({"run": machine, **numbers}, indent=1) + "\n")
    line = f"- **[{name}]({name}.py)** ([picture]({name}.png), [numbers]({name}.json)): {shows} {measured}"
    _replace_line(folder / "README.md", f"- **[{name}]", line)
    say(measured)
    say(f"written: {folder}/{name}.png {name}.json README.md")


def _replace_line(path: Path, start: str, line: str) -> None:
    lines = path.read_text().splitlines() if path.exists() else []
    kept = [line if old.startswith(start) else old for old in lines]
    if line not in kept:
        kept.append(line)
    with replacing(path) as temporary:
        temporary.write_text("\n".join(kept) + "\n")
