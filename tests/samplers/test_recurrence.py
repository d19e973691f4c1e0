"""Self-recurrence: what a repeated step does to the law, and when it is the step itself."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from mixture import GAUSSIAN

from guidedflow import guidance, paths, samplers
from guidedflow.samplers.diffusion import DDIM
from guidedflow.types import pytree

PATHS = [paths.Linear(), paths.VariancePreserving()]
every_path = pytest.mark.parametrize("path", PATHS, ids=lambda path: type(path).__name__)
KEY = jax.random.key(0)


def gaussian(path):
    return guidance.fixed(GAUSSIAN.velocity(path), 0)


def test_one_repetition_is_the_solver_itself():
    path = PATHS[0]
    noise = samplers.draw_noise(KEY, (4, 2))
    grid = np.asarray([0.0, 0.3, 0.7, 1.0], np.float32)
    plain, once = (
        samplers.sample_ode(gaussian(path), noise, grid, step=step)
        for step in (samplers.heun, samplers.recurrent(samplers.heun, path, 1))
    )
    np.testing.assert_array_equal(plain, once)


@every_path
def test_repeated_steps_keep_the_law_that_one_step_has(path):
    """An exact step followed by the path's own noising leaves the marginals where they are."""
    count, low, high = 20_000, 0.3, 0.6
    x = GAUSSIAN.sample_at(KEY, count, path, low)
    grid = np.linspace(low, high, 5, dtype=np.float32)
    step = samplers.recurrent(samplers.rk4, path, 4)
    out = samplers.sample_ode(gaussian(path), x, grid, step=step, key=jax.random.key(1))
    assert GAUSSIAN.distance(out, path=path, t=high) < 1.95 / np.sqrt(count) + 0.004
    plain = samplers.sample_ode(gaussian(path), x, grid, step=samplers.rk4)
    assert np.abs(out - plain).mean() > 0.05


def test_repetitions_draw_fresh_noise_and_examples_their_own():
    path = PATHS[0]
    step = samplers.recurrent(samplers.euler, path, 3)
    grid = np.asarray([0.0, 0.5, 0.9], np.float32)
    noise = jnp.zeros((3, 2))
    out = samplers.sample_ode(gaussian(path), noise, grid, step=step, key=KEY)
    assert len(np.unique(np.asarray(out)[:, 0])) == 3
    keys = jax.vmap(lambda i: jax.random.fold_in(KEY, i))(jnp.asarray([1]))
    alone = samplers.sample_ode(gaussian(path), noise[:1], grid, step=step, key=keys)
    np.testing.assert_allclose(alone[0], out[1], rtol=1e-5, atol=1e-6)


calls = []


@pytree
class Counted:
    """A model that notes every evaluation as it runs."""

    def __call__(self, x, t, cond):
        jax.debug.callback(lambda t: calls.append(float(t)), t[0])
        return -x


def test_evaluations_grow_with_the_repetitions():
    calls.clear()
    step = samplers.recurrent(samplers.euler, PATHS[0], 5)
    grid = np.asarray([0.0, 0.5, 0.9], np.float32)
    samplers.sample_ode(Counted(), jnp.ones((1, 2)), grid, step=step, key=KEY).block_until_ready()
    jax.effects_barrier()
    assert sorted(calls) == [0.0] * 5 + [0.5] * 5


def test_repetition_brings_a_state_back_to_the_law_that_it_left():
    path, count = PATHS[0], 2000
    astray = jnp.full((count, 2), 1.5)
    grid = np.asarray([0.3, 0.45, 0.6], np.float32)

    def distance(repeats):
        step = samplers.recurrent(samplers.heun, path, repeats)
        out = samplers.sample_ode(gaussian(path), astray, grid, step=step, key=KEY)
        return GAUSSIAN.distance(out, path=path, t=0.6)

    assert distance(1) > 0.5
    assert distance(12) < 0.1


def test_it_takes_a_step_that_renoises_and_has_its_own_draws():
    path = PATHS[1]
    step = samplers.recurrent(DDIM(path, 0.5), path, 2)
    model = guidance.plus_plus(GAUSSIAN.velocity(path), GAUSSIAN.null, 0.5)
    noise, label = samplers.draw_noise(KEY, (4, 2)), jnp.zeros(4, jnp.int32)
    grid = np.asarray([0.0, 0.5, 1.0], np.float32)
    out = samplers.sample_ode(model, noise, grid, label, step=step, key=KEY)
    assert np.all(np.isfinite(out))


@pytest.mark.parametrize("repeats", [0, 2.0, True, "3"])
def test_repeats_must_be_a_count(repeats):
    with pytest.raises(ValueError, match="repeats must be a whole number"):
        samplers.recurrent(samplers.euler, PATHS[0], repeats)


def test_a_solver_that_goes_back_by_itself_is_refused():
    class Churning:
        def begin(self, x, t, draw):
            return x, t

    with pytest.raises(ValueError, match="noise of its own"):
        samplers.recurrent(Churning(), PATHS[0], 2)


def test_without_a_key_it_says_what_is_missing():
    step = samplers.recurrent(samplers.euler, PATHS[0], 2)
    with pytest.raises(ValueError, match="pass key"):
        samplers.sample_ode(gaussian(PATHS[0]), jnp.ones((1, 2)), np.asarray([0.0, 0.5]), step=step)
