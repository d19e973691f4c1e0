"""Data sets encoded to latents: lossless where it should be, whole or not there, by any processes."""

import dataclasses
import json
import os
from functools import partial

import numpy as np
import pytest

from guidedflow.data import Dataset, load
from guidedflow.data.autoencoders import ENCODERS, fit_patches, fit_pca, load_code
from guidedflow.data.captions import with_captions
from guidedflow.data.encoding import Job, encode


@dataclasses.dataclass(frozen=True)
class Drawn:
    """Pictures held in memory; reading the one called `bad` fails."""

    images: np.ndarray
    bad: int = -1

    def __len__(self):
        return len(self.images)

    def gather(self, indices):
        if self.bad in indices:
            raise ValueError(f"cannot read picture {self.bad}")
        return {"image": self.images[indices], "label": (indices % 3).astype(np.int32)}


def pictures(images, **options):
    return Dataset(
        source=Drawn(images, **options),
        image_shape=images.shape[1:],
        num_classes=3,
        class_names=("a", "b", "c"),
        identity={"name": "drawn", "version": "1", "split": "train", "length": len(images)},
    )


def noise(count, shape=(4, 6, 2), seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, *shape), np.uint8)


def job(out, splits, encoder="patches", patch=2, channels=None, **options):
    fit = partial(ENCODERS[encoder], patch=patch, channels=channels)
    recipe = {"encoder": encoder, "patch": patch, "channels": channels}
    return Job(out, splits, fit, recipe, **options)


def contents(folder):
    return {f.relative_to(folder): f.read_bytes() for f in folder.rglob("*") if f.is_file()}


@pytest.mark.parametrize("encoder", ["patches", "pca"])
@pytest.mark.parametrize("patch", [1, 2])
def test_a_code_that_keeps_all_channels_gives_every_byte_back(tmp_path, encoder, patch):
    """Through float16 and a file: 8 bits a value survive the 11 bits of half precision."""
    images = noise(30)
    splits = {"train": pictures(images), "test": pictures(images[:7])}
    assert encode(job(tmp_path / "set", splits, encoder, patch))
    for split, count in (("train", 30), ("test", 7)):
        dataset = load(f"latents:{tmp_path / 'set'}", split=split)
        batch = dataset.take()
        assert dataset.image_shape == (4 // patch, 6 // patch, 2 * patch**2)
        assert np.array_equal(np.rint((dataset.images(batch["image"]) + 1) * 127.5), images[:count])
        assert batch["label"].tolist() == [i % 3 for i in range(count)]
    assert dataset.class_names == ("a", "b", "c")


def test_a_code_is_an_isometry_up_to_one_number():
    """|z - z'| = |x - x'| / s, and latents have a mean square of 1 about their mean."""
    dataset = pictures(noise(50))
    code = fit_pca(dataset, patch=2, channels=None)
    images = dataset.take()["image"]
    latents = code.encode(images)["latent"]
    assert latents.shape == (50, 2, 3, 8)
    far, near = (np.sum(np.diff(x, axis=0) ** 2, axis=(1, 2, 3)) for x in (images, latents))
    np.testing.assert_allclose(far, code.scale**2 * near, rtol=1e-5)
    assert np.mean(latents**2) == pytest.approx(1, abs=1e-4)


def test_principal_components_leave_the_error_of_the_eigenvalues_left_out():
    """Pictures of a known covariance: the mean square error is the sum of the rest, over d."""
    images = noise(400, (4, 4, 1), seed=1)
    images[:, ::2] //= 8
    dataset = pictures(images)
    values = dataset.take()["image"].reshape(400, 2, 2, 2, 2, 1).swapaxes(2, 3).reshape(-1, 4)
    eigenvalues = np.linalg.eigvalsh(np.cov(values.T, bias=True))
    for kept in (1, 2, 3):
        code = fit_pca(dataset, patch=2, channels=kept)
        whole = dataset.take()["image"]
        error = np.mean((code.decode(code.encode(whole)["latent"]) - whole) ** 2)
        np.testing.assert_allclose(error, eigenvalues[: 4 - kept].sum() / 4, rtol=1e-4)


def test_constant_pixels_do_no_harm():
    images = noise(20, (4, 4, 1))
    images[:, 0] = 7
    code = fit_patches(pictures(images), patch=4, channels=None)
    whole = pictures(images).take()["image"]
    latents = code.encode(whole)["latent"]
    assert np.isfinite(latents).all()
    np.testing.assert_allclose(code.decode(latents), whole, atol=1e-5)


@pytest.mark.parametrize("processes", [2, 5])
def test_any_number_of_processes_writes_the_same_folder(tmp_path, processes):
    """Five for three files: two have nothing to do, and any of them may be the last."""
    splits = {"train": pictures(noise(20)), "test": pictures(noise(3))}
    options = {"records_per_shard": 10}
    encode(job(tmp_path / "one", splits, **options))
    several = job(tmp_path / "many" / "one", splits, **options)
    done = [
        encode(several, process_index=p, process_count=processes, batch=3)
        for p in reversed(range(processes))
    ]
    assert done == [False] * (processes - 1) + [True]
    assert contents(tmp_path / "one") == contents(tmp_path / "many" / "one")
    assert [p.name for p in (tmp_path / "many").iterdir()] == ["one"]


class Stopped(Exception):
    """In place of a kill."""


def test_a_job_cut_short_leaves_no_folder_and_goes_on_where_it_was(tmp_path):
    splits = {"train": pictures(noise(50))}
    whole, cut = job(tmp_path / "whole", splits, records_per_shard=8), tmp_path / "cut" / "whole"
    encode(whole)
    told = []

    def stop(count):
        told.append(count)
        if len(told) == 5:
            raise Stopped

    with pytest.raises(Stopped):
        encode(job(cut, splits, records_per_shard=8), batch=4, progress=stop)
    assert not cut.exists()
    files = sorted((tmp_path / "cut").rglob("*.array_record"))
    before = {file.name: file.stat().st_mtime_ns for file in files}
    assert list(before) == ["latents-00000.array_record", "latents-00001.array_record"]
    counted = []
    assert encode(job(cut, splits, records_per_shard=8), progress=counted.append)
    assert sum(counted) == 50
    assert {name: (cut / "train" / name).stat().st_mtime_ns for name in before} == before
    assert contents(cut) == contents(tmp_path / "whole")


def test_the_same_job_again_does_nothing_and_another_is_refused(tmp_path):
    splits = {"train": pictures(noise(9))}
    encode(job(tmp_path / "set", splits))
    before = contents(tmp_path / "set")
    assert encode(job(tmp_path / "set", splits), progress=lambda count: 1 / 0)
    with pytest.raises(ValueError, match="set is there and not empty"):
        encode(job(tmp_path / "set", splits, patch=1))
    assert contents(tmp_path / "set") == before


def test_a_job_does_not_go_on_with_another_recipe(tmp_path):
    def stop(count):
        raise Stopped

    splits = {"train": pictures(noise(9))}
    with pytest.raises(Stopped):
        encode(job(tmp_path / "set", splits), progress=stop)
    with pytest.raises(
        ValueError, match="begun with patch=2, and this is patch=1; take that again"
    ):
        encode(job(tmp_path / "set", splits, patch=1))
    assert not (tmp_path / "set").exists()
    assert encode(job(tmp_path / "set", splits))


def test_a_picture_that_cannot_be_read_is_said(tmp_path):
    with pytest.raises(ValueError, match="cannot read picture 8"):
        encode(job(tmp_path / "set", {"train": pictures(noise(9), bad=8)}))
    assert not (tmp_path / "set").exists()


def test_a_folder_with_something_else_in_it_is_refused_and_an_empty_one_is_taken(tmp_path):
    splits = {"train": pictures(noise(9))}
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ValueError, match="is there and not empty; latents are written to a new"):
        encode(job(tmp_path, splits))
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
    (tmp_path / "empty").mkdir()
    assert encode(job(tmp_path / "empty", splits))


def test_mirrored_pictures_come_after_all_others(tmp_path):
    images = noise(5)
    encode(job(tmp_path / "set", {"train": pictures(images)}, mirrored=True, records_per_shard=4))
    dataset = load(f"latents:{tmp_path / 'set'}")
    batch = dataset.take()
    decoded = np.rint((dataset.images(batch["image"]) + 1) * 127.5)
    assert np.array_equal(decoded, np.concatenate([images, images[:, :, ::-1]]))
    assert batch["label"].tolist() == [0, 1, 2, 0, 1] * 2


def test_a_full_disk_is_said_with_the_folder(tmp_path, monkeypatch):
    def full(source, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(ValueError, match=r"cannot write latents to .*set: .*No space left"):
        encode(job(tmp_path / "set", {"train": pictures(noise(9))}))
    assert not (tmp_path / "set").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"patch": 3}, "patches of 3×3 do not tile pictures of 4×6"),
        ({"channels": 4}, "'patches' makes 8 channels of patches of 2×2, not 4"),
        ({"encoder": "pca", "channels": 9}, "expected 1 to 8 channels of patches of 2×2, got 9"),
        ({"dtype": "float8"}, "unknown dtype of latents 'float8'"),
        ({"records_per_shard": 0}, "expected records_per_shard"),
    ],
)
def test_options_that_do_not_fit_are_refused(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        encode(job(tmp_path / "set", {"train": pictures(noise(9))}, **options))
    assert not list(tmp_path.iterdir())


def test_splits_and_processes_that_cannot_be_are_refused(tmp_path):
    splits = {"train": pictures(noise(9))}
    with pytest.raises(ValueError, match="at least one split"):
        job(tmp_path / "set", {})
    with pytest.raises(ValueError, match="becomes a folder, which cannot be named 'a/b'"):
        job(tmp_path / "set", {"a/b": splits["train"]})
    with pytest.raises(ValueError, match="process_index < process_count, got 2 of 2"):
        encode(job(tmp_path / "set", splits), process_index=2, process_count=2)
    with pytest.raises(ValueError, match="are the same"):
        encode(job(tmp_path / "set", {"train": pictures(np.zeros((9, 4, 6, 2), np.uint8))}))


@pytest.mark.parametrize("damage", ["cut", "empty", "kind", "pickle"])
def test_a_damaged_decoder_is_named(tmp_path, damage):
    encode(job(tmp_path / "set", {"train": pictures(noise(9))}))
    file = tmp_path / "set" / "train" / "decoder.npz"
    if damage == "cut":
        file.write_bytes(file.read_bytes()[:100])
    elif damage == "empty":
        file.write_bytes(b"")
    elif damage == "kind":
        np.savez(file, kind="patchez")
    else:
        np.savez(file, kind=np.array([{}], object))
    with pytest.raises(ValueError, match=r"cannot read the decoder .*train/decoder\.npz"):
        load(f"latents:{tmp_path / 'set'}")
    with pytest.raises(ValueError, match="cannot read the decoder"):
        load_code(file)


def test_latents_without_a_decoder_stay_as_they_are(tmp_path):
    encode(job(tmp_path / "set", {"train": pictures(noise(9))}))
    (tmp_path / "set" / "train" / "decoder.npz").unlink()
    dataset = load(f"latents:{tmp_path / 'set'}")
    latents = dataset.take()["image"]
    assert dataset.images(latents) is latents


def test_the_index_is_that_of_latents_written_in_order(tmp_path):
    """Files of another length give the same fingerprint: it is that of the contents."""
    marks = set()
    for size in (4, 9):
        out = tmp_path / str(size)
        encode(job(out, {"train": pictures(noise(9))}, records_per_shard=size))
        marks.add(json.loads((out / "train" / "index.json").read_text())["fingerprint"])
    assert len(marks) == 1


@pytest.mark.parametrize("mirrored", [False, True])
def test_latents_keep_the_captions_of_their_pictures(tmp_path, mirrored):
    named = [("a",), ("b", "bee"), ("c",)]
    splits = {"train": with_captions(pictures(noise(3)), named), "test": pictures(noise(2))}
    assert encode(job(tmp_path / "latents", splits, mirrored=mirrored))
    dataset = load(f"latents:{tmp_path / 'latents'}")
    assert list(dataset.captions()) == named * (1 + mirrored)
    for caption, label in zip(*(dataset.take()[key] for key in ("caption", "label")), strict=True):
        assert caption in named[label]
    assert load(f"latents:{tmp_path / 'latents'}", split="test").captions is None
    file = tmp_path / "latents" / "train" / "captions.json"
    for content, message in [("[[1]]", "cannot read the captions"), ('[["a"]]', "captions of")]:
        file.write_text(content)
        with pytest.raises(ValueError, match=message):
            load(f"latents:{tmp_path / 'latents'}")
