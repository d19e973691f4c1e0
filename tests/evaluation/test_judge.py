"""The judge on real digits: what it knows, what it must notice."""

import numpy as np
import pytest
from sklearn.datasets import load_digits

from guidedflow.evaluation import Judge, smaller


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
    with pytest.raises(ValueError, match=r"more than 3 held-out images .* got 3"):
        Judge(digits[0], (images[:3], labels[:3]))
    with pytest.raises(ValueError, match=r"more than 3 training images in each half .* got 3"):
        Judge((images[:7], labels[:7]))
    with pytest.raises(ValueError, match="one shape"):
        Judge(digits[0], (images[:, :4], labels))


@pytest.fixture(scope="module")
def coloured():
    """Three classes of 40 x 40 pictures, each a colour under noise; two draws."""
    labels = np.arange(48) % 3

    def draw(seed):
        noise = np.random.default_rng(seed).uniform(-0.3, 0.3, (48, 40, 40, 3))
        return (noise + 0.5 * np.eye(3)[labels][:, None, None, :]).astype(np.float32), labels

    return draw(0), draw(1)


@pytest.fixture(scope="module")
def judge_of_pictures(coloured):
    return Judge(*coloured)


def test_large_images_are_judged_in_features_and_not_in_pixels(judge_of_pictures, coloured):
    images, labels = coloured[1]
    floor = judge_of_pictures.floor
    assert judge_of_pictures.image_shape == (32, 32, 3)
    assert np.isnan(floor.frechet_pixels)
    assert (floor.accuracy, floor.inception) == (1.0, pytest.approx(3, abs=0.2))
    assert judge_of_pictures.score(images, (labels + 1) % 3).accuracy == 0.0
    spoiled = judge_of_pictures.score(np.roll(images, 1, axis=-1), labels)
    assert spoiled.accuracy == 0.0
    red = judge_of_pictures.score(images[labels == 0], labels[labels == 0])
    assert red.frechet_features > 2 * floor.frechet_features
    assert red.recall < floor.recall


def test_images_made_smaller_before_are_the_images_made_smaller_by_the_judge(
    judge_of_pictures, coloured
):
    images, labels = coloured[1]
    assert judge_of_pictures.score(smaller(images), labels) == judge_of_pictures.score(
        images, labels
    )


@pytest.mark.parametrize("side", [8, 24])
def test_images_of_one_class_are_judged_by_random_convolutions(side):
    rng = np.random.default_rng(0)
    images = rng.uniform(-1, 1, (3, 30, side, side, 1)).astype(np.float32)
    images[2] = images[2].mean(axis=(1, 2), keepdims=True)
    zeros = np.zeros(30, np.int32)
    judge = Judge((images[0], zeros), (images[1], zeros))
    assert judge.features(images[1]).shape == (30, 512)
    assert np.isnan([judge.floor.accuracy, judge.floor.inception]).all()
    blank = judge.score(images[2], zeros)
    assert blank.frechet_features > 2 * judge.floor.frechet_features
    assert blank.recall == 0
    with pytest.raises(ValueError, match="tells no classes apart"):
        judge.classify(images[1])


def test_without_held_out_images_halves_of_the_training_images_are_the_floor(digits):
    """Distances of the training images to themselves are 0; the floor is that of two equal halves."""
    images, labels = digits[0]
    judge = Judge((images, labels))
    assert judge.compares_with == "training images"
    same = judge.score(images, labels)
    assert same.frechet_pixels == pytest.approx(0, abs=1e-9)
    assert same.nearest_train < 1e-3
    assert 0.05 < judge.floor.frechet_pixels < 1
    assert judge.floor.nearest_train > 1
    assert np.isnan(judge.floor.accuracy)
    assert judge.floor.count == 700
