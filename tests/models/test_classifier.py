"""The classifier of noisy images."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from guidedflow.models import Classifier, create


def network(**fields):
    base = {"image_size": 4, "channels": 1, "width": 8, "multipliers": (1, 2), "blocks": 1}
    return Classifier(**{**base, "num_classes": 2, **fields})


@functools.partial(jax.jit, static_argnums=0)
def run(net, params, x, t):
    return net.apply({"params": params}, x, t)


def test_a_new_classifier_says_that_all_classes_are_as_likely():
    net = network(num_classes=5)
    x, t = jax.random.normal(jax.random.key(0), (3, 4, 4, 1)), jnp.array([0.0, 0.5, 1.0])
    p = jax.jit(net.init)(jax.random.key(1), x, t)["params"]
    logits = run(net, p, x, t)
    assert (logits.shape, logits.dtype) == ((3, 5), jnp.float32)
    assert jnp.all(logits == 0)


def draw(key, size):
    """Two classes of constant images, -1 and 1, on the linear path, and the exact log-odds."""
    keys = jax.random.split(key, 3)
    label = jax.random.bernoulli(keys[0], shape=(size,)).astype(int)
    t = jax.random.uniform(keys[1], (size,), maxval=0.6)
    noise = jax.random.normal(keys[2], (size, 4, 4, 1))
    data = (2.0 * label - 1)[:, None, None, None] * jnp.ones((1, 4, 4, 1))
    x = t[:, None, None, None] * data + (1 - t)[:, None, None, None] * noise
    return x, t, label, 2 * t / (1 - t) ** 2 * x.sum((1, 2, 3))


def test_trained_logits_approach_the_exact_posterior_at_every_time():
    net = network()
    x, t, _, _ = draw(jax.random.key(0), 2)
    p = jax.jit(net.init)(jax.random.key(1), x, t)["params"]
    optimizer = optax.adam(3e-3)

    def loss(p, key):
        x, t, label, _ = draw(key, 128)
        logits = net.apply({"params": p}, x, t)
        return optax.softmax_cross_entropy_with_integer_labels(logits, label).mean()

    def step(carry, key):
        p, state = carry
        updates, state = optimizer.update(jax.grad(loss)(p, key), state)
        return (optax.apply_updates(p, updates), state), None

    keys = jax.random.split(jax.random.key(2), 300)
    (p, _), _ = jax.jit(lambda c: jax.lax.scan(step, c, keys))((p, optimizer.init(p)))
    x, t, _, exact = draw(jax.random.key(3), 2000)
    logits = run(net, p, x, t)
    error = jax.nn.sigmoid(logits[:, 1] - logits[:, 0]) - jax.nn.sigmoid(exact)
    for low in (0.0, 0.2, 0.4):
        inside = (t >= low) & (t < low + 0.2)
        assert jnp.abs(error[inside]).mean() < 0.06


def test_its_gradient_is_that_of_each_image_alone():
    net = create("tiny-classifier")
    x, t = jax.random.normal(jax.random.key(0), (3, 8, 8, 1)), jnp.array([0.1, 0.5, 0.9])
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(net.init, jax.random.key(0), x, t)["params"]
    p = jax.tree.map(lambda a: jnp.asarray(rng.normal(0, 0.25, a.shape), a.dtype), shapes)

    def log_prob(x, t):
        return jax.nn.log_softmax(net.apply({"params": p}, x[None], t[None])[0])[4]

    def total(x):
        return jax.nn.log_softmax(net.apply({"params": p}, x, t))[:, 4].sum()

    each = jax.jit(jax.vmap(jax.grad(log_prob)))(x, t)
    assert jnp.all(jnp.abs(each).max((1, 2, 3)) > 0)
    np.testing.assert_allclose(each, jax.jit(jax.grad(total))(x), rtol=1e-3, atol=1e-6)


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="num_classes: expected at least 2, got 1"):
        network(num_classes=1)
    with pytest.raises(ValueError, match="levels need sides of 4"):
        network(image_size=6, multipliers=(1, 1, 1))
    with pytest.raises(ValueError, match=r"x: expected shape \(b, 4, 4, 1\)"):
        network().init(jax.random.key(0), jnp.zeros((1, 4, 4, 3)), jnp.zeros(1))
