"""A model in groups is the model; a group is a turn of a loop."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from guidedflow import guidance, models
from guidedflow.nn.microbatching import for_device, group_of, micro_batches_for_device
from guidedflow.nn.operations import CPU_ROWS, XLA


def elementwise(x, t, cond):
    return jnp.sin(x) * t[:, None] + cond["label"][:, None]


def inputs(batch):
    keys = jax.random.split(jax.random.key(0))
    x, t = jax.random.normal(keys[0], (batch, 3)), jax.random.uniform(keys[1], (batch,))
    return x, t, {"label": jnp.arange(batch)}


@pytest.mark.parametrize(("batch", "size"), [(8, 2), (8, 3), (7, 4), (6, 6), (4, 9)])
def test_in_groups_is_the_model(batch, size):
    x, t, cond = inputs(batch)
    grouped = jax.jit(models.in_groups(elementwise, size))(x, t, cond)
    np.testing.assert_allclose(grouped, elementwise(x, t, cond), rtol=1e-6, atol=1e-6)


def test_in_groups_guides_and_differentiates_as_the_model():
    x, t, cond = inputs(8)

    def total(x, model):
        return jnp.sum(guidance.classifier_free(model, {"label": 9}, 2.0)(x, t, cond) ** 2)

    grouped = jax.grad(total)(x, models.in_groups(elementwise, 2))
    np.testing.assert_allclose(grouped, jax.grad(total)(x, elementwise), rtol=1e-5, atol=1e-5)


def test_one_turn_sees_one_group():
    seen = []

    def spy(x, t, cond):
        seen.append(x.shape)
        return x

    models.in_groups(spy, 2)(*inputs(8))
    assert set(seen) == {(2, 3)}


@pytest.mark.parametrize(
    ("batch", "size", "group"), [(8, 4, 4), (8, 3, 2), (6, 4, 3), (7, 4, 7), (3, 8, 3), (9, 1, 1)]
)
def test_a_group_is_a_divisor_that_is_not_much_smaller(batch, size, group):
    assert group_of(batch, size) == group


def test_a_network_on_a_cpu_is_grouped_by_its_tokens():
    network = models.create("tiny", patch=1)
    assert for_device(elementwise, network).size == CPU_ROWS // 64
    assert for_device(elementwise, models.create("tiny-unet")) is elementwise
    on_tpu = models.create("tiny", patch=1, operations=XLA("tpu"))
    assert for_device(elementwise, on_tpu) is elementwise


@pytest.mark.parametrize("size", [0, 2.0, True])
def test_a_group_of_no_whole_size_is_refused(size):
    with pytest.raises(ValueError, match="size must be a whole number"):
        models.in_groups(elementwise, size)


def test_a_training_step_is_cut_into_parts_of_about_1024_tokens_on_a_cpu():
    """The parts multiply back to the batch; a batch that no such part divides stays whole."""
    network = models.create("digits")
    assert micro_batches_for_device(network, 256) == 4
    assert micro_batches_for_device(network, 64) == 1
    assert micro_batches_for_device(network, 96) == 2
    assert micro_batches_for_device(network, 67) == 1


def test_a_network_without_tokens_takes_its_batch_whole():
    assert micro_batches_for_device(models.create("tiny-unet"), 4096) == 1
