"""Latents on disk: what goes in comes out, scaled, and damage is found."""

import json

import numpy as np
import pytest

from guidedflow.data import load, pipeline, write_latents


def some_latents(count, moments=False, seed=0):
    draw = np.random.default_rng(seed)
    shape = (count, 4, 6, 2)
    labels = (np.arange(count) % 5).astype(np.int64)
    if moments:
        return {
            "mean": draw.standard_normal(shape),
            "logvar": draw.standard_normal(shape),
            "label": labels,
        }
    return {"latent": draw.standard_normal(shape), "label": labels}


def pieces(batch, size):
    for start in range(0, len(batch["label"]), size):
        yield {key: value[start : start + size] for key, value in batch.items()}


def test_what_is_written_is_read_in_order_shifted_and_scaled(tmp_path):
    """The same across shards of any length, and to the last bit in float32."""
    written = some_latents(23)
    write_latents(
        tmp_path / "set",
        pieces(written, 5),
        num_classes=5,
        scale=0.5,
        shift=0.25,
        dtype="float32",
        records_per_shard=7,
    )
    dataset = load(f"latents:{tmp_path / 'set'}")
    batch = dataset.take()
    assert len(list((tmp_path / "set").glob("*.array_record"))) == 4
    assert (dataset.image_shape, dataset.num_classes, dataset.length) == ((4, 6, 2), 5, 23)
    assert np.array_equal(batch["image"], (written["latent"].astype(np.float32) - 0.25) * 0.5)
    assert np.array_equal(batch["label"], written["label"])


@pytest.mark.parametrize("cache_bytes", [0, 2**20])
def test_any_order_gives_the_same_examples(tmp_path, cache_bytes):
    write_latents(tmp_path / "set", [some_latents(20)], num_classes=5, records_per_shard=6)
    dataset = load(f"latents:{tmp_path / 'set'}", cache_bytes=cache_bytes)
    order = np.array([19, 0, 6, 6, 5])
    assert np.array_equal(dataset.read(order)["image"], dataset.take()["image"][order])
    assert dataset.read(order)["label"].tolist() == [4, 0, 1, 1, 0]


def test_half_precision_rounds_to_eleven_bits(tmp_path):
    written = some_latents(50)
    write_latents(tmp_path / "set", [written], num_classes=5)
    error = load(f"latents:{tmp_path / 'set'}").take()["image"] - written["latent"]
    assert np.all(np.abs(error) <= 2**-11 * np.abs(written["latent"]) + 2**-24)


def test_moments_are_sampled_anew_in_each_epoch_with_the_right_law(tmp_path):
    """(z - scale mean) / (scale deviation) is standard normal: moments to five deviations."""
    written = some_latents(40, moments=True)
    write_latents(tmp_path / "set", [written], num_classes=5, scale=2.0, dtype="float32")
    dataset = load(f"latents:{tmp_path / 'set'}")
    assert dataset.image_shape == (4, 6, 2)
    stream = pipeline(dataset, 0, 40, shuffle=False)
    first, second = (stream[epoch]["image"] for epoch in (0, 1))
    assert np.array_equal(stream[0]["image"], first)
    deviation = np.exp(written["logvar"] / 2)
    z = np.stack([(drawn / 2 - written["mean"]) / deviation for drawn in (first, second)])
    n = z[0].size
    assert np.all(np.abs(z.mean((1, 2, 3, 4))) < 5 / np.sqrt(n))
    assert np.all(np.abs((z**2).mean((1, 2, 3, 4)) - 1) < 5 * np.sqrt(2 / n))
    assert abs(np.mean(z[0] * z[1])) < 5 / np.sqrt(n)


def damaged(folder, change):
    write_latents(folder, [some_latents(2000)], num_classes=5, records_per_shard=1000)
    file = folder / "latents-00001.array_record"
    change(file)
    return load(f"latents:{folder}", cache_bytes=0)


def test_a_flipped_bit_names_the_record_and_spares_the_others(tmp_path):
    """The bit lies in the latent of record 3 of the second shard, example 1003."""
    needle = some_latents(2000)["latent"][1003].astype("<f2").tobytes()

    def flip(file):
        content = bytearray(file.read_bytes())
        at = content.find(needle)
        assert at >= 0
        content[at] ^= 1
        file.write_bytes(content)

    dataset = damaged(tmp_path / "set", flip)
    assert dataset.read(np.arange(1000, 1003))["image"].shape[0] == 3
    with pytest.raises(
        ValueError, match=r"record 3 of .*latents-00001\.array_record \(example 1003\)"
    ):
        dataset.read(np.array([1000, 1003, 5]))


@pytest.mark.parametrize("keep", [0, 0.5])
def test_a_truncated_shard_is_named(tmp_path, keep):
    def cut(file):
        content = file.read_bytes()
        file.write_bytes(content[: int(len(content) * keep)])

    with pytest.raises(ValueError, match=r"latents-00001\.array_record"):
        damaged(tmp_path / "set", cut).read(np.arange(990, 1010))


def test_a_missing_shard_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"missing file: .*latents-00001\.array_record"):
        damaged(tmp_path / "set", lambda file: file.unlink())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 99}, "version 99, expected 'guidedflow-latents' version 1"),
        ({"dtype": "object"}, "dtype 'object'"),
        ({"shards": [{"file": "x"}]}, "'records' is missing"),
        ({"scale": "big"}, "scale is 'big', expected float"),
    ],
)
def test_a_wrong_index_is_refused(tmp_path, change, message):
    write_latents(tmp_path / "set", [some_latents(3)], num_classes=5)
    index = tmp_path / "set" / "index.json"
    index.write_text(json.dumps(json.loads(index.read_text()) | change))
    with pytest.raises(ValueError, match=r"cannot read the index .*index\.json: .*" + message):
        load(f"latents:{tmp_path / 'set'}")


def test_a_truncated_index_is_refused(tmp_path):
    write_latents(tmp_path / "set", [some_latents(3)], num_classes=5)
    index = tmp_path / "set" / "index.json"
    index.write_text(index.read_text()[:40])
    with pytest.raises(ValueError, match="cannot read the index"):
        load(f"latents:{tmp_path / 'set'}")


def test_a_failure_while_writing_leaves_nothing(tmp_path):
    def breaks():
        yield some_latents(10)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_latents(tmp_path / "set", breaks(), num_classes=5)
    assert list(tmp_path.iterdir()) == []


def test_identity_is_that_of_the_contents(tmp_path):
    names = {}
    for folder, seed, per_shard in (("a", 0, 3), ("b", 0, 8), ("c", 1, 3)):
        write_latents(
            tmp_path / folder,
            [some_latents(9, seed=seed)],
            num_classes=5,
            name="same",
            records_per_shard=per_shard,
        )
        names[folder] = load(f"latents:{tmp_path / folder}").identity
    assert names["a"] == names["b"] != names["c"]
    assert names["a"]["name"] == "latents:same"


def test_splits_are_subfolders(tmp_path):
    for split, count in (("train", 4), ("val", 2)):
        write_latents(tmp_path / "set" / split, [some_latents(count)], num_classes=5)
    assert load(f"latents:{tmp_path / 'set'}").length == 4
    assert load(f"latents:{tmp_path / 'set'}", split="val").length == 2
    with pytest.raises(ValueError, match=r"unknown split .*'vall' \(did you mean 'val'\?\)"):
        load(f"latents:{tmp_path / 'set'}", split="vall")


def test_latents_are_not_resized(tmp_path):
    write_latents(tmp_path / "set", [some_latents(4)], num_classes=5)
    assert load(f"latents:{tmp_path / 'set'}", image_size=(4, 6)).length == 4
    with pytest.raises(ValueError, match="cannot be resized"):
        load(f"latents:{tmp_path / 'set'}", image_size=8)


@pytest.mark.parametrize(
    ("batch", "options", "message"),
    [
        ({"latent": np.zeros((2, 4, 4, 1))}, {}, "expected label with latent"),
        ({"mean": np.zeros((2, 4, 4, 1)), "label": [0, 1]}, {}, "mean and logvar"),
        ({"latent": np.zeros((2, 4, 4)), "label": [0, 1]}, {}, r"latents \(n, h, w, c\)"),
        ({"latent": np.zeros((2, 4, 4, 1)), "label": [0]}, {}, "expected 2 integer labels"),
        ({"latent": np.zeros((2, 4, 4, 1)), "label": [0, 5]}, {}, r"labels in \[0, 5\), got 0 to"),
        ({"latent": np.full((1, 4, 4, 1), np.nan), "label": [0]}, {}, "not finite"),
        ({"latent": np.full((1, 4, 4, 1), 1e6), "label": [0]}, {}, "too large for float16"),
        (some_latents(1), {"dtype": "float8"}, "unknown dtype of latents 'float8'"),
        (some_latents(1), {"scale": 0.0}, "scale not 0"),
        (some_latents(1), {"class_names": ["a"]}, "expected 5 class names, got 1"),
        (some_latents(1), {"records_per_shard": 0}, "expected records_per_shard"),
    ],
)
def test_arrays_and_options_that_do_not_fit_are_refused(tmp_path, batch, options, message):
    with pytest.raises(ValueError, match=message):
        write_latents(tmp_path / "set", [batch], **{"num_classes": 5, **options})
    assert list(tmp_path.iterdir()) == []


def test_batches_of_different_shapes_and_no_batches_are_refused(tmp_path):
    other = {"latent": np.zeros((2, 4, 4, 1)), "label": np.zeros(2, int)}
    with pytest.raises(ValueError, match="expected every batch as the first"):
        write_latents(tmp_path / "set", [some_latents(2), other], num_classes=5)
    with pytest.raises(ValueError, match="at least one latent"):
        write_latents(tmp_path / "set", [], num_classes=5)


def test_an_existing_folder_is_not_overwritten(tmp_path):
    with pytest.raises(ValueError, match="exists"):
        write_latents(tmp_path, [some_latents(2)], num_classes=5)
