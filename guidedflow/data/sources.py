"""Data sets by name: the only place that turns the string of a data set into a data set."""

import contextlib
import functools
import importlib.util
import io
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from guidedflow.data import shares
from guidedflow.data import tfds as prepared
from guidedflow.data.dataset import Dataset
from guidedflow.data.digits import prepare_digits
from guidedflow.data.emoji import prepare_emoji
from guidedflow.data.folder import open_folder
from guidedflow.data.images import size_of
from guidedflow.data.latents import open_latents
from guidedflow.registry import choose, nearest

# Sets made from installed packages at their first use.
_LOCAL = {"digits": prepare_digits, "emoji": prepare_emoji}


def default_data_dir() -> Path:
    """Return $TFDS_DATA_DIR, or guidedflow/tfds in the user's cache folder ($XDG_CACHE_HOME)."""
    given = os.environ.get("TFDS_DATA_DIR")
    if given:
        return Path(given).expanduser()
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(cache).expanduser() / "guidedflow" / "tfds"


def _roots(data_dir: str | os.PathLike | None) -> list[Path]:
    if data_dir is not None:
        return [Path(data_dir).expanduser()]
    # The default folder of tensorflow-datasets.
    return [default_data_dir(), Path("~/tensorflow_datasets").expanduser()]


def load(
    spec: str,
    *,
    split: str = "train",
    image_size: int | tuple[int, int] | None = None,
    data_dir: str | os.PathLike | None = None,
    cache_bytes: int = 2**30,
    class_names: Sequence[str] | None = None,
) -> Dataset:
    """Return the data set that a string names; nothing is ever downloaded.

    Args:
      spec: "digits" or "emoji" (prepared on first use), the name of a prepared tensorflow-datasets set
        with or without "tfds:" before it ("cifar10", "tfds:imagenet_resized/64x64"), "folder:PATH" for
        pictures in class subfolders or with captions, "latents:PATH" for what `write_latents` wrote.
      split: "train", "test", ... as the set has them; also a share, "train[:90%]".
      image_size: side or (height, width): resized to cover it, then cropped at the centre; None
        keeps a fixed stored size.
      data_dir: where prepared sets lie; `default_data_dir()` and ~/tensorflow_datasets otherwise.
      cache_bytes: decoded images are kept in memory where the whole set fits in this.
      class_names: of another split of the same folder, whose numbers of the classes this one takes;
        other kinds of sets keep numbers of their own that all splits share.
    Raises:
      ValueError: the name or split is unknown (the message has the nearest), the set is not prepared
        (the message has the command), or a file cannot be read (the message names it).
    """
    kind, _, rest = spec.partition(":")
    # A string without a kind is the name of a prepared set.
    open_source, rest = (SOURCES[kind], rest) if kind in SOURCES else (_open_tfds, spec)
    return open_source(
        rest,
        split=split,
        image_size=image_size,
        data_dir=data_dir,
        cache_bytes=cache_bytes,
        class_names=class_names,
    )


class Source(Protocol):
    """Opens a data set from the part of its string after the kind; other arguments as for `load`."""

    def __call__(
        self,
        rest: str,
        *,
        split: str,
        image_size: int | tuple[int, int] | None,
        data_dir: str | os.PathLike | None,
        cache_bytes: int,
        class_names: Sequence[str] | None,
    ) -> Dataset: ...


def _open_folder(rest: str, *, data_dir: Any, **options: Any) -> Dataset:
    return open_folder(rest, **options)


def _open_latents(
    rest: str, *, split: str, image_size: Any, cache_bytes: int, **other: Any
) -> Dataset:
    dataset = open_latents(rest, split=split, cache_bytes=cache_bytes)
    if image_size is not None and size_of(image_size) != dataset.image_shape[:2]:
        raise ValueError(
            f"latents in {rest} are {dataset.image_shape[:2]}, not {size_of(image_size)}; "
            "they cannot be resized"
        )
    return dataset


def _with_shares(open_source: Source) -> Source:
    """Return the same, which also opens shares of its splits; prepared sets cut theirs themselves."""

    def opened(rest: str, *, split: str, **options: Any) -> Dataset:
        name, part = shares.parse(split)
        return shares.share(open_source(rest, split=name, **options), split, part)

    return opened


def _open_local(
    rest: str, *, name: str, data_dir: Any, class_names: Any, **options: Any
) -> Dataset:
    return prepared.open_prepared(_LOCAL[name](_roots(data_dir)[0]), name=name, **options)


def _open_tfds(rest: str, *, data_dir: Any, class_names: Any, **options: Any) -> Dataset:
    return prepared.open_prepared(_find(rest, _roots(data_dir)), name=rest, **options)


SOURCES: dict[str, Source] = {
    **{name: functools.partial(_open_local, name=name) for name in _LOCAL},
    "folder": _with_shares(_open_folder),
    "latents": _with_shares(_open_latents),
    "tfds": _open_tfds,
}
"""Kind of a data set, the part of its string before the colon -> the function that opens it."""


def _find(name: str, roots: list[Path]) -> Path:
    if re.match(r"[a-z]+:(?!\d)", name):
        choose("kind of data set", name.partition(":")[0], SOURCES)
    found = prepared.find_prepared(name, roots)
    if found is None:
        _check_known(name)
        raise ValueError(
            f"data set {name!r} is not prepared in {' or '.join(map(str, roots))}; prepare it once "
            f"(downloads; needs pip install 'guidedflow[tfds]') with: "
            f"guidedflow prepare {name} --data_dir={roots[0]}"
        )
    return found


def _check_known(name: str) -> None:
    """Raise ValueError if neither guidedflow nor tensorflow-datasets has a set with this name."""
    import tensorflow_datasets as tfds

    # Community sets are left out, because listing them needs the network.
    known = [*tfds.list_builders(with_community_datasets=False), *_LOCAL]
    if re.split("[/:]", name)[0] not in known:
        raise ValueError(
            f"unknown data set {name!r}{nearest(name, known)}; known: {', '.join(_LOCAL)}, "
            "folder:PATH, latents:PATH, and the image sets of tensorflow-datasets"
        )


def prepare(name: str, data_dir: str | os.PathLike | None = None) -> Path:
    """Write a data set to disk in the format that `load` reads; an existing set is not changed.

    "digits" and "emoji" need no network.  A set of tensorflow-datasets is downloaded, which needs TensorFlow.

    Args:
      name: "digits", "emoji" or a tensorflow-datasets name, name[/config].
      data_dir: the folder to write to; by default `default_data_dir()`.
    Returns:
      the folder of the set.
    Raises:
      ValueError: the name is unknown (the message has the nearest), a package is missing, or the
        download failed.
    """
    name = name.removeprefix("tfds:")
    root = _roots(data_dir)[0]
    if name in _LOCAL:
        return _LOCAL[name](root)
    found = prepared.find_prepared(name, [root])
    if found is not None:
        return found
    _check_known(name)
    if importlib.util.find_spec("tensorflow") is None:
        raise ValueError(
            f"preparing {name!r} needs TensorFlow once: pip install 'guidedflow[tfds]'; reading it "
            "afterwards does not"
        )
    return _download(name, root)


def _download(name: str, root: Path) -> Path:
    import tensorflow_datasets as tfds

    try:
        builder = tfds.builder(name, data_dir=os.fspath(root), file_format="array_record")
        with contextlib.redirect_stdout(io.StringIO()):
            builder.download_and_prepare()
    except Exception as error:
        # Builders raise network, checksum, licence or value errors; the user can act on all of them.
        raise ValueError(f"cannot prepare {name!r} in {root}: {error}") from error
    return Path(builder.data_dir)
