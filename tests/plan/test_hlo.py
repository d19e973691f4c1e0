"""Collectives read from a compiled program's text: known ones, in loops, counted and measured."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from guidedflow.plan.hlo import Collective, collectives, layer_of

DEVICES, LAYERS, WIDTH = 4, 3, 64


@pytest.fixture(scope="module")
def found():
    """A stack whose kernels are gathered one after another, and a loss over all rows."""
    mesh = jax.make_mesh((DEVICES,), ("data",), (AxisType.Auto,))
    whole, rows = NamedSharding(mesh, P()), NamedSharding(mesh, P("data"))
    shards = NamedSharding(mesh, P(None, "data"))

    def loss(kernels, x):
        def layer(x, kernel):
            kernel = jax.lax.with_sharding_constraint(kernel, whole)
            return jax.lax.with_sharding_constraint(jnp.tanh(x @ kernel), rows), None

        last = jax.lax.scan(layer, x, kernels)[0]
        with jax.named_scope("total"):
            return jnp.sum(last)

    kernels = jax.ShapeDtypeStruct((LAYERS, WIDTH, WIDTH), jnp.float32, sharding=shards)
    x = jax.ShapeDtypeStruct((8, WIDTH), jnp.float32, sharding=rows)
    compiled = jax.jit(loss, out_shardings=whole).lower(kernels, x).compile()
    return collectives(compiled.as_text(), DEVICES)


def test_a_gather_in_a_loop_counts_as_often_as_the_loop_runs(found):
    (gather,) = [one for one in found if one.kind == "all-gather"]
    assert gather.times == LAYERS
    assert gather.shapes == ((1, WIDTH, WIDTH),)
    assert gather.bytes == 4 * WIDTH**2
    assert gather.moved == LAYERS * gather.bytes
    assert gather.group == DEVICES
    assert gather.sent == pytest.approx(gather.moved * (DEVICES - 1) / DEVICES)


def test_a_sum_is_one_number(found):
    (total,) = [one for one in found if one.kind == "all-reduce"]
    assert (total.times, total.bytes, total.shapes) == (1, 4, ((),))
    assert total.sent == pytest.approx(2 * 4 * (DEVICES - 1) / DEVICES)


def test_there_is_nothing_else(found):
    assert sorted(one.kind for one in found) == ["all-gather", "all-reduce"]


def test_a_collective_says_its_layer(found):
    (total,) = [one for one in found if one.kind == "all-reduce"]
    assert total.layer.split("/")[-1] == "total"


def test_rows_that_change_their_axis_are_exchanged():
    mesh = jax.make_mesh((DEVICES,), ("data",), (AxisType.Auto,))
    rows, columns = NamedSharding(mesh, P("data")), NamedSharding(mesh, P(None, "data"))
    x = jax.ShapeDtypeStruct((8, 16), jnp.float32, sharding=rows)
    text = jax.jit(lambda x: x + 1, out_shardings=columns).lower(x).compile().as_text()
    (one,) = collectives(text, DEVICES)
    assert one.kind == "all-to-all"
    assert one.bytes == 4 * 8 * 16 // DEVICES


# What an accelerator's compiler writes, and a CPU's does not: a start and its end, one channel twice,
# a scatter as a computation around a sum, both forms of groups.
ASYNCHRONOUS = """
HloModule m

%part (p: f32[4,8]) -> f32[16,8] {
  %p = f32[4,8]{1,0} parameter(0)
  ROOT %g = f32[16,8]{1,0:T(8,128)} all-gather(%p), channel_id=7, replica_groups=[1,4]<=[4], dimensions={0}
}

%again (q: f32[4,8]) -> f32[16,8] {
  %q = f32[4,8]{1,0} parameter(0)
  ROOT %h = f32[16,8]{1,0} all-gather(%q), channel_id=7, replica_groups=[1,4]<=[4], dimensions={0}
}

%all-reduce-scatter.1 (r: bf16[16,8]) -> bf16[4,8] {
  %r = bf16[16,8]{1,0} parameter(0)
  %s = bf16[16,8]{1,0} all-reduce(%r), channel_id=8, replica_groups={{0,1,2,3}}, to_apply=%add
  ROOT %d = bf16[4,8]{1,0} dynamic-slice(%s), dynamic_slice_sizes={4,8}
}

ENTRY %main (a: f32[4,8], b: bf16[16,8]) -> f32[16,8] {
  %a = f32[4,8]{1,0} parameter(0)
  %b = bf16[16,8]{1,0} parameter(1)
  %f = f32[16,8]{1,0} fusion(%a), kind=kCustom, calls=%part
  %e = f32[16,8]{1,0} fusion(%a), kind=kCustom, calls=%again
  %c = bf16[4,8]{1,0} fusion(%b), kind=kCustom, calls=%all-reduce-scatter.1
  %t = (f32[4,8]{1,0}, f32[16,8]{1,0}) all-gather-start(%a), channel_id=9, replica_groups=[2,2]<=[4]
  %v = (f32[4,8]{1,0}, f32[4,8]{1,0}, u32[], u32[]) collective-permute-start(%a), channel_id=10
  ROOT %u = f32[16,8]{1,0} all-gather-done(%t)
}
"""


def test_what_an_accelerators_compiler_writes():
    got = sorted((o.kind, o.bytes, o.group) for o in collectives(ASYNCHRONOUS, 4))
    assert got == [
        ("all-gather", 4 * 128, 2),
        ("all-gather", 4 * 128, 4),
        ("collective-permute", 4 * 32, 4),
        ("reduce-scatter", 2 * 128, 4),
    ]


def test_a_layer_is_named_without_jaxs_own_steps():
    name = "jit(step)/transpose(jvp(DiT))/while/body/checkpoint/blocks/mlp/dot_general"
    assert layer_of(name) == "DiT/blocks/mlp"


def test_a_program_without_collectives_has_none():
    assert collectives(jax.jit(jnp.sum).lower(jnp.ones(4)).compile().as_text(), 1) == []


def test_a_permutation_sends_all_of_its_array():
    one = Collective("collective-permute", ((4,),), bytes=16, group=4, times=2, layer="")
    assert one.sent == one.moved == 32
