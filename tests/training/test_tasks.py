"""Classifiers, distilled students, guidance-free networks: trained, used, refused, by the program."""

import dataclasses
import functools
import importlib.util
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from known import Known

from guidedflow import cli, guidance, paths, pipelines, predictions
from guidedflow.bundle import Bundle
from guidedflow.conditions import Labels
from guidedflow.models import PRESETS, Classifier
from guidedflow.nn.capabilities import Capabilities
from guidedflow.pipelines.methods import WEAKER, Method
from guidedflow.training import config as configs
from guidedflow.training import load, metrics, workdir
from guidedflow.training.build import build
from guidedflow.training.config import defaults
from guidedflow.training.registries import network_for
from guidedflow.training.tasks import TASKS, Parts, classifier
from guidedflow.training.tasks.task import network_inputs

ROOT = Path(__file__).parents[2]
SMALL = [
    "--config.batch=16",
    "--config.steps=4",
    "--config.optimizer.warm_up=2",
    "--config.log.every=2",
    "--config.log.tensorboard=False",
    "--config.checkpoint.every=4",
    "--config.held_out.batches=1",
    "--config.sample.rows=1",
    "--config.parallel.strategy=data",
    "--config.sample.steps=1",
]


class Linear(Classifier):
    """Logits that are affine in the image and the time: a classifier that compiles at once."""

    @nn.compact
    def __call__(self, x, t):
        inputs = jnp.concatenate([x.reshape(len(x), -1), t[:, None]], axis=-1)
        return nn.Dense(self.num_classes)(inputs)


class Affine(nn.Module):
    """A velocity that is affine in the image, the time, the class and the numbers."""

    image_size: tuple[int, int]
    channels: int
    num_classes: int
    dtype: object = jnp.float32
    width: int = 8
    patch: int = 8
    scalars: tuple[str, ...] = ()
    operations: object = None

    @property
    def capabilities(self):
        return Capabilities(takes_scalars=True)

    @nn.compact
    def __call__(self, x, t, cond):
        numbers = [cond[name][:, None] for name in self.scalars]
        label = nn.one_hot(cond["label"] if self.scalars else cond, self.num_classes + 1)
        inputs = jnp.concatenate([x.reshape(len(x), -1), t[:, None], label, *numbers], axis=-1)
        return nn.Dense(x[0].size)(nn.tanh(nn.Dense(self.width)(inputs))).reshape(x.shape)


@pytest.fixture(scope="module", autouse=True)
def small_networks():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(PRESETS, "linear", (Linear, {"width": 8}))
        patch.setitem(PRESETS, "affine", (Affine, {}))
        patch.setenv("JAX_COMPILATION_CACHE_DIR", "")
        yield


def train(name, workdir, *more):
    config = f"--config={ROOT / 'configs' / name}.py"
    return cli.main(["train", config, f"--workdir={workdir}", *SMALL, *map(str, more)])


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """One short run of each kind, all by the program; not all of them watched."""
    folder = tmp_path_factory.mktemp("runs")
    affine = "--config.network.preset=affine"
    quiet = [f"--config.{what}.every=0" for what in ("held_out", "sample")]
    assert train("digits", folder / "flow", affine, *quiet) == 0
    linear = "--config.network.preset=linear"
    assert train("digits_classifier", folder / "classifier", linear) == 0
    teacher = f"--config.distillation.teacher={folder / 'flow'}"
    assert train("digits_distilled", folder / "distilled", affine, teacher) == 0
    assert train("digits_guidance_free", folder / "guidance_free", affine, *quiet) == 0
    return folder


@pytest.fixture
def fails(capsys):
    """Return a function that runs the program and returns the line that it complains with."""

    def run(*arguments):
        assert cli.main([str(argument) for argument in arguments]) == 2
        err = capsys.readouterr().err
        assert err.count("\n") == 1, err
        return err

    return run


def images(run, out, *options):
    """Sample two images of two classes by the program and return them."""
    file = out / "images.npz"
    common = ["--labels=0,7", "--each=1", "--steps=4", f"--out={file}"]
    assert cli.main(["sample", f"--workdir={run}", *common, *options]) == 0
    with np.load(file) as archive:
        return archive["arr_0"].astype(int)


def test_every_kind_trains_to_its_last_step(runs):
    for name in ("flow", "classifier", "distilled", "guidance_free"):
        records = metrics.read(runs / name / "metrics.jsonl")
        assert [record["step"] for record in records if "loss" in record] == [2, 4]
        assert all(np.isfinite(record["loss"]) for record in records if "loss" in record)


def test_a_student_is_watched_by_its_own_images(runs):
    assert (runs / "distilled" / "samples" / "00000004.png").read_bytes().startswith(b"\x89PNG")
    assert np.isfinite(metrics.read(runs / "distilled" / "metrics.jsonl")[-1]["held_out_loss"])


def test_a_classifier_reports_its_accuracy_over_the_times_and_draws_it(runs):
    record = metrics.read(runs / "classifier" / "metrics.jsonl")[-1]
    told = [record[f"accuracy_at_{time:g}"] for time in classifier.TIMES]
    assert all(0 <= share <= 1 for share in told)
    assert (runs / "classifier" / "accuracy.png").read_bytes().startswith(b"\x89PNG")
    assert not (runs / "classifier" / "samples").exists()


def test_accuracy_is_chance_in_noise_and_whole_for_a_classifier_that_is_right():
    """Class k is the constant image k; its logits are the negative distances to alpha k."""

    class Nearest(Linear):
        @nn.compact
        def __call__(self, x, t):
            means = t[:, None] * jnp.arange(4.0)[None]
            return -jnp.square(x.mean(axis=(1, 2, 3))[:, None] - means)

    label = jnp.arange(64, dtype=jnp.int32) % 4
    image = jnp.broadcast_to(label[:, None, None, None].astype(jnp.float32), (64, 8, 8, 1))
    batch = {"image": image, "label": label, "index": jnp.arange(64)}
    path, shape = paths.Linear(), (8, 8, 1)
    network = Nearest((8, 8), 1, 4, 8)
    parts = Parts(defaults(), network, path, predictions.velocity, Labels(4), shape)
    measure = jax.jit(functools.partial(classifier.accuracies, parts, {}))
    told = measure(batch, jax.random.key(0))
    assert float(jnp.mean(told["accuracy_at_1"])) == 1
    assert float(jnp.mean(told["accuracy_at_0.1"])) < 0.6
    assert float(jnp.mean(told["accuracy_at_0.7"])) > 0.9


def test_the_loss_of_a_classifier_that_says_nothing_is_the_log_of_the_classes():
    config = defaults()
    config.task, config.network.preset, config.batch = "classifier", "linear", 16
    task = build(config)
    shapes = jax.eval_shape(task.init, jax.random.key(0)).params
    params = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
    batch = {**task.batches()[0], "index": np.arange(16)}
    loss = jax.jit(task.loss_fn)(params, batch, jax.random.key(1))
    np.testing.assert_allclose(loss, np.log(10), rtol=1e-6)


def test_a_classifier_moves_the_images_of_a_conditional_and_of_an_unconditional_model(
    runs, tmp_path
):
    classifier = f"--classifier={runs / 'classifier'}"
    for base in ([], ["--unconditional"], ["--scale=2"]):
        plain = images(runs / "flow", tmp_path, *base)
        still = images(runs / "flow", tmp_path, *base, classifier, "--classifier_scale=0")
        moved = images(runs / "flow", tmp_path, *base, classifier, "--classifier_scale=30")
        np.testing.assert_array_equal(still, plain)
        assert np.abs(moved - plain).max() > 0


def test_the_unconditional_model_is_the_null_branch(runs, tmp_path):
    free = images(runs / "flow", tmp_path, "--unconditional")
    null = images(runs / "flow", tmp_path, "--scale=0")
    np.testing.assert_allclose(free, null, atol=1)


def test_plus_plus_at_zero_is_the_null_branch_and_wants_a_sampler_that_renoises(
    runs, tmp_path, fails
):
    plus_plus = ["--guidance=plus-plus", "--scale=0"]
    guided = images(runs / "flow", tmp_path, *plus_plus, "--solver=ddim")
    free = images(runs / "flow", tmp_path, "--unconditional", "--solver=ddim")
    np.testing.assert_allclose(guided, free, atol=1)
    out = f"--out={tmp_path / 'images.npz'}"
    line = fails("sample", f"--workdir={runs / 'flow'}", out, *plus_plus, "--solver=heun")
    assert "use sample_ddim or sample_ddpm for CFG++" in line


def test_a_perturbed_transformer_is_the_same_but_for_its_middle_block():
    config = defaults()
    config.network.preset, config.batch = "tiny", 16
    setup = build(config)
    params = {"any": jnp.zeros(1)}
    bundle = Bundle(
        setup.network, params, setup.path, setup.predicts, setup.parts.condition, (8, 8, 1)
    )
    for how in set(WEAKER.values()) - {"another run"}:
        grouped = bundle.perturbed(how).network
        bound = getattr(grouped, "model", grouped)
        assert bound.args[0] is params
        assert bound.func.network == setup.network.clone(perturbation=how, perturb_blocks=(1,))


def test_autoguidance_away_from_the_model_itself_is_the_model(runs, tmp_path):
    away = ["--guidance=autoguidance", f"--reference={runs / 'flow'}", "--scale=3"]
    guided = images(runs / "flow", tmp_path, *away)
    np.testing.assert_allclose(guided, images(runs / "flow", tmp_path), atol=1)


def test_a_model_that_guides_itself_evaluates_one_branch(runs):
    calls = []

    def counted(x, t, cond):
        calls.append(jnp.shape(cond["label"]))
        return jnp.zeros_like(x)

    for kind in ("distilled", "guidance_free"):
        calls.clear()
        run = dataclasses.replace(load.load(runs / kind), network=Known(counted))
        pipelines.sample(run, [1, 2, 3, 4], Method(scale=2.5, steps=2, solver="euler"))
        assert calls == [(4,)]


@pytest.mark.parametrize("kind", ["distilled", "guidance_free"])
def test_a_scale_given_to_a_model_that_guides_itself_moves_its_images(runs, tmp_path, kind):
    options = ["--solver=euler", "--interval=0.2,0.9"]
    one, two = (images(runs / kind, tmp_path, f"--scale={w}") for w in (1, 4))
    assert np.abs(one - two).max() > 0
    assert images(runs / kind, tmp_path, "--scale=2", *options).shape == (2, 8, 8, 1)
    assert images(runs / kind, tmp_path, "--unconditional").shape == (2, 8, 8, 1)


def guided_exactly(x, t, label):
    """A velocity whose class moves it by its index, and whose null class, 10, by nothing."""
    push = jnp.where(label == 10, 0, label).astype(jnp.float32)
    return jnp.sin(x) + push[:, None, None, None] * t[:, None, None, None]


def test_a_student_without_error_samples_as_its_guided_teacher(runs):
    def student(x, t, cond):
        null = guided_exactly(x, t, jnp.full_like(cond["label"], 10))
        strong = guided_exactly(x, t, cond["label"])
        return null + cond["scale"][:, None, None, None] * (strong - null)

    def free(x, t, cond):
        return student(x, t, {"label": cond["label"], "scale": 1 / cond["beta"]})

    teacher = dataclasses.replace(load.load(runs / "flow"), network=Known(guided_exactly))
    for kind, model in (("distilled", student), ("guidance_free", free)):
        run = dataclasses.replace(load.load(runs / kind), network=Known(model))
        for method in (
            Method(scale=3.0, steps=4),
            Method(scale=3.0, steps=4, interval=(0.3, 0.8)),
            Method(steps=4, unconditional=True),
        ):
            learnt = pipelines.sample(run, [3, 5], method)
            np.testing.assert_allclose(
                learnt, pipelines.sample(teacher, [3, 5], method), rtol=1e-5, atol=1e-5
            )


def test_the_loss_of_a_distillation_is_the_distance_to_the_guided_teacher(runs):
    """A student that says nothing is as far from the teacher as the guided teacher is from zero."""
    config = defaults()
    config.task, config.batch, config.network.preset = "distillation", 16, "affine"
    config.distillation.teacher = str(runs / "flow")
    config.distillation.low = config.distillation.high = 2.5
    setup, flow = build(config), load.load(runs / "flow")
    shapes = jax.eval_shape(setup.init, jax.random.key(0)).params
    silent = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
    batch, key = {**setup.batches()[0], "index": np.arange(16)}, jax.random.key(1)
    loss = jax.jit(setup.loss_fn)(silent, batch, key)
    key_t, key_noise, _ = jax.random.split(key, 3)
    t = jax.random.uniform(key_t, (16,))
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key_noise, jnp.arange(16))
    noise = jax.vmap(lambda k: jax.random.normal(k, (8, 8, 1)))(keys)
    x_t = jax.vmap(lambda d, n, s: paths.interpolate(flow.path, d, n, s)[0])(
        batch["image"], noise, t
    )
    guided = guidance.classifier_free(flow.model, jnp.int32(10), 2.5)(x_t, t, batch["label"])
    np.testing.assert_allclose(loss, jnp.mean(guided**2, axis=(1, 2, 3)), rtol=1e-3, atol=1e-6)


def test_a_student_draws_images_where_its_teacher_is_gone(runs, tmp_path):
    alone = tmp_path / "alone"
    shutil.copytree(runs / "distilled", alone)
    raw = workdir.read_config(alone)
    raw["distillation"]["teacher"] = str(tmp_path / "gone")
    workdir.write_config(alone, raw)
    assert load.load(alone).takes_scale.in_one_branch
    with pytest.raises(ValueError, match="gone holds no run"):
        build(configs.from_resolved(raw))


def test_what_does_not_fit_together_is_one_line(runs, fails, tmp_path):
    flow, out = runs / "flow", f"--out={tmp_path / 'x.npz'}"
    sample = ["sample", f"--workdir={flow}", out, "--steps=1", "--labels=0"]
    line = fails(*sample, f"--classifier={runs / 'distilled'}")
    assert "holds a run of task 'distillation', not a classifier" in line
    assert "needs --classifier=WORKDIR" in fails(*sample, "--classifier_scale=2")
    assert "nowhere holds no run" in fails(*sample, f"--classifier={tmp_path / 'nowhere'}")
    line = fails("sample", f"--workdir={runs / 'classifier'}", out)
    assert "holds a classifier, which draws no images" in line
    assert "--reference=WORKDIR go together" in fails(*sample, "--guidance=autoguidance")
    line = fails(*sample, "--guidance=skip-layer")
    assert "holds a Affine, and only a transformer's blocks" in line
    for kind, scale, message in (
        ("distilled", 6, "distilled for scales in [0, 5], got 6"),
        ("guidance_free", 0.5, "knows scales from 1 on, got 0.5"),
    ):
        line = fails("sample", f"--workdir={runs / kind}", out, f"--scale={scale}")
        assert message in line
    line = fails("sample", f"--workdir={runs / 'distilled'}", out, "--guidance=apg")
    assert "guides itself in one branch" in line
    assert not list(tmp_path.iterdir())


def test_a_classifier_of_other_classes_or_another_path_is_refused(runs):
    flow = load.load(runs / "flow")
    shape, path, ten = flow.image_shape, flow.path, Labels(10)
    with pytest.raises(ValueError, match=r"the classifier was trained for the condition .*10.* 7"):
        flow.check_fits("the classifier", shape, Labels(7), path)
    with pytest.raises(ValueError, match=r"for images of \(8, 8, 1\), this run has \(4, 4, 1\)"):
        flow.check_fits("the classifier", (4, 4, 1), ten, path)
    with pytest.raises(ValueError, match=r"for the path Linear.*Trigonometric"):
        flow.check_fits("the classifier", shape, ten, paths.Trigonometric())


@pytest.mark.parametrize(
    ("task", "fields", "message"),
    [
        ("distillation", {}, "distillation.teacher is missing"),
        ("distillation", {"distillation.teacher": "absent"}, "absent holds no run"),
        ("distillation", {"distillation.low": 6.0}, "low=6.0 must not exceed high=5.0"),
        ("distillation", {"weighting.name": "min_snr"}, "takes no weighting, got 'min_snr'"),
        ("guidance_free", {"drop_rate": 0.0}, "drop_rate must be above 0"),
        ("classifier", {}, "needs a classifier as config.network.preset.*got a Affine"),
        ("flow", {"network.preset": "linear"}, "'linear' is a classifier"),
    ],
)
def test_a_task_that_cannot_be_meant_is_refused(task, fields, message):
    config = defaults()
    config.task, config.network.preset, config.batch = task, "affine", 16
    config.update_from_flattened_dict(fields)
    with pytest.raises(ValueError, match=message):
        build(config)


def test_a_distillation_learns_only_from_a_flow(runs):
    config = defaults()
    config.task, config.network.preset, config.batch = "distillation", "affine", 16
    config.distillation.teacher = str(runs / "guidance_free")
    with pytest.raises(ValueError, match="must hold a run of task 'flow', got 'guidance_free'"):
        build(config)


@pytest.mark.parametrize("name", ["digits_classifier", "digits_distilled", "digits_guidance_free"])
def test_every_config_has_a_network_that_fits_its_task(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "configs" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = module.get_config()
    task, condition = TASKS[config.task], Labels(10)
    takes_scale = task.takes_scale(config)
    network = network_for(config, (8, 8, 1), condition, takes_scale.scalars, "cpu")
    x, t = jnp.zeros((2, 8, 8, 1)), jnp.zeros(2)
    inputs = network_inputs(task, takes_scale, condition.example(2))
    output, _ = jax.eval_shape(
        lambda key: network.init_with_output(key, x, t, *inputs), jax.random.key(0)
    )
    assert output.shape == ((2, 10) if name == "digits_classifier" else (2, 8, 8, 1))
