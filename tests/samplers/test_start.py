"""Where samplers begin: the noise at the first time, and grids given as numbers."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from mixture import GAUSSIAN

from guidedflow import paths, predictions, samplers, times

NOISE = samplers.draw_noise(jax.random.key(0), (5, 2))
LABELS = jnp.zeros(5, int)
ZERO_SNR = paths.DiscreteBeta(paths.zero_snr(paths.scaled_linear_betas))


def test_noise_has_the_deviation_of_the_grids_first_time():
    """EDM with sigma_max = 200 on a grid that begins where sigma is 80 begins with 80."""
    path = paths.EDM(200.0)
    grid = times.karras_grid(8, path, sigma_max=80.0)
    np.testing.assert_allclose(samplers.start(path, NOISE, grid), 80 * NOISE, rtol=1e-4)
    whole = samplers.start(path, NOISE.astype(jnp.bfloat16), [0.0, 1.0])
    assert whole.dtype == jnp.bfloat16
    np.testing.assert_allclose(whole, 200 * NOISE.astype(jnp.bfloat16), rtol=1e-2)
    with pytest.raises(ValueError, match="ts must be a 1-d grid"):
        samplers.start(path, NOISE, np.zeros((2, 2)))
    with pytest.raises(ValueError, match="noise must be floating"):
        samplers.start(path, jnp.ones((2, 2), int), grid)


@pytest.mark.parametrize(
    "sample",
    [
        samplers.sample_ode,
        functools.partial(samplers.sample_ddim, path=paths.Linear()),
        functools.partial(samplers.sample_ddpm, path=paths.Linear(), key=jax.random.key(0)),
        functools.partial(samplers.sample_sde, path=paths.Linear(), key=jax.random.key(0)),
        functools.partial(samplers.sample_unipc, path=paths.Linear()),
        functools.partial(samplers.sample_dpmpp, path=paths.Linear()),
        functools.partial(samplers.sample_dpmpp_singlestep, path=paths.Linear()),
        functools.partial(samplers.sample_edm, path=paths.Linear()),
        functools.partial(samplers.log_likelihood, path=paths.Linear()),
    ],
    ids=["ode", "ddim", "ddpm", "sde", "unipc", "dpmpp", "singlestep", "edm", "likelihood"],
)
def test_a_grid_may_be_a_list_or_a_tuple_of_numbers(sample):
    def traced(ts):
        return str(jax.make_jaxpr(lambda noise: sample(lambda x, t, c: -x, noise, ts))(NOISE))

    ts = [0, 0.25, 0.5, 1]
    wanted = traced(np.asarray(ts, np.float32))
    assert traced(ts) == traced(tuple(ts)) == wanted
    for wrong in (["a", "b"], [0.5, [0.6, 0.7]], [0.5], [0.5, 0.2], "0.1", 0.5, None):
        with pytest.raises(ValueError, match=r"ts must be|must increase"):
            traced(wrong)


def test_a_list_may_hold_numbers_that_are_not_known_while_tracing():
    def end(middle):
        return samplers.sample_ode(lambda x, t, c: -x, NOISE, [0.0, middle, 1.0])

    np.testing.assert_allclose(jax.jit(end)(0.4), end(0.4), rtol=1e-6)


@pytest.mark.parametrize(("kind", "grids"), [("v", (50, 100)), ("data", (100,))])
def test_pure_noise_at_zero_snr_becomes_the_gaussian(kind, grids):
    """Noise becomes mean + deviation * noise: exactly where it is 0, else at first order."""
    network = getattr(GAUSSIAN, kind)(ZERO_SNR)
    model = predictions.as_velocity(network, ZERO_SNR, getattr(predictions, kind), margin=1e-6)
    mean, deviation = GAUSSIAN.means, GAUSSIAN.deviations
    noise = NOISE.at[0].set(0)
    errors = []
    for steps in grids:
        ts = times.trailing_grid(steps, ZERO_SNR)
        assert float(ZERO_SNR.alpha(jnp.asarray(ts[0]))) == 0
        end = np.asarray(samplers.sample_ddim(model, noise, ts, LABELS, path=ZERO_SNR))
        np.testing.assert_allclose(end[0], mean[0], atol=1e-4)
        errors.append(np.abs(end - (mean + deviation * np.asarray(noise))).max())
    assert errors[-1] < 0.1
    if len(errors) == 2:
        assert errors[0] / errors[1] == pytest.approx(2, abs=0.35)


def test_a_table_that_keeps_some_data_misses_the_mean():
    """What zero terminal SNR is for: noise of mean 0 is taken for data of mean 0."""
    path = paths.DiscreteBeta(paths.scaled_linear_betas)
    model = predictions.as_velocity(GAUSSIAN.v(path), path, predictions.v, margin=1e-6)
    grid = times.trailing_grid(10, path)
    end = samplers.sample_ddim(model, 0 * NOISE, grid, LABELS, path=path)
    assert np.abs(np.asarray(end) - GAUSSIAN.means).max() > 0.01
