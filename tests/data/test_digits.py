"""The digits: what is in them, how they are split, and that preparing them cannot be half done."""

import hashlib
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
from sklearn.datasets import load_digits

from guidedflow.data import load, prepare
from guidedflow.data.digits import held_out, prepare_digits


def rows(batch):
    """The 16-level pixels of each image with its label, as a sorted list."""
    levels = np.rint((batch["image"].reshape(len(batch["label"]), -1) + 1) * 8).astype(int)
    return sorted(
        (*pixels, label) for pixels, label in zip(levels.tolist(), batch["label"], strict=True)
    )


def test_the_two_splits_together_are_scikit_learns_digits(digits_dir):
    """Disjoint and complete: as multisets, train + test = the original, pixel for pixel."""
    ours = [rows(load("digits", split=s, data_dir=digits_dir).take()) for s in ("train", "test")]
    original = load_digits()
    theirs = sorted(
        (*pixels, label)
        for pixels, label in zip(original.data.astype(int).tolist(), original.target, strict=True)
    )
    assert [len(part) for part in ours] == [1497, 300]
    assert sorted(ours[0] + ours[1]) == theirs


def test_no_image_is_in_both_splits(digits_dir):
    train, test = (
        rows(load("digits", split=s, data_dir=digits_dir).take()) for s in ("train", "test")
    )
    assert not set(train) & set(test)


def test_every_class_is_held_out_in_proportion():
    labels = load_digits().target
    count, held = np.bincount(labels), np.bincount(labels[held_out(labels)])
    assert held.sum() == 300
    assert np.all(np.abs(held - count * 300 / len(labels)) <= 1)


def test_images_are_channels_last_floats_that_span_minus_one_to_one(digits_dir):
    batch = load("digits", data_dir=digits_dir).take()
    assert batch["image"].shape == (1497, 8, 8, 1)
    assert batch["image"].dtype == np.float32
    assert batch["label"].dtype == np.int32
    assert (batch["image"].min(), batch["image"].max()) == (-1, 1)


def test_identity_says_name_version_split_and_length(digits_dir):
    identity = load("digits", split="test", data_dir=digits_dir).identity
    assert identity == {
        "name": "digits",
        "version": "1.0.0",
        "split": "test",
        "length": 300,
        "image_shape": [8, 8, 1],
    }


def test_two_processes_prepare_at_once_and_read_the_same_without_tensorflow(tmp_path, digits_dir):
    """Split and order are those of this process too; TensorFlow and the network stay out."""
    program = """
import hashlib, socket, sys, warnings
warnings.simplefilter("error")
def refuse(*args): raise AssertionError("a socket was opened")
socket.create_connection = socket.getaddrinfo = refuse
from guidedflow.data import load
batch = load("digits", split="test", data_dir=sys.argv[1]).take()
assert "tensorflow" not in sys.modules
print(hashlib.sha256(batch["image"].tobytes() + batch["label"].tobytes()).hexdigest())
"""
    command = [sys.executable, "-c", program, str(tmp_path)]
    running = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    results = [process.communicate() for process in running]
    assert [process.returncode for process in running] == [0, 0], results
    batch = load("digits", split="test", data_dir=digits_dir).take()
    here = hashlib.sha256(batch["image"].tobytes() + batch["label"].tobytes()).hexdigest()
    assert [out.strip() for out, _ in results] == [here, here]
    assert [child.name for child in tmp_path.iterdir()] == ["guidedflow_digits"]


def test_killed_while_preparing_leaves_nothing_that_is_read(tmp_path):
    """The process dies after the files are written and before they are renamed into place."""
    program = """
import os, signal, sys
os.rename = lambda *args: os.kill(os.getpid(), signal.SIGKILL)
from guidedflow.data.digits import prepare_digits
prepare_digits(sys.argv[1])
"""
    ended = subprocess.run([sys.executable, "-c", program, str(tmp_path)], capture_output=True)
    assert ended.returncode == -signal.SIGKILL
    assert not list(tmp_path.glob("guidedflow_digits/*"))
    assert load("digits", data_dir=tmp_path).length == 1497


def test_preparing_again_changes_nothing(digits_dir):
    folder = prepare("digits", digits_dir)
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert prepare_digits(digits_dir) == folder
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before


def test_a_folder_that_is_in_the_way_is_named(tmp_path):
    (tmp_path / "guidedflow_digits" / "1.0.0" / "stray").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"guidedflow_digits/1\.0\.0: .*not empty"):
        load("digits", data_dir=tmp_path)


def test_a_data_dir_that_is_a_file_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=f"cannot write the digits to {tmp_path / 'file'}"):
        load("digits", data_dir=tmp_path / "file")


def test_the_environment_chooses_the_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", os.fspath(tmp_path / "cache"))
    monkeypatch.delenv("TFDS_DATA_DIR", raising=False)
    assert prepare("digits").is_relative_to(tmp_path / "cache" / "guidedflow" / "tfds")
    monkeypatch.setenv("TFDS_DATA_DIR", os.fspath(tmp_path / "tfds"))
    assert prepare("digits").is_relative_to(tmp_path / "tfds")
