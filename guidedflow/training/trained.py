"""A trained model out of a workdir: what sampling and evaluation start from."""

from dataclasses import dataclass
from pathlib import Path

from flax import linen as nn
from jaxtyping import PyTree
from ml_collections import ConfigDict

from guidedflow import paths, predictions
from guidedflow.registry import choose
from guidedflow.training import build, parallel, workdir
from guidedflow.training.checkpoint import newest_record, restore
from guidedflow.training.config import from_resolved
from guidedflow.types import ModelFn


@dataclass(frozen=True)
class Trained:
    """A network with its averaged parameters, and what it was trained on.

    Attributes:
      config: of the run.
      step: steps that it was trained for.
      network: `network.apply({"params": params}, x, t, cond)`.
      params: averaged parameters, on every device.
      path, predicts: what the network predicts, on which path.
      image_shape: (h, w, c) of one image.
      num_classes: labels are 0 to num_classes - 1; num_classes is the null class.
    """

    config: ConfigDict
    step: int
    network: nn.Module
    params: PyTree
    path: paths.Path
    predicts: predictions.Prediction
    image_shape: tuple[int, int, int]
    num_classes: int

    @property
    def model(self) -> ModelFn:
        """The velocity field."""
        return build.model_fn(self.network, self.params, self.path, self.predicts)


def load_trained(folder: Path) -> Trained:
    """Return the newest whole checkpoint of a run, its averaged parameters alone.

    The data set need not be there, and the run may still be going on.

    Raises:
      ValueError: the workdir holds no run or no checkpoint, or all of them are damaged.
    """
    config = from_resolved(workdir.read_config(folder))
    checkpoints = workdir.checkpoints(folder)
    facts = newest_record(checkpoints).identity
    image_shape, num_classes = tuple(facts["dataset.image_shape"]), facts["dataset.num_classes"]
    network = build.network_for(config, image_shape, num_classes)
    optimizer = build.optimizer_for(config, build.learning_rate_schedule(config))
    state, record = restore(
        checkpoints,
        parallel.abstract_state(
            lambda key: build.init_state(network, image_shape, optimizer, key), parallel.data()
        ),
        only="ema",
    )
    return Trained(
        config=config,
        step=record.step,
        network=network,
        params=state.ema,
        path=build.named("path", build.PATHS, config.path),
        predicts=choose("prediction", config.predicts, build.PREDICTIONS),
        image_shape=image_shape,
        num_classes=num_classes,
    )
