"""Writing latents: the format of a record, and a whole folder from batches in order."""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from array_record.python.array_record_module import ArrayRecordWriter
from jaxtyping import Float, Int

from guidedflow.registry import choose

FORMAT = "guidedflow-latents"
VERSION = 1
DTYPES = ("float16", "float32")
INDEX, DECODER = "index.json", "decoder.npz"
# Latents are almost noise: compression saves 8% of the space and takes four times as long to write.
_OPTIONS = "group_size:1,uncompressed"
_MODULUS = 2**128


@dataclass(frozen=True)
class Form:
    """The format that all records of a folder share.

    Attributes:
      shape: (h, w, k) as stored.
      moments: whether mean and log-variance are stored, concatenated along k.
      dtype: "float16" or "float32".
    """

    shape: tuple[int, int, int]
    moments: bool
    dtype: str


@dataclass(frozen=True)
class Written:
    """One file of latents.

    Attributes:
      file: its name.
      records: number of records.
      mark: sum of its records' hashes, mod 2^128.
      form: format of its records.
    """

    file: str
    records: int
    mark: int
    form: Form

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> Self:
        form = stored["form"]
        return cls(
            stored["file"],
            stored["records"],
            stored["mark"],
            Form(tuple(form["shape"]), form["moments"], form["dtype"]),
        )


@dataclass(frozen=True)
class Examples:
    """Checked latents in their stored format."""

    form: Form
    latents: Float[np.ndarray, "n h w k"]
    labels: Int[np.ndarray, "n"]

    def __len__(self) -> int:
        return len(self.labels)

    def part(self, start: int, stop: int | None = None) -> "Examples":
        """Return the examples from `start` up to `stop`."""
        return Examples(self.form, self.latents[start:stop], self.labels[start:stop])


def checked(batch: Mapping[str, np.ndarray], num_classes: int, dtype: str) -> Examples:
    """Return a batch of "label" and "latent", or "mean" and "logvar", in its stored format.

    Raises:
      ValueError: the arrays do not match, or `dtype` cannot represent the values.
    """
    keys = set(batch) - {"label"}
    if "label" not in batch or keys not in ({"latent"}, {"mean", "logvar"}):
        raise ValueError(
            "expected label with latent, or label with mean and logvar, got "
            + (", ".join(sorted(batch)) or "nothing")
        )
    parts = [
        np.asarray(batch[k]) for k in (("latent",) if "latent" in keys else ("mean", "logvar"))
    ]
    labels = np.asarray(batch["label"])
    if parts[0].ndim != 4 or any(part.shape != parts[0].shape for part in parts):
        raise ValueError(f"expected latents (n, h, w, c), got {[part.shape for part in parts]}")
    if labels.shape != parts[0].shape[:1] or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(
            f"expected {len(parts[0])} integer labels, got {labels.dtype}{labels.shape}"
        )
    if labels.size and not (labels.min() >= 0 and labels.max() < num_classes):
        raise ValueError(
            f"expected labels in [0, {num_classes}), got {labels.min()} to {labels.max()}"
        )
    together = np.concatenate(parts, axis=-1)
    if not (np.abs(together) <= np.finfo(dtype).max).all():
        raise ValueError(f"a latent is not finite, or too large for {dtype}")
    form = Form(together.shape[1:], len(parts) == 2, dtype)
    return Examples(form, together.astype(dtype), labels.astype("<i4"))


class ShardWriter:
    """Writes one file of latents; its first record has the index `first` in the whole set."""

    def __init__(self, path: Path, name: str, first: int) -> None:
        self._name, self._first, self._mark = name, first, 0
        self._form: Form | None = None
        self._writer = ArrayRecordWriter(os.fspath(path), _OPTIONS)
        self.records = 0

    def add(self, examples: Examples) -> None:
        """Append these examples.

        Raises:
          ValueError: they have another format.
        """
        self._form = self._form or examples.form
        _check_form(self._form, examples.form)
        for latent, label in zip(examples.latents, examples.labels, strict=True):
            record = label.tobytes() + latent.tobytes()
            # A sum over (index, record) does not depend on the length of files or the order of writing.
            place = (self._first + self.records).to_bytes(8, "little")
            digest = hashlib.blake2b(place + record, digest_size=16).digest()
            self._mark = (self._mark + int.from_bytes(digest, "little")) % _MODULUS
            self._writer.write(record)
            self.records += 1

    def close(self) -> Written:
        """Close the file and return its description.

        Raises:
          ValueError: nothing was written.
        """
        self._writer.close()
        if self._form is None:
            raise ValueError("expected at least one latent, got none")
        return Written(self._name, self.records, self._mark, self._form)


def _check_form(first: Form, here: Form) -> None:
    if here != first:
        raise ValueError(f"expected every batch as the first, {first}, got {here}")


def shard_name(number: int) -> str:
    """Return the name of the n-th file."""
    return f"latents-{number:05d}.array_record"


def index_of(
    shards: Sequence[Written],
    *,
    name: str,
    num_classes: int,
    class_names: Sequence[str],
    scale: float = 1.0,
    shift: float = 0.0,
) -> dict[str, Any]:
    """Return the index of these files, in order.

    Raises:
      ValueError: there is no file, or the formats of their records differ.
    """
    if not shards:
        raise ValueError("expected at least one latent, got none")
    form = shards[0].form
    for shard in shards:
        _check_form(form, shard.form)
    return {
        "format": FORMAT,
        "version": VERSION,
        "stored_shape": list(form.shape),
        "moments": form.moments,
        "dtype": form.dtype,
        "fingerprint": f"{sum(shard.mark for shard in shards) % _MODULUS:032x}"[:16],
        "shards": [{"file": shard.file, "records": shard.records} for shard in shards],
        "name": name,
        "scale": float(scale),
        "shift": float(shift),
        "num_classes": num_classes,
        "class_names": list(class_names),
    }


def write_latents(
    path: str | os.PathLike,
    batches: Iterable[Mapping[str, np.ndarray]],
    *,
    num_classes: int,
    scale: float = 1.0,
    shift: float = 0.0,
    name: str | None = None,
    class_names: Sequence[str] = (),
    dtype: str = "float16",
    records_per_shard: int = 8192,
) -> Path:
    """Write latents to a new folder, which gets its name only when it is complete.

    When read, the network sees    (z - shift) * scale,    z = latent,  or  mean + exp(logvar / 2) * eps
    with a new eps for every example in every epoch.

    Args:
      path: the folder to make; its parent is made too.
      batches: mappings with "label" (n,) and either "latent" or "mean" and "logvar" (n, h, w, c).
      num_classes: labels are 0 .. num_classes - 1.
      scale, shift: of the autoencoder; 0.18215 and 0 for Stable Diffusion 1 and 2.
      name: name of the data set in a run's identity; by default the folder's name.
      class_names: one per class, or none.
      dtype: type of the stored numbers: "float16" or "float32".
      records_per_shard: examples per file.
    Returns:
      the folder.
    Raises:
      ValueError: the folder exists, the arrays do not match, values are not finite or overflow
        `dtype`, there are no examples, or the disk cannot be written.
    """
    final = Path(path).expanduser()
    if final.exists():
        raise ValueError(f"{final} exists; latents are written to a new folder")
    check_options(num_classes, scale, shift, class_names, dtype, records_per_shard)
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=f".{final.name}-writing-", dir=final.parent))
    except OSError as error:
        raise ValueError(f"cannot write latents to {final}: {error}") from error
    try:
        shards = list(_shards(scratch, batches, num_classes, dtype, records_per_shard))
        index = index_of(
            shards,
            name=final.name if name is None else name,
            num_classes=num_classes,
            class_names=class_names,
            scale=scale,
            shift=shift,
        )
        (scratch / INDEX).write_text(json.dumps(index, indent=1))
        os.rename(scratch, final)
    except (OSError, RuntimeError) as error:
        raise ValueError(f"cannot write latents to {final}: {error}") from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return final


def _shards(
    folder: Path,
    batches: Iterable[Mapping[str, np.ndarray]],
    num_classes: int,
    dtype: str,
    records_per_shard: int,
) -> Iterator[Written]:
    """Write all examples and yield the description of each file."""
    writer, number = None, 0
    try:
        for batch in batches:
            examples = checked(batch, num_classes, dtype)
            while len(examples):
                if writer is None:
                    file = shard_name(number)
                    writer = ShardWriter(folder / file, file, number * records_per_shard)
                room = records_per_shard - writer.records
                writer.add(examples.part(0, room))
                examples = examples.part(room)
                if writer.records == records_per_shard:
                    full, writer, number = writer, None, number + 1
                    yield full.close()
    finally:
        last = writer.close() if writer is not None else None
    if last is not None:
        yield last


def check_options(
    num_classes: int,
    scale: float,
    shift: float,
    class_names: Sequence[str],
    dtype: str,
    records_per_shard: int,
) -> None:
    """Check the options of a set of latents.

    Raises:
      ValueError: an option is invalid; the message says what is expected.
    """
    choose("dtype of latents", dtype, dict.fromkeys(DTYPES))
    if class_names and len(class_names) != num_classes:
        raise ValueError(f"expected {num_classes} class names, got {len(class_names)}")
    if not np.isfinite([scale, shift]).all() or scale == 0:
        raise ValueError(f"expected finite scale and shift, scale not 0: got {scale}, {shift}")
    for name, value in (("num_classes", num_classes), ("records_per_shard", records_per_shard)):
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"expected {name} as an integer from 1 on, got {value!r}")
