"""Checkpoints: damage is found, said and set aside; another run, model or version is refused."""

import json
import random
import resource
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from guidedflow.target import attached
from guidedflow.training import checkpoint, integrity, parallel
from guidedflow.training.agreement import check_identity
from guidedflow.training.checkpoint import (
    Checkpointer,
    Keep,
    SaveError,
    restore,
    steps_in,
)
from guidedflow.training.state import TrainState, fingerprint

IDENTITY = {"seed": 0, "network.width": 8}


def state_at(step):
    params = {"kernel": jnp.arange(2048.0).reshape(32, 64) + step, "bias": jnp.ones(64) * step}
    moments = jax.tree.map(lambda leaf: leaf * 0.5, params)
    return TrainState(jnp.int32(step), params, jax.tree.map(jnp.copy, params), (moments,))


def abstract(strategy=None):
    return parallel.abstract_state(lambda key: state_at(0), strategy or parallel.data(attached()))


def save(folder, *steps, **keep):
    writer = Checkpointer(folder, IDENTITY, {"seed": 0}, Keep(**{"last": 9, **keep}))
    for step in steps:
        writer.save(state_at(step))
    writer.wait()
    return writer


@pytest.fixture(scope="module")
def two_checkpoints(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    save(folder, 1, 2)
    return folder


def restored(folder, **options):
    said = []
    state, record = restore(folder, abstract(), IDENTITY, say=said.append, **options)
    return int(state.step), record, said


def test_what_is_saved_comes_back_on_any_number_of_devices(two_checkpoints):
    one = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    alone = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=one), abstract()
    )
    two_by_two = abstract(parallel.Sharded(parallel.make_mesh(attached(), 2, 2)))
    for wanted in (
        alone,
        abstract(parallel.fsdp(attached())),
        two_by_two,
        abstract(parallel.pmap(attached())),
    ):
        state, record = restore(two_checkpoints, wanted, IDENTITY)
        assert fingerprint(state) == fingerprint(state_at(2))
        assert record.step == 2
        for got, want in zip(jax.tree.leaves(state), jax.tree.leaves(wanted), strict=True):
            assert got.sharding.is_equivalent_to(want.sharding, len(want.shape))


def test_one_field_can_be_read_alone(two_checkpoints):
    state, _ = restore(two_checkpoints, abstract(), only="ema")
    np.testing.assert_array_equal(state.ema["kernel"], state_at(2).ema["kernel"])
    assert state.params["kernel"] is ...


def damage_kinds(folder):
    newest = checkpoint.path_of(folder, 2)
    files = sorted(p.relative_to(newest) for p in newest.rglob("*") if p.is_file())
    return newest, files


def cut(content):
    return content[:-1]


def flip(content):
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 16]) + content[middle + 1 :]


def harmed(target, harm):
    """Delete the file, or write what `harm` makes of its bytes; return whether it has any."""
    content = target.read_bytes()
    if harm is None:
        target.unlink()
    elif content:
        target.write_bytes(harm(content))
    return harm is None or bool(content)


def test_every_kind_of_damage_to_every_file_is_found(two_checkpoints, tmp_path):
    shutil.copytree(two_checkpoints, tmp_path / "c")
    newest, files = damage_kinds(tmp_path / "c")
    assert len(files) > 6
    for file in files:
        good = (newest / file).read_bytes()
        for harm in (cut, flip, None):
            if harmed(newest / file, harm):
                assert integrity.damage(newest), (file, harm)
            (newest / file).write_bytes(good)
            assert integrity.damage(newest) is None


@pytest.mark.parametrize("harm", [cut, flip, None])
def test_what_is_damaged_is_said_and_set_aside_and_the_older_one_used(
    two_checkpoints, tmp_path, harm
):
    """The manifest, the record, and the largest file: the arrays."""
    newest, files = damage_kinds(two_checkpoints)
    largest = max(files, key=lambda file: (newest / file).stat().st_size)
    for number, file in enumerate(("files.json", "run.json", largest)):
        folder = tmp_path / str(number)
        shutil.copytree(two_checkpoints, folder)
        assert harmed(checkpoint.path_of(folder, 2) / file, harm)
        step, _, said = restored(folder, repair=True)
        assert step == 1, file
        assert len(said) == 1
        assert "set aside as 00000002.damaged-1" in said[0]
        assert steps_in(folder) == [1]
        assert (folder / "00000002.damaged-1").is_dir()


def test_a_flip_in_array_data_that_checksums_miss_is_found_by_its_fingerprint(
    two_checkpoints, tmp_path
):
    folder = tmp_path / "c"
    shutil.copytree(two_checkpoints, folder)
    path = checkpoint.path_of(folder, 2)
    record = json.loads((path / "run.json").read_text())
    record["leaves"]["ema/kernel"][1] ^= 1
    (path / "run.json").write_text(json.dumps(record))
    (path / "files.json").write_text(integrity._manifest_text(path))
    step, _, said = restored(folder)
    assert step == 1
    assert "ema/kernel is not what was saved" in said[0]
    assert steps_in(folder) == [1, 2]  # without repair nothing is renamed


def test_training_goes_on_after_damage_and_saves_the_same_step_again(two_checkpoints, tmp_path):
    folder = tmp_path / "c"
    shutil.copytree(two_checkpoints, folder)
    (checkpoint.path_of(folder, 2) / "run.json").unlink()
    assert restored(folder, repair=True)[0] == 1
    save(folder, 2)
    assert restored(folder, repair=True)[0] == 2


def test_where_all_are_damaged_it_says_so(two_checkpoints, tmp_path):
    folder = tmp_path / "c"
    shutil.copytree(two_checkpoints, folder)
    for step in (1, 2):
        (checkpoint.path_of(folder, step) / "files.json").unlink()
    with pytest.raises(ValueError, match=r"every checkpoint in .* is damaged .2 of them"):
        restored(folder)


def test_a_folder_without_checkpoints_restores_nothing(tmp_path):
    assert restore(tmp_path / "none", abstract(), IDENTITY) is None


def test_what_a_kill_leaves_is_not_taken_for_a_checkpoint(two_checkpoints, tmp_path):
    folder = tmp_path / "c"
    shutil.copytree(two_checkpoints, folder)
    shutil.copytree(checkpoint.path_of(folder, 2), folder / ".saving-00000003")
    (folder / ".deleting-00000000").mkdir()
    assert restored(folder)[0] == 2
    save(folder)
    assert sorted(p.name for p in folder.iterdir()) == ["00000001", "00000002"]


def test_of_many_class_names_those_that_differ_are_said():
    names = [f"class {number}" for number in range(1000)]
    found, wanted = {"dataset.class_names": [*names, "zebra"]}, {"dataset.class_names": names}
    with pytest.raises(ValueError, match=r"class_names=\['zebra'\], this one has") as told:
        check_identity(Path("run"), found, wanted)
    assert len(str(told.value)) < 400
    check_identity(Path("run"), {}, wanted)


def test_another_identity_is_refused_by_field(two_checkpoints):
    with pytest.raises(ValueError, match="with seed=0, this one has seed=7"):
        restore(two_checkpoints, abstract(), {**IDENTITY, "seed": 7})


def test_another_structure_is_refused_by_leaf(two_checkpoints):
    other = abstract()
    kernel = jax.ShapeDtypeStruct((32, 32), jnp.float32, sharding=other.params["bias"].sharding)
    wider = other._replace(params={**other.params, "kernel": kernel})
    message = r"params/kernel is float32\[32,64\] there and float32\[32,32\] here"
    with pytest.raises(ValueError, match=message):
        restore(two_checkpoints, wider, IDENTITY)
    assert steps_in(two_checkpoints) == [1, 2]


def test_a_newer_format_is_refused(two_checkpoints, tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "FORMAT", 0)
    with pytest.raises(ValueError, match=r"newer guidedflow .format 1, this one reads up to 0"):
        restore(two_checkpoints, abstract(), IDENTITY)


def test_old_checkpoints_go_as_the_policy_says(tmp_path):
    save(tmp_path, 1, 2, 3, 4, 5, 6, last=2, every=3)
    assert steps_in(tmp_path) == [3, 5, 6]


def test_a_state_that_is_donated_right_after_is_saved_as_it_was(tmp_path):
    writer = Checkpointer(tmp_path, IDENTITY, {}, Keep(last=9))
    update = jax.jit(lambda state: jax.tree.map(lambda leaf: leaf + 1, state), donate_argnums=0)
    place = jax.tree.map(lambda leaf: leaf.sharding, abstract())
    state = jax.device_put(state_at(0), place)
    hashes = []
    for _ in range(4):
        hashes.append(fingerprint(state))
        writer.save(state)
        state = update(state)
    writer.wait()
    for step, expected in enumerate(hashes):
        found = checkpoint.read_record(checkpoint.path_of(tmp_path, step))
        assert {name: value for name, (_, value) in found.leaves.items()} == expected
    assert restored(tmp_path)[0] == 3


def test_a_disk_that_fills_up_ends_the_save_and_leaves_the_rest(tmp_path):
    writer = save(tmp_path, 1)
    noise = np.random.default_rng(0).normal(size=(64, 512)).astype(np.float32)
    large = state_at(2)._replace(params={"kernel": jnp.asarray(noise)})
    fingerprint(large)  # compiled before no file may grow
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        writer.save(large)
        with pytest.raises(SaveError, match=f"cannot write checkpoint {tmp_path}/00000002"):
            writer.wait()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert restored(tmp_path)[0] == 1
    assert steps_in(tmp_path) == [1]
    assert not list(tmp_path.glob(".saving-*"))


def test_twenty_random_flips_of_a_bit_are_all_found(two_checkpoints, tmp_path):
    folder = tmp_path / "c"
    shutil.copytree(two_checkpoints, folder)
    newest, files = damage_kinds(folder)
    files = [file for file in files if (newest / file).stat().st_size]
    dice = random.Random(0)
    for _ in range(20):
        target = newest / dice.choice(files)
        content = bytearray(target.read_bytes())
        content[dice.randrange(len(content))] ^= 1 << dice.randrange(8)
        good, _ = target.read_bytes(), target.write_bytes(content)
        assert integrity.damage(newest), target
        target.write_bytes(good)
        assert integrity.damage(newest) is None
