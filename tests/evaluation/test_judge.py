"""The judge on real digits: what it knows, what it must notice."""

import numpy as np
import pytest
from sklearn.datasets import load_digits

from guidedflow.evaluation import Judge


@pytest.fixture(scope="module")
def digits():
    raw = load_digits()
    images = (raw.images / 8 - 1).astype(np.float32)[..., None]
    return (images[:1400], raw.target[:1400]), (images[1400:], raw.target[1400:])


@pytest.fixture(scope="module")
def judge(digits):
    return Judge(*digits)


def test_the_judge_knows_held_out_digits(judge):
    # The last fifth of the set is from other writers and harder than a random one.
    assert judge.floor.accuracy > 0.94


def test_two_judges_of_one_seed_agree_in_every_figure(judge, digits):
    assert Judge(*digits).floor == judge.floor


def test_wrong_labels_lose_all_accuracy(judge, digits):
    images, labels = digits[0]
    assert judge.score(images, labels).accuracy > 0.99
    assert judge.score(images, (labels + 1) % 10).accuracy < 0.01


def test_accuracy_is_the_mean_of_the_classes_by_their_size(judge, digits):
    images, labels = digits[1]
    scores = judge.score(images, labels)
    counts = np.bincount(labels, minlength=10)
    assert np.dot(scores.accuracies, counts) / counts.sum() == pytest.approx(scores.accuracy)


def test_a_class_without_images_has_no_accuracy(judge, digits):
    images, labels = digits[1]
    scores = judge.score(images[labels < 5], labels[labels < 5])
    assert np.isnan(scores.accuracies[5:]).all()
    assert np.isfinite(scores.accuracies[:5]).all()


def test_copies_of_training_images_show_as_memorised(judge, digits):
    images, labels = digits[0]
    assert judge.score(images[:200], labels[:200]).nearest_train < 1e-3
    assert judge.floor.nearest_train > 1


def test_blur_noise_and_a_lost_class_each_move_the_distances(judge, digits):
    images, labels = digits[0]
    rng = np.random.default_rng(0)
    spoiled = {
        "noise": images + 0.3 * rng.standard_normal(images.shape),
        "blur": (images + np.roll(images, 1, 1) + np.roll(images, 1, 2)) / 3,
        "lost": np.concatenate([images[labels != 3], images[labels == 8]])[: len(labels)],
    }
    for name, changed in spoiled.items():
        scores = judge.score(changed, labels[: len(changed)])
        assert scores.frechet_pixels > 1.1 * judge.floor.frechet_pixels, name
        assert scores.frechet_features > 1.1 * judge.floor.frechet_features, name


def test_features_have_unit_variance_on_training_images(judge, digits):
    spread = judge.features(digits[0][0]).std(axis=0)
    np.testing.assert_allclose(spread[spread > 0], 1, rtol=1e-6)


def test_bad_input_is_named(judge, digits):
    images, labels = digits[1]
    with pytest.raises(ValueError, match=r"one an image \(397,\), got \(10,\)"):
        judge.score(images, labels[:10])
    with pytest.raises(ValueError, match=r"\(8, 8, 1\) each"):
        judge.score(images[:, :4], labels)
    with pytest.raises(ValueError, match="not"):
        judge.score(np.full_like(images, np.nan), labels)
    with pytest.raises(ValueError, match="at least two classes"):
        Judge((images, np.zeros_like(labels)), digits[1])
    with pytest.raises(ValueError, match="one shape"):
        Judge(digits[0], (images[:, :4], labels))
