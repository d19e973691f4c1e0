"""Samplers: each is one `lax.scan` over a grid of times, compiled once."""

from guidedflow.samplers.adaptive import Adaptive, dopri5, sample_ode_adaptive, tsit5
from guidedflow.samplers.diffusion import largest, learned, sample_ddim, sample_ddpm, smallest
from guidedflow.samplers.edm import sample_edm
from guidedflow.samplers.exponential import (
    exact,
    published,
    sample_dpmpp,
    sample_dpmpp_singlestep,
)
from guidedflow.samplers.likelihood import Likelihood, log_likelihood
from guidedflow.samplers.multistep import adams_bashforth
from guidedflow.samplers.ode import euler, heun, midpoint, rk4, sample_ode
from guidedflow.samplers.recurrence import recurrent
from guidedflow.samplers.scan import draw_noise, start
from guidedflow.samplers.sde import (
    bump,
    constant,
    cosine,
    euler_maruyama,
    linear,
    mean,
    proportional,
    sample_sde,
    sbdm,
    stochastic_heun,
    tweedie,
)
from guidedflow.samplers.unipc import bh1, bh2, sample_unipc

__all__ = [
    "Adaptive",
    "Likelihood",
    "adams_bashforth",
    "bh1",
    "bh2",
    "bump",
    "constant",
    "cosine",
    "dopri5",
    "draw_noise",
    "euler",
    "euler_maruyama",
    "exact",
    "heun",
    "largest",
    "learned",
    "linear",
    "log_likelihood",
    "mean",
    "midpoint",
    "proportional",
    "published",
    "recurrent",
    "rk4",
    "sample_ddim",
    "sample_ddpm",
    "sample_dpmpp",
    "sample_dpmpp_singlestep",
    "sample_edm",
    "sample_ode",
    "sample_ode_adaptive",
    "sample_sde",
    "sample_unipc",
    "sbdm",
    "smallest",
    "start",
    "stochastic_heun",
    "tsit5",
    "tweedie",
]
