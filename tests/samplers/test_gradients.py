"""Gradients through samplers, from pure noise to clean data, against central differences."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from guidedflow import guidance, paths, predictions, samplers

KEY = jax.random.key(0)
ZERO_SNR = paths.DiscreteBeta(paths.zero_snr(paths.scaled_linear_betas), 40)
TIMES = [0.0, 0.2, 0.45, 0.7, 0.85, 1.0]


# Solvers with weights or coefficients of their own, where alpha or sigma is 0 or a slope infinite.
CASES = {
    "unipc": (samplers.sample_unipc, paths.Linear()),
    "dpmpp": (
        functools.partial(samplers.sample_dpmpp, eta=1.0, key=KEY),
        paths.VariancePreserving(),
    ),
    "dpmpp single-step": (samplers.sample_dpmpp_singlestep, paths.Trigonometric()),
    "edm": (samplers.sample_edm, paths.EDM(10.0, 3.0)),
    "ddpm": (functools.partial(samplers.sample_ddpm, key=KEY), ZERO_SNR),
}


def network(params, x, t, cond):
    return jnp.tanh(x @ params["matrix"] + params["label"][cond] + 0.3 * t[:, None])


@pytest.mark.parametrize("name", CASES)
def test_gradients_equal_central_differences(name):
    """By scale, noise and parameters along one direction; the grid is not known while tracing."""
    sample, path = CASES[name]
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        params = {
            "matrix": jnp.asarray(0.5 * rng.normal(size=(2, 2))),
            "label": jnp.asarray(rng.normal(size=(3, 2))),
        }
        point = (jnp.float64(2), jnp.asarray(rng.normal(size=(3, 2))), params)
        way = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape)), point)
        # A scale is float32: moved by a power of 2 it is moved exactly.
        way, size = (jnp.float64(1), *way[1:]), 2.0**-16

        @jax.jit
        @jax.value_and_grad
        def total(point, ts):
            scale, noise, params = point
            model = predictions.as_velocity(
                jax.tree_util.Partial(network, params), path, predictions.data
            )
            guided = guidance.classifier_free(model, 2, scale)
            start = samplers.start(path, noise, ts)
            out = sample(guided, start, ts, jnp.asarray([0, 1, 0]), path=path)
            return jnp.sum(out * jnp.asarray([[1.0, 2.0]] * 3))

        ts = jnp.asarray(TIMES)
        right, left = (
            total(jax.tree.map(lambda a, b, s=sign: a + s * size * b, point, way), ts)[0]
            for sign in (1, -1)
        )
        slope = jax.tree.map(jnp.vdot, total(point, ts)[1], way)
        # The difference's own error is of order size^2 = 2e-10; velocities in float32 weigh more.
        wanted = float(right - left) / (2 * size)
        assert sum(map(float, jax.tree.leaves(slope))) == pytest.approx(wanted, rel=1e-4, abs=1e-4)
