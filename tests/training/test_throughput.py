"""What a run says of its speed: operations counted from the program, rates from the clocks."""

import jax
import jax.numpy as jnp
import pytest

from guidedflow.benchmark import dit_flops
from guidedflow.models import create
from guidedflow.training import throughput
from guidedflow.training.build import build
from guidedflow.training.flops import counted


def shape(*sides):
    return jax.ShapeDtypeStruct(sides, jnp.float32)


def test_a_product_counts_two_a_multiply_add():
    assert counted(jnp.matmul, shape(3, 5), shape(5, 7)) == 2 * 3 * 5 * 7
    batched = counted(lambda a, b: jnp.einsum("bij,bjk->bik", a, b), shape(4, 3, 5), shape(4, 5, 7))
    assert batched == 4 * 2 * 3 * 5 * 7


def test_a_gradient_counts_three_forward_passes():
    def loss(kernels, x):
        return jnp.sum(jnp.tanh(jnp.tanh(x @ kernels[0]) @ kernels[1]))

    kernels, x = (shape(5, 6), shape(6, 7)), shape(2, 5)
    forward = counted(loss, kernels, x)
    assert forward == 2 * 2 * (5 * 6 + 6 * 7)
    # Nothing is asked of x, so the first layer passes nothing on.
    assert counted(jax.grad(loss), kernels, x) == 3 * forward - 2 * 2 * 5 * 6


def test_a_convolution_and_its_gradient():
    def loss(kernel, x):
        layout = ("NHWC", "HWIO", "NHWC")
        y = jax.lax.conv_general_dilated(x, kernel, (2, 2), "SAME", dimension_numbers=layout)
        return jnp.sum(y**2)

    kernel, x = shape(3, 3, 4, 8), shape(2, 6, 6, 4)
    forward = counted(loss, kernel, x)
    assert forward == 2 * (2 * 3 * 3 * 8) * (3 * 3 * 4)
    assert counted(jax.grad(loss), kernel, x) == 2 * forward
    # The gradient to the input runs over its zeros at the edges too.
    assert counted(jax.grad(loss, (0, 1)), kernel, x) >= 3 * forward


def test_loops_count_as_often_as_they_run_and_branches_as_the_costlier():
    def looped(x, kernel):
        return jax.lax.scan(lambda x, _: (x @ kernel, None), x, length=9)[0]

    def branched(x, kernel):
        return jax.lax.cond(x[0, 0] > 0, lambda: x @ kernel @ kernel, lambda: x @ kernel)

    once = 2 * 2 * 5 * 5
    assert counted(looped, shape(2, 5), shape(5, 5)) == 9 * once
    assert counted(jax.jit(branched), shape(2, 5), shape(5, 5)) == 2 * once


@pytest.mark.parametrize(
    "options",
    [{}, {"scan_layers": True}, {"remat": "full"}, {"scan_layers": True, "remat": "dots"}],
)
def test_a_step_costs_three_evaluations_however_it_is_compiled(tiny, options):
    """The closed form of a DiT's operations, whatever is scanned or computed a second time."""
    tiny.network.preset = "tiny"
    tiny.network.update(options)
    setup = build(tiny)
    expected = 3 * tiny.batch * dit_flops(create("tiny"))
    assert setup.flops() == pytest.approx(expected, rel=1e-3)


def test_accumulating_costs_no_more(tiny):
    whole = build(tiny).flops()
    tiny.accumulate = 2
    assert build(tiny).flops() == whole > 0


def test_memory_is_what_the_device_says(monkeypatch):
    class Device:
        def memory_stats(self):
            return {"bytes_in_use": 5, "peak_bytes_in_use": 9, "largest_alloc_size": 3}

    device = Device()
    assert throughput.memory(device) == {"memory_bytes": 5.0, "memory_peak_bytes": 9.0}
    monkeypatch.setattr(Device, "memory_stats", lambda self: None)
    assert throughput.memory(device) == {}


def test_the_peak_is_that_of_a_product():
    """A product of 64 in no time at all: between a million and 10^15 operations a second."""
    assert 1e6 < throughput.matmul_peak(jnp.float32, "cpu", size=64, seconds=0.01) < 1e15
