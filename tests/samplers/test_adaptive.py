"""Adaptive steps: the tolerance is kept, the evaluations counted, the cap said."""

import builtins

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from mixture import GAUSSIAN

from guidedflow import paths, samplers

PATH = paths.Trigonometric()


def sample(**settings):
    noise = samplers.draw_noise(jax.random.key(0), (4, 2))
    cond = jnp.zeros((4,), jnp.int32)
    return noise, samplers.sample_ode_adaptive(GAUSSIAN.velocity(PATH), noise, cond, **settings)


@pytest.fixture(autouse=True)
def _needs_diffrax():
    pytest.importorskip("diffrax", reason="the adaptive extra (diffrax) is not installed")


@pytest.mark.parametrize("solver", [samplers.dopri5, samplers.tsit5])
def test_the_tolerance_is_kept(solver):
    noise, out = sample(solver=solver, rtol=1e-5, atol=1e-5)
    target = GAUSSIAN.transport(PATH, noise, jnp.float32(0), jnp.float32(1))
    assert out.reached.all()
    # The tolerance is a step's; some twenty steps add up, and errors grow by up to 5 on the way.
    np.testing.assert_allclose(out.x, target, atol=1e-3)


def test_a_tighter_tolerance_costs_more_evaluations():
    loose, tight = sample(rtol=1e-2, atol=1e-2)[1], sample(rtol=1e-6, atol=1e-6)[1]
    assert (tight.evaluations > loose.evaluations).all()


def test_examples_do_not_depend_on_the_batch():
    noise, out = sample()
    alone = samplers.sample_ode_adaptive(
        GAUSSIAN.velocity(PATH), noise[2:3], jnp.zeros((1,), jnp.int32)
    )
    np.testing.assert_allclose(alone.x[0], out.x[2], atol=1e-6)
    assert alone.evaluations[0] == out.evaluations[2]


def test_the_step_cap_is_said():
    with pytest.raises(RuntimeError, match=r"did not reach t = 1 in max_steps = 2"):
        sample(rtol=1e-6, atol=1e-6, max_steps=2)


def test_the_step_cap_is_a_flag_under_jit():
    out = jax.jit(lambda: sample(rtol=1e-6, atol=1e-6, max_steps=2)[1])()
    assert not out.reached.any()
    assert np.isnan(out.x).all()


def test_a_missing_diffrax_names_the_extra(monkeypatch):
    real = builtins.__import__

    def refuse(name, *rest):
        if name == "diffrax":
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(ImportError, match=r"guidedflow\[adaptive\]"):
        sample()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"solver": "dopri5"}, "must be dopri5 or tsit5"),
        ({"rtol": 0.0}, "rtol must be"),
        ({"low": 0.5, "high": 0.5}, "low < high"),
        ({"max_steps": 0}, "max_steps must be"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        sample(**settings)
