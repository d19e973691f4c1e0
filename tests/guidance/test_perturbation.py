"""Guidance away from a disturbed network: what it adds, what it costs, and on the transformer."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from mixture import PLANE

from guidedflow import guidance, paths, samplers, times
from guidedflow.models.dit import DiT
from guidedflow.types import pytree

LINEAR = paths.Linear()
MODEL = PLANE.velocity(LINEAR)
X = jax.random.normal(jax.random.key(0), (6, 2))
T = jnp.linspace(0.1, 0.9, 6)
LABEL = jnp.arange(6) % 3
FREE = guidance.classifier_free(MODEL, PLANE.null, 2.5)


def weaker(x, t, cond):
    return 0.5 * MODEL(x, t, cond) - x


def test_it_adds_the_conditional_branch_less_the_disturbed_one():
    out = guidance.perturbed(FREE, weaker, 3.0)(X, T, LABEL)
    push = 3 * (MODEL(X, T, LABEL) - weaker(X, T, LABEL))
    np.testing.assert_allclose(out, FREE(X, T, LABEL) + push, rtol=1e-4, atol=1e-4)


def test_alone_it_is_extrapolation_with_one_more():
    out = guidance.perturbed(MODEL, weaker, 1.5)(X, T, LABEL)
    wanted = guidance.extrapolate(MODEL, weaker, 2.5)(X, T, LABEL)
    np.testing.assert_allclose(out, wanted, rtol=1e-4, atol=1e-4)


def test_a_network_that_is_not_disturbed_adds_nothing():
    out = guidance.perturbed(FREE, MODEL, 3.0)(X, T, LABEL)
    np.testing.assert_allclose(out, FREE(X, T, LABEL), rtol=1e-4, atol=1e-4)


def test_two_disturbances_add_up():
    once = guidance.perturbed(FREE, weaker, 1.0)
    twice = guidance.perturbed(once, weaker, 2.0)(X, T, LABEL)
    wanted = guidance.perturbed(FREE, weaker, 3.0)(X, T, LABEL)
    np.testing.assert_allclose(twice, wanted, rtol=1e-4, atol=1e-4)


calls = []


@pytree
class Counted:
    """A model that notes every evaluation as it runs."""

    name: str

    def __call__(self, x, t, cond):
        jax.debug.callback(lambda _: calls.append(self.name), t[0])
        return x


def test_only_the_early_steps_evaluate_the_disturbed_network_and_none_the_model_twice():
    calls.clear()
    schedule = guidance.window(2.8, 0.01, 0.2)
    model = guidance.perturbed(Counted("plain"), Counted("disturbed"), schedule)
    grid = times.uniform_grid(20)
    samplers.sample_ode(model, jnp.ones((2, 2)), grid, step=samplers.euler).block_until_ready()
    jax.effects_barrier()
    assert calls.count("plain") == 20
    assert calls.count("disturbed") == np.sum((grid[:-1] >= 0.01) & (grid[:-1] <= 0.2))


@pytest.mark.parametrize("perturbation", ["identity_attention", "skip", "blur"])
def test_the_transformer_is_its_own_disturbed_network(perturbation):
    """With the same parameters; blocks that are not named are not disturbed."""
    options = {
        "image_size": 4,
        "channels": 1,
        "patch": 2,
        "width": 16,
        "depth": 2,
        "heads": 2,
        "num_classes": 3,
    }
    network = DiT(**options)
    x = jax.random.normal(jax.random.key(1), (2, 4, 4, 1))
    t, label = jnp.full(2, 0.5), jnp.asarray([0, 2])
    params = jax.jit(network.init)(jax.random.key(2), x, t, label)
    # A fresh transformer is the zero function, of which no disturbance shows.
    params = jax.tree.map(lambda p: p + 0.1 * jnp.sin(jnp.arange(p.size)).reshape(p.shape), params)

    def model(**more):
        return jax.jit(lambda x, t, c: DiT(**options, **more).apply(params, x, t, c))

    disturbed = model(perturb_blocks=(1,), perturbation=perturbation)
    nothing = model(perturb_blocks=(), perturbation=perturbation)
    out = guidance.perturbed(model(), disturbed, 3.0)(x, t, label)
    c, p = model()(x, t, label), disturbed(x, t, label)
    np.testing.assert_allclose(out, c + 3 * (c - p), rtol=1e-4, atol=1e-5)
    assert np.abs(c - p).max() > 1e-4
    same = guidance.perturbed(model(), nothing, 3.0)(x, t, label)
    np.testing.assert_allclose(same, c, rtol=1e-4, atol=1e-5)


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="scale"):
        guidance.perturbed(MODEL, weaker, None)
    momentum = guidance.classifier_free(MODEL, PLANE.null, 2.0, rule=guidance.projected(LINEAR))
    with pytest.raises(ValueError, match="state"):
        guidance.perturbed(MODEL, momentum, 1.0)
