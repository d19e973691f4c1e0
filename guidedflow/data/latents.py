"""Latents computed once by an autoencoder: sharded array_record files beside a JSON index.

A folder holds `index.json` and shards `latents-00000.array_record`, ....  One record is one
example: its class as a little-endian int32, then its latent, or the mean and the log-variance of
it, as height x width x channels numbers.  array_record keeps a checksum for each record, so that
damage is found when a record is read.
"""

import dataclasses
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from array_record.python.array_record_module import ArrayRecordWriter
from jaxtyping import Float, Int, Shaped

from guidedflow.data.dataset import Dataset, Draws, Indices, remember
from guidedflow.data.draws import normals
from guidedflow.data.folder import split_folder
from guidedflow.data.records import Records, Shard
from guidedflow.registry import choose

_FORMAT = "guidedflow-latents"
_VERSION = 1
_DTYPES = ("float16", "float32")
# Latents are nearly noise: compressing them saves 8% and costs four times the writing time.
_OPTIONS = "group_size:1,uncompressed"
_PURPOSE = 3


@dataclasses.dataclass(frozen=True)
class _Scaled:
    """Stored numbers to what the network sees."""

    scale: float
    shift: float
    moments: bool

    def __call__(
        self, stored: Shaped[np.ndarray, "n h w k"], draws: Draws
    ) -> Float[np.ndarray, "n h w c"]:
        latent = stored.astype(np.float32)
        if self.moments:
            mean, log_variance = np.split(latent, 2, axis=-1)
            # Autoencoders bound their log-variance so; outside, exp is 0 or overflows.
            deviation = np.exp(0.5 * np.clip(log_variance, -30, 20))
            latent = mean + deviation * normals(draws, mean.shape[1:], _PURPOSE)
        return (latent - np.float32(self.shift)) * np.float32(self.scale)


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
    """Write latents to a new folder, which appears only once it is complete.

    The network is to see    (z - shift) * scale,    z = latent,  or  mean + exp(logvar / 2) * eps
    with a new eps for every example in every epoch.

    Args:
      path: the folder to make; its parent is made too.
      batches: mappings with "label" (n,) and either "latent" or "mean" and "logvar" (n, h, w, c).
      num_classes: labels are 0 .. num_classes - 1.
      scale, shift: the autoencoder's; 0.18215 and 0 for Stable Diffusion 1 and 2.
      name: for the run's identity; the folder's name by default.
      class_names: one a class, or none.
      dtype: how numbers are stored: "float16" or "float32".
      records_per_shard: examples in a file.
    Returns:
      the folder.
    Raises:
      ValueError: the folder exists, arrays that do not fit together, values that are not finite
        or overflow `dtype`, no examples, or a disk that cannot be written.
    """
    final = Path(path).expanduser()
    if final.exists():
        raise ValueError(f"{final} exists; latents are written to a new folder")
    _check_options(num_classes, scale, shift, class_names, dtype, records_per_shard)
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=f".{final.name}-writing-", dir=final.parent))
    except OSError as error:
        raise ValueError(f"cannot write latents to {final}: {error}") from error
    try:
        index = _write_shards(scratch, batches, num_classes, np.dtype(dtype), records_per_shard)
        index |= {
            "name": final.name if name is None else name,
            "scale": float(scale),
            "shift": float(shift),
            "num_classes": num_classes,
            "class_names": list(class_names),
        }
        (scratch / "index.json").write_text(json.dumps(index, indent=1))
        os.rename(scratch, final)
    except (OSError, RuntimeError) as error:
        raise ValueError(f"cannot write latents to {final}: {error}") from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return final


def _check_options(
    num_classes: int,
    scale: float,
    shift: float,
    class_names: Sequence[str],
    dtype: str,
    records_per_shard: int,
) -> None:
    choose("dtype of latents", dtype, dict.fromkeys(_DTYPES))
    if class_names and len(class_names) != num_classes:
        raise ValueError(f"expected {num_classes} class names, got {len(class_names)}")
    if not np.isfinite([scale, shift]).all() or scale == 0:
        raise ValueError(f"expected finite scale and shift, scale not 0: got {scale}, {shift}")
    for name, value in (("num_classes", num_classes), ("records_per_shard", records_per_shard)):
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"expected {name} as an integer from 1 on, got {value!r}")


def _write_shards(
    folder: Path,
    batches: Iterable[Mapping[str, np.ndarray]],
    num_classes: int,
    dtype: np.dtype,
    records_per_shard: int,
) -> dict[str, object]:
    """Write every example and return the index's part that describes the files."""
    shards: list[dict] = []
    form: tuple | None = None
    writer = None
    digest = hashlib.sha256()
    try:
        for batch in batches:
            stored, labels = _stored(batch, num_classes, dtype)
            here = (stored.shape[1:], "mean" in batch)
            form = form or here
            if here != form:
                raise ValueError(f"expected every batch as the first, {form}, got {here}")
            for row, label in zip(stored, labels, strict=True):
                if writer is None or shards[-1]["records"] == records_per_shard:
                    if writer is not None:
                        writer.close()
                    file = f"latents-{len(shards):05d}.array_record"
                    writer = ArrayRecordWriter(os.fspath(folder / file), _OPTIONS)
                    shards.append({"file": file, "records": 0})
                record = label.tobytes() + row.tobytes()
                digest.update(record)
                writer.write(record)
                shards[-1]["records"] += 1
    finally:
        if writer is not None:
            writer.close()
    if form is None or not shards:
        raise ValueError("expected at least one latent, got none")
    return {
        "format": _FORMAT,
        "version": _VERSION,
        "stored_shape": list(form[0]),
        "moments": form[1],
        "dtype": dtype.name,
        "fingerprint": digest.hexdigest()[:16],
        "shards": shards,
    }


def _stored(
    batch: Mapping[str, np.ndarray], num_classes: int, dtype: np.dtype
) -> tuple[Float[np.ndarray, "n h w k"], Int[np.ndarray, "n"]]:
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
        raise ValueError(f"a latent is not finite, or too large for {dtype.name}")
    return together.astype(dtype), labels.astype("<i4")


@dataclasses.dataclass(frozen=True, eq=False)
class _Latents:
    records: Records
    shape: tuple[int, int, int]
    dtype: np.dtype

    def __len__(self) -> int:
        return len(self.records)

    def gather(self, indices: Indices) -> tuple[Float[np.ndarray, "n h w k"], Int[np.ndarray, "n"]]:
        expected = 4 + int(np.prod(self.shape)) * self.dtype.itemsize
        read = self.records.read(indices)
        for index, record in zip(indices.tolist(), read, strict=True):
            if len(record) != expected:
                raise ValueError(
                    f"cannot read {self.records.place(index)}: expected {expected} bytes, "
                    f"got {len(record)}"
                )
        table = np.frombuffer(b"".join(read), np.uint8).reshape(len(read), expected)
        labels = np.ascontiguousarray(table[:, :4]).view("<i4").reshape(-1)
        latents = np.ascontiguousarray(table[:, 4:]).view(self.dtype.newbyteorder("<"))
        return latents.reshape(len(read), *self.shape), labels.astype(np.int32)


def open_latents(path: str | os.PathLike, *, split: str = "train", cache_bytes: int = 0) -> Dataset:
    """Open latents that `write_latents` wrote, at `path` or, for a split with its own, path/split.

    Args:
      path: the folder.
      split: the subfolder of `path`; without one, `path` is "train".
      cache_bytes: latents are remembered in memory where all of them fit in this.
    Raises:
      ValueError: no such folder or split, or an index or shard that is missing or damaged.
    """
    root = Path(path).expanduser()
    folder = split_folder(root, split, whole=(root / "index.json").exists())
    index = _read_index(folder / "index.json")
    height, width, stored_channels = index["stored_shape"]
    channels = stored_channels // 2 if index["moments"] else stored_channels
    dtype = np.dtype(index["dtype"])
    shards = [
        Shard(os.fspath(folder / shard["file"]), 0, shard["records"], shard["records"])
        for shard in index["shards"]
    ]
    latents = _Latents(Records(shards), (height, width, stored_channels), dtype)
    return Dataset(
        source=remember(latents, latents.shape, dtype, cache_bytes),
        image_shape=(height, width, channels),
        num_classes=index["num_classes"],
        class_names=tuple(index["class_names"]),
        decode=_Scaled(index["scale"], index["shift"], index["moments"]),
        identity={
            "name": f"latents:{index['name']}",
            "version": index["fingerprint"],
            "split": split,
            "length": len(latents),
            "image_shape": [height, width, channels],
        },
    )


def _read_index(file: Path) -> dict:
    expected = {
        "stored_shape": list,
        "moments": bool,
        "dtype": str,
        "fingerprint": str,
        "shards": list,
        "name": str,
        "scale": float,
        "shift": float,
        "num_classes": int,
        "class_names": list,
    }
    try:
        index = json.loads(file.read_text())
        if index["format"] != _FORMAT or index["version"] != _VERSION:
            raise ValueError(
                f"format {index['format']!r} version {index['version']}, expected "
                f"{_FORMAT!r} version {_VERSION}"
            )
        for key, kind in expected.items():
            if not isinstance(index[key], kind):
                raise ValueError(f"{key} is {index[key]!r}, expected {kind.__name__}")
        if index["dtype"] not in _DTYPES or len(index["stored_shape"]) != 3:
            raise ValueError(f"dtype {index['dtype']!r}, shape {index['stored_shape']}")
        for shard in index["shards"]:
            if not (isinstance(shard["file"], str) and isinstance(shard["records"], int)):
                raise ValueError(f"shard {shard!r}")
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = f"{error} is missing" if isinstance(error, KeyError) else error
        raise ValueError(f"cannot read the index of latents {file}: {reason}") from error
    return index
