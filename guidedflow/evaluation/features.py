"""The inputs of a judge: a copy of each image of at most 32 pixels per side, and random convolutions of it."""

from collections.abc import Callable

import numpy as np
from jaxtyping import Float, Int

from guidedflow.data import Dataset

Images = Float[np.ndarray, "n h w c"]

SIDE = 32
# For images of more numbers than this, distances are only taken in features. A covariance in 1,024
# dimensions needs 1,024 images for full rank and a second to decompose, and both grow fast.
PIXELS = 1024
# Largest number of real images that are read; distances to all of them are computed at once.
MOST = 10_000

_FILTERS, _WIDTH, _BLOCK = 64, 5, 64


def smaller(images: Images) -> Images:
    """Return images averaged over areas to at most 32 pixels per side; smaller images are unchanged."""
    height, width = images.shape[1:3]
    longest = max(height, width)
    if longest <= SIDE:
        return images
    sides = [max(1, round(side * SIDE / longest)) for side in (height, width)]
    return _averaged(images, sides[0], sides[1])


def _averaged(images: Images, height: int, width: int) -> Images:
    count, h, w, channels = images.shape
    rows = _averaging(h, height) @ np.float32(images).reshape(count, h, w * channels)
    # Width last: this is one large matmul instead of one for each row of pixels.
    turned = rows.reshape(count, height, w, channels).swapaxes(2, 3).reshape(-1, w)
    means = turned @ _averaging(w, width).T
    return means.reshape(count, height, channels, width).swapaxes(2, 3)


def _averaging(length: int, parts: int) -> Float[np.ndarray, "parts length"]:
    """Means over `parts` equal intervals of `length` pixels; a pixel on an edge counts in part."""
    edges, pixel = np.arange(parts + 1) * length / parts, np.arange(length)
    overlap = np.minimum(edges[1:, None], pixel + 1) - np.maximum(edges[:-1, None], pixel)
    return (np.maximum(overlap, 0) * parts / length).astype(np.float32)


def random_convolutions(images: Images) -> Float[np.ndarray, "n 512"]:
    """Return features without training: 64 random filters at two scales, averaged over quadrants.

    f = mean over a quadrant of max(0, w * x),   w of 5 x 5 pixels, normal, the same in every run.

    Such a layer is selective for frequencies and tolerant of shifts, although nothing is learned.

    Source: Saxe et al. 2011, On random weights and unsupervised feature learning.
    """
    blocks = [
        np.concatenate([_layer(block), _layer(_halved(block))], axis=1)
        for block in (images[i : i + _BLOCK] for i in range(0, len(images), _BLOCK))
    ]
    return np.concatenate(blocks).astype(np.float64)


def _halved(images: Images) -> Images:
    return _averaged(images, max(1, images.shape[1] // 2), max(1, images.shape[2] // 2))


def _layer(images: Images) -> Float[np.ndarray, "n 256"]:
    count, height, width, channels = images.shape
    size, margin = _WIDTH**2 * channels, _WIDTH // 2
    filters = np.random.default_rng(0).standard_normal((size, _FILTERS)) / np.sqrt(size)
    around = ((0, 0), (margin, margin), (margin, margin), (0, 0))
    padded = np.pad(np.asarray(images, np.float32), around, mode="edge")
    windows = np.lib.stride_tricks.sliding_window_view(padded, (_WIDTH, _WIDTH), axis=(1, 2))
    fired = np.maximum(windows.reshape(-1, size) @ filters.astype(np.float32), 0)
    return _averaged(fired.reshape(count, height, width, _FILTERS), 2, 2).reshape(count, -1)


def evenly(length: int, most: int) -> Int[np.ndarray, " m"]:
    """Return indices of at most `most` of `length` examples, spread evenly over them."""
    return np.unique(np.linspace(0, length - 1, min(length, most)).astype(int))


def read_images(
    dataset: Dataset, most: int = MOST, progress: Callable[[int], None] = lambda count: None
) -> tuple[Images, Int[np.ndarray, " n"]]:
    """Return labels and images, made `smaller`, of at most `most` examples spread evenly over the set.

    They are read and made smaller block by block, so large images are never in memory all at once.
    Latents are decoded.

    Args:
      dataset: the examples.
      most: largest number of examples to read.
      progress: called with the number of further examples read.
    """
    indices = evenly(len(dataset), most)
    images, labels = [], []
    for start in range(0, len(indices), 4 * _BLOCK):
        batch = dataset.read(indices[start : start + 4 * _BLOCK])
        images.append(smaller(dataset.images(batch["image"])))
        labels.append(batch["label"])
        progress(len(batch["label"]))
    return np.concatenate(images), np.concatenate(labels)
