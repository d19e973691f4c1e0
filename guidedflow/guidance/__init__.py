"""Guidance methods: each takes a model function and returns a guided model function."""

from guidedflow.guidance.branches import concatenated, sequential, vmapped
from guidedflow.guidance.composition import compose, perpendicular
from guidedflow.guidance.corrections import (
    dynamic_threshold,
    guide_channels,
    rescale,
    zero_init,
    zero_star,
)
from guidedflow.guidance.extrapolation import Affine, classifier_free, extrapolate, fixed
from guidedflow.guidance.frequency import frequency_decoupled
from guidedflow.guidance.gradients import ancestral_classifier, classifier, loss_guidance
from guidedflow.guidance.perturbation import perturbed
from guidedflow.guidance.projections import (
    magnitude_aware,
    optimized_scale,
    projected,
    tangential,
)
from guidedflow.guidance.renoising import plus_plus
from guidedflow.guidance.reuse import reuse
from guidedflow.guidance.schedules import (
    cosine,
    interval,
    linear,
    power,
    sigma_interval,
    stepwise,
    window,
)
from guidedflow.guidance.spaces import in_space

__all__ = [
    "Affine",
    "ancestral_classifier",
    "classifier",
    "classifier_free",
    "compose",
    "concatenated",
    "cosine",
    "dynamic_threshold",
    "extrapolate",
    "fixed",
    "frequency_decoupled",
    "guide_channels",
    "in_space",
    "interval",
    "linear",
    "loss_guidance",
    "magnitude_aware",
    "optimized_scale",
    "perpendicular",
    "perturbed",
    "plus_plus",
    "power",
    "projected",
    "rescale",
    "reuse",
    "sequential",
    "sigma_interval",
    "stepwise",
    "tangential",
    "vmapped",
    "window",
    "zero_init",
    "zero_star",
]
