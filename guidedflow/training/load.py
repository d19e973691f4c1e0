"""A run's folder to a bundle: its network with the parameters of its newest good checkpoint."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from ml_collections import ConfigDict

from guidedflow import data
from guidedflow.bundle import Bundle, Decoder
from guidedflow.conditions import Condition, from_description
from guidedflow.registry import choose
from guidedflow.target import Target, attached
from guidedflow.training import config as configs
from guidedflow.training import registries, state, workdir
from guidedflow.training.checkpoint import restore
from guidedflow.training.config_check import check
from guidedflow.training.tasks import TASKS
from guidedflow.training.tasks.task import network_inputs
from guidedflow.training.telling import told


def load_bundle(
    folder: Path,
    *,
    ema: bool = True,
    say: Callable[[str], None] = print,
    target: Target | None = None,
) -> Bundle:
    """Return what was trained in a workdir, of whatever task.

    Its data need not be there, unless the run is older than the file that says what they were.

    Args:
      folder: the workdir.
      ema: take the averaged parameters, which sample better, or the newest ones.
      say: gets one line for every damaged checkpoint that was passed over.
      target: the devices that the parameters go to; by default all that are attached.
    Raises:
      ValueError: no run, no checkpoint, or only damaged ones.
    """
    target = target or attached()
    config = configs.from_resolved(workdir.read_config(folder))
    check(config)
    task = choose("task", config.task, TASKS)
    takes_scale = task.takes_scale(config)
    image_shape, condition, decoder = _learned_from(folder, config)
    network = registries.network_for(
        config,
        image_shape,
        condition,
        takes_scale.scalars,
        target.platform,
        devices=target.count,
    )
    schedule = registries.learning_rate_schedule(config)
    optimizer = registries.optimizer_for(config, schedule)
    inputs = network_inputs(task, takes_scale, condition.example(1))
    everywhere = NamedSharding(target.mesh(), P())
    abstract = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=everywhere),
        jax.eval_shape(
            lambda key: state.fresh(network, image_shape, inputs, optimizer, key),
            jax.random.key(0),
        ),
    )
    field = "ema" if ema else "params"
    found = restore(workdir.checkpoints(folder), abstract, only=field, say=say)
    if found is None:
        raise ValueError(
            f"{folder} holds no checkpoint yet; train until the first one is written, "
            f"guidedflow train --workdir={folder} --config=…"
        )
    restored, record = found
    return Bundle(
        network=network,
        params=getattr(restored, field),
        path=registries.make("path", registries.PATHS, config.path),
        predicts=choose("prediction", config.predicts, registries.PREDICTIONS),
        condition=condition,
        image_shape=image_shape,
        takes_scale=takes_scale,
        decoder=decoder,
        name=folder,
        task=config.task,
        step=record.step,
    )


def _learned_from(
    folder: Path, config: ConfigDict
) -> tuple[tuple[int, int, int], Condition, Decoder | None]:
    """Return what the run's examples were: their shape, their condition and their decoder."""
    facts = workdir.read_examples(folder)
    if facts is None:
        section: Any = config.dataset
        dataset = data.load(
            section.name,
            split=section.split,
            image_size=section.image_size,
            data_dir=section.data_dir or None,
        )
        dataset, _ = told(config, dataset, None)
        return dataset.image_shape, dataset.condition, dataset.decoder
    height, width, channels = facts["image_shape"]
    decoder = None
    if facts["decoder"] is not None:
        decoder = data.LatentDecoder.load(folder / workdir.DECODER, **facts["decoder"])
    return (height, width, channels), from_description(facts["condition"]), decoder


def load(
    folder: Path,
    *,
    ema: bool = True,
    say: Callable[[str], None] = print,
    target: Target | None = None,
) -> Bundle:
    """Return a run that draws images; arguments and errors as `load_bundle`.

    Raises:
      ValueError: it is a classifier.
    """
    bundle = load_bundle(folder, ema=ema, say=say, target=target)
    if not bundle.generates:
        raise ValueError(
            f"{folder} holds a classifier, which draws no images; it guides another run as "
            f"--classifier={folder}"
        )
    return bundle


def load_classifier(
    folder: Path, of: Bundle, *, ema: bool = True, say: Callable[[str], None] = print
) -> Bundle:
    """Return a classifier that can guide `of`; arguments and errors as `load_bundle`.

    Raises:
      ValueError: it is none, or it knows other images, conditions or another path.
    """
    bundle = load_bundle(folder, ema=ema, say=say)
    if bundle.generates:
        raise ValueError(
            f"{folder} holds a run of task {bundle.task!r}, not a classifier; train "
            "one with --config=configs/digits_classifier.py"
        )
    bundle.check_fits(f"the classifier {folder}", of.image_shape, of.condition, of.path)
    return bundle
