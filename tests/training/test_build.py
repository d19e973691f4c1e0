"""Configs: every name is looked up in one place, and what cannot be meant is refused."""

import importlib.util
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from guidedflow import data, losses, paths, times
from guidedflow.conditions import Labels
from guidedflow.training import config as configs
from guidedflow.training import registries
from guidedflow.training.batches import Numbered
from guidedflow.training.build import build

CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.py"))


def get_config(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config()


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("optimizer.learning_rate", float("nan"), "learning_rate must be a finite number, got nan"),
        ("log.profile", (1, 2, 3), r"log.profile must have 2 values, got \(1, 2, 3\)"),
        ("log.profile", (-1, 2), "no negative step"),
        ("batch", 0, "batch must be at least 1, got 0"),
        ("drop_rate", 1.5, r"drop_rate must be in \[0, 1\], got 1.5"),
        ("nonfinite", "stpo", "one of .*got 'stpo' .did you mean 'stop'"),
        ("optimizer.warm_up", 3000, "warm_up must not exceed config.steps=12"),
        ("path.name", "linaer", "unknown path 'linaer' .did you mean 'linear'"),
        ("path.rho", 7.0, "path 'linear' does not take 'rho'; it takes no fields"),
        ("time.name", "logitnormal", "unknown time draw .*did you mean 'logit_normal'"),
        ("time.mean", 0.5, "time draw 'uniform' does not take 'mean'"),
        ("weighting.name", "min_srn", "unknown weighting .*did you mean 'min_snr'"),
        ("predicts", "velocty", "unknown prediction .*did you mean 'velocity'"),
        ("task", "flw", "unknown task .*did you mean 'flow'"),
        ("network.preset", "digit", "unknown network preset .*did you mean 'digits'"),
        ("optimizer.name", "adam", "unknown optimizer .*did you mean 'adamw'"),
        ("parallel.strategy", "fdsp", "unknown strategy .*did you mean 'fsdp'"),
        ("batch", 18, "batch=18 does not divide over 4 devices × config.accumulate=1"),
        ("accumulate", 3, "batch=16 does not divide over 4 devices × config.accumulate=3"),
        ("dataset.name", "digit", "digits"),
        ("ema.decay", 1.0, r"ema decay must lie in \[0, 1\)"),
    ],
)
def test_what_cannot_be_meant_is_refused(tiny, field, value, message):
    tiny.update_from_flattened_dict({field: value})
    with pytest.raises(ValueError, match=message):
        build(tiny)


def test_a_mesh_that_does_not_fit_the_devices_is_refused(tiny):
    tiny.parallel.strategy, tiny.parallel.data, tiny.parallel.fsdp = "mesh", 3, 2
    with pytest.raises(ValueError, match="data=3 × fsdp=2 does not fit 4 devices"):
        build(tiny)


def test_names_become_objects_with_their_fields(tiny):
    tiny.path.name, tiny.path.beta_max = "vp", 15.0
    assert registries.make("path", registries.PATHS, tiny.path) == paths.VariancePreserving(
        0.1, 15.0
    )
    tiny.path.name, tiny.path.beta_max, tiny.path.steps = "ddpm_cosine", None, 50
    made = registries.make("path", registries.PATHS, tiny.path)
    assert made == paths.DiscreteBeta(paths.cosine_betas, 50)
    tiny.weighting.name, tiny.weighting.gamma = "min_snr", 3.0
    assert registries.make("weighting", registries.WEIGHTINGS, tiny.weighting) == losses.min_snr(
        3.0
    )
    tiny.time.name, tiny.time.std = "logit_normal", 0.5
    key = jax.random.key(0)
    expected = times.draw_logit_normal(key, 5, std=0.5)
    np.testing.assert_array_equal(registries.time_draw(tiny.time)(key, 5), expected)


def test_a_resolved_config_is_read_back_as_it_was(tiny):
    tiny.log.profile, tiny.path.rho = (3, 4), 6.5
    again = configs.from_resolved(configs.resolved(tiny))
    assert dict(configs.leaves(again)) == dict(configs.leaves(tiny))
    with pytest.raises(ValueError, match=r"unknown config field 'optimizer\.warmup'"):
        configs.from_resolved({"optimizer": {"warmup": 3}})


def test_what_a_run_is_does_not_include_how_it_is_watched_or_spread(tiny):
    before = configs.identity(tiny)
    tiny.steps, tiny.log.every, tiny.parallel.strategy, tiny.checkpoint.every = 99, 7, "fsdp", 3
    assert configs.identity(tiny) == before
    tiny.optimizer.b2 = 0.9
    assert configs.identity(tiny) != before


def test_learning_rate_warms_up_and_falls_to_its_end(tiny):
    tiny.steps, tiny.optimizer.warm_up, tiny.optimizer.final = 100, 10, 0.1
    rate = registries.learning_rate_schedule(tiny)
    assert float(rate(0)) == 0
    assert float(rate(5)) == pytest.approx(0.5e-3)
    assert float(rate(10)) == pytest.approx(1e-3)
    assert float(rate(55)) == pytest.approx(0.55e-3, rel=1e-3)
    assert float(rate(100)) == pytest.approx(1e-4)
    tiny.optimizer.schedule = "constant"
    assert float(registries.learning_rate_schedule(tiny)(100)) == pytest.approx(1e-3)


class MadeUp:
    """Images of noise, in place of a data set that is not on this machine."""

    def __init__(self, shape):
        self._images = np.random.default_rng(0).integers(0, 256, (8, *shape), np.uint8)

    def __len__(self):
        return len(self._images)

    def gather(self, indices):
        return {"image": self._images[indices], "label": indices.astype(np.int32)}


SHAPES = {
    "digits": ((8, 8, 1), 10),
    "mnist": ((28, 28, 1), 10),
    "cifar10": ((32, 32, 3), 10),
    "folder:pictures": ((32, 32, 3), 3),
    "imagenet_resized/64x64": ((64, 64, 3), 1000),
    "latents:data/digits": ((4, 4, 4), 10),
    "latents:data/imagenet256": ((32, 32, 4), 1000),
}


def made_up(config, split, class_names=()):
    shape, classes = SHAPES[config.dataset.name]
    return data.Dataset(
        source=MadeUp(shape), image_shape=shape, num_classes=classes, identity={"name": "made up"}
    )


# Configs of other tasks are tried in test_tasks.
FLOWS = [path for path in CONFIGS if get_config(path).task == "flow"]


@pytest.mark.parametrize("path", FLOWS, ids=lambda path: path.stem)
def test_every_config_takes_a_step(path, monkeypatch):
    """Its network as it is, in shapes alone; then all else of it with a network of one layer."""
    monkeypatch.setattr("guidedflow.training.build.load_dataset", made_up)
    config = get_config(path)
    task = build(config)
    shapes = jax.eval_shape(task.init, jax.random.key(0))
    x = jax.ShapeDtypeStruct((2, *task.dataset.image_shape), jnp.float32)
    t, label = jax.ShapeDtypeStruct((2,), jnp.float32), jax.ShapeDtypeStruct((2,), jnp.int32)
    assert jax.eval_shape(lambda p, *xs: task.model(p)(*xs), shapes.params, x, t, label) == x

    config.network = configs.defaults().network
    config.network.preset = "one layer"
    config.batch, config.parallel.strategy = 4, "data"
    task = build(config)
    state = jax.jit(task.init)(jax.random.key(0))
    batch = Numbered(task.batches())[0]
    state, metrics = jax.jit(task.step())(state, batch, jax.random.key(0))
    assert float(metrics["finite"]) == 1
    assert int(state.step) == 1


def test_what_is_drawn_while_training_is_guided_by_the_scale(tiny):
    """null + w (cond - null), of the same parameters."""
    task = build(tiny)
    params = task.init(jax.random.key(0)).params
    x = jax.random.normal(jax.random.key(1), (3, *task.dataset.image_shape))
    t, label = jnp.full(3, 0.4), jnp.arange(3)
    plain = task.model(params)
    cond, null = plain(x, t, label), plain(x, t, jnp.full(3, task.dataset.num_classes))
    guided = task.guided(params, 3.0)(x, t, label)
    np.testing.assert_allclose(guided, null + 3 * (cond - null), rtol=1e-4, atol=1e-5)
    assert np.abs(guided - cond).max() > 1e-2


def test_the_rate_stays_at_its_end_however_long_the_run(tiny):
    tiny.steps, tiny.optimizer.warm_up, tiny.optimizer.decay_steps = 100, 10, 50
    rate = registries.learning_rate_schedule(tiny)
    assert float(rate(30)) == pytest.approx(
        0.505e-3, rel=1e-3
    )  # half way down, to 0.01 of the peak
    assert float(rate(50)) == float(rate(100)) == pytest.approx(1e-5)


def test_what_follows_from_the_length_of_a_run_is_settled_once(tiny):
    tiny.optimizer.warm_up = None
    short = configs.settled(tiny)
    assert (short.optimizer.warm_up, short.optimizer.decay_steps) == (0, 12)
    tiny.steps = 10_000
    assert configs.settled(tiny).optimizer.warm_up == 500
    longer = configs.settled(tiny, short)
    assert (longer.optimizer.warm_up, longer.optimizer.decay_steps) == (0, 12)
    tiny.steps = 10**6
    assert configs.settled(tiny).optimizer.warm_up == 1000
    assert tiny.optimizer.decay_steps is None


def test_a_checkpoint_of_before_has_the_end_that_its_run_had():
    before = {"optimizer.schedule": "cosine", "seed": 0}
    assert configs.completed(before, {"steps": 7}) == {**before, "optimizer.decay_steps": 7}
    after = {**before, "optimizer.decay_steps": 5}
    assert configs.completed(after, {"steps": 7}) == after
    assert configs.completed({**after, "dataset.held_out": "test"}, {"steps": 7}) == after
    assert configs.from_resolved({"steps": 7}).optimizer.decay_steps == 7


def test_a_network_has_its_own_fields(tiny):
    """Those of a U-Net stand nowhere in the defaults; unset and set ones make different runs."""
    tiny.network.preset = "UNet-S"
    unset = configs.identity(tiny)
    tiny.network.width, tiny.network.blocks = 8, 1
    tiny.network.multipliers, tiny.network.attend = [1, 2], ()
    network = build(tiny).network
    assert (network.multipliers, network.blocks, network.size) == ((1, 2), 1, (8, 8))
    assert unset["network.multipliers"] is None
    assert configs.identity(tiny)["network.multipliers"] == [1, 2]
    again = configs.from_resolved(configs.resolved(tiny))
    assert again.network.multipliers == (1, 2)


@pytest.mark.parametrize("preset", ["DiT-B/2", "UNet-S"])
def test_a_preset_takes_the_size_of_the_data(tiny, preset):
    tiny.network.preset, tiny.network.double_channels = preset, False
    network = registries.network_for(tiny, (24, 16, 1), Labels(3), (), "cpu")
    shapes = jax.eval_shape(
        network.init,
        jax.random.key(0),
        jnp.zeros((1, 24, 16, 1)),
        jnp.zeros(1),
        jnp.zeros(1, int),
    )
    x = jax.ShapeDtypeStruct((2, 24, 16, 1), jnp.float32)
    t, label = jax.ShapeDtypeStruct((2,), jnp.float32), jax.ShapeDtypeStruct((2,), jnp.int32)
    assert jax.eval_shape(network.apply, shapes, x, t, label).shape == x.shape


@pytest.mark.parametrize(
    ("preset", "field", "value", "message"),
    [
        ("UNet-S", "multiplers", (1, 2), "UNet-S has no such field .did you mean 'multipliers'"),
        ("UNet-S", "patch", 2, "config.network.patch: UNet-S has no such field"),
        ("UNet-S", "image_size", 8, "no such field"),
        ("UNet-S", "multipliers", "1,2", "multipliers must be of type tuple, got '1,2'"),
        ("UNet-S", "multipliers", (1, "a"), "must be values of type int"),
        ("UNet-S", "blocks", 1.5, "blocks must be of type int, got 1.5"),
        ("UNet-S", "blocks", True, "blocks must be of type int, got True"),
        ("digits", "blur_sigma", float("nan"), "must be a finite number, got nan"),
    ],
)
def test_fields_that_the_network_does_not_have_are_refused(tiny, preset, field, value, message):
    tiny.network = configs.defaults().network
    tiny.network.preset = preset
    tiny.network[field] = value
    with pytest.raises(ValueError, match=message):
        build(tiny)
