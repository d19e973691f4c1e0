"""From pictures to latents, a model of them, and pictures again, by the commands that users give."""

import numpy as np
import pytest

from guidedflow import cli
from guidedflow.data import load
from guidedflow.training import grids
from guidedflow.training.build import build
from guidedflow.training.loop import train


@pytest.fixture(autouse=True)
def no_cache(monkeypatch):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "")


@pytest.fixture(scope="module")
def latents(tmp_path_factory):
    folder = tmp_path_factory.mktemp("latents")
    options = ["--dataset=digits", "--splits=train,test", "--encoder=pca", "--patch=2"]
    assert cli.main(["encode", *options, f"--out={folder / 'digits'}"]) == 0
    return folder / "digits"


@pytest.fixture
def on_latents(tiny, latents):
    tiny.dataset.name = f"latents:{latents}"
    tiny.steps = tiny.checkpoint.every = 4
    tiny.sample.rows, tiny.sample.steps = 1, 2
    return tiny


def fails(capsys, *arguments):
    assert cli.main([str(argument) for argument in arguments]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1, err
    return err


def test_what_a_model_of_latents_draws_is_decoded(on_latents, latents, tmp_path, monkeypatch):
    """The grid of training and the file of `sample` hold digits of 8×8 and not latents of 4×4×4."""
    shown = []
    monkeypatch.setattr(grids, "draw_grid", lambda images, *rest, **options: shown.append(images))
    on_latents.sample.every = 4
    train(on_latents, tmp_path / "run", display=False)
    assert [images.shape for images in shown] == [(10, 8, 8, 1)]
    monkeypatch.undo()
    out = tmp_path / "drawn.npz"
    line = ["sample", f"--workdir={tmp_path / 'run'}", f"--out={out}", "--each=2", "--steps=2"]
    assert cli.main(line) == 0
    with np.load(out) as stored:
        assert stored["arr_0"].shape == (20, 8, 8, 1)
        assert stored["arr_0"].dtype == np.uint8


def test_encoded_digits_decode_to_the_digits(latents):
    for split, count in (("train", 1497), ("test", 300)):
        encoded, digits = load(f"latents:{latents}", split=split), load("digits", split=split)
        decoded = encoded.images(encoded.take()["image"])
        assert len(decoded) == count
        assert np.array_equal(grids.to_uint8(decoded), grids.to_uint8(digits.take()["image"]))
        assert np.array_equal(encoded.take()["label"], digits.take()["label"])


def test_latents_are_not_mirrored_while_training(on_latents):
    on_latents.dataset.flip = True
    with pytest.raises(ValueError, match="guidedflow encode --mirrored"):
        build(on_latents)


def test_encoding_says_what_it_made_and_what_was_lost(tmp_path, capsys):
    line = [
        "encode",
        "--dataset=digits",
        "--splits=test",
        "--channels=2",
        "--records_per_shard=100",
    ]
    out = f"--out={tmp_path / 'set'}"
    assert cli.main([*line, out, "--process_count=2", "--process_index=1"]) == 0
    assert "100 latents written; the process that ends last makes" in capsys.readouterr().out
    assert cli.main([*line, out, "--process_count=2"]) == 0
    said = capsys.readouterr().out
    assert "300 latents of 4×4×2 for pictures of 8×8×1; decoded again a pixel is off by" in said
    assert f"--config.dataset.name=latents:{tmp_path / 'set'}" in said


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--dataset=digitz"], "unknown data set 'digitz' (did you mean 'digits'?)"),
        (["--dataset=digits", "--splits=tran"], "(did you mean 'train'?)"),
        (["--dataset=digits", "--encoder=pcs"], "unknown encoder 'pcs' (did you mean 'pca'?)"),
        (["--dataset=digits", "--patch=3"], "patches of 3×3 do not tile pictures of 8×8"),
        (["--dataset=digits", "--patch=0"], "expected at least 1, got 0"),
        (["--dataset=digits", "--process_index=1"], "got 1 of 1"),
        (["--dataset=cifar10", "--data_dir=absent"], "guidedflow prepare cifar10"),
        ([], "the following arguments are required: --dataset"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing(tmp_path, capsys, options, message):
    assert message in fails(capsys, "encode", *options, f"--out={tmp_path / 'set'}")
    assert not list(tmp_path.iterdir())


def test_a_folder_in_use_is_one_line(tmp_path, capsys):
    (tmp_path / "mine").write_text("")
    assert "is there and not empty" in fails(
        capsys, "encode", "--dataset=digits", f"--out={tmp_path}"
    )


def test_latents_are_not_encoded_again(latents, tmp_path, capsys):
    line = fails(capsys, "encode", f"--dataset=latents:{latents}", f"--out={tmp_path / 'set'}")
    assert "holds latents already" in line
