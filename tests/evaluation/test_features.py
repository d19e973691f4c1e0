"""Images made smaller by exact means, random convolutions, and real images read a block at a time."""

import dataclasses

import numpy as np
import pytest

from guidedflow.commands.evaluate import make_judge
from guidedflow.data import Dataset
from guidedflow.evaluation import random_convolutions, read_images, smaller


def test_images_of_few_pixels_stay_as_they_are():
    images = np.zeros((2, 32, 20, 3), np.float32)
    assert smaller(images) is images


def test_whole_factors_are_means_of_blocks():
    images = np.random.default_rng(0).uniform(-1, 1, (2, 64, 32, 3)).astype(np.float32)
    blocks = images.reshape(2, 32, 2, 16, 2, 3).mean(axis=(2, 4))
    np.testing.assert_allclose(smaller(images), blocks, atol=1e-6)


def test_other_factors_share_a_pixel_on_an_edge_by_its_parts():
    """50 pixels to 32: of each pixel cut in 32 parts, every 50 parts make a mean."""
    images = np.random.default_rng(1).uniform(-1, 1, (1, 50, 50, 1)).astype(np.float32)
    rows = np.repeat(images[0, ..., 0], 32, axis=0).reshape(32, 50, 50).mean(axis=1)
    both = np.repeat(rows, 32, axis=1).reshape(32, 32, 50).mean(axis=2)
    np.testing.assert_allclose(smaller(images)[0, ..., 0], both, atol=1e-6)


def test_random_convolutions_are_equal_in_every_run_and_blind_to_the_other_images():
    images = np.random.default_rng(2).uniform(-1, 1, (70, 12, 9, 3)).astype(np.float32)
    whole = random_convolutions(images)
    assert whole.shape == (70, 512)
    np.testing.assert_allclose(whole[66:], random_convolutions(images[66:]), atol=1e-5)
    assert np.all(whole >= 0)


def test_a_constant_image_fires_alike_in_every_quadrant_and_scale():
    """With edges repeated, a convolution of a constant is its filter's sum everywhere."""
    features = random_convolutions(np.full((1, 8, 8, 1), 0.5, np.float32)).reshape(2, 4, 64)
    np.testing.assert_allclose(features, np.broadcast_to(features[:1, :1], (2, 4, 64)), atol=1e-6)
    twice = random_convolutions(np.full((1, 8, 8, 1), 1.0, np.float32)).reshape(2, 4, 64)
    np.testing.assert_allclose(twice, 2 * features, rtol=1e-5)


@dataclasses.dataclass(frozen=True)
class Levels:
    """Example i is all of level i, of class i modulo `classes`."""

    length: int
    side: int
    classes: int

    def __len__(self):
        return self.length

    def gather(self, indices):
        shape = (len(indices), self.side, self.side, 1)
        levels = np.broadcast_to((indices % 251).astype(np.uint8)[:, None, None, None], shape)
        return {"image": levels, "label": (indices % self.classes).astype(np.int32)}


def levels(length, side=4, classes=2):
    return Dataset(
        source=Levels(length, side, classes),
        image_shape=(side, side, 1),
        num_classes=classes,
        identity={},
    )


def test_real_images_are_read_evenly_and_counted():
    counts = []
    images, labels = read_images(levels(1000, side=40), 501, counts.append)
    assert images.shape == (501, 32, 32, 1)
    assert sum(counts) == 501
    assert len(counts) > 1
    chosen = np.rint((images[:, 0, 0, 0] + 1) * 127.5)
    assert chosen[:3].tolist() == [0, 1, 3]
    assert chosen[-1] == 999 % 251
    assert set(labels) == {0, 1}


@pytest.mark.parametrize("held_out", [None, levels(60)])
def test_the_program_judges_with_and_without_held_out_images_and_says_what_it_does(held_out):
    said = []
    judge = make_judge(levels(100), held_out, said.append)
    assert said[0] == "reading 100 training images"
    assert ("comparing with the training images" in " ".join(said)) == (held_out is None)
    assert said[-1].startswith("real: images ")
    assert judge.floor.count == (50 if held_out is None else 60)


def test_the_program_judges_images_of_one_class():
    judge = make_judge(levels(40, classes=1), None, lambda line: None)
    assert np.isfinite(judge.floor.frechet_features)


def test_too_few_real_images_are_refused_before_anything_is_sampled():
    with pytest.raises(ValueError, match="more than 3 held-out images"):
        make_judge(levels(40), levels(2), lambda line: None)
