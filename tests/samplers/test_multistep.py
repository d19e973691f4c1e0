"""Multistep samplers: convergence orders on a Gaussian's exact transport, and their ends."""

import copy
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from mixture import GAUSSIAN, PLANE

from guidedflow import paths, samplers, times

AB = {
    f"adams_bashforth_{k}": functools.partial(
        lambda order, model, x, ts, cond, path: samplers.sample_ode(
            model, x, ts, cond, step=samplers.adams_bashforth(order)
        ),
        k,
    )
    for k in (2, 3, 4)
}
SOLVERS = {
    "dpmpp_1": (functools.partial(samplers.sample_dpmpp, order=1), 1),
    "dpmpp_2m": (samplers.sample_dpmpp, 2),
    "dpmpp_2m_exact": (functools.partial(samplers.sample_dpmpp, moments=samplers.exact), 2),
    "dpmpp_3m_published": (functools.partial(samplers.sample_dpmpp, order=3), 2),
    "dpmpp_3m_exact": (
        functools.partial(samplers.sample_dpmpp, order=3, moments=samplers.exact),
        3,
    ),
    "dpmpp_2s": (samplers.sample_dpmpp_singlestep, 2),
    "unipc_2_bh1": (
        functools.partial(samplers.sample_unipc, rate=samplers.bh1, lower_order_final=False),
        3,
    ),
    "unipc_2_bh2": (functools.partial(samplers.sample_unipc, lower_order_final=False), 3),
    "edm": (samplers.sample_edm, 2),
    "adams_bashforth_2": (AB["adams_bashforth_2"], 2),
    "adams_bashforth_3": (AB["adams_bashforth_3"], 3),
    "adams_bashforth_4": (AB["adams_bashforth_4"], 4),
}


def uneven(steps, low=0.1, high=0.9):
    """A grid of uneven steps, the first small: a start of order 1 then weighs h^4."""
    u = np.linspace(0, 1, steps + 1)
    return low + (high - low) * (0.7 * u**2 + 0.3 * u**3)


def own_gaussian():
    """A copy: JAX keeps an array that it compiled in as float32 for later float64 programs too."""
    return copy.deepcopy(GAUSSIAN)


def errors(sampler, path, steps):
    with jax.enable_x64(True):
        x = jnp.asarray(np.random.default_rng(0).normal(size=(4, 2)))
        cond = jnp.zeros((4,), jnp.int32)
        gaussian = own_gaussian()
        target = gaussian.transport(path, x, jnp.float64(0.1), jnp.float64(0.9))
        model = gaussian.velocity(path)
        ends = [sampler(model, x, jnp.asarray(uneven(n)), cond, path=path) for n in steps]
        return [float(jnp.abs(end - target).max()) for end in ends]


@pytest.mark.parametrize("name", list(SOLVERS))
def test_solver_converges_at_its_order(name):
    sampler, order = SOLVERS[name]
    coarse, fine = errors(sampler, paths.Linear(), (64, 128))
    assert np.log2(coarse / fine) == pytest.approx(order, abs=0.35)


def sample(sampler, path, ts, **settings):
    noise = samplers.draw_noise(jax.random.key(0), (4, 2))
    cond = jnp.full((4,), PLANE.null)
    return sampler(PLANE.velocity(path), noise, ts, cond, path=path, **settings)


@pytest.mark.parametrize("sampler", [samplers.sample_dpmpp, samplers.sample_dpmpp_singlestep])
def test_one_step_is_ddim(sampler):
    path, ts = paths.VariancePreserving(), np.float32([0.2, 0.6])
    ours, ddim = sample(sampler, path, ts), sample(samplers.sample_ddim, path, ts)
    np.testing.assert_allclose(ours, ddim, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("path", [paths.Linear(), paths.DiscreteBeta(), paths.EDM(10.0, 3.0)])
@pytest.mark.parametrize(
    "sampler",
    [
        functools.partial(samplers.sample_dpmpp, order=3),
        samplers.sample_dpmpp_singlestep,
        functools.partial(samplers.sample_unipc, order=3),
        samplers.sample_edm,
    ],
    ids=["dpmpp", "singlestep", "unipc", "edm"],
)
def test_the_last_step_to_clean_data_is_finite(sampler, path):
    assert np.isfinite(sample(sampler, path, times.uniform_grid(20))).all()


def test_order_one_with_full_noise_is_ddim_with_its_noise():
    path, ts, key = paths.Trigonometric(), times.uniform_grid(8), jax.random.key(3)
    sde = sample(samplers.sample_dpmpp, path, ts, order=1, eta=1.0, key=key)
    ddim = sample(samplers.sample_ddim, path, ts, eta=1.0, key=key)
    # DDIM takes its own noise's share as 1 minus a square, which cancels in float32.
    np.testing.assert_allclose(sde, ddim, atol=1e-3)


def test_the_sde_transports_the_mixture():
    path, count = paths.VariancePreserving(), 4000
    key = jax.random.key(1)
    noise = samplers.draw_noise(key, (count, 2))
    ts = times.log_snr_grid(60, path)
    cond = jnp.full((count,), PLANE.null)
    x = samplers.sample_dpmpp(PLANE.velocity(path), noise, ts, cond, path=path, eta=1.0, key=key)
    assert PLANE.distance(x) < PLANE.tolerance(count) + 0.01


@pytest.mark.parametrize("order", [0, 4, True, "2"])
@pytest.mark.parametrize("sampler", [samplers.sample_dpmpp, samplers.sample_unipc])
def test_orders_that_do_not_exist_are_refused(sampler, order):
    with pytest.raises(ValueError, match="order must be 1, 2 or 3"):
        sample(sampler, paths.Linear(), times.uniform_grid(4), order=order)


def test_noise_without_a_key_is_refused():
    with pytest.raises(ValueError, match="pass key="):
        sample(samplers.sample_dpmpp, paths.Linear(), times.uniform_grid(4), eta=1.0)
    with pytest.raises(ValueError, match="pass key="):
        sample(samplers.sample_edm, paths.Linear(), times.uniform_grid(4), churn=1.0)


def test_adams_bashforth_has_orders_to_four():
    with pytest.raises(ValueError, match="order 1, 2, 3 or 4"):
        samplers.adams_bashforth(5)


def test_churned_edm_transports_the_mixture():
    path, count, key = paths.EDM(10.0, 5.0), 4000, jax.random.key(2)
    noise = 10.0 * samplers.draw_noise(key, (count, 2))
    cond = jnp.full((count,), PLANE.null)
    x = samplers.sample_edm(
        PLANE.velocity(path), noise, times.uniform_grid(40), cond, path=path, churn=10.0, key=key
    )
    # sigma(0) = 10 leaves the data's own mean and variance of about 1 in 100 out of the start.
    assert PLANE.distance(x) < PLANE.tolerance(count) + 0.02


def test_no_churn_outside_its_range_is_no_churn():
    path, ts, key = paths.EDM(10.0, 5.0), times.uniform_grid(8), jax.random.key(3)
    plain = sample(samplers.sample_edm, path, ts)
    out = sample(
        samplers.sample_edm, path, ts, churn=5.0, churn_low=100.0, churn_high=200.0, key=key
    )
    np.testing.assert_allclose(out, plain, rtol=1e-5, atol=1e-6)


SPACINGS = [times.leading_grid, times.trailing_grid, times.linspace_grid]


@pytest.mark.parametrize("grid", SPACINGS)
def test_discrete_spacings_are_table_steps(grid):
    path = paths.DiscreteBeta()
    ts = grid(7, path)
    index = path.index(ts[:-1].astype(np.float64))
    assert len(ts) == 8
    assert ts[-1] == 1
    np.testing.assert_allclose(index, np.round(index), atol=1e-3)


@pytest.mark.parametrize("grid", SPACINGS)
@pytest.mark.parametrize("steps", [0, 1001, 2.5])
def test_discrete_spacings_refuse_what_the_table_has_not(grid, steps):
    with pytest.raises(ValueError, match="steps must be"):
        grid(steps, paths.DiscreteBeta())


@pytest.mark.parametrize("grid", SPACINGS)
def test_discrete_spacings_need_a_table(grid):
    with pytest.raises(ValueError, match="DiscreteBeta"):
        grid(4, paths.Linear())
