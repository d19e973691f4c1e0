"""Networks of other conventions are the same model: each is built from the exact one, and undone."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from mixture import PLANE

from guidedflow import adapters, paths, predictions, samplers
from guidedflow.samplers import scan

LINEAR, TABLE, EDM = paths.Linear(), paths.DiscreteBeta(), paths.EDM()
T = np.asarray([0.1, 0.35, 0.6, 0.9], np.float32)
LABELS = np.arange(4)
X = np.random.default_rng(0).normal(size=(4, 2)).astype(np.float32)


def velocities(model, path):
    return jax.jit(lambda x: (model(x, T, LABELS), PLANE.velocity(path)(x, T, LABELS)))(X)


@pytest.mark.parametrize("speed", [1, 1000])
def test_a_velocity_over_time_that_runs_back_points_back(speed):
    """SiT, MeanFlow and Stable Diffusion 3: noise - data, at the time or a thousand times that."""

    def network(x, s, cond):
        return -PLANE.velocity(LINEAR)(x, 1 - s / speed, cond)

    model = adapters.as_model_fn(
        network, LINEAR, predictions.velocity, time=lambda t: speed * (1 - t)
    )
    np.testing.assert_allclose(*velocities(model, LINEAR), rtol=1e-4, atol=1e-4)


def test_a_velocity_over_time_that_runs_on_is_left_alone():
    def network(x, s, cond):
        return PLANE.velocity(LINEAR)(x, s / 1000, cond)

    model = adapters.as_model_fn(network, LINEAR, predictions.velocity, time=lambda t: 1000 * t)
    np.testing.assert_allclose(*velocities(model, LINEAR), rtol=1e-4, atol=1e-4)
    same = adapters.as_model_fn(PLANE.velocity(LINEAR), LINEAR, predictions.velocity)
    np.testing.assert_array_equal(*velocities(same, LINEAR))


@pytest.mark.parametrize("kind", ["noise", "data", "score", "v"])
def test_other_predictions_over_time_that_runs_back(kind):
    path = paths.VariancePreserving()

    def network(x, s, cond):
        return getattr(PLANE, kind)(path)(x, 1 - s, cond)

    model = adapters.as_model_fn(network, path, getattr(predictions, kind), time=adapters.backward)
    np.testing.assert_allclose(*velocities(model, path), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
def test_a_table_is_read_at_its_own_steps(spacing):
    """Every grid of a table names whole steps, as the float32 times of it do not quite."""
    from guidedflow import times

    ts = getattr(times, f"{spacing}_grid")(50, TABLE)[:-1]
    seen = []

    def network(x, k, cond):
        seen.append(k.dtype)
        return jnp.broadcast_to(k[:, None], x.shape).astype(x.dtype)

    model = adapters.as_model_fn(network, TABLE, predictions.noise, index=TABLE.index)
    told = jax.jit(model.network)(jnp.zeros((50, 2)), jnp.asarray(ts), None)[:, 0]
    steps = 1000 * (1 - ts.astype(np.float64)) - 1
    np.testing.assert_array_equal(told, np.round(steps))
    np.testing.assert_allclose(told, steps, atol=1e-3)
    assert seen == [jnp.int32]
    # Clean data stands beyond the table; the network is told of its last step.
    assert float(model.network(jnp.zeros((1, 2)), jnp.ones(1), None)[0, 0]) == 0


def exact_karras(path, deviation):
    """F that makes D = c_skip y + c_out F the exact denoiser, by Karras et al. 2022, table 1."""

    def network(scaled, c_noise, cond):
        r = jnp.exp(4 * c_noise)[:, None]
        y = scaled * jnp.sqrt(r**2 + deviation**2)
        t = 1 - (r[:, 0] / path.sigma_max) ** (1 / path.rho)
        data = PLANE.data(path)(y, t, cond)
        skip = deviation**2 / (r**2 + deviation**2)
        return (data - skip * y) * jnp.sqrt(r**2 + deviation**2) / (r * deviation)

    return network


def test_karras_preconditioning_makes_the_denoiser():
    path = paths.EDM(5.0, 3.0)
    model = adapters.as_model_fn(
        exact_karras(path, 0.7), path, predictions.data, precondition=adapters.karras(0.7)
    )
    got, wanted = velocities(model, path)
    np.testing.assert_allclose(got, wanted, rtol=2e-3, atol=2e-3 * np.abs(wanted).max())


@pytest.mark.parametrize("path", [LINEAR, TABLE, EDM], ids=lambda path: type(path).__name__)
def test_karras_preconditioning_keeps_unit_variance_and_is_finite(path):
    """The input, and the target of F, have variance 1 where that of the data is d^2."""
    wrap = adapters.karras(0.5)
    t = jnp.asarray([0.0, 0.2, 0.7, 1.0])
    skip, out, into, time = jax.jit(jax.vmap(lambda s: wrap(path, s)))(t)
    assert np.all(np.isfinite(np.stack([skip, out, into, time])))
    alpha, sigma = (np.asarray(jax.vmap(f)(t)) for f in (path.alpha, path.sigma))
    np.testing.assert_allclose(into**2 * ((0.5 * alpha) ** 2 + sigma**2), 1, rtol=1e-5)
    # data - skip x = (1 - skip alpha) data - skip sigma noise
    left = ((1 - skip * alpha) * 0.5) ** 2 + (skip * sigma) ** 2
    np.testing.assert_allclose(left, out**2, rtol=1e-3, atol=1e-7)


def test_a_learned_variance_passes_by_every_scaling():
    def network(x, s, cond):
        return jnp.concatenate([x, x + 7], -1)

    x, t = jnp.ones((2, 3)), jnp.full(2, 0.5)
    for options in (
        {"predicts": predictions.velocity, "time": adapters.backward},
        {"predicts": predictions.data, "precondition": adapters.karras()},
    ):
        model = adapters.as_model_fn(network, EDM, **options)
        evaluation, _ = model.evaluate((), x, t, None, t)
        given = model.network._scaling(t).into
        given = x if given is None else given[:, None] * x
        np.testing.assert_allclose(evaluation.variance, given + 7)


def apply(parameters, x, s, cond):
    return parameters["scale"] * x + parameters["shift"]


def test_other_parameters_do_not_compile_again():
    before = scan._run._cache_size()
    outs = []
    for scale in (0.1, 0.2):
        parameters = {"scale": jnp.float32(scale), "shift": jnp.zeros((1, 2))}
        network = jax.tree_util.Partial(apply, parameters)
        model = adapters.as_model_fn(network, EDM, predictions.data, precondition=adapters.karras())
        outs.append(samplers.sample_ddim(model, X, np.linspace(0, 1, 4), path=EDM))
    assert scan._run._cache_size() == before + 1
    assert not np.allclose(*outs)


def test_bad_input_is_refused():
    build = functools.partial(adapters.as_model_fn, apply, LINEAR, predictions.data)
    with pytest.raises(ValueError, match="one of time, index and precondition, got time and index"):
        build(time=adapters.backward, index=TABLE.index)
    with pytest.raises(ValueError, match="time must be a function, got 'backward'"):
        build(time="backward")
    with pytest.raises(ValueError, match=r"an object, karras\(\), got the class"):
        build(precondition=adapters.karras)
    with pytest.raises(ValueError, match="predicts must be a function, got 'noise'"):
        adapters.as_model_fn(apply, LINEAR, "noise")
    with pytest.raises(ValueError, match="path must have alpha"):
        adapters.as_model_fn(apply, "linear", predictions.noise)
    with pytest.raises(ValueError, match="makes a prediction of data"):
        adapters.as_model_fn(apply, EDM, predictions.noise, precondition=adapters.karras())
    with pytest.raises(ValueError, match="sigma_data must be"):
        adapters.karras(0.0)
    with pytest.raises(ValueError, match="time must keep t's shape"):
        build(time=lambda t: t[0])(X, jnp.asarray(T), None)
