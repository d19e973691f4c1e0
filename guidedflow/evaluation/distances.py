"""Distances between sets of samples, in any features: Fréchet, nearest neighbour, manifolds.

Fréchet distances are computed in float64. Covariances of nearly constant features are singular; in
single precision the distance could be negative or not a number.
"""

import dataclasses

import numpy as np
from jaxtyping import Float

Features = Float[np.ndarray, "n d"]

# Rows compared with all others at once; bounds the table of distances to 1,024 rows.
_ROWS = 1024


# A factor of this many rows takes minutes to decompose, and 0.5 GiB.
_MOST_ROWS = 8192


@dataclasses.dataclass(frozen=True, eq=False)
class Gaussian:
    """Mean and covariance of a set of features, the covariance as a factor:  C = F^T F.

    n features in d dimensions give a factor of min(n, d) rows. With many dimensions no d x d matrix
    is stored.

    Attributes:
      mean: (d,).
      factor: F, (r, d).
    """

    mean: Float[np.ndarray, " d"]
    factor: Float[np.ndarray, "r d"]

    @classmethod
    def of(cls, mean: Float[np.ndarray, " d"], covariance: Float[np.ndarray, "d d"]) -> "Gaussian":
        """Return the Gaussian of a mean and a covariance, as the files of reference statistics hold."""
        values, vectors = np.linalg.eigh(np.asarray(covariance, np.float64))
        return cls(np.asarray(mean, np.float64), (vectors * np.sqrt(np.maximum(values, 0))).T)

    @property
    def covariance(self) -> Float[np.ndarray, "d d"]:
        """C = F^T F."""
        return self.factor.T @ self.factor


def _check(name: str, features: np.ndarray, least: int) -> np.ndarray:
    features = np.asarray(features, np.float64)
    if features.ndim != 2 or len(features) < least:
        raise ValueError(
            f"{name} must be at least {least} rows of features, got shape {features.shape}"
        )
    if not np.all(np.isfinite(features)):
        raise ValueError(f"{name} must be finite; {np.sum(~np.isfinite(features))} numbers are not")
    return features


def fit_gaussian(features: Features) -> Gaussian:
    """Return mean and covariance (divided by n - 1) of the rows.

    Raises:
      ValueError: fewer than two rows, a number that is not finite, or both more rows and more
        dimensions than can be decomposed.
    """
    features = _check("features", features, 2)
    check_size(*features.shape)
    mean = features.mean(axis=0)
    factor = (features - mean) / np.sqrt(len(features) - 1)
    if len(factor) > factor.shape[1]:
        factor = np.linalg.qr(factor, mode="r")
    return Gaussian(mean, factor)


def check_size(rows: int, dimensions: int) -> None:
    """Raise ValueError if the covariance of so many features is too large to decompose."""
    if min(rows, dimensions) > _MOST_ROWS:
        raise ValueError(
            f"a Fréchet distance of {rows:,} features in {dimensions:,} dimensions takes too long; "
            f"expected at most {_MOST_ROWS:,} of one or the other"
        )


def frechet(a: Gaussian, b: Gaussian) -> float:
    """Return the squared Fréchet (2-Wasserstein) distance between two Gaussians.

    d^2 = |m_a - m_b|^2 + tr C_a + tr C_b - 2 |F_a F_b^T|_*,   C = F^T F,

    where |.|_* is the sum of the singular values. They are the roots of the eigenvalues of C_a C_b, so
    the sum is tr (C_a C_b)^1/2, without a matrix root and from a matrix no larger than the sets.
    Equal Gaussians have distance 0. An estimate from n samples of each is biased upwards by a term
    that falls as 1 / n. Compare only estimates with equal n, and show real against real beside them.

    Raises:
      ValueError: the dimensions differ.
    Source: Dowson & Landau 1982, eq. 16; as FID, Heusel et al. 2017, eq. 6; the eigenvalues from the
      small matrix, Mathiasen & Hvilshøj 2020.
    """
    if a.mean.shape != b.mean.shape:
        raise ValueError(f"features must have one dimension, got {a.mean.shape} and {b.mean.shape}")
    crossed = np.linalg.svd(a.factor @ b.factor.T, compute_uv=False).sum()
    spread = np.sum(a.factor**2) + np.sum(b.factor**2) - 2 * crossed
    return max(float(np.sum((a.mean - b.mean) ** 2) + spread), 0.0)


def frechet_of(a: Features, b: Features) -> float:
    """Return `frechet` between the Gaussians of two sets of features."""
    return frechet(fit_gaussian(a), fit_gaussian(b))


def _square_distances(rows: Features, others: Features) -> Float[np.ndarray, "n m"]:
    """|x - y|^2 = |x|^2 - 2 x.y + |y|^2, clipped at 0, because rounding may make it negative."""
    cross = rows @ others.T
    norms = np.sum(rows**2, axis=1)[:, None] + np.sum(others**2, axis=1)[None, :]
    return np.maximum(norms - 2 * cross, 0)


def nearest(samples: Features, references: Features) -> Float[np.ndarray, " n"]:
    """Return each sample's Euclidean distance to the nearest reference.

    If the distance to the training images is much smaller than that of held-out images, the generator
    copies its training images.

    Raises:
      ValueError: the dimensions differ, or a set is empty.
    """
    samples, references = _pair(samples, references, 1)
    blocks = [
        np.sqrt(_square_distances(samples[i : i + _ROWS], references).min(axis=1))
        for i in range(0, len(samples), _ROWS)
    ]
    return np.concatenate(blocks)


def _pair(a: Features, b: Features, least: int) -> tuple[Features, Features]:
    a, b = _check("samples", a, least), _check("references", b, least)
    if a.shape[1] != b.shape[1]:
        raise ValueError(f"features must have one dimension, got {a.shape[1]} and {b.shape[1]}")
    return a, b


def _radii(features: Features, k: int) -> Float[np.ndarray, " n"]:
    """Each row's squared distance to its k-th nearest other row."""
    blocks = [
        # Position 0 is the row itself, at distance 0.
        np.partition(_square_distances(features[i : i + _ROWS], features), k, axis=1)[:, k]
        for i in range(0, len(features), _ROWS)
    ]
    return np.concatenate(blocks)


def precision_recall(samples: Features, references: Features, k: int = 3) -> tuple[float, float]:
    """Return (precision, recall) by manifolds of k nearest neighbours.

    precision = share of the samples within the k-th neighbour's distance of some reference;
    recall = share of the references within the k-th neighbour's distance of some sample.

    Raises:
      ValueError: the dimensions differ, or a set has fewer than k neighbours.
    Source: Kynkäänniemi et al. 2019, eq. 1-3.
    """
    samples, references = _pair(samples, references, k + 1)
    real, fake = _radii(references, k), _radii(samples, k)
    covers = np.zeros(len(references), bool)
    inside = np.zeros(len(samples), bool)
    for i in range(0, len(samples), _ROWS):
        squares = _square_distances(samples[i : i + _ROWS], references)
        inside[i : i + _ROWS] = np.any(squares <= real[None, :], axis=1)
        covers |= np.any(squares <= fake[i : i + _ROWS, None], axis=0)
    return float(inside.mean()), float(covers.mean())


def inception_score(probabilities: Float[np.ndarray, "n k"]) -> float:
    """Return exp of the mean divergence of p(y given x) from its mean p(y); 1 to k.

    IS = exp(E_x KL(p(y given x), p(y))).   Salimans et al. 2016, section 4.
    """
    p = np.clip(np.asarray(probabilities, np.float64), 1e-16, 1)
    return float(np.exp(np.mean(np.sum(p * (np.log(p) - np.log(p.mean(axis=0))), axis=1))))
