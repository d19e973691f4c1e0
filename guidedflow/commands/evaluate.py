"""guidedflow evaluate: judge a trained run over guidance scales, against held-out images or, where
none were held out, against the training images.

  guidedflow evaluate --workdir=runs/digits --scales=1,1.5,2,3,4

Prints a table; writes scores.json, scores.png and grid.png to WORKDIR/evaluation. The classifier that
judges learned from the real training images alone. Images of more than 32 pixels a side are made
smaller before they are judged; of more than 1,024 numbers, distances are taken in features, not pixels;
of the real images at most 10,000 are read, spread evenly. Every scale gets the same noise and as many images
of each class; images are rounded to 8 bits before they are judged. On several hosts: the same command on
each, with --distributed or the three flags of `guidedflow train`; process 0 judges and writes.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np

from guidedflow import data
from guidedflow.bundle import Bundle
from guidedflow.commands import Parser
from guidedflow.commands.options import (
    Progress,
    helpers_of,
    integer,
    join_processes,
    method_of,
    method_options,
    numbers,
)
from guidedflow.evaluation import (
    Judge,
    Report,
    Scores,
    figures,
    heading,
    legend,
    plot,
    read_images,
    summary,
    table,
    to_json,
)
from guidedflow.evaluation.features import MOST
from guidedflow.files import check_writable, replacing
from guidedflow.pipelines import sample
from guidedflow.training import config, load, processes, workdir
from guidedflow.training.build import load_dataset
from guidedflow.training.grids import draw_grid, to_uint8
from guidedflow.training.plots import save_figure

_LEAST = 16  # images; fewer fit no Gaussian worth the name


def parser() -> argparse.ArgumentParser:
    """Return the options of `guidedflow evaluate`."""
    options = Parser(
        "guidedflow evaluate",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    options.add_argument(
        "--scales", type=numbers, default=(1.0, 1.5, 2.0, 3.0, 4.0), help="as 1,1.5,2,3,4"
    )
    options.add_argument(
        "--images", type=integer(_LEAST), default=1000, help="a scale, evenly over the classes"
    )
    options.add_argument("--out", type=Path, help="folder (default WORKDIR/evaluation)")
    method_options(options, steps=16)
    return options


def main(arguments: list[str]) -> int:
    """Judge, write three files, and say what came out."""
    given = parser().parse_args(arguments)
    say = join_processes(given)
    methods = [method_of(given, scale) for scale in given.scales]
    say(f"evaluating {given.workdir}: {len(methods)} scales, {given.images} images each")
    bundle = load.load(given.workdir, ema=given.ema, say=say)
    helpers = helpers_of(given, bundle, say)
    train, held_out = datasets(given.workdir)
    asked = bundle.condition.every()
    if len(asked) != train.num_classes:
        raise ValueError(
            f"evaluate judges images by their class, of {train.num_classes}, and what this run is "
            f"told ({', '.join(sorted(bundle.condition.gives))}) has no list of these"
        )
    folder = given.out or given.workdir / "evaluation"
    judge = None
    if processes.is_lead():
        folder.mkdir(parents=True, exist_ok=True)
        check_writable(folder / "scores.json")
        judge = make_judge(train, held_out, say)
    classes = train.num_classes
    labels = np.arange(given.images, dtype=np.int32) % classes
    cond = bundle.condition.parse([asked[label] for label in labels.tolist()])
    shown: list[np.ndarray] = []
    scores: list[Scores] = []
    for method in methods:
        with Progress(given.images, f"scale {method.scale:g}") as progress:
            drawn = sample(
                bundle,
                cond,
                method,
                seed=given.seed,
                batch=given.batch,
                progress=progress,
                **helpers,
            )
        images = bundle.images(drawn)
        if judge is not None:
            scores.append(judge.score(to_uint8(images) / 127.5 - 1, labels))
            say(figures(f"scale {method.scale:g}", scores[-1]))
            shown.append(images[:classes])
    if judge is not None:
        about = settings(given, bundle, len(held_out) if held_out else 0)
        report = Report(given.scales, tuple(scores), judge.floor, about, judge.compares_with)
        write(folder, report, np.concatenate(shown), train.class_names)
        show(report, folder)
    processes.barrier("the scores are written")
    return 0


def show(report: Report, folder: Path) -> None:
    """Print the table, what it means, and where it is."""
    print(heading(report))
    print(table(report))
    print(legend(report))
    for line in summary(report):
        print(line)
    print(f"scores and pictures: {folder}/scores.json scores.png grid.png")


def datasets(folder: Path) -> tuple[data.Dataset, data.Dataset | None]:
    """Return the training images of a run and the held-out ones, if it has any.

    Raises:
      ValueError: they are gone.
    """
    resolved = config.from_resolved(workdir.read_config(folder))
    train = load_dataset(resolved, resolved.dataset.split)
    if not resolved.dataset.held_out:
        return train, None
    return train, load_dataset(resolved, resolved.dataset.held_out, train.class_names)


def make_judge(
    train: data.Dataset, held_out: data.Dataset | None, say: Callable[..., None] = print
) -> Judge:
    """Return a judge that learned from training images and measures to the held-out ones.

    Latents are decoded, as what a model draws is. What cannot be judged is refused here, before
    anything is sampled.

    Raises:
      ValueError: too few real images, or images that cannot be read.
    """

    def real(dataset: data.Dataset, name: str) -> tuple[np.ndarray, np.ndarray]:
        count = min(len(dataset), MOST)
        of = f" of {len(dataset):,}" if len(dataset) > count else ""
        say(f"reading {count:,}{of} {name} images")
        with Progress(count, name) as progress:
            return read_images(dataset, count, progress)

    learned_from = real(train, "training")
    compared_with = None if held_out is None else real(held_out, "held-out")
    if compared_with is None:
        say("no images were held out (config.dataset.held_out): comparing with the training images")
    say("learning to judge from the training images")
    judge = Judge(learned_from, compared_with)
    say(figures("real", judge.floor))
    return judge


def settings(given: argparse.Namespace, bundle: Bundle, held_out: int) -> dict[str, object]:
    """Return what moves the figures besides the scale."""
    return {
        "workdir": str(given.workdir),
        "training steps": bundle.step,
        "parameters": "averaged" if given.ema else "newest",
        "guidance": given.guidance,
        "reference": str(given.reference) if given.reference else None,
        "unconditional": given.unconditional,
        "classifier": str(given.classifier) if given.classifier else None,
        "classifier scale": method_of(given, 1.0).classifier_scale if given.classifier else None,
        "interval": list(given.interval) if given.interval else None,
        "solver": given.solver,
        "steps": given.steps,
        "grid": given.grid,
        "seed": given.seed,
        "held-out images": held_out,
    }


def write(folder: Path, report: Report, images: np.ndarray, class_names: tuple[str, ...]) -> None:
    """Write scores.json, scores.png and grid.png, each whole or not at all."""
    with replacing(folder / "scores.json") as temporary:
        temporary.write_text(to_json(report))
    save_figure(plot(report), folder / "scores.png")
    names = [f"{scale:g}" for scale in report.scales]
    title = "The same noise at each guidance scale"
    draw_grid(
        images,
        len(names),
        title,
        folder / "grid.png",
        columns=class_names,
        row_names=names,
        row_title="guidance scale w",
    )
