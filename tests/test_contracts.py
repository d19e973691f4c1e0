"""One battery over every sampler x every guidance: what each pair owes its user.

A new sampler or a new guidance is one line of a table. Every pair is compiled once, as a user calls it,
and traced some times more, strict dtype promotion on: in bfloat16 under vmap of grad, in float16 with
64-bit numbers on, and under shard_map. Along the tables' edges (every sampler under classifier-free
guidance, every guidance under the first sampler) the one program is that of a batch spread over a mesh of
four devices, which pmap and the examples one by one under vmap must equal, and the gradient its
difference quotient.

Inside the edges a third of the pairs runs, a diagonal on which every row and every column meets several
of the others; `make contracts` runs them all.
"""

import functools
import os
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from interpreter import evaluate
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from guidedflow import guidance, paths, predictions, samplers
from guidedflow.types import pytree

PATH = paths.Linear()
CLASSES = 3
SHAPE = (4, 4, 2)
GRID = np.asarray([0.1, 0.4, 0.7, 1.0], np.float32)


class Case(NamedTuple):
    """One row of a table: how to call it, what it cannot have, and whom it can meet, if not all."""

    call: Callable
    without: frozenset = frozenset()
    only: tuple = ()


def ode(step):
    return Case(lambda m, x, ts, c, key: samplers.sample_ode(m, x, ts, c, step=step, key=key))


def sde(**options):
    return Case(
        lambda m, x, ts, c, key: samplers.sample_sde(m, x, ts, c, key=key, path=PATH, **options)
    )


def ddpm(variance):
    return Case(
        lambda m, x, ts, c, key: samplers.sample_ddpm(
            m, x, ts, c, key=key, path=PATH, variance=variance
        )
    )


def ddim(eta):
    return Case(
        lambda m, x, ts, c, key: samplers.sample_ddim(m, x, ts, c, key=key, path=PATH, eta=eta)
    )


def on_path(sampler, keyed=False, **options):
    def call(m, x, ts, c, key):
        given = {**options, "key": key} if keyed else options
        return sampler(m, x, ts, c, path=PATH, **given)

    return Case(call, frozenset() if keyed else frozenset({"key"}))


SAMPLERS = {
    "euler": ode(samplers.euler),
    "midpoint": ode(samplers.midpoint),
    "heun": ode(samplers.heun),
    "rk4": ode(samplers.rk4),
    "euler-maruyama": sde(),
    "euler-maruyama-tweedie": sde(diffusion=samplers.proportional(0.5), last=samplers.tweedie),
    "ddpm": ddpm(samplers.smallest),
    "ddpm-learned": ddpm(samplers.learned),
    "ddim": ddim(0.0),
    "ddim-eta": ddim(0.7),
    "adams-bashforth": ode(samplers.adams_bashforth(3)),
    "dpmpp-2m": on_path(samplers.sample_dpmpp),
    "dpmpp-sde": on_path(samplers.sample_dpmpp, keyed=True, eta=1.0),
    "dpmpp-singlestep": on_path(samplers.sample_dpmpp_singlestep),
    "unipc": on_path(samplers.sample_unipc),
    "edm-churn": on_path(samplers.sample_edm, keyed=True, churn=1.0),
    "stochastic-heun": sde(step=samplers.stochastic_heun),
}

# Samplers that renoise a data estimate, by the first word of their names.
RENOISE = ("ddpm", "ddim", "dpmpp", "unipc")


def ruled(rule):
    return Case(lambda m, w: guidance.classifier_free(m, CLASSES, w, rule=rule))


@pytree
class Several:
    """A model of two conditions under one: the label and the next."""

    model: Callable

    def __call__(self, x, t, cond):
        return self.model(x, t, (cond, (cond + 1) % CLASSES))

    def init(self, x):
        return self.model.init(x)

    def evaluate(self, state, x, t, cond, at):
        return self.model.evaluate(state, x, t, (cond, (cond + 1) % CLASSES), at)


def loss(data, cond):
    return 0.1 * jnp.mean(jnp.square(data), (1, 2, 3))


# (model, scale) -> a guided model.
GUIDANCE = {
    "none": Case(lambda m, w: m, frozenset({"scale"})),
    "classifier-free": Case(lambda m, w: guidance.classifier_free(m, CLASSES, w)),
    "interval": Case(
        lambda m, w: guidance.classifier_free(m, CLASSES, guidance.interval(w, 0.3, 0.8))
    ),
    "reuse": Case(lambda m, w: guidance.reuse(m, CLASSES, w, every=2)),
    "autoguidance": Case(lambda m, w: guidance.extrapolate(m, guidance.fixed(m, CLASSES), w)),
    "classifier": Case(lambda m, w: guidance.classifier(m, PATH, log_prob, w)),
    "rescale": Case(
        lambda m, w: guidance.rescale(
            guidance.classifier_free(m, CLASSES, w), path=PATH, predicts=predictions.noise
        )
    ),
    "dynamic-threshold": Case(
        lambda m, w: guidance.dynamic_threshold(guidance.classifier_free(m, CLASSES, w), PATH, 0.9)
    ),
    "guide-channels": Case(
        lambda m, w: guidance.guide_channels(guidance.classifier_free(m, CLASSES, w), 1)
    ),
    "projected": ruled(guidance.projected(PATH, threshold=2.0)),
    "zero-star": Case(lambda m, w: guidance.zero_star(m, CLASSES, w, until=0.1)),
    "magnitude-aware": ruled(guidance.magnitude_aware(1.0)),
    "tangential": ruled(guidance.in_space(guidance.tangential(), PATH, predictions.noise)),
    "frequency-decoupled": ruled(guidance.frequency_decoupled()),
    # As a schedule its scale may leave [0, 1], which the battery's does.
    "plus-plus": Case(
        lambda m, w: guidance.plus_plus(m, CLASSES, guidance.interval(w, 0.0, 1.0)), only=RENOISE
    ),
    "ancestral-classifier": Case(
        lambda m, w: guidance.ancestral_classifier(m, log_prob, w), only=("ddpm",)
    ),
    "composition": Case(lambda m, w: Several(guidance.compose(m, CLASSES, [w, -0.5]))),
    "perpendicular": Case(lambda m, w: Several(guidance.perpendicular(m, CLASSES, w))),
    "perturbed": Case(
        lambda m, w: guidance.perturbed(m, guidance.fixed(m, CLASSES), guidance.window(w, 0.3, 0.8))
    ),
    "loss": Case(lambda m, w: guidance.loss_guidance(m, PATH, loss, w)),
}

traces = [0]


@pytree
class Network:
    """A velocity and a variance from one embedding table; counts how often it is traced."""

    embedding: jax.Array

    def __call__(self, x, t, cond):
        traces[0] += 1
        shift = self.embedding[cond][:, None, None, :].astype(x.dtype)
        time = t[:, None, None, None].astype(x.dtype)
        velocity = jnp.tanh(shift - x) * (1 + time) + jnp.roll(x, 1, axis=1)
        return jnp.concatenate([velocity, jnp.sin(velocity)], -1)


def log_prob(x, t, cond):
    flat = x.reshape(x.shape[0], -1)
    logits = jnp.stack([jnp.sum(jnp.sin(flat + k), -1) / 8 for k in range(CLASSES)], -1)
    return jnp.take_along_axis(jax.nn.log_softmax(logits), cond[:, None], axis=1)[:, 0]


def sample(sampler, guide, embedding, scale, noise, keys, cond, grid=GRID):
    """Build the network, guide it and sample: what a user writes, with nothing kept between calls."""
    model = predictions.as_velocity(Network(embedding), PATH, predictions.velocity)
    return SAMPLERS[sampler].call(GUIDANCE[guide].call(model, scale), noise, grid, cond, keys)


EMBEDDING = np.random.default_rng(0).normal(size=(CLASSES + 1, SHAPE[-1])).astype(np.float32)
NOISE = np.random.default_rng(1).normal(size=(4, *SHAPE)).astype(np.float32)
LABELS = np.asarray([0, 1, 2, 1], np.int32)
WEIGHT = np.cos(np.arange(NOISE.size)).reshape(NOISE.shape).astype(np.float32)


@functools.cache
def inputs():
    keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(3), i))(jnp.arange(4))
    arrays = (jnp.asarray(a) for a in (EMBEDDING, jnp.float32(1.7), NOISE, keys, LABELS))
    return tuple(arrays)


@functools.cache
def mesh(size=4):
    return Mesh(np.asarray(jax.devices()[:size]), ("data",))


def call(sampler, guide, embedding, scale, *batch):
    """The bare call; along the edges with the batch spread over a mesh."""
    if (sampler, guide) in EDGES:
        over, whole = (NamedSharding(mesh(), PartitionSpec(*axes)) for axes in (("data",), ()))
        embedding, scale = jax.device_put((embedding, scale), whole)
        batch = jax.device_put(batch, over)
    return sample(sampler, guide, embedding, scale, *batch)


@functools.cache
def plain(sampler, guide):
    """The batch sampled by the bare call: what every other way is held against."""
    return np.asarray(call(sampler, guide, *inputs()))


@functools.cache
def one_by_one(sampler, guide):
    """The examples one by one under vmap, and the gradient through that."""
    embedding, scale, *batch = inputs()

    def loss(embedding, scale):
        def one(*example):
            return sample(sampler, guide, embedding, scale, *(a[None] for a in example))[0]

        out = jax.vmap(one)(*batch)
        return jnp.sum(out * WEIGHT), out

    both = jax.value_and_grad(loss, (0, 1), has_aux=True)
    (_, out), slopes = evaluate(both, embedding, scale)
    return out, slopes


@pytest.fixture(scope="module", autouse=True)
def compile_quickly():
    """The programs are tiny and run once: what LLVM would gain on them it never pays back."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


def meet(sampler, guide):
    only = GUIDANCE[guide].only
    return not only or sampler.split("-")[0] in only


ALL = [(s, g) for s in SAMPLERS for g in GUIDANCE if meet(s, g)]
EDGES = [(s, g) for s, g in ALL if g == "classifier-free" or s == "euler"]
# Guidance that Euler's method cannot have, with the first sampler that can; and a ninth of all pairs.
MET = [next((s, g) for s, h in ALL if h == g) for g in GUIDANCE]
DIAGONAL = [
    (s, g)
    for i, s in enumerate(SAMPLERS)
    for j, g in enumerate(GUIDANCE)
    if (i + j) % 9 == 0 and meet(s, g)
]
PAIRS = ALL if os.environ.get("ALL_PAIRS") else sorted({*EDGES, *MET, *DIAGONAL})
every_pair = pytest.mark.parametrize(("sampler", "guide"), PAIRS)
every_edge = pytest.mark.parametrize(("sampler", "guide"), EDGES)


def can(prop, *cases):
    if any(prop in case.without for case in cases):
        pytest.skip(f"{prop} is not defined for this pair")


def close(got, wanted):
    np.testing.assert_allclose(got, wanted, rtol=2e-5, atol=2e-5)


@every_pair
def test_second_call_traces_nothing(sampler, guide):
    plain(sampler, guide)
    embedding, scale, noise, keys, cond = inputs()
    before = traces[0]
    again = call(sampler, guide, embedding * 1.5, scale * 1.5, noise, keys, cond)
    assert traces[0] == before
    assert np.abs(np.asarray(again) - plain(sampler, guide)).max() > 1e-3


@every_pair
def test_an_image_depends_on_its_own_seed_and_condition(sampler, guide):
    embedding, scale, *batch = inputs()
    order = np.asarray([2, 0, 3, 1])
    permuted = call(sampler, guide, embedding, scale, *(a[order] for a in batch))
    close(permuted, plain(sampler, guide)[order])
    changed = (a.at[0].set(a[1]) for a in batch)
    other = np.asarray(call(sampler, guide, embedding, scale, *changed))
    close(other[1:], plain(sampler, guide)[1:])
    close(other[0], plain(sampler, guide)[1])


@every_edge
def test_a_batch_over_a_mesh_stays_there(sampler, guide):
    out = call(sampler, guide, *inputs())
    assert len(out.sharding.device_set) == 4


@every_edge
def test_vmap_over_single_examples_equals_the_batch_over_a_mesh(sampler, guide):
    can("vmap", SAMPLERS[sampler], GUIDANCE[guide])
    close(one_by_one(sampler, guide)[0], plain(sampler, guide))


@every_edge
def test_gradient_equals_the_difference_quotient(sampler, guide):
    can("grad", SAMPLERS[sampler], GUIDANCE[guide])
    embedding, scale, *batch = inputs()
    direction, h = np.sin(np.arange(EMBEDDING.size)).reshape(EMBEDDING.shape), 1e-2
    ends = [
        np.sum(
            np.float64(call(sampler, guide, embedding + e * direction, scale + e, *batch)) * WEIGHT
        )
        for e in (h, -h)
    ]
    slopes = one_by_one(sampler, guide)[1]
    slope = float(np.sum(slopes[0] * direction) + slopes[1])
    np.testing.assert_allclose(slope, (ends[0] - ends[1]) / (2 * h), rtol=1e-2, atol=2e-2)
    if "scale" not in GUIDANCE[guide].without:
        assert abs(float(slopes[1])) > 1e-3


@every_edge
def test_pmap_over_four_devices_equals_the_plain_call(sampler, guide):
    can("pmap", SAMPLERS[sampler], GUIDANCE[guide])
    embedding, scale, *batch = inputs()
    run = functools.partial(sample, sampler, guide)
    parts = (a[:, None] for a in batch)
    out = jax.pmap(run, in_axes=(None, None, 0, 0, 0))(embedding, scale, *parts)
    close(out[:, 0], plain(sampler, guide))


def over_a_mesh(sampler, guide, scale_axes=()):
    """The bare call within a shard_map, which splits the batch over two devices."""
    batch, whole = PartitionSpec("data"), PartitionSpec()
    return jax.shard_map(
        functools.partial(sample, sampler, guide),
        mesh=mesh(2),
        in_specs=(whole, PartitionSpec(*scale_axes), batch, batch, batch),
        out_specs=batch,
    )


@every_pair
def test_types_agree_under_shard_map(sampler, guide):
    """Traced, not run: pmap runs the same program. Along the edges also with a scale an example."""
    embedding, scale, *batch = inputs()
    scales = {(): scale}
    if (sampler, guide) in EDGES:
        scales["data",] = jnp.full(NOISE.shape[:1], scale)
    for axes, given in scales.items():
        out = jax.eval_shape(over_a_mesh(sampler, guide, axes), embedding, given, *batch)
        assert (out.shape, out.dtype) == (NOISE.shape, NOISE.dtype)


@pytest.mark.parametrize(
    ("sampler", "guide"), [("adams-bashforth", "classifier-free"), ("euler", "zero-star")]
)
def test_shard_map_equals_the_plain_call(sampler, guide):
    close(jax.jit(over_a_mesh(sampler, guide))(*inputs()), plain(sampler, guide))


def test_constants_are_known_within_an_eager_shard_map():
    close(over_a_mesh("edm-churn", "none")(*inputs()), plain("edm-churn", "none"))


@every_pair
def test_dtype_is_kept_under_vmap_of_grad(sampler, guide):
    """Traced, not run: the shapes and dtypes of the batch, one by one, in bfloat16, none promoted."""
    can("vmap", SAMPLERS[sampler], GUIDANCE[guide])
    can("grad", SAMPLERS[sampler], GUIDANCE[guide])
    embedding, scale, noise, keys, cond = inputs()
    assert plain(sampler, guide).dtype == noise.dtype

    def loss(embedding, noise, key, label):
        out = sample(sampler, guide, embedding, scale, noise[None], key[None], label[None])
        return jnp.sum(out.astype(jnp.float32)), out[0]

    one = jax.vmap(jax.grad(loss, has_aux=True), (None, 0, 0, 0))
    with jax.numpy_dtype_promotion("strict"):
        slope, out = jax.eval_shape(one, embedding, noise.astype(jnp.bfloat16), keys, cond)
    assert (out.shape, out.dtype) == (noise.shape, jnp.bfloat16)
    assert (slope.shape, slope.dtype) == ((4, *embedding.shape), jnp.float32)


@every_pair
def test_dtype_is_kept_with_64_bit_numbers_on(sampler, guide):
    """Traced, not run: a grid and a scale in float64 widen no state; along the edges none is narrowed."""
    noise, *rest = inputs()[2:]
    for dtype in (np.float16, np.float64) if (sampler, guide) in EDGES else (np.float16,):
        with jax.enable_x64(True), jax.numpy_dtype_promotion("strict"):
            run = functools.partial(sample, sampler, guide, grid=np.float64(GRID))
            arrays = np.float64(EMBEDDING), np.float64(1.7), np.asarray(NOISE, dtype)
            out = jax.eval_shape(run, *arrays, *rest)
        assert (out.shape, out.dtype) == (noise.shape, dtype)


@every_pair
def test_bad_input_is_a_value_error(sampler, guide):
    embedding, scale, noise, keys, cond = inputs()
    run = functools.partial(sample, sampler, guide, embedding)
    with pytest.raises(ValueError, match="grid must increase"):
        run(scale, noise, keys, cond, GRID[::-1])
    with pytest.raises(ValueError, match=r"lie in \[0, 1\]"):
        run(scale, noise, keys, cond, GRID + 0.1)
    with pytest.raises(ValueError, match="noise must be floating point"):
        run(scale, noise.astype(jnp.int32), keys, cond)
    with pytest.raises(ValueError, match="cond must have 4 examples"):
        run(scale, noise, keys, cond[:3])
    if "key" not in SAMPLERS[sampler].without:
        with pytest.raises(ValueError, match="key must be"):
            run(scale, noise, keys[:3], cond)
    if "scale" in GUIDANCE[guide].without:
        return
    for wrong in ("7", None, float("nan"), np.ones((4, 1), np.float32)):
        with pytest.raises(ValueError, match="scale must"):
            run(wrong, noise, keys, cond)
