"""Every diffusion coefficient keeps the ODE's marginals; stochastic Heun's weak order."""

import copy
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from mixture import GAUSSIAN, PLANE

from guidedflow import paths, samplers, times
from guidedflow.samplers.scan import Step
from guidedflow.types import Evaluation

PATH = paths.VariancePreserving(0.1, 10.0)
DIFFUSIONS = [
    samplers.constant(0.8),
    samplers.proportional(1.0),
    samplers.linear(1.0),
    samplers.sbdm(1.0),
    samplers.cosine(1.0),
    samplers.bump(1.0),
]


@pytest.mark.parametrize("diffusion", DIFFUSIONS, ids=lambda d: type(d).__name__)
@pytest.mark.parametrize("time", [0.5, 0.95])
def test_every_sde_has_the_odes_marginals(diffusion, time):
    count, key = 4000, jax.random.key(0)
    # From the law at 0.05 exactly: no error but the solver's and the sample's is left.
    begin = PLANE.sample_at(jax.random.key(1), count, PATH, 0.05)
    x = samplers.sample_sde(
        PLANE.velocity(PATH),
        begin,
        times.uniform_grid(80, 0.05, time),
        jnp.full((count,), PLANE.null),
        key=key,
        path=PATH,
        diffusion=diffusion,
        step=samplers.stochastic_heun,
        last=None,
    )
    assert PLANE.distance(x, path=PATH, t=time) < PLANE.tolerance(count) + 0.01


def test_sbdm_on_a_variance_preserving_path_is_beta():
    t = jnp.asarray(0.3)
    beta = 0.1 + (1 - 0.3) * (10.0 - 0.1)
    np.testing.assert_allclose(samplers.sbdm(1.0)(PATH, t) ** 2, beta, rtol=1e-4)


def test_stochastic_heun_without_noise_is_heun():
    x, ts = samplers.draw_noise(jax.random.key(0), (4, 2)), times.uniform_grid(6, 0.1, 0.9)
    cond, model = jnp.zeros((4,), jnp.int32), GAUSSIAN.velocity(PATH)
    ours = samplers.sample_sde(
        model,
        x,
        ts,
        cond,
        key=jax.random.key(1),
        path=PATH,
        diffusion=samplers.constant(0.0),
        step=samplers.stochastic_heun,
        last=None,
    )
    np.testing.assert_allclose(ours, samplers.sample_ode(model, x, ts, cond), rtol=1e-6)


def moments(solver, steps):
    """The variance that `steps` steps give a Gaussian, from its response to unit draws.

    The scheme is linear on Gaussian data, x_s = c + A x_t + B z in every coordinate, so A and B are
    read off by three runs of one step and the variance follows without sampling.
    """
    path, g = paths.EDM(5.0, 2.0), samplers.constant(1.5)
    # A copy: JAX keeps an array that it compiled in as float32 for later float64 programs too.
    model = copy.deepcopy(GAUSSIAN).velocity(path)
    ts = np.linspace(0.3, 0.6, steps + 1)
    variance = path.sigma(ts[0]) ** 2 + np.asarray(GAUSSIAN.deviations[0]) ** 2
    for t, s in itertools.pairwise(ts):
        step = solver(path, g)

        def at(x, z, t=t, s=s, step=step):
            def field(x, t):
                return Evaluation.plain(model(x, jnp.full((1,), t), jnp.zeros((1,), jnp.int32)))

            t, s = jnp.float64(t), jnp.float64(s)
            return step(Step(x, t, s, field(x, t), field, lambda _: z, ()))[0][0]

        zero, one = jnp.zeros((1, 2)), jnp.ones((1, 2))
        base = at(zero, zero)
        variance = (at(one, zero) - base) ** 2 * variance + (at(zero, one) - base) ** 2
    exact = path.sigma(ts[-1]) ** 2 + np.asarray(GAUSSIAN.deviations[0]) ** 2
    return float(np.abs(np.asarray(variance - exact)).max())


@pytest.mark.parametrize(
    ("solver", "order"), [(samplers.euler_maruyama, 1), (samplers.stochastic_heun, 2)]
)
def test_weak_order(solver, order):
    with jax.enable_x64(True):
        coarse, fine = moments(solver, 16), moments(solver, 32)
    assert np.log2(coarse / fine) == pytest.approx(order, abs=0.3)
