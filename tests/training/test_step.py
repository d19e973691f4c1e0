"""The training step: gradient, average, accumulation, and what a NaN does to it."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from guidedflow.training.state import create
from guidedflow.training.step import ema_schedule, make_step


def quadratic(params, batch, key):
    """Loss 1/2 (w - x)^2, whose mean has gradient w - mean(x)."""
    return 0.5 * (params["w"] - batch["x"]) ** 2


def build(loss_fn=quadratic, rate=0.5, **overrides):
    options = {
        "ema_decay": ema_schedule(0.9, warm_up=False),
        "learning_rate": lambda _: 0.5,
        **overrides,
    }
    optimizer = optax.sgd(rate)
    state = create({"w": jnp.float32(4.0)}, optimizer)
    return state, jax.jit(make_step(loss_fn, optimizer, **options))


def test_one_step_of_gradient_descent_on_a_quadratic():
    state, step = build()
    x = jnp.array([1.0, 2.0, 3.0, 6.0])
    state, metrics = step(state, {"x": x}, jax.random.key(0))
    # gradient 4 - 3 = 1, so w = 4 - 0.5 = 3.5 and ema = 0.9 * 4 + 0.1 * 3.5.
    assert float(state.params["w"]) == 3.5
    np.testing.assert_allclose(state.ema["w"], 3.95, rtol=1e-6)
    assert int(state.step) == 1
    assert float(metrics["grad_norm"]) == 1.0
    assert float(metrics["param_norm"]) == 3.5
    assert float(metrics["learning_rate"]) == 0.5
    assert float(metrics["finite"]) == 1.0


def test_accumulation_gives_the_gradient_of_the_whole_batch():
    x = jnp.array([1.0, 2.0, 3.0, 6.0])
    for parts in (2, 4):
        state, step = build(accumulate=parts)
        state, metrics = step(state, {"x": x}, jax.random.key(0))
        np.testing.assert_allclose(state.params["w"], 3.5, rtol=1e-6)
        np.testing.assert_allclose(metrics["loss"], jnp.mean(0.5 * (4 - x) ** 2), rtol=1e-6)


def test_a_batch_that_accumulation_does_not_divide_is_refused():
    state, step = build(accumulate=3)
    with pytest.raises(ValueError, match="does not divide into 3"):
        step(state, {"x": jnp.ones(4)}, jax.random.key(0))


@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf])
def test_a_loss_that_is_not_finite_changes_nothing_but_the_step(bad):
    state, step = build()
    state, metrics = step(state, {"x": jnp.array([1.0, bad])}, jax.random.key(0))
    assert float(metrics["finite"]) == 0.0
    assert float(state.params["w"]) == 4.0
    assert float(state.ema["w"]) == 4.0
    assert int(state.step) == 1


def test_an_update_that_overflows_changes_nothing_but_the_step():
    """Loss and gradient are finite here, and the parameters would not be."""
    state, step = build(rate=3e38)
    state, metrics = step(state, {"x": jnp.zeros(2)}, jax.random.key(0))
    assert np.isfinite(metrics["loss"])
    assert np.isfinite(metrics["grad_norm"])
    assert float(metrics["finite"]) == 0.0
    assert float(state.params["w"]) == float(state.ema["w"]) == 4.0


def test_the_update_takes_no_memory_of_another_model():
    """What lives beside the state are the gradients, of one model's size, and a leaf or two."""
    leaf, optimizer = jnp.ones((64, 64)), optax.adam(1e-3)
    params = {str(i): leaf for i in range(16)}

    def loss(params, batch, key):
        x = batch["x"]
        for kernel in params.values():
            x = jnp.tanh(x @ kernel)
        return x.sum(1)

    options = {"ema_decay": ema_schedule(0.9), "learning_rate": lambda _: 1e-3, "in_turn": True}
    step = jax.jit(make_step(loss, optimizer, **options), donate_argnums=0)
    batch = {"x": jnp.ones((4, 64))}
    compiled = step.lower(create(params, optimizer), batch, jax.random.key(0)).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < (16 + 3) * leaf.nbytes


def test_randomness_depends_on_the_key_and_the_step_only():
    def noisy(params, batch, key):
        return (params["w"] * 0.0 + jax.random.normal(key)) * jnp.ones_like(batch["x"])

    state, step = build(noisy)
    batch = {"x": jnp.ones(2)}
    first, at_zero = step(state, batch, jax.random.key(0))
    _, again = step(state, batch, jax.random.key(0))
    _, at_one = step(first, batch, jax.random.key(0))
    _, other = step(state, batch, jax.random.key(1))
    assert float(at_zero["loss"]) == float(again["loss"])
    assert len({float(m["loss"]) for m in (at_zero, at_one, other)}) == 3


def test_average_warms_up_to_its_decay():
    schedule = ema_schedule(0.99)
    assert float(schedule(jnp.int32(0))) == pytest.approx(0.1)
    assert float(schedule(jnp.int32(10**6))) == pytest.approx(0.99)


def test_a_decay_outside_its_range_is_refused():
    with pytest.raises(ValueError, match=r"\[0, 1\), got 1.0"):
        ema_schedule(1.0)
    with pytest.raises(ValueError, match="at least 1, got 0"):
        build(accumulate=0)
