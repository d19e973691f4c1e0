"""Tensorflow-datasets sets by name: made here without TensorFlow, and missing without a network."""

import io
import shutil
import subprocess
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from guidedflow.data import load, pipeline, prefetch, prepare
from guidedflow.data.tfds import find_prepared


def png(level, size):
    out = io.BytesIO()
    Image.new("RGB", size, (level, level, level)).save(out, "PNG")
    out.seek(0)
    return out


class StripesForTests(tfds.core.GeneratorBasedBuilder):
    """Grey PNG pictures of varying size; picture i has level i and class i mod 2."""

    VERSION = tfds.core.Version("1.2.0")

    def _info(self):
        return tfds.core.DatasetInfo(
            builder=self,
            description="Pictures for tests.",
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(None, None, 3)),
                    "label": tfds.features.ClassLabel(names=["even", "odd"]),
                }
            ),
        )

    def _split_generators(self, dl_manager):
        return {
            "train": self._generate_examples(0, 40),
            "validation": self._generate_examples(40, 50),
        }

    def _generate_examples(self, start, stop):
        for i in range(start, stop):
            yield i, {"image": png(i, (8 + i % 3, 12)), "label": i % 2}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    root = tmp_path_factory.mktemp("stock")
    StripesForTests(data_dir=str(root), file_format="array_record").download_and_prepare(
        download_config=tfds.download.DownloadConfig(try_download_gcs=False)
    )
    return root


def levels(batch):
    return np.rint((batch["image"][:, 0, 0, 0] + 1) * 127.5).astype(int)


@pytest.mark.parametrize(
    "spec", ["stripes_for_tests", "tfds:stripes_for_tests", "stripes_for_tests:1.2.0"]
)
def test_a_prepared_set_is_read_by_name_at_the_wanted_size(prepared, no_network, spec):
    dataset = load(spec, image_size=8, data_dir=prepared)
    batch = dataset.take()
    assert batch["image"].shape == (40, 8, 8, 3)
    assert sorted(levels(batch)) == list(range(40))
    assert np.array_equal(levels(batch) % 2, batch["label"])
    assert (dataset.num_classes, dataset.class_names) == (2, ("even", "odd"))
    assert dataset.identity["version"] == "1.2.0"


def test_other_splits_and_parts_of_them(prepared):
    def read(split):
        return levels(
            load("stripes_for_tests", split=split, image_size=8, data_dir=prepared).take()
        )

    assert sorted(read("validation")) == list(range(40, 50))
    assert sorted([*read("train[:25%]"), *read("train[25%:]")]) == list(range(40))
    assert len(read("train[:25%]")) == 10


def test_worker_processes_read_it_too(prepared):
    dataset = load("stripes_for_tests", image_size=8, data_dir=prepared, cache_bytes=0)
    stream = pipeline(dataset, 0, 8)
    with prefetch(stream, processes=1) as ahead:
        step, batch = next(ahead)
    assert np.array_equal(batch["image"], stream[step]["image"])


def test_a_corrupt_record_names_file_and_record(prepared, tmp_path):
    """One flipped bit in a record: its checksum fails."""
    root = shutil.copytree(prepared, tmp_path / "copy")
    file = next(root.glob("*/*/*train.array_record*"))
    content = bytearray(file.read_bytes())
    at = content.rfind(b"\x89PNG")
    assert at > 0
    content[at + 20] ^= 1
    file.write_bytes(content)
    dataset = load("stripes_for_tests", image_size=8, data_dir=root)
    with pytest.raises(
        ValueError, match=r"cannot read record (\d+) of .*train\.array_record\S* \(example \1\)"
    ):
        dataset.take()


def test_varying_sizes_need_a_size(prepared):
    with pytest.raises(ValueError, match="differ in size: give image_size"):
        load("stripes_for_tests", data_dir=prepared)


@pytest.mark.parametrize("split", ["tran", "test", "train[", "train[:x%]"])
def test_an_unknown_split_is_refused(prepared, split):
    with pytest.raises(ValueError, match="split"):
        load("stripes_for_tests", split=split, image_size=8, data_dir=prepared)


def test_an_unknown_split_says_the_nearest(digits_dir):
    with pytest.raises(ValueError, match=r"'tset' \(did you mean 'test'\?\); known: test, train"):
        load("digits", split="tset", data_dir=digits_dir)


def test_a_damaged_description_is_named(prepared, tmp_path):
    root = shutil.copytree(prepared, tmp_path / "copy")
    (root / "stripes_for_tests" / "1.2.0" / "features.json").write_text("{")
    with pytest.raises(ValueError, match=r"cannot read the data set description in .*1\.2\.0"):
        load("stripes_for_tests", image_size=8, data_dir=root)


def test_small_images_are_scaled_up_and_digits_can_be_resized(digits_dir):
    dataset = load("digits", image_size=16, data_dir=digits_dir)
    assert dataset.take(3)["image"].shape == (3, 16, 16, 1)


@pytest.mark.parametrize(
    "name", ["cifar10", "mnist", "tfds:imagenet2012", "imagenet_resized/64x64"]
)
def test_a_missing_set_names_the_command_that_prepares_it(tmp_path, no_network, name):
    bare = name.removeprefix("tfds:")
    with pytest.raises(ValueError, match=f"guidedflow prepare {bare} --data_dir={tmp_path}"):
        load(name, data_dir=tmp_path)


def test_a_missing_set_is_said_at_once_in_a_process_of_its_own(tmp_path):
    """Nothing waits or retries: sockets raise, and the whole answer takes under a second."""
    program = """
import socket, sys, time
def refuse(*args, **kwargs): raise SystemExit("a socket was opened")
socket.socket.connect = socket.create_connection = socket.getaddrinfo = refuse
from guidedflow.data import load
began = time.process_time(), time.perf_counter()
try:
    load("cifar10", data_dir=sys.argv[1])
except ValueError as error:
    print(time.process_time() - began[0], error)
assert "tensorflow" not in sys.modules
"""
    out = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, timeout=60
    )
    assert out.returncode == 0, out.stderr
    seconds, message = out.stdout.split(maxsplit=1)
    assert float(seconds) < 1
    assert "guidedflow prepare cifar10" in message
    assert "\n" not in message.strip()


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("digitz", r"unknown data set 'digitz' \(did you mean 'digits'\?\)"),
        ("mnst", r"unknown data set 'mnst' \(did you mean 'mnist'\?\)"),
        ("foldr:/tmp", r"unknown kind of data set 'foldr' \(did you mean 'folder'\?\)"),
        ("", "expected a data set as name"),
        ("a/b/c", "expected a data set as name"),
        ("../secret", "expected a data set as name"),
    ],
)
def test_unknown_names_say_the_nearest(tmp_path, no_network, spec, message):
    with pytest.raises(ValueError, match=message):
        load(spec, data_dir=tmp_path)


def test_preparing_without_tensorflow_says_what_to_install(tmp_path, no_network, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(
        ValueError, match=r"needs TensorFlow once: pip install 'guidedflow\[tfds\]'"
    ):
        prepare("cifar10", tmp_path)
    with pytest.raises(ValueError, match="did you mean 'mnist'"):
        prepare("mnst", tmp_path)


def test_preparing_what_is_there_gives_its_folder(prepared):
    assert prepare("stripes_for_tests", prepared) == prepared / "stripes_for_tests" / "1.2.0"


def described(root, *folders):
    for folder in folders:
        (root / folder).mkdir(parents=True)
        (root / folder / "dataset_info.json").write_text("{}")


def test_the_newest_version_is_read_unless_one_is_named(tmp_path):
    """Versions are numbers: 10 is newer than 9.  Half-written folders do not count."""
    described(tmp_path, "pictures/9.1.0", "pictures/10.0.0")
    (tmp_path / "pictures" / "11.0.0").mkdir()
    (tmp_path / "pictures" / "incomplete.X_12.0.0").mkdir()
    assert find_prepared("pictures", [tmp_path]).name == "10.0.0"
    assert find_prepared("pictures:9.1.0", [tmp_path]).name == "9.1.0"
    assert find_prepared("pictures:1.0.0", [tmp_path]) is None


def test_the_first_folder_that_holds_the_set_wins(tmp_path):
    described(tmp_path, "b/pictures/1.0.0", "c/pictures/2.0.0")
    roots = [tmp_path / name for name in ("a", "b", "c")]
    assert find_prepared("pictures", roots) == tmp_path / "b" / "pictures" / "1.0.0"


def test_one_config_is_found_and_several_are_asked_about(tmp_path):
    described(tmp_path, "pictures/64x64/1.0.0")
    assert find_prepared("pictures", [tmp_path]).parent.name == "64x64"
    described(tmp_path, "pictures/8x8/1.0.0")
    assert find_prepared("pictures/8x8", [tmp_path]).parent.name == "8x8"
    with pytest.raises(ValueError, match=r"several configs in .*: pictures/64x64, pictures/8x8"):
        find_prepared("pictures", [tmp_path])
