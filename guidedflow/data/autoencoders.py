"""Autoencoders of images to latents, by name.

An autoencoder is fitted to a data set once and stored in one file beside the latents. With this file
the samples of a model trained on the latents can be decoded to images on any machine.
"""

import dataclasses
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol, Self
from zipfile import BadZipFile

import numpy as np
from einops import rearrange
from jaxtyping import Float

from guidedflow.data.dataset import Dataset
from guidedflow.registry import choose

# Largest number of images to fit to; their patches are enough to estimate mean and covariance.
_FITTED = 20_000
_BATCH = 256


class Code(Protocol):
    """An encoder and its decoder."""

    def encode(self, images: Float[np.ndarray, "n H W C"]) -> Mapping[str, np.ndarray]:
        """Return "latent", or "mean" and "logvar", from which latents are drawn in each epoch."""

    def decode(self, latents: Float[np.ndarray, "n h w c"]) -> Float[np.ndarray, "n H W C"]:
        """Return the images of these latents, approximately in [-1, 1]."""

    def save(self, file: Path) -> None:
        """Write everything that `load_code` needs, as an .npz archive with a "kind"."""


@dataclasses.dataclass(frozen=True, eq=False)
class PatchCode:
    """A linear autoencoder: the coordinates of each image patch in an orthonormal basis.

    z = (p - mean) Q / s,    p = s z Q^T + mean,    p = the values of one patch.

    All distances are scaled by the same factor s, so a squared error means the same in latents as in
    pixels. If Q has as many columns as a patch has values, nothing is lost.

    Attributes:
      patch: side of a patch.
      channels: channels of the images.
      mean: mean of the values of a patch.
      basis: Q, with orthonormal columns.
      scale: s > 0; it gives the latents a mean square of 1.
    """

    patch: int
    channels: int
    mean: Float[np.ndarray, "d"]
    basis: Float[np.ndarray, "d k"]
    scale: float

    def encode(self, images: Float[np.ndarray, "n H W C"]) -> Mapping[str, np.ndarray]:
        return {"latent": (patches_of(images, self.patch) - self.mean) @ self.basis / self.scale}

    def decode(self, latents: Float[np.ndarray, "n h w c"]) -> Float[np.ndarray, "n H W C"]:
        values = np.asarray(latents, np.float32) @ self.basis.T * self.scale + self.mean
        form = "n h w (p q c) -> n (h p) (w q) c"
        return rearrange(values, form, p=self.patch, q=self.patch).astype(np.float32)

    def save(self, file: Path) -> None:
        np.savez(file, kind="patches", **dataclasses.asdict(self))

    @classmethod
    def load(cls, stored: Mapping[str, np.ndarray]) -> Self:
        return cls(
            patch=int(stored["patch"]),
            channels=int(stored["channels"]),
            mean=stored["mean"],
            basis=stored["basis"],
            scale=float(stored["scale"]),
        )


def patches_of(images: Float[np.ndarray, "n H W C"], patch: int) -> Float[np.ndarray, "n h w d"]:
    """Move each patch of p × p pixels into the channels:   d = p p C."""
    return rearrange(images, "n (h p) (w q) c -> n h w (p q c)", p=patch, q=patch)


def _moments(
    dataset: Dataset, patch: int
) -> tuple[Float[np.ndarray, "d"], Float[np.ndarray, "d d"]]:
    """Return mean and covariance of the values of a patch, over images spread over the data set."""
    chosen = np.unique(np.linspace(0, dataset.length - 1, _FITTED).round().astype(np.int64))
    width = patch * patch * dataset.image_shape[2]
    count, total, square = 0, np.zeros(width), np.zeros((width, width))
    for first in range(0, len(chosen), _BATCH):
        images = dataset.read(chosen[first : first + _BATCH])["image"]
        values = patches_of(images, patch).reshape(-1, width).astype(np.float64)
        count += len(values)
        total += values.sum(0)
        square += values.T @ values
    mean = total / count
    return mean, square / count - np.outer(mean, mean)


def _patch_code(dataset: Dataset, patch: int, basis: np.ndarray | None, kept: int) -> PatchCode:
    mean, covariance = _moments(dataset, patch)
    if basis is None:
        _, vectors = np.linalg.eigh(covariance)
        basis = vectors[:, ::-1][:, :kept]
        # The sign of an eigenvector is arbitrary. A positive largest entry makes it the same everywhere.
        basis = basis * np.sign(basis[np.abs(basis).argmax(0), np.arange(kept)])
    variance = np.trace(basis.T @ covariance @ basis) / basis.shape[1]
    if variance <= 0:
        raise ValueError(f"all pictures of {dataset.identity.get('name')!r} are the same")
    return PatchCode(
        patch=patch,
        channels=dataset.image_shape[2],
        mean=mean.astype(np.float32),
        basis=basis.astype(np.float32),
        scale=float(np.sqrt(variance)),
    )


def _check_patch(dataset: Dataset, patch: int) -> int:
    """Return the number of values of a patch; raise ValueError if patches do not tile the images."""
    height, width, channels = dataset.image_shape
    if patch < 1 or height % patch or width % patch:
        raise ValueError(f"patches of {patch}×{patch} do not tile pictures of {height}×{width}")
    return patch * patch * channels


def fit_patches(dataset: Dataset, *, patch: int, channels: int | None) -> PatchCode:
    """Return the lossless autoencoder that moves patches into channels:   Q = 1.

    Raises:
      ValueError: patches do not tile the images, or `channels` is not the number of a patch's values.
    """
    values = _check_patch(dataset, patch)
    if channels not in (None, values):
        raise ValueError(
            f"encoder 'patches' makes {values} channels of patches of {patch}×{patch}, not "
            f"{channels}; encoder 'pca' keeps fewer"
        )
    return _patch_code(dataset, patch, np.eye(values), values)


def fit_pca(dataset: Dataset, *, patch: int, channels: int | None) -> PatchCode:
    """Return the autoencoder of the first principal components of patches, the best linear one.

    Q = the eigenvectors of the covariance of patches with the `channels` largest eigenvalues.

    Raises:
      ValueError: patches do not tile the images, or there are more channels than values in a patch.
    """
    values = _check_patch(dataset, patch)
    kept = values if channels is None else channels
    if not 1 <= kept <= values:
        raise ValueError(
            f"expected 1 to {values} channels of patches of {patch}×{patch}, got {kept}"
        )
    return _patch_code(dataset, patch, None, kept)


class Fit(Protocol):
    """Fits an autoencoder to a data set."""

    def __call__(self, dataset: Dataset, *, patch: int, channels: int | None) -> Code:
        """Return an autoencoder for images like these; `channels` None keeps all channels."""


ENCODERS: Mapping[str, Fit] = {
    "patches": fit_patches,
    "pca": fit_pca,
}
# "kind" in a file -> the function that loads it.
_KINDS: Mapping[str, Callable[[Mapping[str, np.ndarray]], Code]] = {"patches": PatchCode.load}


def load_code(file: str | os.PathLike) -> Code:
    """Read an autoencoder that `Code.save` wrote.

    Raises:
      ValueError: the file is missing, damaged, or of a kind that this version does not know.
    """
    try:
        # The file is opened here, because np.load does not close a damaged archive.
        with open(file, "rb") as opened, np.load(opened, allow_pickle=False) as stored:
            kind = str(stored["kind"])
            return choose("kind of code", kind, _KINDS)(stored)
    except (OSError, EOFError, ValueError, KeyError, BadZipFile) as error:
        raise ValueError(f"cannot read the decoder {file}: {error}") from error
