"""A network and its parameters as a velocity field."""

from dataclasses import dataclass
from typing import Any

import jax
from flax import linen as nn
from jaxtyping import Array, PyTree

from guidedflow import paths, predictions
from guidedflow.nn.microbatching import for_device
from guidedflow.types import ModelFn


@dataclass(frozen=True)
class Apply:
    """A network as a function of its parameters; equal for equal networks, as `jit` wants it."""

    network: nn.Module

    def __call__(self, params: PyTree, *inputs: Any) -> Array:
        output: Any = self.network.apply({"params": params}, *inputs)
        return output


def model_fn(
    network: nn.Module, params: PyTree, path: paths.Path, predicts: predictions.Prediction
) -> ModelFn:
    """Return the velocity field (x, t, cond) of a network with these parameters.

    The parameters are leaves of it, so that a sampler takes them as arguments of one program.  Its
    batch is evaluated in the groups that suit the device; see `learning` for derivatives.
    """
    bound = for_device(jax.tree_util.Partial(Apply(network), params), network)
    return predictions.as_velocity(bound, path, predicts)


def learning(
    network: nn.Module, params: PyTree, path: paths.Path, predicts: predictions.Prediction
) -> ModelFn:
    """Return the same velocity field for a loss: its batch evaluated whole.

    The derivative of a loop over groups keeps what every group computed; a training step cuts its
    batch into micro-batches instead.
    """
    bound = jax.tree_util.Partial(Apply(network), params)
    return predictions.as_velocity(bound, path, predicts)
