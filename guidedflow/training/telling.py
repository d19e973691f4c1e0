"""What a run's network is told of its examples: a config and a data set to one condition."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path

from ml_collections import ConfigDict

from guidedflow import data
from guidedflow.conditions import Condition, Labels, Named, Prompts
from guidedflow.conditions.tokenizer import Tokenize, Tokenizer, learn, read_clip


def told(
    config: ConfigDict, train: data.Dataset, held_out: data.Dataset | None
) -> tuple[data.Dataset, data.Dataset | None]:
    """Return both sets with the condition that `config.condition` asks for.

    Units of prompts are learned from the training captions, or read from a folder.

    Raises:
      ValueError: prompts of a set without captions, or a vocabulary that cannot be read.
    """
    kind = config.condition.kind
    if not kind:
        return train, held_out
    labels = Labels(train.num_classes, train.class_names)
    if kind == "labels":
        return _with(train, labels), held_out and _with(held_out, labels)
    tokenizer = _tokenizer(config, train)
    prompts = Prompts(tokenizer, has_null=bool(config.drop_rate))
    condition: Condition = prompts
    if kind == "both":
        section = config.condition
        rates = {"label": section.drop_label, "prompt": section.drop_prompt}
        condition = Named({"label": labels, "prompt": prompts}, rates)

    def tell(dataset: data.Dataset) -> data.Dataset:
        _check_captions(config, dataset)
        return _with(dataset.map(Tokenize(tokenizer)), condition)

    return tell(train), None if held_out is None else tell(held_out)


def _with(dataset: data.Dataset, condition: Condition) -> data.Dataset:
    return dataclasses.replace(dataset, told=condition)


def _check_captions(config: ConfigDict, dataset: data.Dataset) -> None:
    if dataset.captions is None:
        raise ValueError(
            f"config.condition.kind={config.condition.kind!r} needs captions, and the data set "
            f"{dataset.identity['name']!r} has none"
        )


def _tokenizer(config: ConfigDict, train: data.Dataset) -> Tokenizer:
    section = config.condition
    if section.tokenizer:
        folder = Path(section.tokenizer).expanduser()
        return read_clip(folder / "vocab.json", folder / "merges.txt", length=section.length)
    _check_captions(config, train)
    try:
        return learn(_captions(train), section.vocabulary, section.length)
    except ImportError as error:
        raise ValueError(str(error)) from error


def _captions(dataset: data.Dataset) -> Iterator[str]:
    for texts in dataset.captions() if dataset.captions else ():
        yield from texts
