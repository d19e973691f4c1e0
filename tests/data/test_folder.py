"""Pictures in class subfolders."""

import os
from pathlib import Path

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


def test_a_truncated_file_is_named(folder):
    file = folder / "bee" / "a.bmp"
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"cannot read .*bee/a\.bmp \(example 2\).*mend it or"):
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


def test_what_is_no_picture_is_left_out_and_said_in_one_line(folder, caplog):
    """Classes stay ant, bee and cat, and every label stays, whatever else comes to lie there."""
    before = load(f"folder:{folder}", image_size=6)
    assert caplog.messages == [f"left out of {folder}: not named as a picture: 1 (bee/notes.txt)"]
    picture(folder / ".ipynb_checkpoints" / "1.png", "red")
    picture(folder / "ant" / ".ipynb_checkpoints" / "1-checkpoint.png", "red")
    picture(folder / "ant" / "deeper" / "1.png", "red")
    picture(folder / "loose.png", "red")
    (folder / "aardvark").mkdir()
    (folder / "__MACOSX" / "ant").mkdir(parents=True)
    (folder / "__MACOSX" / "ant" / "._1.png").write_bytes(b"resource fork")
    (folder / "__MACOSX" / "._ant").write_bytes(b"resource fork")
    (folder / "Thumbs.db").write_bytes(b"thumbs")
    (folder / "ant" / "page.jpg").write_text("<html>404</html>")
    (folder / "ant" / "empty.png").write_bytes(b"")
    (folder / "broken").mkdir()
    (folder / "broken" / "x.png").write_bytes(b"")
    (folder / "bee" / "gone.png").symlink_to(folder / "nowhere.png")
    (folder / "bee" / "itself.png").symlink_to("itself.png")
    (folder / "cycle").symlink_to(folder)
    caplog.clear()
    after = load(f"folder:{folder}", image_size=6)
    assert after.class_names == ("ant", "bee", "cat")
    assert after.identity == before.identity
    assert after.take()["label"].tolist() == before.take()["label"].tolist()
    (line,) = caplog.messages
    for part in (
        "hidden: 3 (.ipynb_checkpoints, __MACOSX/._ant, ant/.ipynb_checkpoints)",
        "folder without a readable picture: 3 (__MACOSX, aardvark, broken)",
        "folder inside a class: 2 (__MACOSX/ant, ant/deeper)",
        "link to a folder around it: 1 (cycle)",
        "not a file: 2 (bee/gone.png, bee/itself.png)",
        "not named as a picture: 2 (Thumbs.db, bee/notes.txt)",
        "picture outside the class folders: 1 (loose.png)",
        "not readable as a picture: 3 (ant/empty.png: cannot identify image file, ant/page.jpg: ",
    ):
        assert part in line


def test_many_names_are_counted_and_three_are_said(folder, caplog):
    for number in range(5):
        (folder / "ant" / f"{number}.md").touch()
    load(f"folder:{folder}", image_size=6)
    assert "not named as a picture: 6 (ant/0.md, ant/1.md, ant/2.md, …)" in caplog.text


def test_links_to_pictures_and_classes_are_followed(folder, tmp_path_factory):
    away = tmp_path_factory.mktemp("away")
    picture(away / "dog" / "x.png", "red")
    (folder / "dog").symlink_to(away / "dog")
    (folder / "ant" / "9.png").symlink_to(away / "dog" / "x.png")
    dataset = load(f"folder:{folder}", image_size=6)
    assert dataset.class_names == ("ant", "bee", "cat", "dog")
    assert dataset.take()["label"].tolist() == [0, 0, 0, 1, 2, 3]


def test_names_may_hold_spaces_and_any_letters(tmp_path):
    picture(tmp_path / "big cats" / "Löwe 1.PNG", "red")
    picture(tmp_path / "鳥" / "a b.png", "red")
    dataset = load(f"folder:{tmp_path}", image_size=6)
    assert dataset.class_names == ("big cats", "鳥")
    assert dataset.take()["label"].tolist() == [0, 1]


def test_a_class_whose_name_is_no_text_is_refused(folder):
    os.mkdir(os.fsencode(folder) + b"/caf\xe9")
    picture(Path(os.fsdecode(os.fsencode(folder) + b"/caf\xe9")) / "1.png", "red")
    with pytest.raises(ValueError, match=r"the class folder 'caf\\udce9' .* is not UTF-8"):
        load(f"folder:{folder}", image_size=6)


def test_pictures_without_subfolders_are_one_class_named_as_the_folder(tmp_path):
    for part in ("train", "test"):
        picture(tmp_path / "shells" / part / "1.png", "red")
        picture(tmp_path / "shells" / part / "2.png", "red")
    whole = load(f"folder:{tmp_path}/shells/train", image_size=6)
    assert (whole.class_names, whole.num_classes, whole.length) == (("train",), 1, 2)
    for part in ("train", "test"):
        dataset = load(f"folder:{tmp_path}/shells", split=part, image_size=6)
        assert (dataset.class_names, dataset.length) == (("shells",), 2)


def test_a_class_called_train_is_no_split(tmp_path):
    for name in ("bus", "car", "train"):
        picture(tmp_path / name / "1.png", "red")
    dataset = load(f"folder:{tmp_path}", image_size=6)
    assert dataset.class_names == ("bus", "car", "train")


def test_a_split_that_lacks_a_class_keeps_the_numbers_of_the_others(tmp_path):
    for name in ("train/ant", "train/bee", "train/cat", "val/cat", "odd/dog"):
        picture(tmp_path / name / "1.png", "red")
    names = load(f"folder:{tmp_path}", image_size=6).class_names
    val = load(f"folder:{tmp_path}", split="val", image_size=6, class_names=names)
    assert (val.num_classes, val.class_names) == (3, names)
    assert val.take()["label"].tolist() == [2]
    with pytest.raises(ValueError, match=r"unknown class in .*odd 'dog'"):
        load(f"folder:{tmp_path}", split="odd", image_size=6, class_names=names)


def test_pictures_that_lie_too_deep_are_pointed_to(tmp_path):
    picture(tmp_path / "images" / "ant" / "1.png", "red")
    with pytest.raises(ValueError, match=r"found pictures in .*images/ant: name the folder around"):
        load(f"folder:{tmp_path}", image_size=6)


def test_a_disk_that_fails_is_not_taken_for_a_file_that_is_no_picture(folder, monkeypatch):
    def fail(file):
        raise PermissionError(13, "Permission denied", str(file))

    monkeypatch.setattr("guidedflow.data.listing.check_header", fail)
    with pytest.raises(ValueError, match=r"cannot read .*ant/1\.png: Permission denied"):
        load(f"folder:{folder}", image_size=6)


def test_the_checkpoint_keeps_class_names_and_the_count(folder):
    identity = load(f"folder:{folder}", image_size=6).identity
    assert identity["class_names"] == ["ant", "bee", "cat"]
    assert identity["length"] == 4
    (folder / "bee").rename(folder / "bumblebee")
    assert load(f"folder:{folder}", image_size=6).identity["class_names"][1] == "bumblebee"
