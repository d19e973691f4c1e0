"""Latents computed once by an autoencoder: sharded array_record files beside a JSON index.

A folder holds `index.json` and shards `latents-00000.array_record`, ....  One record is one
example: its class as a little-endian int32, then its latent, or the latent's mean and log-variance,
as height x width x channels numbers.  array_record stores a checksum for each record, so damage is
found when a record is read.  Two files are optional: `captions.json` has the captions of each example,
and `decoder.npz` decodes latents to images.  Without the decoder, latents are shown as they are.
"""

import dataclasses
import json
import os
from pathlib import Path
from typing import Self

import numpy as np
from jaxtyping import Float, Shaped

from guidedflow.data.autoencoders import Code, load_code
from guidedflow.data.captions import OF_LATENTS, read_captions, with_captions
from guidedflow.data.dataset import Batch, Dataset, Draws, Indices, remember
from guidedflow.data.draws import normals
from guidedflow.data.folder import split_folder
from guidedflow.data.latent_files import DECODER, DTYPES, FORMAT, INDEX, VERSION
from guidedflow.data.records import Records, Shard

_PURPOSE = 3


@dataclasses.dataclass(frozen=True)
class _Scaled:
    """Decodes stored numbers to the scaled latents that the network sees."""

    scale: float
    shift: float
    moments: bool

    def __call__(
        self, stored: Shaped[np.ndarray, "n h w k"], draws: Draws
    ) -> Float[np.ndarray, "n h w c"]:
        latent = stored.astype(np.float32)
        if self.moments:
            mean, log_variance = np.split(latent, 2, axis=-1)
            # Autoencoders clip their log-variance to this range; outside it, exp is 0 or overflows.
            deviation = np.exp(0.5 * np.clip(log_variance, -30, 20))
            latent = mean + deviation * normals(draws, mean.shape[1:], _PURPOSE)
        return (latent - np.float32(self.shift)) * np.float32(self.scale)


@dataclasses.dataclass(frozen=True, eq=False)
class LatentDecoder:
    """Decodes scaled latents, as sampled from a network, to images."""

    code: Code
    scale: float
    shift: float

    def __call__(self, drawn: Float[np.ndarray, "n h w c"]) -> Float[np.ndarray, "n H W C"]:
        return self.code.decode(drawn / np.float32(self.scale) + np.float32(self.shift))

    def save(self, file: Path) -> dict[str, float]:
        """Write the autoencoder to a file; return the scale and the shift, which the file does not contain."""
        self.code.save(file)
        return {"scale": self.scale, "shift": self.shift}

    @classmethod
    def load(cls, file: Path, scale: float, shift: float) -> Self:
        """Return the decoder whose autoencoder was saved to a file.

        Raises:
          ValueError: the file is missing or damaged.
        """
        return cls(load_code(file), scale, shift)


@dataclasses.dataclass(frozen=True, eq=False)
class _Latents:
    records: Records
    shape: tuple[int, int, int]
    dtype: np.dtype

    def __len__(self) -> int:
        return len(self.records)

    def gather(self, indices: Indices) -> Batch:
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
        return {"image": latents.reshape(len(read), *self.shape), "label": labels.astype(np.int32)}


def open_latents(path: str | os.PathLike, *, split: str = "train", cache_bytes: int = 0) -> Dataset:
    """Open the latents in path/split, or in `path` if it has no such subfolder.

    Args:
      path: the folder.
      split: the subfolder of `path`; if there is none, `path` is "train".
      cache_bytes: latents are kept in memory if all of them fit in this size.
    Raises:
      ValueError: there is no such folder or split, or an index, shard or decoder is missing or damaged.
    """
    root = Path(path).expanduser()
    if not root.is_dir():
        raise ValueError(
            f"no latents in {root}: write them with guidedflow encode --dataset=NAME --out={root}, "
            "or with guidedflow.data.write_latents"
        )
    folder = split_folder(root, split, whole=(root / INDEX).exists())
    index = _read_index(folder / INDEX)
    height, width, stored_channels = index["stored_shape"]
    channels = stored_channels // 2 if index["moments"] else stored_channels
    dtype = np.dtype(index["dtype"])
    shards = [
        Shard(os.fspath(folder / shard["file"]), 0, shard["records"], shard["records"])
        for shard in index["shards"]
    ]
    latents = _Latents(Records(shards), (height, width, stored_channels), dtype)
    dataset = Dataset(
        source=remember(latents, latents.shape, dtype, cache_bytes),
        image_shape=(height, width, channels),
        num_classes=index["num_classes"],
        class_names=tuple(index["class_names"]),
        decode=_Scaled(index["scale"], index["shift"], index["moments"]),
        decoder=(
            LatentDecoder.load(folder / DECODER, index["scale"], index["shift"])
            if (folder / DECODER).exists()
            else None
        ),
        identity={
            "name": f"latents:{index['name']}",
            "version": index["fingerprint"],
            "split": split,
            "length": len(latents),
            "image_shape": [height, width, channels],
        },
    )
    captions = folder / OF_LATENTS
    return with_captions(dataset, read_captions(captions)) if captions.exists() else dataset


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
        if index["format"] != FORMAT or index["version"] != VERSION:
            raise ValueError(
                f"format {index['format']!r} version {index['version']}, expected "
                f"{FORMAT!r} version {VERSION}"
            )
        for key, kind in expected.items():
            if not isinstance(index[key], kind):
                raise ValueError(f"{key} is {index[key]!r}, expected {kind.__name__}")
        if index["dtype"] not in DTYPES or len(index["stored_shape"]) != 3:
            raise ValueError(f"dtype {index['dtype']!r}, shape {index['stored_shape']}")
        for shard in index["shards"]:
            if not (isinstance(shard["file"], str) and isinstance(shard["records"], int)):
                raise ValueError(f"shard {shard!r}")
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = f"{error} is missing" if isinstance(error, KeyError) else error
        raise ValueError(f"cannot read the index of latents {file}: {reason}") from error
    return index
