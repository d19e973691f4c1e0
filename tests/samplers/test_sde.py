"""SDE samplers: the ODE's marginals whatever the diffusion, and the ODE where there is none."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from mixture import GAUSSIAN, PLANE

from guidedflow import paths, predictions, samplers
from guidedflow.samplers import sample_ode, sample_sde

LINEAR, TRIG = paths.Linear(), paths.Trigonometric()
KEY = jax.random.key(11)
N = 2000


def grid(steps):
    return np.linspace(0, 1, steps + 1, dtype=np.float32)


def noise(n=N):
    return samplers.draw_noise(jax.random.key(0), (n, 2))


@pytest.mark.parametrize(
    ("path", "diffusion"),
    [
        (LINEAR, samplers.constant(1.0)),
        (LINEAR, samplers.constant(2.0)),
        (LINEAR, samplers.proportional(2.0)),
        (LINEAR, samplers.linear(1.0)),
        (TRIG, samplers.sbdm(1.0)),
    ],
    ids=lambda v: str(v),
)
def test_marginals_are_those_of_the_ode(path, diffusion):
    """Halfway and at the end, on a mixture, within what 2,000 exact samples would show."""
    model, labels = PLANE.velocity(path), jnp.full(N, PLANE.null)
    ts = grid(200) if path is LINEAR else np.concatenate([[1e-3], grid(200)[1:]]).astype(np.float32)
    states = sample_sde(
        model, noise(), ts, labels, key=KEY, path=path, diffusion=diffusion, trajectory=True
    )
    assert PLANE.distance(states[100], None, path, ts[100]) < PLANE.tolerance(N)
    assert PLANE.distance(states[-1]) < PLANE.tolerance(N)
    # The states are not the ODE's own: each run forgets where it began.
    drift = sample_ode(model, noise(), ts, labels, step=samplers.euler)
    assert np.abs(states[-1] - drift).mean() > 0.1


def test_without_diffusion_it_is_euler():
    model, labels = PLANE.velocity(LINEAR), jnp.zeros(5, int)
    got = sample_sde(
        model, noise(5), grid(8), labels, key=KEY, path=LINEAR, diffusion=samplers.constant(0.0)
    )
    wanted = sample_ode(model, noise(5), grid(8), labels, step=samplers.euler)
    np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-5)


def test_a_tweedie_last_step_is_the_data_estimate():
    labels = jnp.zeros(5, int)
    states = sample_sde(
        GAUSSIAN.velocity(LINEAR), noise(5), grid(8), labels, key=KEY, path=LINEAR,
        last=samplers.tweedie, trajectory=True,
    )  # fmt: skip
    estimate = GAUSSIAN.data(LINEAR)(states[-2], jnp.full(5, 7 / 8), labels)
    np.testing.assert_allclose(states[-1], estimate, rtol=1e-4, atol=1e-5)


def test_a_mean_last_step_adds_no_noise():
    labels = jnp.zeros(5, int)
    states = sample_sde(
        GAUSSIAN.velocity(LINEAR), noise(5), grid(8), labels, key=KEY, path=LINEAR, trajectory=True
    )
    x, t, h = states[-2], jnp.full(5, 7 / 8), 1 / 8
    fields = (f(LINEAR)(x, t, labels) for f in (GAUSSIAN.velocity, GAUSSIAN.score))
    velocity, score = fields
    np.testing.assert_allclose(states[-1], x + h * (velocity + 0.5 * score), rtol=1e-3, atol=1e-4)


def test_one_step_adds_noise_of_the_stated_variance():
    """Under a constant model the step's spread is g sqrt(h) alone, and its mean x + h drift."""
    path, g, ts = LINEAR, 0.7, np.asarray([0.4, 0.5], np.float32)

    def model(x, t, cond):
        return jnp.full_like(x, 10.0)

    x = sample_sde(
        model, jnp.zeros((N, 2)), ts, key=KEY, path=path, diffusion=samplers.constant(g), last=None
    )
    score = predictions.convert(
        path,
        jnp.full(2, 10.0),
        jnp.zeros(2),
        jnp.float32(0.4),
        predictions.velocity,
        predictions.score,
    )
    mean, std = 0.1 * (10 + 0.5 * g**2 * score[0]), g * 0.1**0.5
    np.testing.assert_allclose(np.mean(x, 0), mean, atol=4 * std / N**0.5)
    np.testing.assert_allclose(np.std(x, 0), std, rtol=4 / (2 * N) ** 0.5)
    assert abs(np.corrcoef(np.asarray(x).T)[0, 1]) < 4 / N**0.5


def test_steps_and_examples_draw_apart():
    """Two steps of the same length add independent noise, and none repeats the initial noise."""

    def still(x, t, cond):
        # The velocity of score zero: no drift at all but the flow's own.
        return x / t[:, None]

    keys = jax.vmap(lambda i: jax.random.fold_in(KEY, i))(jnp.arange(N))
    start = samplers.draw_noise(keys, (N, 1))
    states = np.asarray(
        sample_sde(
            still,
            start,
            np.asarray([0.4, 0.5, 0.6], np.float32),
            key=keys,
            path=LINEAR,
            diffusion=samplers.constant(1.0),
            last=None,
            trajectory=True,
        )
    )[..., 0]
    first, second = states[1] - states[0] * 1.25, states[2] - states[1] * 1.2
    for a, b in ((first, second), (first, states[0]), (second, states[0]), (first[1:], first[:-1])):
        assert abs(np.corrcoef(a, b)[0, 1]) < 4.5 / N**0.5


def test_an_example_depends_on_its_own_key_alone():
    model, cond = PLANE.velocity(LINEAR), jnp.asarray([0, 1, 2, 3, 0])
    keys = jax.vmap(lambda i: jax.random.fold_in(KEY, i))(jnp.arange(5))
    whole = sample_sde(model, noise(5), grid(6), cond, key=KEY, path=LINEAR)
    part = np.asarray([3, 1])
    pair = sample_sde(model, noise(5)[part], grid(6), cond[part], key=keys[part], path=LINEAR)
    np.testing.assert_allclose(pair, whole[part], rtol=1e-5, atol=1e-5)
    other = sample_sde(model, noise(5), grid(6), cond, key=jax.random.key(12), path=LINEAR)
    assert np.abs(other - whole).max() > 0.1


def test_bad_input_is_refused():
    model = PLANE.velocity(LINEAR)
    labels = jnp.zeros(5, int)
    for key in (None, 0):
        with pytest.raises(ValueError, match="key"):
            sample_sde(model, noise(5), grid(4), labels, key=key, path=LINEAR)
    with pytest.raises(ValueError, match="value must be"):
        samplers.constant(-1.0)
    with pytest.raises(ValueError, match="value must be"):
        samplers.proportional("a")
