"""The digits, prepared once for all tests of this folder, and a small set held in memory."""

import dataclasses

import numpy as np
import pytest

from guidedflow.data import Dataset, load


@pytest.fixture(scope="session")
def digits_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tfds")
    load("digits", data_dir=folder)
    return folder


@dataclasses.dataclass(frozen=True)
class Numbered:
    """Image i is full of i, label i mod 3."""

    length: int
    side: int = 4

    def __len__(self):
        return self.length

    def gather(self, indices):
        images = np.broadcast_to(
            indices.astype(np.uint8)[:, None, None, None], (len(indices), self.side, self.side, 1)
        )
        return {"image": images, "label": (indices % 3).astype(np.int32)}


@pytest.fixture
def numbered():
    """Make a set whose images say which example they are."""

    def make(length, side=4):
        return Dataset(
            source=Numbered(length, side),
            image_shape=(side, side, 1),
            num_classes=3,
            identity={"name": "numbered", "version": "1", "split": "train", "length": length},
        )

    return make


@pytest.fixture
def no_network(monkeypatch):
    """Any socket that opens fails the test."""

    def refuse(*args, **kwargs):
        raise AssertionError("a socket was opened")

    monkeypatch.setattr("socket.socket", refuse)
    monkeypatch.setattr("socket.create_connection", refuse)
    monkeypatch.setattr("socket.getaddrinfo", refuse)
