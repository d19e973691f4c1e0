"""Every strategy computes what one device computes, and `fsdp` holds its share of the bytes."""

import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh

from guidedflow.target import attached
from guidedflow.training import parallel
from guidedflow.training.checkpoint import Checkpointer, Keep, restore
from guidedflow.training.state import TrainState, create, fingerprint, state_bytes, structure
from guidedflow.training.step import ema_schedule, make_step

BATCH = 16


def loss_fn(params, batch, key):
    """Regression on noised inputs; the noise of example i depends on its index alone."""
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, batch["index"])
    noise = jax.vmap(lambda k: jax.random.normal(k, (32,)))(keys)
    hidden = jnp.tanh((batch["x"] + 0.1 * noise) @ params["first"] + params["bias"][None])
    return jnp.mean((hidden @ params["second"] - batch["y"]) ** 2, axis=-1)


def initial():
    a, b = jax.random.split(jax.random.key(1))
    return {
        "first": jax.random.normal(a, (32, 256)) / 6,
        "bias": jnp.zeros(256),
        "second": jax.random.normal(b, (256, 32)) / 16,
    }


def batch_at(step):
    random = np.random.default_rng(step)
    x = random.normal(size=(BATCH, 32)).astype(np.float32)
    return {"x": x, "y": np.sin(x), "index": np.arange(BATCH, dtype=np.int32)}


ADAM = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-2))


def train(strategy, first=0, last=20, *, state=None, accumulate=1, optimizer=ADAM):
    """Steps from `first` to `last`, from a fresh state or from one in its place."""
    step = make_step(
        loss_fn,
        optimizer,
        ema_decay=ema_schedule(0.99),
        learning_rate=lambda _: 1e-2,
        accumulate=accumulate,
        axis_name=getattr(strategy, "axis_name", None),
    )
    if state is None:
        state = create(initial(), optimizer)
        state = jax.device_put(state, strategy.shardings(state)) if strategy else state
    if strategy is None:
        compiled, place = jax.jit(step), lambda batch: batch
    else:
        place = strategy.place_batch
        compiled = strategy.compile(step, state, place(batch_at(0)), jax.random.key(0))
    losses = []
    for i in range(first, last):
        state, metrics = compiled(state, place(batch_at(i)), jax.random.key(0))
        losses.append(float(metrics["loss"]))
    return state, losses


@pytest.fixture(scope="module")
def alone():
    return train(None)


STRATEGIES = {
    "pmap": lambda: parallel.pmap(attached()),
    "data": lambda: parallel.data(attached()),
    "fsdp": lambda: parallel.fsdp(attached()),
    "data x fsdp": lambda: parallel.Sharded(parallel.make_mesh(attached(), 2, 2)),
}


@pytest.mark.parametrize("name", STRATEGIES)
def test_twenty_steps_equal_one_device(name, alone):
    state, losses = train(STRATEGIES[name]())
    np.testing.assert_allclose(losses, alone[1], rtol=1e-5)
    close = lambda got, want: np.testing.assert_allclose(got, want, rtol=1e-4, atol=2e-6)  # noqa: E731
    jax.tree.map(close, jax.device_get(state), jax.device_get(alone[0]))


def gradient(strategy, accumulate=1):
    """The gradient of the first step, by descending it with a step of 1."""
    state, _ = train(strategy, last=1, accumulate=accumulate, optimizer=optax.sgd(1.0))
    return jax.tree.map(lambda old, new: np.asarray(old - new), initial(), state.params)


@pytest.fixture(scope="module")
def gradient_alone():
    """By `jax.grad` itself, with no step around it."""
    key, batch = jax.random.fold_in(jax.random.key(0), 0), batch_at(0)
    return jax.grad(lambda params: jnp.mean(loss_fn(params, batch, key)))(initial())


@pytest.mark.parametrize(
    ("name", "accumulate"), [*((name, 1) for name in STRATEGIES), ("pmap", 2), ("fsdp", 2)]
)
def test_the_gradient_is_that_of_one_device_and_the_whole_batch(name, accumulate, gradient_alone):
    """Adam and clipping would hide a gradient that is the number of devices too large."""
    got = gradient(STRATEGIES[name](), accumulate)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6), got, gradient_alone)


def on(devices):
    """FSDP over the first few devices."""
    grid = np.asarray(jax.devices()[:devices]).reshape(1, devices)
    return parallel.Sharded(Mesh(grid, ("data", "fsdp_0")))


def test_a_run_moves_from_one_device_to_four_to_two_and_from_pmap_to_fsdp(tmp_path, alone):
    places = [on(1), on(4), on(2), parallel.pmap(attached()), parallel.fsdp(attached())]
    writer, state = Checkpointer(tmp_path, {}, {}, Keep(last=9)), None
    for i, strategy in enumerate(places):
        if i:
            abstract = parallel.abstract_state(lambda key: create(initial(), ADAM), strategy)
            before, (state, _) = fingerprint(state), restore(tmp_path, abstract)
            assert fingerprint(state) == before
            places_of = jax.tree.leaves(strategy.shardings(state))
            for leaf, place in zip(jax.tree.leaves(state), places_of, strict=True):
                assert leaf.sharding.is_equivalent_to(place, leaf.ndim)
        state, losses = train(strategy, 4 * i, 4 * i + 4, state=state)
        np.testing.assert_allclose(losses, alone[1][4 * i : 4 * i + 4], rtol=1e-5)
        writer.save(state)
        writer.wait()


def test_fsdp_holds_its_share_of_bytes(alone):
    strategy = parallel.fsdp(attached())
    state = jax.device_put(alone[0], strategy.shardings(alone[0]))
    total = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    for device in jax.devices():
        assert state_bytes(state, device) <= total * (1 / 4 + 0.05)
    replicated = jax.device_put(alone[0], parallel.data(attached()).shardings(alone[0]))
    assert state_bytes(replicated, jax.devices()[0]) == total


def test_fsdp_shards_the_largest_divisible_axis():
    four = {"a": 2, "b": 2}
    assert parallel.fsdp_spec((64, 128), four) == jax.P(None, ("a", "b"))
    assert parallel.fsdp_spec((64, 129), four) == jax.P(("a", "b"), None)
    assert parallel.fsdp_spec((64, 130), four) == jax.P(("b",), ("a",))
    assert parallel.fsdp_spec((63, 129), four) == jax.P()
    assert parallel.fsdp_spec((8,), four) == jax.P()
    assert parallel.prime_factors(12) == [3, 2, 2]


def test_fingerprint_does_not_depend_on_sharding_and_sees_one_bit(alone):
    state = alone[0]
    sharded = jax.device_put(state, parallel.fsdp(attached()).shardings(state))
    assert fingerprint(sharded) == fingerprint(state)
    host = jax.device_get(state)
    for name in ("params", "ema"):
        flipped = getattr(host, name)["first"].copy()
        flipped.view(np.uint32)[3, 5] ^= 1
        tree = {**getattr(host, name), "first": flipped}
        changed = fingerprint(host._replace(**{name: tree}))
        assert [k for k, v in fingerprint(state).items() if changed[k] != v] == [f"{name}/first"]


def test_fingerprint_sees_exchanged_values():
    array = jnp.arange(12.0).reshape(3, 4)
    assert fingerprint({"a": array}) != fingerprint({"a": array[::-1]})
    assert fingerprint({"a": array}) != fingerprint({"a": array.T})
    half = array.astype(jnp.bfloat16)
    assert fingerprint({"a": half}) != fingerprint({"a": half[:, ::-1]})


def test_structure_names_each_leaf_with_type_and_shape():
    state = TrainState(jnp.zeros((), jnp.int32), {"w": jnp.zeros((2, 3))}, (), ())
    assert structure(state) == {"step": "int32[]", "params/w": "float32[2,3]"}


def test_a_mesh_must_fit_the_devices():
    with pytest.raises(ValueError, match=r"data=3 × fsdp=2 does not fit 4 devices"):
        parallel.make_mesh(attached(), 3, 2)
    with pytest.raises(ValueError, match=r"data=1 × fsdp=2 does not fit 4 devices"):
        parallel.make_mesh(attached(), 1, 2)
    with pytest.raises(ValueError, match="at most one of them 0"):
        parallel.make_mesh(attached(), 0, 0)


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_batch_must_divide_over_the_devices(name):
    with pytest.raises(ValueError, match="multiple of 4"):
        STRATEGIES[name]().place_batch({"x": np.zeros((6, 2), np.float32)})


@pytest.mark.parametrize("name", STRATEGIES)
def test_each_device_takes_its_share_of_the_batch(name):
    placed = STRATEGIES[name]().place_batch(batch_at(0))
    for leaf in jax.tree.leaves(placed):
        assert {shard.data.nbytes * 4 for shard in leaf.addressable_shards} == {leaf.nbytes}


@pytest.mark.slow
def test_eight_devices_equal_one_and_fsdp_holds_an_eighth():
    script = Path(__file__).with_name("eight_devices.py")
    root = script.parents[2]
    done = subprocess.run(
        [sys.executable, script], cwd=root, env={**os.environ, "PYTHONPATH": str(root)},
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("of the state's") == 4
