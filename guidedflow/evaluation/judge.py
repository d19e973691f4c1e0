"""A judge of class-conditional samples that learned from real training images alone.

Two classifiers of scikit-learn, both deterministic: a support vector machine says the class, and a
small perceptron gives the features in which Fréchet distance, precision and recall are taken. What
the judge itself gets wrong on held-out images stands beside every figure.
"""

import dataclasses
import functools
import warnings
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from sklearn.exceptions import ConvergenceWarning
from sklearn.neural_network import MLPClassifier
from sklearn.svm import SVC
from threadpoolctl import threadpool_limits

from guidedflow.evaluation.distances import (
    fit_gaussian,
    frechet,
    inception_score,
    nearest,
    precision_recall,
)

Images = Float[np.ndarray, "n h w c"]
Labels = Int[np.ndarray, " n"]

# The support vector machine's time grows with the square of what it learns from.
_MOST = 10_000


@dataclasses.dataclass(frozen=True)
class Scores:
    """What a set of images scored.

    Attributes:
      count: images judged.
      accuracy: share that the judge takes for the class they were asked to be.
      accuracies: the same, a class.
      frechet_pixels: squared distance to the held-out images, pixels in [-1, 1].
      frechet_features: the same in the judge's features, each of unit variance on training images.
      nearest_train: mean Euclidean distance to the nearest training image, pixels in [-1, 1].
      precision, recall: in the features, k = 3, against the training images.
      inception: exp of the mean divergence of the class probabilities; 1 to the number of classes.
    """

    count: int
    accuracy: float
    accuracies: tuple[float, ...]
    frechet_pixels: float
    frechet_features: float
    nearest_train: float
    precision: float
    recall: float
    inception: float


def _flat(images: Images) -> Float[np.ndarray, "n d"]:
    return np.asarray(images, np.float64).reshape(len(images), -1)


class Judge:
    """Judges images against real ones; made once, used for any number of sets.

    Args:
      train: real images (n, h, w, c) in [-1, 1] and their labels, which the judge learns from.
      held_out: other real images, which distances are measured to.
      seed: of the perceptron's initial weights.
    Raises:
      ValueError: fewer than two classes, or images of different shapes.
    """

    def __init__(
        self, train: tuple[Images, Labels], held_out: tuple[Images, Labels], seed: int = 0
    ) -> None:
        images, labels = (np.asarray(part) for part in train)
        held_images, held_labels = (np.asarray(part) for part in held_out)
        if images.shape[1:] != held_images.shape[1:]:
            raise ValueError(
                f"training and held-out images must have one shape, got {images.shape[1:]} and "
                f"{held_images.shape[1:]}"
            )
        if len(np.unique(labels)) < 2:
            raise ValueError("a judge needs training images of at least two classes")
        chosen = _evenly(labels, _MOST)
        self.image_shape = images.shape[1:]
        self._train = _flat(images)
        self._classifier = SVC(gamma="scale", C=10.0).fit(self._train[chosen], labels[chosen])
        self._extractor = _fit_extractor(self._train[chosen], labels[chosen], seed)
        features = self._activations(self._train)
        self._offset = features.mean(axis=0)
        # Of a unit that never fires there is nothing to compare.
        self._unit = np.where(features.std(axis=0) > 0, features.std(axis=0), np.inf)
        self._train_features = self.features(images)
        self._held_pixels = fit_gaussian(_flat(held_images))
        self._held_features = fit_gaussian(self.features(held_images))
        self._train_set = (images, labels)
        self._held_set = (held_images, held_labels)

    def classify(self, images: Images) -> Labels:
        """Return the class that each image looks like."""
        return self._classifier.predict(self._checked(images))

    def features(self, images: Images) -> Float[np.ndarray, "n d"]:
        """Return the perceptron's last hidden activations, of unit variance on training images."""
        return (self._activations(self._checked(images)) - self._offset) / self._unit

    def _checked(self, images: Images) -> Float[np.ndarray, "n d"]:
        if np.shape(images)[1:] != self.image_shape:
            raise ValueError(
                f"images must have shape {self.image_shape} each, got {np.shape(images)}"
            )
        if not np.all(np.isfinite(images)):
            raise ValueError("images must be finite; the sampler gave numbers that are not")
        return _flat(images)

    def _activations(self, flat: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n k"]:
        weights, biases = self._extractor.coefs_[:-1], self._extractor.intercepts_[:-1]
        for weight, bias in zip(weights, biases, strict=True):
            flat = np.maximum(flat @ weight + bias, 0)
        return flat

    def score(self, images: Images, labels: Labels) -> Scores:
        """Judge images against the labels that they were made for.

        Args:
          images: (n, h, w, c), meant to lie in [-1, 1]; n at least 4.
          labels: the classes asked for.
        Raises:
          ValueError: other shapes than the training images', or numbers that are not finite.
        """
        labels = np.asarray(labels)
        if labels.shape != (len(images),):
            raise ValueError(f"labels must be one an image ({len(images)},), got {labels.shape}")
        right = self.classify(images) == labels
        features = self.features(images)
        precision, recall = precision_recall(features, self._train_features)
        classes = self._classifier.classes_
        return Scores(
            count=len(labels),
            accuracy=float(right.mean()),
            accuracies=tuple(
                float(right[labels == c].mean()) if np.any(labels == c) else float("nan")
                for c in classes
            ),
            frechet_pixels=frechet(fit_gaussian(_flat(images)), self._held_pixels),
            frechet_features=frechet(fit_gaussian(features), self._held_features),
            nearest_train=float(nearest(_flat(images), self._train).mean()),
            precision=precision,
            recall=recall,
            inception=inception_score(self._extractor.predict_proba(_flat(images))),
        )

    @functools.cached_property
    def floor(self) -> Scores:
        """Real against real: what a perfect generator would be expected to score.

        Distances are those of the training images to the held-out ones; accuracy, the distance to
        the nearest training image, precision and recall are the held-out images' own.
        """
        held = self.score(*self._held_set)
        pixels = fit_gaussian(self._train)
        return dataclasses.replace(
            held,
            frechet_pixels=frechet(pixels, self._held_pixels),
            frechet_features=frechet(fit_gaussian(self._train_features), self._held_features),
        )


def _evenly(labels: Labels, most: int) -> Int[np.ndarray, " m"]:
    """Indices of at most `most` examples, spread evenly over the set."""
    return np.unique(np.linspace(0, len(labels) - 1, min(len(labels), most)).astype(int))


def _fit_extractor(flat: Float[np.ndarray, "n d"], labels: Labels, seed: int) -> Any:
    extractor = MLPClassifier((128, 64), max_iter=30, learning_rate_init=3e-3, random_state=seed)
    # Products this small are ten times slower on several threads than on one.
    with warnings.catch_warnings(), threadpool_limits(1):
        # Thirty passes are enough for features; whether the loss still falls does not matter.
        warnings.simplefilter("ignore", ConvergenceWarning)
        return extractor.fit(flat, labels)
