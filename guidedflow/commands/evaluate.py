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

from guidedflow import sampling
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
from guidedflow.data import Dataset
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
from guidedflow.training import processes
from guidedflow.training.build import Task
from guidedflow.training.grids import draw_grid, to_uint8
from guidedflow.training.pictures import save_figure

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
    trained = sampling.load(given.workdir, ema=given.ema, say=say)
    helpers = helpers_of(given, trained, say)
    folder = given.out or given.workdir / "evaluation"
    judge = None
    if processes.is_lead():
        folder.mkdir(parents=True, exist_ok=True)
        check_writable(folder / "scores.json")
        judge = make_judge(trained.task, say)
    labels = np.arange(given.images, dtype=np.int32) % trained.task.dataset.num_classes
    shown: list[np.ndarray] = []
    scores: list[Scores] = []
    for method in methods:
        with Progress(given.images, f"scale {method.scale:g}") as progress:
            images = sampling.sample(
                trained,
                labels,
                method,
                seed=given.seed,
                batch=given.batch,
                progress=progress,
                **helpers,
            )
        images = trained.task.dataset.pictures(images)
        if judge is not None:
            scores.append(judge.score(to_uint8(images) / 127.5 - 1, labels))
            say(figures(f"scale {method.scale:g}", scores[-1]))
            shown.append(images[: trained.task.dataset.num_classes])
    if judge is not None:
        report = Report(
            given.scales,
            tuple(scores),
            judge.floor,
            settings(given, trained),
            judge.compares_with,
        )
        write(folder, report, np.concatenate(shown), trained.task)
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


def make_judge(task: Task, say: Callable[..., None] = print) -> Judge:
    """Return a judge that learned from the run's training images and measures to the held-out ones.

    Of a run on latents these are decoded, as what it draws is. What cannot be judged is refused here,
    before anything is sampled.

    Raises:
      ValueError: too few real images, or images that cannot be read.
    """

    def real(dataset: Dataset, name: str) -> tuple[np.ndarray, np.ndarray]:
        count = min(len(dataset), MOST)
        of = f" of {len(dataset):,}" if len(dataset) > count else ""
        say(f"reading {count:,}{of} {name} images")
        with Progress(count, name) as progress:
            return read_images(dataset, count, progress)

    train = real(task.dataset, "training")
    held_out = None if task.held_out is None else real(task.held_out, "held-out")
    if held_out is None:
        say("no images were held out (config.dataset.held_out): comparing with the training images")
    say("learning to judge from the training images")
    judge = Judge(train, held_out)
    say(figures("real", judge.floor))
    return judge


def settings(given: argparse.Namespace, trained: sampling.Trained) -> dict[str, object]:
    """Return what moves the figures besides the scale."""
    held_out = trained.task.held_out
    return {
        "workdir": str(given.workdir),
        "training steps": trained.step,
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
        "held-out images": held_out.length if held_out else 0,
    }


def write(folder: Path, report: Report, images: np.ndarray, task: Task) -> None:
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
        columns=task.dataset.class_names,
        row_names=names,
        row_title="guidance scale w",
    )
