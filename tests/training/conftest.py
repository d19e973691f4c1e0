"""A run of a network that compiles in a second."""

from typing import Any

import jax.numpy as jnp
import pytest
from flax import linen as nn

from guidedflow.models import PRESETS
from guidedflow.training.config import defaults


class OneLayer(nn.Module):
    """A velocity that is affine in the image, the time and the class."""

    image_size: Any
    channels: int
    num_classes: int
    dtype: Any = jnp.float32
    width: int = 16

    @nn.compact
    def __call__(self, x, t, cond):
        label = nn.one_hot(cond, self.num_classes + 1)
        inputs = jnp.concatenate([x.reshape(len(x), -1), t[:, None], label], axis=-1)
        hidden = nn.Dense(self.width)(inputs)
        return nn.Dense(x[0].size)(hidden).reshape(x.shape)


@pytest.fixture(scope="session", autouse=True)
def one_layer():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(PRESETS, "one layer", (OneLayer, {}))
        yield


def tiny_config():
    """Return a config of twelve steps that take no time."""
    config = defaults()
    config.dataset.held_out = "test"
    config.network.preset = "one layer"
    config.steps, config.batch = 12, 16
    config.optimizer.warm_up = 2
    config.log.every, config.log.tensorboard = 4, False
    config.checkpoint.every = 4
    config.held_out.every = config.sample.every = 0
    config.sample.classes = 10
    config.parallel.strategy = "data"
    return config


@pytest.fixture
def tiny():
    return tiny_config()
