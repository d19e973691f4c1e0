"""What moves between devices in a compiled program: parameters and their gradients, nothing else."""

import dataclasses
import math
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax.sharding import AbstractMesh, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from guidedflow import models, pipelines, predictions
from guidedflow.bundle import Bundle
from guidedflow.conditions import Labels
from guidedflow.nn.operations import XLA
from guidedflow.paths import Linear
from guidedflow.samplers import sample_ode
from guidedflow.target import attached
from guidedflow.training import parallel
from guidedflow.training.batches import Numbered
from guidedflow.training.build import build
from guidedflow.training.config import defaults

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "collective-permute", "all-to-all")
OPERATION = re.compile(rf"= (.*?) ({'|'.join(KINDS)})(?:-start)?\(")


def collectives(text):
    """(kind, shape) of every array that a collective of a compiled program gives."""
    return [
        (kind, tuple(int(size) for size in shape.split(",") if size))
        for shapes, kind in OPERATION.findall(text)
        for shape in re.findall(r"\w+\[([\d,]*)\]", shapes)
    ]


# One row a network; the batch of 20, 5 a device, divides no size of a parameter.
NETWORKS = {
    "transformer": {"preset": "tiny"},
    "scanned": {"preset": "tiny", "scan_layers": True, "remat": "dots"},
    "convolutions": {"preset": "tiny-unet"},
}


class Told(nn.Module):
    """A network that takes tokens and a vector, told each label as two tokens and a vector."""

    image_size: Any
    channels: int
    num_classes: int
    preset: str
    dtype: Any = jnp.float32
    operations: Any = None

    @nn.compact
    def __call__(self, x, t, label):
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        shared = {name: fields[name] for name in ("image_size", "channels", "dtype", "operations")}
        told = {"num_classes": None, "token_width": 3, "vector_width": 3, **SIZES[self.preset]}
        network = models.create(self.preset, **shared, **told)
        vector = jnp.stack([label, 2 * label, 3 * label], axis=1).astype(x.dtype)
        cond = {
            "vector": vector,
            "tokens": jnp.stack([vector, -vector], axis=1),
            "mask": jnp.stack([label >= 0, label > 2], axis=1),
        }
        return network(x, t, cond)


# Sizes that nothing of a batch shares.
SIZES = {
    "tiny": {"inject": ("cross_attention", "in_context", "adaptive"), "scan_layers": True},
    "tiny-unet-text": {},
    "tiny-uvit": {"token_positions": 7},
}
NETWORKS |= {f"{name} told tokens": {"preset": f"told {name}"} for name in SIZES}


@pytest.fixture(scope="module", autouse=True)
def told_networks():
    with pytest.MonkeyPatch.context() as patch:
        for name in SIZES:
            patch.setitem(models.PRESETS, f"told {name}", (Told, {"preset": name}))
        yield


@pytest.mark.parametrize("strategy", ["data", "fsdp", "pmap"])
@pytest.mark.parametrize("network", NETWORKS)
def test_a_step_moves_parameters_and_gradients_alone(network, strategy):
    config = defaults()
    config.network.update(NETWORKS[network])
    config.batch, config.parallel.strategy, config.held_out.every = 20, strategy, 0
    setup = build(config)
    abstract = parallel.abstract_state(setup.init, setup.strategy)
    batch = setup.strategy.place_batch(Numbered(setup.batches())[0])
    compiled = setup.strategy.compile(setup.step(), abstract, batch, jax.random.key(0))
    found = collectives(compiled.as_text())
    assert {kind for kind, _ in found} <= {"all-reduce", "all-gather", "reduce-scatter"}
    assert any(kind == "all-gather" for kind, _ in found) == (strategy == "fsdp")
    whole = {math.prod(leaf.shape) for leaf in jax.tree.leaves(abstract.params)}
    # A scanned stack is gathered block by block; a scalar is the loss or a norm.
    depth = 2 if network in ("scanned", "tiny told tokens") else 1
    parameters = whole | {size // depth for size in whole} | {1}
    if network == "tiny-uvit told tokens":
        # The gradient of its table of positions is reduced in parts; these are the rows of label and
        # tokens, 8 of width 16. No activation has that size: each would have a factor of 5.
        parameters |= {8 * 16}
    assert {math.prod(shape) for _, shape in found} <= parameters


@pytest.mark.parametrize("preset", ["tiny", "tiny-unet"])
def test_sampling_over_a_data_mesh_needs_no_collective(preset):
    mesh = attached().mesh()
    made = models.create(preset, operations=XLA().over(mesh.size))
    abstract = jax.eval_shape(
        lambda key: made.init(key, jnp.zeros((1, 8, 8, 1)), jnp.zeros(1), jnp.zeros(1, jnp.int32)),
        jax.random.key(0),
    )["params"]

    def draw(params, noise, labels):
        bundle = Bundle(made, params, Linear(), predictions.velocity, Labels(10), (8, 8, 1))
        model = pipelines.guided_model(bundle, pipelines.Method(scale=2.0))
        return sample_ode(model, noise, jnp.linspace(0.0, 1.0, 3), labels)

    whole, rows = NamedSharding(mesh, P()), NamedSharding(mesh, P("data"))
    shapes = (
        jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=whole), abstract
        ),
        jax.ShapeDtypeStruct((8, 8, 8, 1), jnp.float32, sharding=rows),
        jax.ShapeDtypeStruct((8,), jnp.int32, sharding=rows),
    )
    compiled = jax.jit(draw, out_shardings=rows).lower(*shapes).compile()
    assert collectives(compiled.as_text()) == []


# Three divides the widths of S, B and XL, and not that of L.
SHARES = [(size, devices) for size in ("S", "B", "L", "XL") for devices in (8, 64, 256)]
SHARES += [(size, 24) for size in ("S", "B", "XL")]


@pytest.mark.parametrize(("size", "devices"), SHARES)
def test_a_device_holds_its_share_of_the_state(size, devices):
    """Within 5% of it."""
    network = models.create(f"DiT-{size}/2", operations=XLA("tpu"))
    x, one = jnp.zeros((1, 32, 32, 4)), jnp.zeros(1)
    params = jax.eval_shape(network.init, jax.random.key(0), x, one, jnp.zeros(1, jnp.int32))
    axes = {f"fsdp_{i}": part for i, part in enumerate(parallel.prime_factors(devices))}
    mesh = AbstractMesh(tuple(axes.values()), tuple(axes))
    leaves = jax.tree.leaves(params)
    shards = [
        NamedSharding(mesh, parallel.fsdp_spec(leaf.shape, axes)).shard_shape(leaf.shape)
        for leaf in leaves
    ]
    held, total = sum(map(math.prod, shards)), sum(leaf.size for leaf in leaves)
    assert held <= 1.05 * total / devices


def test_one_device_is_no_mesh():
    """Its matmuls and convolutions keep the form that is fast on one CPU device."""
    mesh = Mesh(np.asarray(jax.devices()[:1]), ("data",))
    assert XLA("cpu", mesh=mesh) == XLA("cpu")
