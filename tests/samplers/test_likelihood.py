"""Likelihoods by the ODE against a mixture's exact density."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from mixture import PLANE

from guidedflow import paths, samplers, times

PATH = paths.Linear()
COUNT = 32


def setup(label):
    data, _ = PLANE.sample(jax.random.key(0), COUNT)
    cond = jnp.full((COUNT,), label)
    exact = PLANE.log_density(PATH)(data, jnp.ones((COUNT,)), cond)
    return data, cond, np.asarray(exact)


def test_exact_divergence_gives_the_mixtures_density():
    data, cond, exact = setup(PLANE.null)
    ts = times.uniform_grid(48)
    ours = samplers.log_likelihood(PLANE.velocity(PATH), data, ts, cond, path=PATH)
    np.testing.assert_allclose(ours.log_density, exact, atol=2e-3)


def test_hutchinson_is_unbiased():
    data, cond, exact = setup(PLANE.null)
    ours = samplers.log_likelihood(
        PLANE.velocity(PATH),
        data,
        times.uniform_grid(32),
        cond,
        path=PATH,
        probes=64,
        key=jax.random.key(1),
    )
    errors = np.asarray(ours.log_density) - exact
    assert errors.std() > 0
    assert abs(errors.mean()) < 5 * errors.std() / COUNT**0.5


def test_sampling_from_the_noise_returns_the_data():
    data, cond, _ = setup(PLANE.null)
    ts, model = times.uniform_grid(48), PLANE.velocity(PATH)
    ours = samplers.log_likelihood(model, data, ts, cond, path=PATH)
    back = samplers.sample_ode(model, ours.noise, ts, cond, step=samplers.rk4)
    np.testing.assert_allclose(back, data, atol=2e-3)


def test_probes_need_a_key():
    data, cond, _ = setup(PLANE.null)
    with pytest.raises(ValueError, match="pass key="):
        samplers.log_likelihood(
            PLANE.velocity(PATH), data, times.uniform_grid(4), cond, path=PATH, probes=1
        )
