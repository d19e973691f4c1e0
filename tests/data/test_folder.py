"""Pictures in class subfolders."""

import numpy as np
import pytest
from PIL import Image

from guidedflow.data import load
from guidedflow.data.images import decode_file


def picture(path, colour, size=(6, 6)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)


@pytest.fixture
def folder(tmp_path):
    """Three classes; the red level numbers the pictures in the order they should have."""
    for level, name in enumerate(["ant/1.png", "ant/2.PNG", "bee/a.bmp", "cat/x.png"]):
        picture(tmp_path / name, (10 * level, 0, 255))
    (tmp_path / "bee" / "notes.txt").write_text("not a picture")
    return tmp_path


def test_classes_are_the_sorted_subfolders_and_examples_are_sorted_in_them(folder):
    dataset = load(f"folder:{folder}", image_size=6)
    batch = dataset.take()
    assert dataset.class_names == ("ant", "bee", "cat")
    assert (dataset.num_classes, dataset.image_shape) == (3, (6, 6, 3))
    assert batch["label"].tolist() == [0, 0, 1, 2]
    assert np.rint((batch["image"][:, 0, 0, 0] + 1) * 127.5).tolist() == [0, 10, 20, 30]
    assert np.all(batch["image"][..., 2] == 1)


@pytest.mark.parametrize("cache_bytes", [0, 2**20])
def test_remembered_examples_are_the_files_examples(folder, cache_bytes):
    dataset = load(f"folder:{folder}", image_size=6, cache_bytes=cache_bytes)
    once, twice = dataset.read(np.array([3, 1, 1])), dataset.read(np.array([1, 3, 0]))
    assert np.array_equal(once["image"][0], twice["image"][1])
    assert np.array_equal(once["image"][1], twice["image"][0])
    assert twice["label"].tolist() == [0, 2, 0]


def test_remembered_examples_are_not_read_again(folder):
    dataset = load(f"folder:{folder}", image_size=6)
    before = dataset.take()
    for file in folder.glob("*/*"):
        file.unlink()
    assert np.array_equal(dataset.take()["image"], before["image"])


def test_a_split_has_its_own_subfolder(tmp_path):
    picture(tmp_path / "train" / "a" / "1.png", "red")
    picture(tmp_path / "val" / "a" / "1.png", "red")
    picture(tmp_path / "val" / "b" / "1.png", "red")
    assert load(f"folder:{tmp_path}", image_size=6).length == 1
    assert load(f"folder:{tmp_path}", split="val", image_size=6).length == 2
    with pytest.raises(ValueError, match=r"unknown split of .*'test'"):
        load(f"folder:{tmp_path}", split="test", image_size=6)


def test_a_wide_picture_is_scaled_by_its_short_side_and_cut_at_the_centre(tmp_path):
    """20x40, left half black, right half white, to 10x10: the seam is in the middle."""
    image = np.zeros((20, 40, 3), np.uint8)
    image[:, 20:] = 255
    Image.fromarray(image).save(tmp_path / "wide.png")
    out = decode_file(tmp_path / "wide.png", (10, 10), 3)
    assert np.all(out[:, :4] == 0)
    assert np.all(out[:, 6:] == 255)


def test_shrinking_averages_and_does_not_alias(tmp_path):
    """A one-pixel checkerboard has mean 127.5; picking pixels would give 0 or 255."""
    board = (np.indices((64, 64)).sum(0) % 2 * 255).astype(np.uint8)
    Image.fromarray(board).save(tmp_path / "board.png")
    out = decode_file(tmp_path / "board.png", (8, 8), 1)
    assert out.shape == (8, 8, 1)
    assert np.all(np.abs(out.astype(float) - 127.5) <= 2)


def test_a_rectangle_is_height_by_width(folder):
    assert load(f"folder:{folder}", image_size=(4, 8)).take()["image"].shape == (4, 4, 8, 3)


@pytest.mark.parametrize("damage", ["truncated", "empty", "text"])
def test_a_corrupt_file_is_named(folder, damage):
    file = folder / "bee" / "a.bmp"
    whole = file.read_bytes()
    content = {"truncated": whole[: len(whole) // 2], "empty": b"", "text": b"hello" * 20}
    file.write_bytes(content[damage])
    with pytest.raises(ValueError, match=r"cannot read .*bee/a\.bmp \(example 2\)"):
        load(f"folder:{folder}", image_size=6).take()


def test_identity_changes_with_the_files(folder):
    before = load(f"folder:{folder}", image_size=6).identity
    assert load(f"folder:{folder}", image_size=6).identity == before
    (folder / "ant" / "1.png").rename(folder / "ant" / "0.png")
    assert load(f"folder:{folder}", image_size=6).identity["version"] != before["version"]


def test_a_missing_or_empty_folder_and_a_missing_size_are_said(tmp_path):
    with pytest.raises(ValueError, match=r"no folder .*nowhere"):
        load(f"folder:{tmp_path / 'nowhere'}", image_size=6)
    with pytest.raises(ValueError, match="no pictures in"):
        load(f"folder:{tmp_path}", image_size=6)
    with pytest.raises(ValueError, match="give image_size"):
        load(f"folder:{tmp_path}")
    with pytest.raises(ValueError, match="expected image_size as a side"):
        load(f"folder:{tmp_path}", image_size=(1, 2, 3))
