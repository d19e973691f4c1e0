"""Evaluation of samples against real images, some of which the generator was not trained on."""

from guidedflow.evaluation.distances import (
    Gaussian,
    fit_gaussian,
    frechet,
    frechet_of,
    inception_score,
    nearest,
    precision_recall,
)
from guidedflow.evaluation.features import random_convolutions, read_images, smaller
from guidedflow.evaluation.judge import Judge, Scores
from guidedflow.evaluation.report import (
    Report,
    figures,
    heading,
    legend,
    plot,
    summary,
    table,
    to_json,
)

__all__ = [
    "Gaussian",
    "Judge",
    "Report",
    "Scores",
    "figures",
    "fit_gaussian",
    "frechet",
    "frechet_of",
    "heading",
    "inception_score",
    "legend",
    "nearest",
    "plot",
    "precision_recall",
    "random_convolutions",
    "read_images",
    "smaller",
    "summary",
    "table",
    "to_json",
]
