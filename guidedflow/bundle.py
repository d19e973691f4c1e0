"""A trained network without its data set: network, parameters, and what sampling needs."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float, Int, PyTree

from guidedflow import paths, predictions
from guidedflow.conditions import Condition
from guidedflow.guidance.gradients import LogProb
from guidedflow.nn.capabilities import capabilities
from guidedflow.nn.microbatching import for_device
from guidedflow.scales import ByNull, TakesScale
from guidedflow.types import Cond, ModelFn

Decoder = Callable[[Float[np.ndarray, "n h w c"]], Float[np.ndarray, "n H W C"]]


@dataclass(frozen=True)
class Apply:
    """A network as a function of its parameters; equal for equal networks, so `jit` does not retrace."""

    network: nn.Module

    def __call__(self, params: PyTree, *inputs: Any) -> Array:
        output: Any = self.network.apply({"params": params}, *inputs)
        return output


def model_fn(
    network: nn.Module,
    params: PyTree,
    path: paths.Path,
    predicts: predictions.Prediction,
    *,
    whole: bool = False,
) -> ModelFn:
    """Return the velocity field (x, t, cond) of a network with these parameters.

    The parameters are its leaves, so a sampler takes them as arguments of one compiled program.

    Args:
      whole: evaluate the whole batch at once, not in micro-batches that suit the device. A loss needs
        this: the derivative of a loop over micro-batches keeps the activations of all of them.
    """
    bound = jax.tree_util.Partial(Apply(network), params)
    return predictions.as_velocity(bound if whole else for_device(bound, network), path, predicts)


@dataclass(frozen=True)
class _Encode:
    """A network's `encode` as a function of its parameters; equal for equal networks."""

    network: nn.Module

    def __call__(self, params: PyTree, cond: Cond) -> Cond:
        return self.network.apply({"params": params}, cond, method="encode")


def encoded(network: nn.Module, params: PyTree, cond: Cond, null: Cond) -> tuple[Cond, Cond]:
    """Return a condition and its null as what the network makes of them alone, in one call.

    That is done once a job, outside a sampler's scan. They stay as they are where the network has
    nothing to encode.

    Args:
      cond: every leaf with the batch first.
      null: of one example, without the batch axis.
    """
    if not capabilities(network).encodes:
        return cond, null
    both = jax.tree.map(lambda many, one: jnp.concatenate([many, one[None]]), cond, null)
    features = _Encode(network)(params, both)
    return tuple(jax.tree.map(lambda leaf, at=at: leaf[at], features) for at in (slice(-1), -1))


@dataclass(frozen=True)
class _ClassLogProb:
    """log p(label given x, t) of a classifier, as a function of its parameters."""

    network: nn.Module

    def __call__(
        self, params: PyTree, x: Array, t: Float[Array, " b"], label: Int[Array, " b"]
    ) -> Float[Array, " b"]:
        log_probs = jax.nn.log_softmax(Apply(self.network)(params, x, t))
        return jnp.take_along_axis(log_probs, label[:, None], axis=1)[:, 0]


@dataclass(frozen=True, eq=False)
class Bundle:
    """A network with its parameters, and what is needed to sample from it or to guide with it.

    Attributes:
      network: Flax module, `network.apply({"params": params}, x, t, cond)`.
      params: parameters of the network.
      path, predicts: the path it was trained on, and the prediction type.
      condition: the condition it takes.
      image_shape: (h, w, c) of its samples.
      takes_scale: how it is given the guidance scale.
      decoder: latents to images; None if it samples images.
      name: where it comes from, for messages.
      task: the task it was trained on.
      step: number of training steps done.
    """

    network: nn.Module
    params: PyTree
    path: paths.Path
    predicts: predictions.Prediction
    condition: Condition
    image_shape: tuple[int, int, int]
    takes_scale: TakesScale = field(default_factory=ByNull)
    decoder: Decoder | None = None
    name: str | Path = "this model"
    task: str = "flow"
    step: int = 0

    @property
    def generates(self) -> bool:
        """Whether the network is a model to sample from, and not a classifier."""
        return capabilities(self.network).output == "field"

    @property
    def model(self) -> ModelFn:
        """The velocity field; the parameters are its leaves."""
        return model_fn(self.network, self.params, self.path, self.predicts)

    @property
    def log_prob(self) -> LogProb:
        """(x, t, label) -> log p(label given x, t) of a classifier; the parameters are its leaves."""
        return jax.tree_util.Partial(_ClassLogProb(self.network), self.params)

    def images(self, drawn: Float[np.ndarray, "n h w c"]) -> Float[np.ndarray, "n H W C"]:
        """Return samples as images in [-1, 1]; without a decoder, latents are returned unchanged."""
        return drawn if self.decoder is None else self.decoder(drawn)

    def check_fits(
        self, name: str, image_shape: tuple[int, ...], condition: Condition, path: paths.Path
    ) -> None:
        """Raise ValueError unless this bundle has the given image shape, condition and path."""
        for what, has, wanted in (
            ("images of", tuple(self.image_shape), tuple(image_shape)),
            ("the condition", self.condition.identity(), condition.identity()),
            ("the path", self.path, path),
        ):
            if has != wanted:
                raise ValueError(f"{name} was trained for {what} {has}, this run has {wanted}")

    def perturbed(self, how: str) -> ModelFn:
        """Return the velocity field of the network with its middle block perturbed.

        Raises:
          ValueError: the network cannot be perturbed.
        """
        network: Any = self.network
        if not capabilities(network).perturbed:
            raise ValueError(
                f"{self.name} holds a {type(network).__name__}, and only a transformer's blocks "
                "can be perturbed"
            )
        return model_fn(network.perturbed(how), self.params, self.path, self.predicts)
