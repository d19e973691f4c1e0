"""Encoders of pictures to latents, by name, each with the decoder that goes back.

A code is fitted to a data set once, kept in one file beside the latents, and read back from there,
so that what a model trained on latents draws can be turned into pictures anywhere.
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

# Pictures that a code is fitted to at most: their patches say enough of mean and covariance.
_FITTED = 20_000
_BATCH = 256


class Code(Protocol):
    """An encoder and its decoder."""

    def encode(self, images: Float[np.ndarray, "n H W C"]) -> Mapping[str, np.ndarray]:
        """Return "latent", or "mean" and "logvar" of latents that are drawn anew in each epoch."""

    def decode(self, latents: Float[np.ndarray, "n h w c"]) -> Float[np.ndarray, "n H W C"]:
        """Return the pictures of these latents, about in [-1, 1]."""

    def save(self, file: Path) -> None:
        """Write everything that `load_code` needs, as an .npz archive with a "kind"."""


@dataclasses.dataclass(frozen=True, eq=False)
class PatchCode:
    """Each patch of a picture in an orthonormal basis.

    z = (p - mean) Q / s,    p = s z Q^T + mean,    p = the values of one patch.

    Distances shrink by s alone, so that a squared error means the same in latents as in pixels.
    With as many columns in Q as a patch has values nothing is lost.

    Attributes:
      patch: side of a patch.
      channels: of the pictures.
      mean: of the values of a patch.
      basis: Q, orthonormal columns.
      scale: s > 0, which gives latents a mean square of 1.
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
    """Return mean and covariance of the values of a patch over pictures spread over the set."""
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
        # The sign of an eigenvector is free: its largest entry is positive, on every machine.
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
    """Return the values of a patch, or raise where patches do not tile the pictures."""
    height, width, channels = dataset.image_shape
    if patch < 1 or height % patch or width % patch:
        raise ValueError(f"patches of {patch}×{patch} do not tile pictures of {height}×{width}")
    return patch * patch * channels


def fit_patches(dataset: Dataset, *, patch: int, channels: int | None) -> PatchCode:
    """Return the code that moves patches into channels and loses nothing:   Q = 1.

    Raises:
      ValueError: patches that do not tile the pictures, or other channels than a patch has values.
    """
    values = _check_patch(dataset, patch)
    if channels not in (None, values):
        raise ValueError(
            f"encoder 'patches' makes {values} channels of patches of {patch}×{patch}, not "
            f"{channels}; encoder 'pca' keeps fewer"
        )
    return _patch_code(dataset, patch, np.eye(values), values)


def fit_pca(dataset: Dataset, *, patch: int, channels: int | None) -> PatchCode:
    """Return the code of the first principal components of patches: of all linear ones the best.

    Q = the eigenvectors of the covariance of patches with the `channels` largest eigenvalues.

    Raises:
      ValueError: patches that do not tile the pictures, or more channels than a patch has values.
    """
    values = _check_patch(dataset, patch)
    kept = values if channels is None else channels
    if not 1 <= kept <= values:
        raise ValueError(
            f"expected 1 to {values} channels of patches of {patch}×{patch}, got {kept}"
        )
    return _patch_code(dataset, patch, None, kept)


class Fit(Protocol):
    """How an encoder is made."""

    def __call__(self, dataset: Dataset, *, patch: int, channels: int | None) -> Code:
        """Return a code for pictures like these; `channels` None keeps all of them."""


ENCODERS: Mapping[str, Fit] = {
    "patches": fit_patches,
    "pca": fit_pca,
}
# What is in a file to how it is read.
_KINDS: Mapping[str, Callable[[Mapping[str, np.ndarray]], Code]] = {"patches": PatchCode.load}


def load_code(file: str | os.PathLike) -> Code:
    """Read a code that `Code.save` wrote.

    Raises:
      ValueError: the file is missing, damaged, or of a kind that this version does not know.
    """
    try:
        # Opened here, since np.load leaves a damaged archive open.
        with open(file, "rb") as opened, np.load(opened, allow_pickle=False) as stored:
            kind = str(stored["kind"])
            return choose("kind of code", kind, _KINDS)(stored)
    except (OSError, EOFError, ValueError, KeyError, BadZipFile) as error:
        raise ValueError(f"cannot read the decoder {file}: {error}") from error
