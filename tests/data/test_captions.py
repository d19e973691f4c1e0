"""Captions of folders and of tensorflow-datasets sets, and the draw of one of several."""

import io
import json
import pickle

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from guidedflow.data import load, pipeline
from guidedflow.data.captions import with_captions
from guidedflow.training.batches import Numbered


def picture(path, level=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4), (level, level, level)).save(path)


@pytest.fixture
def flat(tmp_path):
    """Three pictures without classes, levels 0, 1, 2."""
    for level, name in enumerate("abc"):
        picture(tmp_path / f"{name}.png", level)
    return tmp_path


def rows(folder, *lines):
    (folder / "metadata.jsonl").write_text("\n".join(json.dumps(line) for line in lines))


def row(file, text):
    return {"file_name": file, "text": text}


def opened(folder, **options):
    return load(f"folder:{folder}", image_size=4, **options)


def test_json_lines_give_captions_in_any_order(flat):
    rows(flat, row("c.png", "sea"), row("./a.png", " ant "), row("b.png", "bee"))
    batch = opened(flat).take()
    assert batch["caption"].tolist() == ["ant", "bee", "sea"]
    assert batch["label"].tolist() == [0, 0, 0]
    assert np.rint((batch["image"][:, 0, 0, 0] + 1) * 127.5).tolist() == [0, 1, 2]


def test_a_table_gives_captions_with_commas(flat):
    (flat / "metadata.csv").write_text('text,file_name\n"a, b",a.png\nbee,b.png\nsea,c.png\n')
    assert opened(flat).take()["caption"].tolist() == ["a, b", "bee", "sea"]


def test_text_files_beside_pictures_in_class_folders(tmp_path, caplog):
    for name in ("x/1", "y/1"):
        picture(tmp_path / f"{name}.png")
        (tmp_path / f"{name}.txt").write_text(f"the {name}\n\n")
    dataset = opened(tmp_path)
    assert dataset.take()["caption"].tolist() == ["the x/1", "the y/1"]
    assert dataset.class_names == ("x", "y")
    assert "left out" not in caplog.text


def test_a_folder_without_captions_has_none(flat):
    dataset = opened(flat)
    assert dataset.captions is None
    assert set(dataset.take()) == {"image", "label"}


def test_every_example_has_its_captions_in_order(flat):
    rows(flat, row("a.png", "1"), row("b.png", "2"), row("c.png", "4"), row("b.png", "3"))
    assert list(opened(flat).captions()) == [("1",), ("2", "3"), ("4",)]


def test_the_identity_changes_with_a_caption_and_not_without(flat):
    plain = opened(flat).identity
    named = [row(f"{name}.png", name) for name in "abc"]
    rows(flat, *named)
    before = opened(flat).identity
    assert opened(flat).identity == before != plain
    rows(flat, *named[:2], row("c.png", "other"))
    assert opened(flat).identity["version"] != before["version"]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (
            {"metadata.jsonl": '{"file_name": "d.png", "text": "x"}'},
            r"jsonl line 1 names 'd.png', which is no image",
        ),
        (
            {"metadata.jsonl": '{"file_name": "a.png", "text": "x"}\n'},
            r"image 'b.png' has no caption in .*jsonl",
        ),
        ({"metadata.jsonl": "\n{file_name}"}, r"line 2 is not JSON"),
        ({"metadata.jsonl": '{"file_name": "a.png"}'}, r"line 1: expected file_name and text"),
        ({"metadata.jsonl": b"\xff\xfe"}, r"cannot read .*metadata.jsonl"),
        ({"metadata.csv": "file,text\na.png,x"}, r"csv line 2: expected file_name and text"),
        ({"metadata.csv": "", "metadata.jsonl": ""}, r"holds both"),
        ({"a.txt": "x", "b.txt": "y"}, r"image 'c.png' has no caption in a .txt file beside it"),
        ({"a.txt": "x", "b.txt": "y", "c.txt": "z", "d.txt": "w"}, r"d.txt is a caption of no image"),
        ({"a.txt": b"\xff", "b.txt": "y", "c.txt": "z"}, r"cannot read .*a.txt"),
    ],
)  # fmt: skip
def test_captions_that_do_not_match_the_pictures_are_one_line(flat, files, message):
    for name, content in files.items():
        (flat / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=message) as caught:
        opened(flat)
    assert "\n" not in str(caught.value)


def test_one_of_several_captions_is_drawn_evenly_and_anew_in_every_epoch(numbered):
    """Counts of 4,000 draws of three: chi-squared with 2 degrees, mean 2, sd 2."""
    dataset = with_captions(numbered(40), [("x", "y", "z")] * 40)
    epochs = [pipeline(dataset, 5, 40, shuffle=False)[epoch]["caption"] for epoch in range(100)]
    counts = np.array([np.sum(np.stack(epochs) == text) for text in "xyz"])
    assert counts.sum() == 4000
    assert np.sum((counts - 4000 / 3) ** 2 / (4000 / 3)) < 2 + 5 * 2
    assert 0.2 < np.mean(epochs[0] == epochs[1]) < 0.5
    assert pipeline(dataset, 6, 40, shuffle=False)[0]["caption"].tolist() != epochs[0].tolist()


def test_captions_stay_with_their_pictures_for_any_number_of_processes(numbered):
    dataset = with_captions(numbered(30), [(f"{i} a", f"{i} b") for i in range(30)])
    whole = pipeline(dataset, 3, 16)
    for step in (0, 5, 1000):
        parts = [pipeline(dataset, 3, 16, process_index=p, process_count=4)[step] for p in range(4)]
        joined = np.concatenate([part["caption"] for part in parts])
        assert joined.tolist() == whole[step]["caption"].tolist()
        levels = np.rint((whole[step]["image"][:, 0, 0, 0] + 1) * 127.5).astype(int)
        assert [int(text.split()[0]) for text in joined] == levels.tolist()


def with_words(batch, draws):
    """Numbers of a caption, in its place."""
    rest = {name: part for name, part in batch.items() if name != "caption"}
    return {**rest, "tokens": np.array([[int(text)] for text in batch["caption"]], np.int32)}


def test_a_map_turns_captions_into_arrays_which_alone_reach_the_step(numbered):
    dataset = with_captions(numbered(10), [(str(i),) for i in range(10)])
    named = Numbered(pipeline(dataset, 0, 4))[0]
    assert set(named) == {"image", "label", "index"}
    mapped = Numbered(pipeline(dataset.map(with_words), 0, 4))[0]
    assert set(mapped) == {"image", "label", "index", "tokens"}
    assert (mapped["tokens"][:, 0] % 3 == mapped["label"]).all()
    # As it goes to a worker process.
    again = pickle.loads(pickle.dumps(pipeline(dataset.map(with_words), 0, 4)))
    assert np.array_equal(again[0]["tokens"], mapped["tokens"])


@pytest.mark.parametrize("cache_bytes", [0, 2**20])
def test_a_folder_remembered_keeps_its_captions(flat, cache_bytes):
    rows(flat, *(row(f"{name}.png", name) for name in "abc"))
    dataset = opened(flat, cache_bytes=cache_bytes)
    order = np.array([2, 0, 2, 1])
    for _ in range(2):
        assert dataset.read(order)["caption"].tolist() == ["c", "a", "c", "b"]


def png(level):
    out = io.BytesIO()
    Image.new("RGB", (4, 4), (level, level, level)).save(out, "PNG")
    out.seek(0)
    return out


TEXT = tfds.features.Text()
FORMS = {
    "records": ("captions", tfds.features.Sequence({"id": np.int64, "text": TEXT})),
    "list": ("captions", tfds.features.Sequence(TEXT)),
    "one": ("caption", TEXT),
}


class CaptionedForTests(tfds.core.GeneratorBasedBuilder):
    """Pictures with captions in the form of coco_captions, or as one text, or as a list."""

    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = tuple(tfds.core.BuilderConfig(name=name) for name in FORMS)

    def _info(self):
        name, feature = FORMS[self.builder_config.name]
        features = {"image": tfds.features.Image(shape=(None, None, 3)), name: feature}
        return tfds.core.DatasetInfo(
            builder=self, description="For tests.", features=tfds.features.FeaturesDict(features)
        )

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        form = self.builder_config.name
        for i in range(6):
            texts = [f"{i} café", f"{i} other"]
            stored = {
                "records": [{"id": k, "text": text} for k, text in enumerate(texts)],
                "list": texts,
                "one": texts[0],
            }[form]
            yield i, {"image": png(i), FORMS[form][0]: stored}


@pytest.fixture(scope="module")
def captioned(tmp_path_factory):
    root = tmp_path_factory.mktemp("captioned")
    for form in FORMS:
        builder = CaptionedForTests(data_dir=str(root), config=form, file_format="array_record")
        builder.download_and_prepare(
            download_config=tfds.download.DownloadConfig(try_download_gcs=False)
        )
    return root


@pytest.mark.parametrize(("form", "each"), [("records", 2), ("list", 2), ("one", 1)])
@pytest.mark.parametrize("cache_bytes", [0, 2**20])
def test_captions_of_tensorflow_datasets_sets(captioned, form, each, cache_bytes):
    dataset = load(
        f"captioned_for_tests/{form}", image_size=4, data_dir=captioned, cache_bytes=cache_bytes
    )
    for _ in range(2):
        batch = dataset.take()
        levels = np.rint((batch["image"][:, 0, 0, 0] + 1) * 127.5).astype(int)
        assert [int(text.split()[0]) for text in batch["caption"]] == levels.tolist()
    kinds = ("café", "other")[:each]
    expected = [tuple(f"{level} {kind}" for kind in kinds) for level in levels]
    assert list(dataset.captions()) == expected
    seen = {text for epoch in range(12) for text in pipeline(dataset, 0, 6)[epoch]["caption"]}
    assert seen == {text for texts in expected for text in texts}
