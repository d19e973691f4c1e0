"""Guidance: functions from a model function to a model function."""

from guidedflow.guidance.branches import concatenated, sequential, vmapped
from guidedflow.guidance.extrapolation import Affine, classifier_free, extrapolate, fixed
from guidedflow.guidance.gradients import classifier
from guidedflow.guidance.schedules import cosine, interval, linear, sigma_interval

__all__ = [
    "Affine",
    "classifier",
    "classifier_free",
    "concatenated",
    "cosine",
    "extrapolate",
    "fixed",
    "interval",
    "linear",
    "sequential",
    "sigma_interval",
    "vmapped",
]
