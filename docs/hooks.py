"""What the site holds beside the pages of docs/: pages made from the code, and files they point to.

The home page is README.md, the reference of a config comes from the comments of its defaults, the gallery
from the tables of README.md, and the API from the docstrings.
"""

import json
import re
from pathlib import Path

from guidedflow.training import config_reference

ROOT = Path(__file__).parents[1]
# Pages of docs/ in this order; a page that is not named here comes after them.
ORDER = ["tutorial.md", "gallery.md", "architecture.md", "data.md", "multihost.md", "benchmarks.md"]
CORE = ["paths", "predictions", "times", "losses", "guidance", "samplers", "distillation"]
TYPES = ["Evaluation", "ModelFn", "Scale"]


def packages() -> list[str]:
    """Return the public packages beside the core: those that say what they export."""
    found = sorted((ROOT / "guidedflow").glob("*/__init__.py"))
    names = [file.parent.name for file in found if "\n__all__ = " in file.read_text()]
    return [name for name in names if name not in CORE]


def home() -> str:
    """Return README.md with its links as the site has them: docs/ is the site's root."""
    return (ROOT / "README.md").read_text().replace("](docs/", "](")


def reference() -> str:
    """Return the page on the fields of a config."""
    return (
        "# Config fields\n\n"
        "A config file starts from `guidedflow.training.config.defaults()` and sets what it changes; "
        "`--config.section.field=value` changes a field on the command line. A field that is unset leaves "
        "the choice to what takes it, the network's preset for one. `guidedflow train --help` prints the "
        "same list.\n\n" + config_reference.as_markdown(config_reference.fields())
    )


def rows_of(text: str) -> dict[str, list[list[str]]]:
    """Return the tables of README.md that have a picture column, by their headings."""
    tables: dict[str, list[list[str]]] = {}
    heading = ""
    for line in text.splitlines():
        if line.startswith("#"):
            heading = line.lstrip("# ")
        elif line.startswith("| "):
            cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
            tables.setdefault(heading, []).append(cells)
    return {name: rows for name, rows in tables.items() if rows[0][-1] == "picture"}


# By a word of a table's heading: the script that drew its methods, and what the picture shows.
GALLERY = {
    "guidance": (
        "guidance_gallery",
        "Samples of every method from one noise, on a mixture in the plane whose velocity is known, so that "
        "no network stands between the method and its picture.",
    ),
    "sampler": (
        "solver_gallery",
        "Eight steps of every solver from the same noise on the same mixture, over the exact trajectories.",
    ),
}


def panels(script: str, cell: str) -> list[str]:
    """Return the titles of the panels that show the functions in a table's cell."""
    numbers = json.loads((ROOT / "experiments" / f"{script}.json").read_text())
    shown = {
        title: one["functions"]
        for title, one in (numbers.get("methods") or numbers["solvers"]).items()
    }
    named = set(re.findall(r"\w+", " ".join(re.findall(r"`([^`]+)`", cell))))
    # Where a rule is named, `classifier_free` only carries it.
    wanted = {name for names in shown.values() for name in names} & named
    if len(wanted) > 1:
        wanted.discard("classifier_free")
    return [title for title, names in shown.items() if wanted & set(names)]


def gallery() -> str:
    """Return the page that lists each method of README.md's tables with its pictures."""
    lines = [
        "# Gallery",
        "",
        "Every picture was drawn by a script of [experiments](experiments/README.md), which says how, and "
        "what was measured.",
    ]
    for heading, (header, *rows) in rows_of((ROOT / "README.md").read_text()).items():
        script, caption = next(one for word, one in GALLERY.items() if word in heading.lower())
        lines += [
            "",
            f"## {heading}",
            "",
            caption,
            "",
            f"![{caption}](experiments/{script}.png)",
            "",
        ]
        lines += [
            "| " + " | ".join([header[0], header[1], "panels above", "more"]) + " |",
            "|---|---|---|---|",
        ]
        for row in rows:
            shown = "; ".join(panels(script, row[1]))
            lines.append("| " + " | ".join([row[0], row[1], shown, row[-1]]) + " |")
        more = dict.fromkeys(re.findall(r"\((experiments/\w+\.png)\)", str(rows)))
        for file in more:
            title = Path(file).stem.replace("_", " ").capitalize()
            lines += ["", f"### {title}", "", f"![{title}]({file})"]
    return "\n".join(lines) + "\n"


def api(module: str, options: str = "") -> str:
    """Return the page of one module of guidedflow."""
    return f"# guidedflow.{module}\n\n::: guidedflow.{module}\n{options}"


def pages() -> dict[str, str]:
    """Return every page that is made here, by its file name."""
    members = f"    options:\n      members: {TYPES}\n"
    return {
        "index.md": home(),
        "gallery.md": gallery(),
        "configs.md": reference(),
        "api/types.md": api("types", members),
        **{f"api/{name}.md": api(name) for name in [*CORE, *packages()]},
    }


def on_config(config):
    """Put every page into the navigation."""
    written = [file.name for file in sorted((ROOT / "docs").glob("*.md"))]
    made = list(pages())
    ordered = [name for name in ORDER if name in written or name in made]
    rest = [name for name in written if name not in ordered]
    config.nav = [
        {"Home": "index.md"},
        {"Guide": [*ordered, *rest]},
        {"Reference": ["configs.md", {"API": [name for name in made if name.startswith("api/")]}]},
        {
            "Experiments": [
                f"experiments/{f.name}" for f in sorted((ROOT / "experiments").glob("*.md"))
            ]
        },
    ]
    return config


def on_files(files, config):
    """Add the pages that are made, and the experiments with their pictures and numbers."""
    from mkdocs.structure.files import File  # the tests have no MkDocs

    for name, text in pages().items():
        files.append(File.generated(config, name, content=text))
    for file in sorted((ROOT / "experiments").glob("*.*")):
        files.append(File.generated(config, f"experiments/{file.name}", abs_src_path=str(file)))
    return files
