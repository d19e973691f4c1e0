"""CFG++: which branch gives the data and which the noise, and which samplers can do it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from mixture import PLANE

from guidedflow import guidance, paths, samplers, times
from guidedflow.types import evaluate

PATHS = [paths.Linear(), paths.VariancePreserving()]
every_path = pytest.mark.parametrize("path", PATHS, ids=lambda path: type(path).__name__)
LABEL = jnp.arange(6) % 3
NOISE = samplers.draw_noise(jax.random.key(0), (6, 2))


def plus_plus(path, scale=0.6):
    return guidance.plus_plus(PLANE.velocity(path), PLANE.null, scale)


@every_path
def test_one_ddim_step_takes_its_data_from_the_guided_and_its_noise_from_the_null_branch(path):
    t, s = 0.3, 0.5
    here = jnp.full(6, t)
    null = jnp.full(6, PLANE.null)
    strong, weak = PLANE.data(path)(NOISE, here, LABEL), PLANE.data(path)(NOISE, here, null)
    wanted = path.alpha(s) * (weak + 0.6 * (strong - weak)) + path.sigma(s) * PLANE.noise(path)(
        NOISE, here, null
    )
    grid = np.asarray([t, s], np.float32)
    out = samplers.sample_ddim(plus_plus(path), NOISE, grid, LABEL, path=path)
    np.testing.assert_allclose(out, wanted, rtol=1e-3, atol=1e-3)


@every_path
def test_one_step_is_classifier_free_guidance_with_a_scale_of_that_step(path):
    t, s = jnp.float32(0.3), jnp.float32(0.5)
    ratio = path.alpha(s) * path.sigma(t) / path.alpha(t)
    scale = 0.6 * ratio / (ratio - path.sigma(s))
    free = guidance.classifier_free(PLANE.velocity(path), PLANE.null, scale)
    grid = np.asarray([t, s])
    ours, theirs = (
        samplers.sample_ddim(model, NOISE, grid, LABEL, path=path)
        for model in (plus_plus(path), free)
    )
    np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-3)


def test_at_zero_it_is_the_null_model_under_every_sampler_that_renoises():
    path = PATHS[0]
    null = guidance.fixed(PLANE.velocity(path), PLANE.null)
    grid = times.uniform_grid(6, low=0.05)
    key = jax.random.key(1)
    for sample in (
        lambda m: samplers.sample_ddim(m, NOISE, grid, LABEL, path=path),
        lambda m: samplers.sample_ddpm(m, NOISE, grid, LABEL, path=path, key=key),
    ):
        np.testing.assert_allclose(sample(plus_plus(path, 0.0)), sample(null), 1e-3, 1e-3)


def test_at_one_the_data_is_conditional_and_the_noise_is_not():
    path, t = PATHS[0], jnp.full(6, 0.4)
    result, _ = evaluate(plus_plus(path, 1.0), (), NOISE, t, LABEL, t)
    conditional = PLANE.velocity(path)(NOISE, t, LABEL)
    np.testing.assert_allclose(result.velocity, conditional, rtol=1e-5, atol=1e-5)
    assert np.abs(result.renoise - conditional).max() > 0.1


def test_a_correction_keeps_the_branch_that_renoises():
    path, t = PATHS[0], jnp.full(6, 0.4)
    for model in (
        guidance.rescale(plus_plus(path)),
        guidance.dynamic_threshold(plus_plus(path), path, 0.8),
        guidance.guide_channels(plus_plus(path), 1),
    ):
        result, _ = evaluate(model, (), NOISE, t, LABEL, t)
        weak = PLANE.velocity(path)(NOISE, t, jnp.full(6, PLANE.null))
        np.testing.assert_allclose(result.renoise, weak, rtol=1e-5, atol=1e-5)
        assert np.abs(result.velocity - result.renoise).max() > 0.01


@pytest.mark.parametrize("wrap", [lambda m: m, guidance.rescale], ids=["bare", "inside"])
def test_samplers_that_do_not_renoise_refuse_it(wrap):
    path = PATHS[0]
    model = wrap(plus_plus(path))
    grid = times.uniform_grid(4)
    with pytest.raises(ValueError, match=r"heun .*ignores the renoise"):
        samplers.sample_ode(model, NOISE, grid, LABEL)
    with pytest.raises(ValueError, match="sample_ddim"):
        samplers.sample_sde(model, NOISE, grid, LABEL, path=path, key=jax.random.key(0))


def test_a_scale_beyond_one_is_refused():
    with pytest.raises(ValueError, match=r"scale must be a finite number in \[0, 1\]"):
        plus_plus(PATHS[0], 1.5)
    with pytest.raises(ValueError, match="scale"):
        plus_plus(PATHS[0], "0.6")
