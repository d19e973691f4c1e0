"""DDIM and DDPM: what they are on paths where the answer is known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from mixture import GAUSSIAN, PLANE, Mixture

from guidedflow import paths, predictions, samplers
from guidedflow.samplers import sample_ddim, sample_ddpm, sample_ode

LINEAR, VP, DISCRETE = paths.Linear(), paths.VariancePreserving(), paths.DiscreteBeta()
KEY = jax.random.key(11)
N = 2000


def grid(steps):
    return np.linspace(0, 1, steps + 1, dtype=np.float32)


def noise(n=N):
    return samplers.draw_noise(jax.random.key(0), (n, 2))


def test_deterministic_ddim_on_the_linear_path_is_euler():
    model, labels = PLANE.velocity(LINEAR), jnp.asarray([0, 1, 2, 3, 0])
    got = sample_ddim(model, noise(5), grid(8), labels, path=LINEAR, trajectory=True)
    wanted = sample_ode(model, noise(5), grid(8), labels, step=samplers.euler, trajectory=True)
    np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("path", [LINEAR, VP, paths.EDM(20.0)], ids=lambda p: type(p).__name__)
def test_one_point_of_data_is_reached_exactly(path):
    """Where data is one point every estimate is right, and so is every grid."""
    target = jnp.asarray([2.0, -1.0])

    def network(x, t, cond):
        return jnp.broadcast_to(target, x.shape)

    model = predictions.as_velocity(network, path, predictions.data, margin=1e-4)
    start = noise(5) * path.sigma(jnp.zeros(()))
    ts = grid(8)
    for out in (
        sample_ddim(model, start, ts, path=path),
        sample_ddim(model, start, ts, path=path, eta=1.0, key=KEY),
        sample_ddpm(model, start, ts, path=path, key=KEY),
    ):
        np.testing.assert_allclose(out, np.tile(target, (5, 1)), atol=2e-2)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_ddim_of_every_eta_samples_the_law(eta):
    model, labels = PLANE.velocity(VP), jnp.full(N, PLANE.null)
    out = sample_ddim(model, noise(), grid(200), labels, path=VP, eta=eta, key=KEY)
    assert PLANE.distance(out) < PLANE.tolerance(N)


@pytest.mark.parametrize("variance", [samplers.smallest, samplers.largest])
def test_ancestral_sampling_gives_the_moments_of_a_gaussian(variance):
    model, labels = GAUSSIAN.velocity(DISCRETE), jnp.zeros(N, int)
    out = np.asarray(
        sample_ddpm(model, noise(), grid(250), labels, path=DISCRETE, key=KEY, variance=variance)
    )
    mean, variances = GAUSSIAN.moments()
    # The remaining tolerance is what 250 of 1,000 steps leave.
    np.testing.assert_allclose(out.mean(0), mean, atol=4 * np.sqrt(variances.max() / N) + 0.02)
    np.testing.assert_allclose(out.var(0), variances, rtol=4 * np.sqrt(2 / N) + 0.06)


def test_ancestral_with_the_largest_variance_keeps_standard_normal_data():
    """Where data is standard normal that variance is the exact one: any grid, even three steps."""
    normal = Mixture.of((0, 1.0, [0.0, 0.0], 1.0))
    ts = np.asarray([0.2, 0.4, 0.6, 0.8], np.float32)
    args = normal.velocity(VP), noise(), ts, jnp.zeros(N, int)
    out = sample_ddpm(*args, path=VP, key=KEY, variance=samplers.largest)
    assert normal.distance(out) < normal.tolerance(N)
    narrow = np.asarray(sample_ddpm(*args, path=VP, key=KEY))
    assert narrow.var() < 0.9


def test_ddim_at_eta_one_has_the_moments_of_ancestral_sampling():
    """x_s has one mean and one variance under both: compared with shared noise, draw for draw."""
    model, labels = PLANE.velocity(VP), jnp.zeros(5, int)
    ddim = sample_ddim(model, noise(5), grid(12), labels, path=VP, eta=1.0, key=KEY)
    ddpm = sample_ddpm(model, noise(5), grid(12), labels, path=VP, key=KEY)
    np.testing.assert_allclose(ddim, ddpm, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(("position", "same"), [(-1.0, "smallest"), (1.0, "largest")])
def test_learned_variance_reaches_from_the_smallest_to_the_largest(position, same):
    def network(x, t, cond):
        return jnp.concatenate([PLANE.noise(VP)(x, t, cond), jnp.full_like(x, position)], -1)

    model = predictions.as_velocity(network, VP, predictions.noise)
    args = (model, noise(5), np.linspace(0.1, 0.9, 5, dtype=np.float32), jnp.zeros(5, int))
    got = sample_ddpm(*args, path=VP, key=KEY, variance=samplers.learned)
    wanted = sample_ddpm(*args, path=VP, key=KEY, variance=getattr(samplers, same))
    np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-4)


def test_an_example_depends_on_its_own_key_alone():
    model, cond = PLANE.velocity(VP), jnp.asarray([0, 1, 2, 3, 0])
    keys = jax.vmap(lambda i: jax.random.fold_in(KEY, i))(jnp.arange(5))
    part = np.asarray([3, 1])
    whole = sample_ddpm(model, noise(5), grid(6), cond, key=KEY, path=VP)
    pair = sample_ddpm(model, noise(5)[part], grid(6), cond[part], key=keys[part], path=VP)
    np.testing.assert_allclose(pair, whole[part], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
def test_dtype_is_kept(dtype):
    start = noise(2).astype(dtype)
    for out in (
        jax.eval_shape(lambda x: sample_ddim(lambda x, t, c: -x, x, grid(3), path=VP), start),
        jax.eval_shape(
            lambda x: sample_ddpm(lambda x, t, c: -x, x, grid(3), path=VP, key=KEY), start
        ),
    ):
        assert out.dtype == dtype


def test_bad_input_is_refused():
    model, labels = PLANE.velocity(VP), jnp.zeros(5, int)
    for eta in (-0.1, 1.5, "1"):
        with pytest.raises(ValueError, match="eta must be"):
            sample_ddim(model, noise(5), grid(4), labels, path=VP, eta=eta, key=KEY)
    with pytest.raises(ValueError, match="pass key"):
        sample_ddim(model, noise(5), grid(4), labels, path=VP, eta=0.5)
    with pytest.raises(ValueError, match="learned variance needs a network"):
        sample_ddpm(model, noise(5), grid(4), labels, path=VP, key=KEY, variance=samplers.learned)
