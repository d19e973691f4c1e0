"""A network with a text encoder: prompts are encoded once, and padding changes nothing."""

import dataclasses
from collections import Counter
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from known import bundle_of
from words import word_tokenizer

from guidedflow import pipelines, samplers, times
from guidedflow.bundle import encoded
from guidedflow.conditions import Labels, Named, Prompts
from guidedflow.models import TextConditioned, TextEncoder, create
from guidedflow.nn.capabilities import Capabilities, check_takes, over_devices
from guidedflow.pipelines import Method

PROMPTS = Prompts(word_tokenizer())
VOCABULARY, WIDTH = len(PROMPTS.tokenizer.units), 12


class Told(nn.Module):
    """A velocity that hears what it declares: the mean of the unmasked tokens, a vector, a class."""

    takes: tuple[str, ...] = ("tokens", "vector")
    operations: Any = None

    @property
    def capabilities(self):
        return Capabilities(takes=frozenset(self.takes))

    @nn.compact
    def __call__(self, x, t, cond: Any):
        wanted = {*self.takes, *(("mask",) if "tokens" in self.takes else ())}
        assert set(cond) == wanted, set(cond)
        heard = [x.reshape(len(x), -1), t[:, None]]
        if "tokens" in cond:
            weights = cond["mask"] / cond["mask"].sum(axis=1, keepdims=True)
            heard.append(jnp.einsum("bn,bnd->bd", weights, cond["tokens"]))
        if "vector" in cond:
            heard.append(cond["vector"])
        if "label" in cond:
            heard.append(nn.one_hot(cond["label"], 4))
        return nn.Dense(x[0].size)(jnp.concatenate(heard, axis=-1)).reshape(x.shape)


def made(*takes, condition=PROMPTS):
    fields = PROMPTS.network_fields()
    text = TextEncoder(**{**fields, "positions": 16}, width=WIDTH, depth=1, heads=2)
    network = TextConditioned(Told(takes or ("tokens", "vector")), text)
    x, t, cond = jnp.ones((1, 2, 2, 1)), jnp.ones(1), condition.example(1)
    params = network.init(jax.random.key(0), x, t, cond)["params"]
    return bundle_of(
        None, network=network, params=params, condition=condition, image_shape=(2, 2, 1)
    )


@pytest.fixture(scope="module")
def bundle():
    return made()


def call(bundle, cond):
    x = jax.random.normal(jax.random.key(1), (2, 2, 2, 1))
    return bundle.network.apply({"params": bundle.params}, x, jnp.full(2, 0.5), cond)


def test_a_call_takes_prompts_or_what_they_are_encoded_to(bundle):
    cond = PROMPTS.parse(["red", "tan blue"])
    features, _ = encoded(bundle.network, bundle.params, cond, PROMPTS.null())
    assert {k: v.shape for k, v in features.items()} == {
        "tokens": (2, 6, WIDTH), "vector": (2, WIDTH), "mask": (2, 6),
    }  # fmt: skip
    np.testing.assert_allclose(call(bundle, features), call(bundle, cond), atol=1e-6)


@pytest.mark.parametrize("takes", [("tokens",), ("vector",), ("tokens", "vector", "label")])
def test_a_network_hears_what_it_declares_and_no_more(takes):
    condition = Named({"label": Labels(3), "prompt": PROMPTS}) if "label" in takes else PROMPTS
    bundle = made(*takes, condition=condition)
    asked = [{"label": 1, "prompt": "red"}, {"prompt": "blue"}] if "label" in takes else ["red", ""]
    assert np.all(np.isfinite(call(bundle, condition.parse(asked))))


def test_padding_never_changes_a_result(bundle):
    longer = Prompts(dataclasses.replace(PROMPTS.tokenizer, length=11))
    prompts = ["red", "tan blue red"]
    short, long = (call(bundle, kind.parse(prompts)) for kind in (PROMPTS, longer))
    np.testing.assert_allclose(long, short, atol=1e-6)
    cond = longer.parse(prompts)
    noise = np.random.default_rng(0).integers(2, VOCABULARY, cond["ids"].shape)
    other = {**cond, "ids": np.where(cond["mask"], cond["ids"], noise).astype(np.int32)}
    np.testing.assert_array_equal(call(bundle, other), call(bundle, cond))
    assert np.abs(call(bundle, PROMPTS.parse(["red", "tan"])) - short)[1].max() > 1e-4


def inner_jaxprs(eqn):
    for value in eqn.params.values():
        for one in value if isinstance(value, tuple | list) else [value]:
            inner = getattr(one, "jaxpr", one)
            if hasattr(inner, "eqns"):
                yield inner


def operations(jaxpr, in_scan=False):
    """Yield (primitive, whether it is in a scan, shapes of its inputs) of every operation."""
    for eqn in jaxpr.eqns:
        inside = list(inner_jaxprs(eqn))
        for inner in inside:
            yield from operations(inner, in_scan or eqn.primitive.name == "scan")
        if not inside:
            shapes = [getattr(v.aval, "shape", ()) for v in eqn.invars]
            yield eqn.primitive.name, in_scan, shapes


def test_text_is_not_encoded_in_the_scan(bundle):
    method, cond = Method(scale=3.0, steps=4), PROMPTS.parse(["red", "blue"])
    ts, noise = jnp.asarray(times.uniform_grid(4)), jnp.ones((2, 2, 2, 1))

    def job(cond, before):
        null = PROMPTS.null()
        if before:
            cond, null = encoded(bundle.network, bundle.params, cond, null)
        model = pipelines.guided_model(bundle, method, null=null)
        return samplers.sample_ode(model, noise, ts, cond)

    def counted(before):
        jaxpr = jax.make_jaxpr(job, static_argnums=1)(cond, before).jaxpr
        table = (VOCABULARY, WIDTH)
        found = [(name, scan) for name, scan, shapes in operations(jaxpr) if table in shapes]
        found = Counter(scan for name, scan in found if name == "gather")
        return found[False], found[True]

    # Both branches in one look-up of the words; inside, every evaluation of a step has its own.
    assert counted(True) == (1, 0)
    outside, inside = counted(False)
    assert (outside, inside > 0) == (0, True)


def test_a_job_encodes_its_prompts_once_and_draws_what_its_network_would(bundle, monkeypatch):
    calls = []
    whole = TextEncoder.__call__

    def counting(self, tokens, mask=None):
        calls.append(tokens.shape[0])
        return whole(self, tokens, mask)

    method = Method(scale=2.0, steps=2)
    monkeypatch.setattr(TextEncoder, "__call__", counting)
    prompts = ["red", "blue", "tan", "", "red blue"]
    drawn = pipelines.sample(bundle, prompts, method, batch=4, negative="tan")
    assert calls == [6]
    # Of a weaker run each encodes for itself.
    led = dataclasses.replace(method, guidance="autoguidance", scale=1.0)
    away = pipelines.sample(bundle, prompts, led, batch=4, weaker=bundle)
    plain = pipelines.sample(bundle, prompts, dataclasses.replace(method, scale=1.0), batch=4)
    np.testing.assert_allclose(away, plain, atol=1e-5)
    assert np.abs(drawn - plain).max() > 1e-3


def test_a_network_that_takes_no_features_is_refused():
    with pytest.raises(ValueError, match=r"a DiT takes no features of text.*takes label, scalars"):
        TextConditioned(create("tiny"), made().network.text)
    with pytest.raises(ValueError, match="a DiT cannot be told prompts; it takes label, scalars"):
        check_takes(create("tiny"), PROMPTS.gives)


def test_the_network_inside_is_spread_over_devices():
    text = made().network.text
    network = TextConditioned(Told(operations=create("tiny").operations), text)
    assert over_devices(network, 4).network.operations == network.network.operations.over(4)
