"""Runs that are told more than a class: captions, both, and a kind that a user adds."""

import dataclasses
import json
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from PIL import Image

from guidedflow import cli, conditions, data, pipelines
from guidedflow.conditions import Labels, Named, Prompts, described
from guidedflow.data import sources
from guidedflow.models import PRESETS, TextConditioned
from guidedflow.nn.capabilities import Capabilities
from guidedflow.pipelines import Method
from guidedflow.training import load, loop
from guidedflow.training.build import build
from guidedflow.training.config import defaults


class Hears(nn.Module):
    """A velocity that is affine in the image, the time and whatever it is told, all as numbers."""

    image_size: Any
    channels: int
    dtype: Any = jnp.float32
    takes: tuple[str, ...] = ()

    @property
    def capabilities(self):
        return Capabilities(takes=frozenset(self.takes))

    @nn.compact
    def __call__(self, x, t, cond):
        told = cond if isinstance(cond, dict) else {"": cond}
        heard = [jnp.reshape(told[k], (len(x), -1)).astype(x.dtype) for k in sorted(told)]
        inputs = jnp.concatenate([x.reshape(len(x), -1), t[:, None], *heard], axis=-1)
        return nn.Dense(x[0].size)(inputs).reshape(x.shape)


class HearsLabels(Hears):
    num_classes: int | None = None


@dataclasses.dataclass(frozen=True)
class Angles(Labels):
    """A kind of a user's own: an angle in degrees as its cosine and sine; the null is no angle."""

    num_classes: int = 1

    fields = ("angle",)
    gives = frozenset({"angle"})

    def from_batch(self, batch):
        return self._pair(batch["angle"], jnp)

    def _pair(self, angle, of):
        return of.stack([of.cos(of.radians(angle)), of.sin(of.radians(angle))], axis=-1)

    def parse(self, asked):
        return self._pair(np.asarray([float(entry) for entry in asked], np.float32), np)

    def null(self):
        return jnp.zeros(2)

    def example(self, batch):
        return jnp.zeros((batch, 2))

    def every(self):
        return []

    def say(self, cond):
        return [f"{np.degrees(np.arctan2(s, c)):.0f}°" for c, s in np.asarray(cond).tolist()]

    def network_fields(self):
        return {}


def turned(rest, **options):
    """Digits with an angle each: a data set of a user's own."""
    digits = data.load("digits", split="train")

    def turn(batch, draws):
        return {**batch, "angle": batch["label"].astype(np.float32) * 36}

    return dataclasses.replace(digits.map(turn), told=Angles())


@pytest.fixture(scope="module", autouse=True)
def of_the_user(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    rows = []
    for i in range(8):
        name = f"{'ab'[i % 2]}/{i}.png"
        (folder / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (4, 4), (30 * i, 0, 0)).save(folder / name)
        rows.append({"file_name": name, "text": ("red heart", "a blue sea")[i % 2]})
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(PRESETS, "hears angles", (Hears, {"takes": ("angle",)}))
        patch.setitem(PRESETS, "hears text", (Hears, {"takes": ("vector",)}))
        patch.setitem(PRESETS, "hears both", (HearsLabels, {"takes": ("vector", "label")}))
        patch.setitem(described.KINDS, "angles", Angles)
        patch.setitem(sources.SOURCES, "turned", turned)
        patch.setenv("JAX_COMPILATION_CACHE_DIR", "")
        yield folder


def short(name, preset, **fields):
    config = defaults()
    config.batch, config.optimizer.warm_up = 8, 2
    config.log.every, config.log.tensorboard, config.held_out.every = 2, False, 0
    config.parallel.strategy = "data"
    config.dataset.name, config.dataset.held_out, config.network.preset = name, "", preset
    config.steps = config.checkpoint.every = config.sample.every = 2
    config.sample.rows, config.sample.classes, config.sample.steps = 1, 2, 1
    config.update_from_flattened_dict(fields)
    return config


def captioned(folder, preset, kind, **fields):
    text = {"text.width": 8, "text.depth": 1, "text.heads": 2, "condition.length": 8}
    more = {**text, "dataset.image_size": 4, "condition.kind": kind, **fields}
    return short(f"folder:{folder}", preset, **more)


@pytest.fixture(scope="module")
def runs(of_the_user, tmp_path_factory):
    folder = tmp_path_factory.mktemp("told")
    prompts = {"sample.prompts": ("red heart", "a blue heart")}
    loop.train(captioned(of_the_user, "hears text", "prompts", **prompts), folder / "prompts")
    return folder


def run(*arguments):
    return cli.main([str(argument) for argument in arguments])


def fails(capsys, *arguments):
    assert run(*arguments) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1, err
    return err


def test_a_kind_of_a_users_own_trains_samples_and_is_said(tmp_path):
    loop.train(short("turned:", "hears angles"), tmp_path)
    assert (tmp_path / "samples" / "00000002.png").exists()
    bundle = load.load(tmp_path)
    assert bundle.condition == Angles()
    assert bundle.condition.say(bundle.condition.parse(["36", "-90"])) == ["36°", "-90°"]
    shared = ["sample", f"--workdir={tmp_path}", "--labels=36,90", "--each=1", "--steps=1"]
    assert run(*shared, f"--out={tmp_path / 'a.png'}") == 0
    assert run(*shared, f"--out={tmp_path / 'a.npz'}", "--scale=2") == 0
    with np.load(tmp_path / "a.npz") as archive:
        assert archive["conditions"].tolist() == ["36°", "90°"]


def test_a_run_of_captions_is_told_prompts(runs, tmp_path, capsys):
    bundle = load.load(runs / "prompts")
    assert isinstance(bundle.network, TextConditioned)
    assert isinstance(bundle.condition, Prompts)
    assert (runs / "prompts" / "samples" / "00000002.png").exists()
    shared = ["sample", f"--workdir={runs / 'prompts'}", "--each=2", "--steps=1", "--scale=3"]
    file = tmp_path / "prompts.txt"
    file.write_text("red heart\n\na blue sea\n")
    out = f"--out={tmp_path / 'a.npz'}"
    assert run(*shared, f"--prompts={file}", "--negative=sea", out) == 0
    with np.load(tmp_path / "a.npz") as archive:
        assert archive["prompts"].tolist() == ["red heart", "a blue sea"] * 2
        assert archive["arr_0"].shape == (4, 4, 4, 3)
    asked = ["red heart", "a blue sea"]
    drawn = pipelines.sample(bundle, asked, Method(scale=3.0, steps=1), negative="sea")
    assert np.all(np.isfinite(drawn))
    assert run(*shared, "--prompt=Red Heart", f"--out={tmp_path / 'a.png'}") == 0
    capsys.readouterr()
    common = [*shared, out]
    told = fails(capsys, *common, "--prompt=a", "--labels=b")
    assert "pass --labels or --prompt, not both" in told
    assert "told prompts, not label" in fails(capsys, *common, "--labels=b")
    assert 'say what to draw, --prompt="…"' in fails(capsys, *common)
    assert "cannot read the prompts" in fails(capsys, *common, f"--prompts={tmp_path / 'no'}")
    file.write_text("\n")
    assert "holds no prompt" in fails(capsys, *common, f"--prompts={file}")
    unguided = [*common, "--prompt=a", "--negative=b", "--scale=1"]
    assert "take a --scale other than 1" in fails(capsys, *unguided)


def test_another_vocabulary_is_not_the_checkpoints(runs, of_the_user):
    config = captioned(of_the_user, "hears text", "prompts", **{"condition.length": 7})
    config.steps = 4
    with pytest.raises(ValueError, match=r"belongs to a run with condition.length=8"):
        loop.train(config, runs / "prompts", resume=True)


def test_labels_and_captions_are_told_together(of_the_user):
    fields = {"condition.drop_label": 0.5}
    setup = build(captioned(of_the_user, "hears both", "both", **fields))
    condition = setup.parts.condition
    assert isinstance(condition, Named)
    assert condition.part_rates == ((("label",), 0.5),)
    batch = setup.dataset.take(2)
    assert condition.say(condition.from_batch(batch)) == ["a, red heart", "a, red heart"]
    again = conditions.from_description(json.loads(json.dumps(conditions.describe(condition))))
    assert again == condition


@pytest.mark.parametrize(
    ("preset", "kind", "message"),
    [
        ("tiny-unet", "prompts", "a UNet cannot be told prompts; it takes label, scalars"),
        ("hears text", "promts", "condition.kind must be one of .*did you mean 'prompts'"),
    ],
)
def test_prompts_are_never_left_out(of_the_user, preset, kind, message):
    with pytest.raises(ValueError, match=message):
        build(captioned(of_the_user, preset, kind))


def test_a_set_without_captions_is_told_no_prompts():
    config = short("digits", "hears text", **{"condition.kind": "prompts"})
    with pytest.raises(ValueError, match="needs captions, and the data set 'digits' has none"):
        build(config)
