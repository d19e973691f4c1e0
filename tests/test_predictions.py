"""Predictions: every pair on every path, against the mixture's exact quantities."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from mixture import PLANE

from guidedflow import paths, predictions
from guidedflow.types import evaluate

EVERY = [
    paths.Linear(),
    paths.Trigonometric(),
    paths.VariancePreserving(),
    paths.DiscreteBeta(),
    paths.VarianceExploding(0.1, 5.0),
    paths.EDM(5.0, 3.0),
]
every_path = pytest.mark.parametrize("path", EVERY, ids=lambda p: type(p).__name__)
KINDS = ["velocity", "score", "noise", "data", "v"]
COUNT = 16


@functools.cache
def exact(path):
    """States, times, labels, and the mixture's five quantities there."""
    t = np.linspace(0.05, 0.9, COUNT, dtype=np.float32)
    x = np.random.default_rng(0).normal(size=(COUNT, 2)).astype(np.float32)
    label = np.arange(COUNT) % 4

    @jax.jit
    def all_of(x, t, label):
        return [getattr(PLANE, kind)(path)(x, t, label) for kind in KINDS]

    return x, t, label, dict(zip(KINDS, map(np.asarray, all_of(x, t, label)), strict=True))


@functools.cache
def converted(path):
    """Every conversion of every quantity, and back again, in one compiled program."""
    x, t, _, values = exact(path)

    @jax.jit
    def all_pairs(values):
        there, back = {}, {}
        for src in KINDS:
            for dst in KINDS:
                a, b = getattr(predictions, src), getattr(predictions, dst)
                there[src, dst] = predictions.convert_batch(path, values[src], x, t, a, b)
                back[src, dst] = predictions.convert_batch(path, there[src, dst], x, t, b, a)
        return there, back

    return all_pairs(values)


@every_path
def test_every_conversion_gives_the_exact_quantity(path):
    values = exact(path)[3]
    for (_, dst), got in converted(path)[0].items():
        wanted = values[dst]
        np.testing.assert_allclose(got, wanted, rtol=2e-3, atol=2e-3 * np.abs(wanted).max())


@every_path
def test_every_conversion_undoes_itself(path):
    values = exact(path)[3]
    for (src, dst), got in converted(path)[1].items():
        wanted = values[src]
        np.testing.assert_allclose(got, wanted, rtol=2e-3, atol=2e-3 * np.abs(wanted).max())
        if src == dst:
            np.testing.assert_array_equal(got, wanted)


@every_path
def test_every_prediction_solves_for_the_pair_that_made_it(path):
    """prediction = a data + b noise at one pair reads back as that pair."""
    data, noise, t = jnp.asarray([1.0, -2.0]), jnp.asarray([0.5, 3.0]), jnp.float32(0.3)

    @jax.jit
    def read_back():
        x, dx = paths.interpolate(path, data, noise, t)
        pairs = {"velocity": dx, "noise": noise, "data": data, "score": -noise / path.sigma(t)}
        return [
            predictions.convert(path, value, x, t, getattr(predictions, src), what)
            for src, value in pairs.items()
            for what in (predictions.data, predictions.noise)
        ]

    for i, got in enumerate(read_back()):
        np.testing.assert_allclose(got, noise if i % 2 else data, rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("kind", KINDS[1:])
@pytest.mark.parametrize("path", [EVERY[0], EVERY[3]], ids=["linear", "discrete"])
def test_a_network_of_any_kind_is_the_same_velocity(path, kind):
    x, t, label, values = exact(path)
    network = getattr(PLANE, kind)(path)
    model = predictions.as_velocity(network, path, getattr(predictions, kind))
    got = jax.jit(lambda *a: model(*a))(x, t, label)
    wanted = values["velocity"]
    np.testing.assert_allclose(got, wanted, rtol=2e-3, atol=2e-3 * np.abs(wanted).max())


@pytest.mark.parametrize("kind", KINDS)
@every_path
def test_a_network_is_finite_at_both_ends(path, kind):
    model = predictions.as_velocity(lambda x, t, c: 0.1 * x, path, getattr(predictions, kind))
    ends = jnp.asarray([0.0, 1.0])
    assert np.all(np.isfinite(jax.jit(lambda x, t: model(x, t, None))(jnp.ones((2, 3)), ends)))


def test_velocity_of_the_linear_path_is_defined_at_both_ends():
    x, value = jnp.asarray([1.0]), jnp.asarray([3.0])
    for t in (0.0, 1.0):
        to = functools.partial(predictions.convert, paths.Linear(), value, x, jnp.float32(t))
        # data = x + (1 - t) velocity, noise = x - t velocity
        assert float(to(predictions.velocity, predictions.data)[0]) == 1 + (1 - t) * 3
        assert float(to(predictions.velocity, predictions.noise)[0]) == 1 - t * 3


def test_undefined_ends_are_not_silently_finite():
    x = jnp.ones(1)
    at = functools.partial(predictions.convert, paths.Linear(), x, x)
    assert not np.isfinite(at(jnp.float32(0), predictions.noise, predictions.data))
    assert not np.isfinite(at(jnp.float32(1), predictions.data, predictions.velocity))


def test_second_half_of_twice_the_channels_is_the_variance():
    def network(x, t, cond):
        return jnp.concatenate([2 * x, x + 7], -1)

    model = predictions.as_velocity(network, paths.Linear())
    x = jnp.ones((2, 4, 3))
    evaluation, _ = evaluate(model, (), x, jnp.full(2, 0.5), None, jnp.float32(0.5))
    np.testing.assert_array_equal(evaluation.velocity, 2 * x)
    np.testing.assert_array_equal(evaluation.variance, x + 7)


def test_bad_input_is_refused():
    linear, x, t = paths.Linear(), jnp.ones((2, 3)), jnp.full(2, 0.5)
    with pytest.raises(ValueError, match="one shape"):
        predictions.convert(linear, x[:1], x, t[0], predictions.noise, predictions.data)
    with pytest.raises(ValueError, match="vmap over the batch"):
        predictions.convert(linear, x, x, t, predictions.noise, predictions.data)
    with pytest.raises(ValueError, match="value must be floating"):
        predictions.convert(linear, x.astype(int), x, t[0], predictions.noise, predictions.data)
    with pytest.raises(ValueError, match=r"lie in \[0, 1\]"):
        predictions.convert(linear, x, x, 1.5 * jnp.ones(()), predictions.noise, predictions.data)
    with pytest.raises(ValueError, match="margin must be"):
        predictions.as_velocity(lambda x, t, c: x, linear, margin=0.5)
    with pytest.raises(ValueError, match="or twice its channels"):
        predictions.as_velocity(lambda x, t, c: x[..., :2], linear)(x, t, None)
