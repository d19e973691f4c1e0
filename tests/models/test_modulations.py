"""A table of modulations gives the network itself, on its grid and for its labels, and nowhere else."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from guidedflow import guidance, models, paths, samplers, times
from guidedflow.benchmark.workload import random_params
from guidedflow.pipelines import methods

LABELS = jnp.array([3, 0, 3, 7])
NULL = 10


def network(**fields):
    return models.create("tiny", **fields)


def plain(net, params):
    return lambda x, t, cond: net.apply({"params": params}, x, t, cond)


def draw(net, params=None):
    params = random_params(net, (8, 8, 1)) if params is None else params
    return params, jax.random.normal(jax.random.key(1), (4, 8, 8, 1))


@pytest.mark.parametrize("fields", [{}, {"scan_layers": True}, {"remat": "full"}])
def test_a_tabulated_network_is_the_network_at_every_time_of_the_grid(fields):
    net = network(**fields)
    params, x = draw(net)
    ts = jnp.linspace(0.0, 1.0, 5)
    looked = jax.jit(models.tabulated(net, params, ts, jnp.array([0, 3, 7, NULL])))
    itself = jax.jit(plain(net, params))
    for t in ts:
        there = jnp.full(4, t)
        np.testing.assert_allclose(looked(x, there, LABELS), itself(x, there, LABELS), atol=1e-5)


def test_each_example_may_have_its_own_time():
    net = network()
    params, x = draw(net)
    ts = jnp.array([0.0, 0.25, 0.5, 1.0])
    looked = models.tabulated(net, params, ts, LABELS)
    got = looked(x, ts[::-1], LABELS)
    np.testing.assert_allclose(got, plain(net, params)(x, ts[::-1], LABELS), atol=1e-5)


@pytest.mark.parametrize(("t", "label"), [(0.3, 3), (0.25, 4)])
def test_what_the_table_lacks_is_not_a_number(t, label):
    net = network()
    params, x = draw(net)
    looked = models.tabulated(net, params, jnp.array([0.0, 0.25]), LABELS)
    assert np.isnan(looked(x, jnp.full(4, t), jnp.full(4, label))).all()


@pytest.mark.parametrize("solver", sorted(methods.SOLVERS.keys() - {"ddpm-learned", "adaptive"}))
def test_solvers_said_to_stay_on_the_grid_do_and_the_others_leave_it(solver):
    """Five steps, an odd number, with a model that is not a number at any other time."""
    path, ts = paths.Linear(), jnp.asarray(times.uniform_grid(5))

    def model(x, t, cond):
        known = (ts[None, :] == t[:, None]).any(axis=1)
        return jnp.where(known[:, None], -x, jnp.nan)

    keys = jax.random.split(jax.random.key(2), 4)
    images = methods.SOLVERS[solver](model, jnp.ones((4, 1)), ts, LABELS, keys, path)
    assert np.isfinite(images).all() == (solver in methods.ON_GRID)


def test_a_guided_sampler_draws_the_same_images_from_the_table():
    net, ts = network(), jnp.asarray(times.uniform_grid(3))
    params, x = draw(net)

    def images(model):
        guided = guidance.classifier_free(model, NULL, jnp.float32(2.0))
        return samplers.sample_ode(guided, x, ts, LABELS, step=samplers.heun)

    table = models.tabulated(net, params, ts, jnp.append(LABELS, NULL))
    np.testing.assert_allclose(images(table), images(plain(net, params)), rtol=1e-4, atol=1e-4)


def test_a_table_lowers_the_operations_of_a_step():
    """The modulations' products, 12 d² a block and an example, are not in the looked-up program."""
    net = network()
    params, x = draw(net)
    t = jnp.full(4, 0.25)
    table = models.tabulated(net, params, jnp.array([0.0, 0.25]), LABELS)
    counted = [
        jax.jit(model).lower(x, t, LABELS).cost_analysis()["flops"]
        for model in (plain(net, params), table)
    ]
    saved = 4 * (net.depth * 12 + 4) * net.width**2
    assert counted[0] - counted[1] >= saved


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        ("tiny-unet", {}, "takes a DiT, got a UNet"),
        ("tiny", {"scalars": ("scale",)}, "labels alone"),
        ("tiny", {"num_classes": None}, "labels alone"),
    ],
)
def test_other_networks_are_refused(name, fields, message):
    with pytest.raises(ValueError, match=message):
        models.tabulated(models.create(name, **fields), {}, jnp.zeros(2), LABELS)


def test_times_and_labels_must_be_vectors():
    with pytest.raises(ValueError, match="must be vectors"):
        models.tabulated(network(), {}, jnp.zeros(()), LABELS)
