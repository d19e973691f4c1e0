"""Losses: least at the exact posterior means, weighted alike for every target, dropped one by one."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from mixture import PLANE

from guidedflow import losses, paths, predictions

LINEAR, VP = paths.Linear(), paths.VariancePreserving()
KINDS = ["velocity", "score", "noise", "data", "v"]
N = 4000


@functools.cache
def batch(n=N, low=0.05, high=0.95):
    keys = jax.random.split(jax.random.key(0), 3)
    data, label = PLANE.sample(keys[0], n)
    noise = jax.random.normal(keys[1], data.shape)
    t = jax.random.uniform(keys[2], (n,), minval=low, maxval=high)
    return data, noise, t, label


def perturbed(model, direction):
    """The model moved along one of several smooth fields."""
    fields = [
        lambda x, t: jnp.ones_like(x),
        lambda x, t: x,
        lambda x, t: jnp.roll(x, 1, -1),
        lambda x, t: jnp.sin(3 * t)[:, None] * jnp.cos(x),
    ]

    def moved(x, t, cond, size):
        return model(x, t, cond) + size * fields[direction](x, t)

    return moved


@pytest.mark.parametrize("direction", range(4))
@pytest.mark.parametrize("kind", ["flow", "noise", "data", "v"])
def test_the_posterior_mean_is_the_minimum(kind, direction):
    """The mean loss is a parabola in the size of any move: its slope at 0 is 0 up to sampling."""
    data, noise, t, label = batch()
    exact = PLANE.velocity(LINEAR) if kind == "flow" else getattr(PLANE, kind)(LINEAR)
    moved = perturbed(exact, direction)

    @jax.jit
    def each(size):
        model = functools.partial(moved, size=size)
        if kind == "flow":
            return losses.flow_matching(model, LINEAR, data, noise, t, label)
        predicts = getattr(predictions, kind)
        return losses.denoising(model, LINEAR, data, noise, t, label, predicts=predicts)

    at, right, left = (np.asarray(each(jnp.float32(s)), np.float64) for s in (0, 0.1, -0.1))
    slope = (right - left) / 0.2
    error = slope.std() / N**0.5
    assert abs(slope.mean()) < 4 * error
    assert (right + left - 2 * at).mean() > 1e-4
    # Without the condition the same field is not the minimum: the test can tell.
    assert at.shape == (N,)


def test_the_null_velocity_is_the_minimum_once_conditions_are_dropped():
    data, noise, t, _ = batch()
    null = jnp.full((N,), PLANE.null)
    model, wrong = PLANE.velocity(LINEAR), PLANE.velocity(VP)
    loss = jax.jit(
        lambda m: losses.flow_matching(m, LINEAR, data, noise, t, null), static_argnums=0
    )
    assert loss(model).mean() < loss(wrong).mean()
    conditional = losses.flow_matching(model, LINEAR, data, noise, t, batch()[3])
    assert conditional.mean() < loss(model).mean()


@pytest.mark.parametrize("path", [LINEAR, VP], ids=["linear", "vp"])
@pytest.mark.parametrize(
    "weighting", [losses.unit, losses.min_snr(5.0), losses.min_snr(5.0, soft=True), losses.edm(0.5)]
)
def test_a_weighting_means_the_same_for_every_target(path, weighting):
    data, noise, t, label = (a[:16] for a in batch())

    @jax.jit
    def all_of():
        out = []
        for kind in KINDS:
            predicts = getattr(predictions, kind)

            # One wrong guess of the data, told as each kind of prediction.
            def network(x, t, cond, predicts=predicts):
                to = functools.partial(predictions.convert_batch, path)
                return to(PLANE.data(path)(x, t, cond) + 0.1, x, t, predictions.data, predicts)

            out.append(
                losses.denoising(
                    network, path, data, noise, t, label, predicts=predicts, weighting=weighting
                )
            )
        return out

    velocity, *others = all_of()
    for other in others:
        np.testing.assert_allclose(other, velocity, rtol=1e-2, atol=1e-4)


def weight_of(weighting, path, t):
    return np.asarray(jax.vmap(functools.partial(weighting, path))(jnp.asarray(t, jnp.float32)))


def test_weightings_at_noise_levels_worked_by_hand():
    # On the linear path SNR = (t / (1 - t))^2: 1/9, 1 and 9.
    t = [0.25, 0.5, 0.75]
    np.testing.assert_allclose(weight_of(losses.min_snr(5.0), LINEAR, t), [1 / 9, 1, 5], rtol=1e-5)
    np.testing.assert_allclose(weight_of(losses.truncated_snr(), LINEAR, t), [1, 1, 9], rtol=1e-5)
    soft = [5 / 46, 5 / 6, 45 / 14]
    np.testing.assert_allclose(weight_of(losses.min_snr(5.0, True), LINEAR, t), soft, rtol=1e-5)
    # sigma = 3, 1, 1/3 with sigma_data = 1/2: (s^2 + 1/4) / (s/2)^2.
    edm = [37 / 9, 5, 13]
    np.testing.assert_allclose(weight_of(losses.edm(0.5), LINEAR, t), edm, rtol=1e-5)
    # SNR / (1 + SNR) at bias 0.
    np.testing.assert_allclose(weight_of(losses.sigmoid(), LINEAR, t), [0.1, 0.5, 0.9], rtol=1e-5)
    np.testing.assert_allclose(weight_of(losses.unit, LINEAR, t), 1)


def test_noise_weighted_by_snr_on_the_data_is_the_simple_loss():
    """min-SNR with gamma at infinity is DDPM's loss on the noise itself."""
    data, noise, t, label = (a[:16] for a in batch())
    network = PLANE.data(LINEAR)
    plain = losses.denoising(network, LINEAR, data, noise, t, label)
    weighted = losses.denoising(
        network, LINEAR, data, noise, t, label, weighting=losses.min_snr(1e9)
    )
    np.testing.assert_allclose(weighted, plain, rtol=1e-3)


@pytest.mark.parametrize("predicts", [predictions.score, predictions.data])
def test_weighted_losses_are_finite_at_both_ends(predicts):
    data, noise = jnp.ones((2, 3)), jnp.full((2, 3), 0.5)
    ends = jnp.asarray([0.0, 1.0])
    for weighting in (losses.unit, losses.edm(), losses.sigmoid(), losses.truncated_snr()):
        loss = losses.denoising(
            lambda x, t, c: x, LINEAR, data, noise, ends, predicts=predicts, weighting=weighting
        )
        assert np.all(np.isfinite(loss))


def test_learned_uncertainty_is_least_at_the_log_of_the_loss():
    loss = jnp.asarray([0.5, 2.0])
    slope = jax.grad(lambda u: jnp.sum(losses.uncertainty(loss, u)))(jnp.log(loss))
    np.testing.assert_allclose(slope, 0, atol=1e-6)


def test_mean_square_is_each_examples_own_in_float32():
    value = jnp.asarray([[3.0, 4.0], [1.0, 1.0]], jnp.bfloat16)
    out = losses.mean_square(value)
    np.testing.assert_array_equal(out, [12.5, 1.0])
    assert out.dtype == jnp.float32


def drop(key, n, rate, null=7):
    return np.asarray(losses.drop_condition(key, jnp.zeros(n, jnp.int32), null, rate))


@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_conditions_are_dropped_at_the_stated_rate(rate):
    dropped = drop(jax.random.key(0), N, rate) == 7
    assert abs(dropped.mean() - rate) < 4 * (rate * (1 - rate) / N) ** 0.5


def test_each_example_tosses_its_own_coin():
    """One coin a batch would drop all or none; ones tied to neighbours would correlate."""
    dropped = drop(jax.random.key(0), N, 0.5) == 7
    assert abs(np.mean(dropped[1:] == dropped[:-1]) - 0.5) < 4 * 0.5 / N**0.5


def test_a_coin_does_not_depend_on_the_batch():
    whole = drop(jax.random.key(3), 64, 0.5)
    np.testing.assert_array_equal(drop(jax.random.key(3), 16, 0.5), whole[:16])
    keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(3), i))(jnp.arange(40, 50))
    np.testing.assert_array_equal(drop(keys, 10, 0.5), whole[40:50])


def test_rates_zero_and_one_keep_and_drop_all():
    assert not np.any(drop(jax.random.key(0), 64, 0.0))
    assert np.all(drop(jax.random.key(0), 64, 1.0) == 7)


def test_every_leaf_of_an_examples_condition_is_dropped_together():
    cond = {"text": jnp.ones((64, 3, 2)), "label": jnp.arange(64)}
    null = {"text": jnp.zeros((3, 2)), "label": 99}
    out = losses.drop_condition(jax.random.key(0), cond, null, 0.5)
    gone = np.asarray(out["label"] == 99)
    assert 10 < gone.sum() < 54
    np.testing.assert_array_equal(
        out["text"], np.where(gone, 0.0, 1.0)[:, None, None] * np.ones((64, 3, 2))
    )
    np.testing.assert_array_equal(out["label"][~gone], np.arange(64)[~gone])


def constant(x, t, cond):
    return jnp.zeros_like(x)


@pytest.mark.parametrize("loss", [losses.flow_matching, losses.denoising])
@pytest.mark.parametrize(
    ("data", "noise", "t", "cond", "says"),
    [
        (np.ones((2, 3)), np.ones((2, 2)), np.full(2, 0.5), None, "one shape"),
        (np.ones((2, 3)), np.ones((2, 3)), np.full(3, 0.5), None, r"t must have shape \(2,\)"),
        (np.ones((2, 3)), np.ones((2, 3)), np.full(2, 1.5), None, r"lie in \[0, 1\]"),
        (np.ones((2, 3)), np.ones((2, 3)), np.ones(2, int), None, "t must be floating"),
        (np.ones((2, 3)), np.ones((2, 3)), np.full(2, 0.5), np.ones(3), "cond must have 2"),
        (np.ones((2, 3), int), np.ones((2, 3), int), np.full(2, 0.5), None, "must be floating"),
    ],
)
def test_bad_batches_are_refused(loss, data, noise, t, cond, says):
    with pytest.raises(ValueError, match=says):
        loss(constant, LINEAR, data, noise, t, cond)


@pytest.mark.parametrize("loss", [losses.flow_matching, losses.denoising])
def test_an_output_that_would_broadcast_is_refused(loss):
    data = jnp.ones((2, 3))
    with pytest.raises(ValueError, match="x's shape"):
        loss(lambda x, t, c: x[:, :1], LINEAR, data, data, jnp.full(2, 0.5))


def test_bad_parameters_are_refused():
    key, cond = jax.random.key(0), jnp.arange(4)
    for rate in (-0.1, 1.1, "0.1", None):
        with pytest.raises(ValueError, match="rate must be"):
            losses.drop_condition(key, cond, 9, rate)
    with pytest.raises(ValueError, match="structure of cond"):
        losses.drop_condition(key, cond, {"label": 9}, 0.1)
    with pytest.raises(ValueError, match="null must have shape"):
        losses.drop_condition(key, cond, jnp.zeros(3, int), 0.1)
    with pytest.raises(ValueError, match="key must be"):
        losses.drop_condition(jax.random.split(key, 3), cond, 9, 0.1)
    with pytest.raises(ValueError, match="examples first"):
        losses.drop_condition(key, jnp.asarray(3), 9, 0.1)
    with pytest.raises(ValueError, match="gamma must be"):
        losses.min_snr(-1.0)
    with pytest.raises(ValueError, match="sigma_data must be"):
        losses.edm(0.0)
    with pytest.raises(ValueError, match="log_variance must be"):
        losses.uncertainty(jnp.ones(2), jnp.ones(3))
