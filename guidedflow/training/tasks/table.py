"""What can be trained, by name: what a kind of run takes, learns, measures, and how it is guided."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Int, PyTree
from ml_collections import ConfigDict

from guidedflow import guidance, paths
from guidedflow.training import classifying, taught
from guidedflow.training.tasks.flow import flow_loss
from guidedflow.training.step import Batch, LossFn
from guidedflow.types import ModelFn, Scale

Inputs = Callable[[Int[Array, " b"]], tuple[Any, ...]]
Measures = Callable[[nn.Module, paths.Path, PyTree, Batch, Array], dict[str, Float[Array, " b"]]]


def _label(label: Array) -> tuple[Any, ...]:
    return (label,)


def _label_and(name: str) -> Inputs:
    def inputs(label: Array) -> tuple[Any, ...]:
        return ({"label": label, name: jnp.ones(label.shape)},)

    return inputs


def _no_measures(
    network: nn.Module, path: paths.Path, params: PyTree, batch: Batch, key: Array
) -> dict[str, Array]:
    return {}


def _same(config: ConfigDict, scale: float) -> float:
    return scale


def _classifier_free(model: ModelFn, null: Array, scale: Scale) -> ModelFn:
    return guidance.classifier_free(model, null, scale)


def _fixed(config: ConfigDict, model: ModelFn, null: Array) -> ModelFn:
    return guidance.fixed(model, null)


@dataclass(frozen=True)
class Kind:
    """One kind of run.

    Attributes:
      loss: (config, network, path, predicts, dataset) -> loss.
      inputs: labels -> what the network takes after x and t.
      scalars: the numbers among them.
      generates: whether the network is a velocity field.
      guides_itself: whether it takes the scale as a number, so that one branch is enough.
      measures: what is taken of held-out examples beside the loss, one number an example.
      number: (config, w) -> the number that the network takes for w.
      guided: (model, null, number or schedule of it) -> the guided model.
      unconditional: (config, model, null) -> the model without its condition.
    """

    loss: Callable[..., LossFn]
    inputs: Inputs = _label
    scalars: tuple[str, ...] = ()
    generates: bool = True
    guides_itself: bool = False
    measures: Measures = _no_measures
    number: Callable[[ConfigDict, float], float] = _same
    guided: Callable[[ModelFn, Array, Scale], ModelFn] = _classifier_free
    unconditional: Callable[[ConfigDict, ModelFn, Array], ModelFn] = _fixed


KINDS: Mapping[str, Kind] = {
    "flow": Kind(flow_loss),
    "classifier": Kind(
        classifying.classifier_loss,
        inputs=lambda label: (),
        generates=False,
        measures=classifying.accuracies,
    ),
    "distillation": Kind(
        taught.distillation_loss,
        inputs=_label_and("scale"),
        scalars=("scale",),
        guides_itself=True,
        number=taught.distilled_number,
        guided=taught.distilled,
        unconditional=taught.distilled_null,
    ),
    "guidance_free": Kind(
        taught.guidance_free_loss,
        inputs=_label_and("beta"),
        scalars=("beta",),
        guides_itself=True,
        number=taught.guidance_free_number,
        guided=taught.guidance_free,
        unconditional=taught.guidance_free_null,
    ),
}
