"""What a run left behind: its network with the parameters of its newest good checkpoint."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import PyTree

from guidedflow import paths
from guidedflow.guidance.gradients import LogProb
from guidedflow.training import classifying, workdir
from guidedflow.training import config as configs
from guidedflow.training.build import Task, build
from guidedflow.training.checkpoint import restore
from guidedflow.training.tasks.table import KINDS, Kind
from guidedflow.bundle import model_fn
from guidedflow.types import ModelFn


@dataclass(frozen=True, eq=False)
class Trained:
    """A run's network with the parameters of its newest good checkpoint.

    Attributes:
      task: what the run is made of, but for its loss.
      model: velocity field; its parameters are leaves. Of a classifier, the logits.
      step: training steps done.
      kind: of run.
      params: of the network.
      folder: where it was found.
    """

    task: Task
    model: ModelFn
    step: int
    kind: Kind = KINDS["flow"]
    params: PyTree = None
    folder: Path = Path()

    @property
    def log_prob(self) -> LogProb:
        """What a classifier says of noised images; its parameters are leaves."""
        return classifying.log_prob(self.task.network, self.params)

    def check_labels(self, labels: Sequence[int]) -> None:
        """Raise ValueError unless every label is a class of the model."""
        classes = self.task.dataset.num_classes
        for label in labels:
            if not 0 <= label < classes:
                raise ValueError(
                    f"label {label} is out of range: this model knows classes 0 to {classes - 1}"
                )

    def check_fits(
        self, name: str, image_shape: tuple[int, ...], num_classes: int, path: paths.Path
    ) -> None:
        """Raise ValueError unless this run's images, classes and path are these."""
        ours = self.task.dataset
        for what, has, wanted in (
            ("images of", ours.image_shape, image_shape),
            ("classes, in all", ours.num_classes, num_classes),
            ("the path", self.task.path, path),
        ):
            if has != wanted:
                raise ValueError(f"{name} was trained for {what} {has}, this run has {wanted}")

    def weakened(self, how: str, other: "Trained | None") -> ModelFn:
        """Return a weaker model: another run's, or this network with its middle block perturbed.

        Raises:
          ValueError: the other run is missing or does not fit, or the network cannot be perturbed.
        """
        task = self.task
        if how == "another run":
            if other is None:
                raise ValueError("autoguidance needs a weaker run: --reference=WORKDIR")
            shape, classes = task.dataset.image_shape, task.dataset.num_classes
            other.check_fits(f"the reference {other.folder}", shape, classes, task.path)
            return other.model
        network = task.network
        if not hasattr(network, "perturb_blocks"):
            raise ValueError(
                f"{self.folder} holds a {type(network).__name__}, and only a transformer's blocks "
                "can be perturbed"
            )
        clone = network.clone(perturbation=how, perturb_blocks=(network.depth // 2,))
        return model_fn(clone, self.params, task.path, task.predicts)


def all_devices() -> Mesh:
    """Return all devices as one axis, `data`."""
    return Mesh(np.asarray(jax.devices()), ("data",))


def restored(folder: Path, *, ema: bool = True, say: Callable[[str], None] = print) -> Trained:
    """Return what was trained in a workdir, of whatever kind.

    Args:
      folder: the workdir.
      ema: take the averaged parameters, which sample better, or the newest ones.
      say: gets one line for every damaged checkpoint that was passed over.
    Raises:
      ValueError: no run, no checkpoint, or only damaged ones.
    """
    config = configs.from_resolved(workdir.read_config(folder))
    # How it was spread while training does not bind those who sample from it.
    config.parallel.strategy, config.accumulate = "auto", 1
    config.batch = jax.device_count()
    task = build(config, trains=False)
    everywhere = NamedSharding(all_devices(), P())
    abstract = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=everywhere),
        jax.eval_shape(task.init, jax.random.key(0)),
    )
    field = "ema" if ema else "params"
    found = restore(workdir.checkpoints(folder), abstract, only=field, say=say)
    if found is None:
        raise ValueError(
            f"{folder} holds no checkpoint yet; train until the first one is written, "
            f"guidedflow train --workdir={folder} --config=…"
        )
    state, record = found
    params = getattr(state, field)
    return Trained(task, task.model(params), record.step, task.kind, params, folder)


def load(folder: Path, *, ema: bool = True, say: Callable[[str], None] = print) -> Trained:
    """Return a run that draws images; arguments and errors as `restored`.

    Raises:
      ValueError: it is a classifier.
    """
    trained = restored(folder, ema=ema, say=say)
    if not trained.kind.generates:
        raise ValueError(
            f"{folder} holds a classifier, which draws no images; it guides another run as "
            f"--classifier={folder}"
        )
    return trained


def load_classifier(
    folder: Path, of: Trained, *, ema: bool = True, say: Callable[[str], None] = print
) -> Trained:
    """Return a classifier that can guide `of`; arguments and errors as `restored`.

    Raises:
      ValueError: it is none, or it knows other images, classes or another path.
    """
    trained = restored(folder, ema=ema, say=say)
    if trained.kind.generates:
        raise ValueError(
            f"{folder} holds a run of task {trained.task.config.task!r}, not a classifier; train "
            "one with --config=configs/digits_classifier.py"
        )
    task = of.task
    trained.check_fits(
        f"the classifier {folder}", task.dataset.image_shape, task.dataset.num_classes, task.path
    )
    return trained
