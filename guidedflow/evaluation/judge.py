"""A judge of class-conditional samples, trained only on real training images.

For small images it uses two deterministic classifiers of scikit-learn. A support vector machine
predicts the class; a small perceptron gives the features for Fréchet distance, precision and recall.
Larger images are made smaller; the perceptron is trained on random convolutions of them and also
predicts the class. Without classes the convolutions are the features. The judge's own error on held-out
images is shown beside every figure.
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
    Gaussian,
    fit_gaussian,
    frechet,
    inception_score,
    nearest,
    precision_recall,
)
from guidedflow.evaluation.features import (
    MOST,
    PIXELS,
    evenly,
    random_convolutions,
    smaller,
)

Images = Float[np.ndarray, "n h w c"]
Labels = Int[np.ndarray, " n"]
Matrix = Float[np.ndarray, "n d"]

# Number of nearest neighbours for precision and recall; a set needs as many other images.
_NEIGHBOURS = 3


@dataclasses.dataclass(frozen=True)
class Scores:
    """The scores of a set of images; a score that was not computed is NaN.

    Attributes:
      count: number of images.
      accuracy: share of the images for which the judge predicts the requested class.
      accuracies: the same for each class.
      frechet_pixels: squared distance to the held-out images, pixels in [-1, 1]; not computed for
        images of more than 1,024 numbers.
      frechet_features: the same in the judge's features, which have unit variance on training images.
      nearest_train: mean Euclidean distance to the nearest training image, pixels in [-1, 1], of
        copies of at most 32 pixels per side.
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


@dataclasses.dataclass(frozen=True, eq=False)
class _Seen:
    """A set of images as the judge sees it; Gaussians are fitted once, at their first use."""

    flat: Matrix
    inputs: Matrix
    features: Matrix

    @functools.cached_property
    def pixels(self) -> Gaussian | None:
        return fit_gaussian(self.flat) if self.flat.shape[1] <= PIXELS else None

    @functools.cached_property
    def gaussian(self) -> Gaussian:
        return fit_gaussian(self.features)

    def part(self, start: int) -> "_Seen":
        """Every second image from `start` on."""
        return _Seen(self.flat[start::2], self.inputs[start::2], self.features[start::2])


class Judge:
    """Judges images against real images; one judge can score any number of sets.

    Args:
      train: real images (n, h, w, c) in [-1, 1] and their labels, to train the judge on. With one
        class nothing is trained, and the features are `random_convolutions`.
      held_out: other real images, to which distances are measured; None measures them to the
        training images.
      seed: seed of the perceptron's initial weights.
    Raises:
      ValueError: shapes of images differ, or there are too few images for neighbours.
    """

    def __init__(
        self,
        train: tuple[Images, Labels],
        held_out: tuple[Images, Labels] | None = None,
        seed: int = 0,
    ) -> None:
        images, self._labels = smaller(np.asarray(train[0])), np.asarray(train[1])
        self.image_shape = images.shape[1:]
        self.compares_with = "training images" if held_out is None else "held-out images"
        if held_out is not None:
            held = smaller(np.asarray(held_out[0]))
            if held.shape[1:] != self.image_shape:
                raise ValueError(
                    f"training and held-out images must have one shape, got {self.image_shape} and "
                    f"{held.shape[1:]}"
                )
        real = len(images) // 2 if held_out is None else min(len(images), len(held_out[0]))
        if real <= _NEIGHBOURS:
            raise ValueError(
                f"a judge needs more than {_NEIGHBOURS} {self.compares_with} "
                f"{'in each half ' if held_out is None else ''}to measure neighbours, got {real}"
            )
        self._train = self._seen(images, self._learn(self._checked(images), seed))
        self._held = None if held_out is None else (self._see(held), np.asarray(held_out[1]))

    def _learn(self, images: Images, seed: int) -> Matrix:
        """Train the classifiers and compute the features' statistics; return the training inputs."""
        labelled = len(np.unique(self._labels)) > 1
        self._from_pixels = labelled and np.prod(self.image_shape) <= PIXELS
        self._classifier = self._extractor = None
        self._shift: tuple[Any, Any] = (0.0, 1.0)
        inputs = self._inputs(images)
        if not self._from_pixels:
            self._shift = _mean_and_deviation(inputs)
            inputs = (inputs - self._shift[0]) / self._shift[1]
        self._offset: Any = 0.0
        self._unit: Any = 1.0
        if labelled:
            chosen = evenly(len(inputs), MOST)
            self._extractor = _fit_extractor(inputs[chosen], self._labels[chosen], seed)
            self._classifier = self._extractor
            if self._from_pixels:
                machine = SVC(gamma="scale", C=10.0)
                self._classifier = machine.fit(inputs[chosen], self._labels[chosen])
            self._offset, self._unit = _mean_and_deviation(self._activations(inputs))
        return inputs

    def _inputs(self, images: Images) -> Matrix:
        """Return the classifiers' inputs: pixels, or random convolutions of unit variance."""
        if self._from_pixels:
            return _flat(images)
        return (random_convolutions(images) - self._shift[0]) / self._shift[1]

    def _activations(self, inputs: Matrix) -> Matrix:
        if self._extractor is None:
            return inputs
        weights, biases = self._extractor.coefs_[:-1], self._extractor.intercepts_[:-1]
        for weight, bias in zip(weights, biases, strict=True):
            inputs = np.maximum(inputs @ weight + bias, 0)
        return inputs

    def _checked(self, images: Images) -> Images:
        images = smaller(np.asarray(images))
        if images.shape[1:] != self.image_shape:
            raise ValueError(f"images must have shape {self.image_shape} each, got {images.shape}")
        if not np.all(np.isfinite(images)):
            raise ValueError("images must be finite; the sampler gave numbers that are not")
        return images

    def _see(self, images: Images) -> _Seen:
        images = self._checked(images)
        return self._seen(images, self._inputs(images))

    def _seen(self, images: Images, inputs: Matrix) -> _Seen:
        return _Seen(_flat(images), inputs, (self._activations(inputs) - self._offset) / self._unit)

    def classify(self, images: Images) -> Labels:
        """Return the predicted class of each image.

        Raises:
          ValueError: the judge knows only one class.
        """
        if self._classifier is None:
            raise ValueError("a judge of one class tells no classes apart")
        return self._classifier.predict(self._see(images).inputs)

    def features(self, images: Images) -> Matrix:
        """Return the features for distances, which have unit variance on training images.

        They are the perceptron's last hidden activations, or random convolutions if there are no classes.
        """
        return self._see(images).features

    def score(self, images: Images, labels: Labels) -> Scores:
        """Score images that were sampled for these labels.

        Args:
          images: (n, h, w, c), nominally in [-1, 1]; n at least 4.
          labels: the requested classes.
        Raises:
          ValueError: shapes differ from those of the training images, or numbers are not finite.
        """
        labels = np.asarray(labels)
        if labels.shape != (len(images),):
            raise ValueError(f"labels must be one an image ({len(images)},), got {labels.shape}")
        to = self._train if self._held is None else self._held[0]
        return self._compare(self._see(images), labels, self._train, to)

    @functools.cached_property
    def floor(self) -> Scores:
        """Real against real: the expected scores of a perfect generator.

        They compare the held-out images with the training images. Without held-out images, they compare
        one half of the training images with the other, without accuracy, because the judge was trained
        on both halves.
        """
        if self._held is not None:
            return self._compare(*self._held, self._train, self._train)
        half, other = self._train.part(1), self._train.part(0)
        scores = self._compare(half, self._labels[1::2], other, other)
        unknown = (np.nan,) * len(scores.accuracies)
        return dataclasses.replace(scores, accuracy=np.nan, accuracies=unknown)

    def _compare(self, seen: _Seen, labels: Labels, near: _Seen, to: _Seen) -> Scores:
        """Score one set: nearest neighbours in `near`, Fréchet distances to `to`."""
        precision, recall = precision_recall(seen.features, near.features, _NEIGHBOURS)
        accuracy, accuracies = self._accuracy(seen, labels)
        extractor, pixels = self._extractor, np.nan
        if seen.pixels is not None and to.pixels is not None:
            pixels = frechet(seen.pixels, to.pixels)
        return Scores(
            count=len(labels),
            accuracy=accuracy,
            accuracies=accuracies,
            frechet_pixels=pixels,
            frechet_features=frechet(seen.gaussian, to.gaussian),
            nearest_train=float(nearest(seen.flat, near.flat).mean()),
            precision=precision,
            recall=recall,
            inception=(
                np.nan
                if extractor is None
                else inception_score(extractor.predict_proba(seen.inputs))
            ),
        )

    def _accuracy(self, seen: _Seen, labels: Labels) -> tuple[float, tuple[float, ...]]:
        if self._classifier is None:
            return np.nan, (np.nan,)
        right = self._classifier.predict(seen.inputs) == labels
        each = (right[labels == c] for c in self._classifier.classes_)
        return float(right.mean()), tuple(float(r.mean()) if r.size else np.nan for r in each)


def _flat(images: Images) -> Matrix:
    return np.asarray(images, np.float64).reshape(len(images), -1)


def _mean_and_deviation(
    values: Matrix,
) -> tuple[Float[np.ndarray, " d"], Float[np.ndarray, " d"]]:
    """Return both; a constant feature has an infinite deviation, so that it is not compared."""
    deviation = values.std(axis=0)
    return values.mean(axis=0), np.where(deviation > 0, deviation, np.inf)


def _fit_extractor(inputs: Matrix, labels: Labels, seed: int) -> Any:
    extractor = MLPClassifier((128, 64), max_iter=30, learning_rate_init=3e-3, random_state=seed)
    # Matmuls this small are ten times slower on several threads than on one.
    with warnings.catch_warnings(), threadpool_limits(1):
        # Thirty passes are enough for features, even if the loss still falls.
        warnings.simplefilter("ignore", ConvergenceWarning)
        return extractor.fit(inputs, labels)
