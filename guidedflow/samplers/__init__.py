"""Samplers: each one `lax.scan` over a grid of times, compiled once."""

from guidedflow.samplers.diffusion import largest, learned, sample_ddim, sample_ddpm, smallest
from guidedflow.samplers.ode import euler, heun, midpoint, rk4, sample_ode
from guidedflow.samplers.recurrence import recurrent
from guidedflow.samplers.scan import draw_noise
from guidedflow.samplers.sde import constant, mean, proportional, sample_sde, tweedie

__all__ = [
    "constant",
    "draw_noise",
    "euler",
    "heun",
    "largest",
    "learned",
    "mean",
    "midpoint",
    "proportional",
    "recurrent",
    "rk4",
    "sample_ddim",
    "sample_ddpm",
    "sample_ode",
    "sample_sde",
    "smallest",
    "tweedie",
]
