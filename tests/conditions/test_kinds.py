"""Kinds of conditions: what is asked for, nulls, names, files, and what is dropped."""

import json
import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from known import bundle_of
from mixture import Mixture
from PIL import Image
from words import WORDS, word_tokenizer

from guidedflow import losses, paths, pipelines
from guidedflow.conditions import (
    Images,
    Labels,
    Named,
    Numbers,
    Prompts,
    describe,
    entries,
    from_description,
)
from guidedflow.conditions.tokenizer import WORD_END
from guidedflow.pipelines import Method

TOKENIZER = word_tokenizer()
BOTH = Named(
    {"label": Labels(3, ("cat", "dog", "cow")), "prompt": Prompts(TOKENIZER)}, {"prompt": 0.25}
)
KINDS = {
    "labels": (Labels(3, ("cat", "dog", "cow")), ["cat", 2]),
    "numbers": (Numbers(("scale", "beta"), (1.0, 0.5)), ["scale=2 beta=0.25", {"beta": 3}]),
    "prompts": (Prompts(TOKENIZER), ["red", "tan blue"]),
    "images": (Images((2, 1, 1), blank=(((0.5,),), ((1.0,),))), np.ones((2, 2, 1, 1))),
    "named": (BOTH, [{"label": "dog"}, {"prompt": "red", "label": 0}]),
}
every_kind = pytest.mark.parametrize("kind", sorted(KINDS))


def same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


@every_kind
def test_a_kind_is_the_same_after_a_file(kind):
    condition, asked = KINDS[kind]
    again = from_description(json.loads(json.dumps(describe(condition))))
    assert again == condition
    assert again.identity() == condition.identity()
    same(again.parse(asked), condition.parse(asked))


@every_kind
def test_examples_nulls_and_what_is_asked_for_have_one_form(kind):
    condition, asked = KINDS[kind]
    told, null, example = condition.parse(asked), condition.null(), condition.example(2)

    def check(given, nothing, any_):
        assert given.shape == (2, *nothing.shape) == any_.shape
        assert given.dtype == nothing.dtype == any_.dtype

    jax.tree.map(check, told, null, example)
    assert len(condition.say(told)) == 2


def test_what_is_said_can_be_asked_for():
    for kind in ("labels", "numbers", "prompts"):
        condition, asked = KINDS[kind]
        told = condition.parse(asked)
        same(condition.parse(condition.say(told)), told)


def test_parts_that_are_not_asked_for_are_null_and_not_said():
    told = BOTH.parse([{"label": "dog"}, {"prompt": "red"}, {"label": 0, "prompt": "blue"}])
    assert told["label"].tolist() == [1, 3, 0]
    same(told["ids"][0], BOTH.null()["ids"])
    same(told["ids"][1], Prompts(TOKENIZER).parse(["red"])["ids"][0])
    assert BOTH.say(told) == ["dog", "red", "cat, blue"]
    assert BOTH.say(BOTH.parse(BOTH.every())) == ["cat", "dog", "cow"]


def test_a_file_is_an_image_of_the_shape(tmp_path):
    Image.new("RGB", (8, 4), (255, 0, 255)).save(tmp_path / "a.png")
    condition = Images((2, 2, 3))
    image = condition.parse([str(tmp_path / "a.png"), np.zeros((2, 2, 3))])
    np.testing.assert_array_equal(image[0], np.broadcast_to([1, -1, 1], (2, 2, 3)))
    assert condition.say(image[[0, 1, 0]]) == ["image 1", "image 2", "image 1"]


def test_words_that_do_not_fit_are_named_once(caplog):
    with caplog.at_level(logging.WARNING):
        Prompts(TOKENIZER).parse(["red blue red blue tan red"] * 3)
    (record,) = caplog.records
    assert record.getMessage() == "prompts are cut at 6 units; left out: 'tan red'"


def test_parts_are_dropped_jointly_and_alone_each_with_its_entries():
    n, whole, alone = 4000, 0.2, 0.25
    told = BOTH.parse([{"label": 1, "prompt": "red"}])
    cond = jax.tree.map(lambda leaf: jnp.repeat(jnp.asarray(leaf), n, axis=0), told)
    null = BOTH.null()
    key = jax.random.key(0)
    kept = losses.drop_condition(key, cond, null, whole, BOTH.part_rates)
    kept, null = jax.device_get((kept, null))
    label = np.asarray(kept["label"] == null["label"])
    ids, mask = (np.all(kept[k] == null[k], axis=1) for k in ("ids", "mask"))
    np.testing.assert_array_equal(ids, mask)
    # Where the whole is dropped the prompt is; five standard errors of a share of n.
    assert np.all(ids[label])
    assert abs(label.mean() - whole) < 5 * (whole * (1 - whole) / n) ** 0.5
    left = ids[~label]
    assert abs(left.mean() - alone) < 5 * (alone * (1 - alone) / left.size) ** 0.5
    # Without rates of parts, the draws of the whole are what they were.
    same(losses.drop_condition(key, cond, null, whole)["label"], kept["label"])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Labels(3, ("cat", "dog", "cow")).parse(["cst"]), "did you mean 'cat'"),
        (lambda: Numbers(()), "at least one name"),
        (lambda: Numbers(("scale",)).parse(["much"]), "scale as a finite number, got 'much'"),
        (lambda: Numbers(("scale",)).parse(["scal=1"]), "did you mean 'scale'"),
        (lambda: Numbers(("a", "b")).parse([1.0]), "expected numbers as 'a=1 b=1', got 1.0"),
        (lambda: Prompts(TOKENIZER, has_null=False).parse([" "]), "trained without one"),
        (lambda: Prompts(TOKENIZER).parse([3]), "expected a sequence of prompts"),
        (lambda: Images((2, 2, 1)).parse([np.zeros((3, 2, 1))]), r"shape \(2, 2, 1\), got \(3, 2"),
        (lambda: Images((2, 2, 1)).parse(["no.png"]), "cannot read the image no.png"),
        (lambda: Images((2, 2, 1), blank=(1.0, 2.0)), r"of shape \(2, 2, 1\), got \(2,\)"),
        (lambda: Named({}), "at least one part"),
        (lambda: Named({"label": Labels(2)}, {"labl": 0.1}), "did you mean 'label'"),
        (lambda: Named({"label": Labels(2)}, {"label": 1.5}), r"must lie in \[0, 1\], got 1.5"),
        (lambda: Named({"a": BOTH}), "has parts itself"),
        (
            lambda: Named({"scale": Labels(2), "b": Numbers(("scale",))}),
            "parts 'scale' and 'b' both have 'scale'",
        ),
        (lambda: BOTH.parse(["cat"]), "expected a mapping of .*got 'cat'"),
        (lambda: BOTH.parse([{"promt": "red"}]), "did you mean 'prompt'"),
        (lambda: entries(Labels(3), "prompts", ["red"]), "told label, not prompts"),
        (lambda: from_description({"kind": "label"}), "did you mean 'labels'"),
        (
            lambda: losses.drop_condition(
                jax.random.key(0), jnp.zeros(2), jnp.zeros(()), 0.1, ((("ids",), 0.1),)
            ),
            "with the entries",
        ),
    ],
)
def test_what_cannot_be_meant_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


MIXTURE = Mixture.of(
    *[(y, 1.0, np.full((2, 2, 1), 0.5 * y - 0.5), 0.2 + 0.1 * y) for y in range(3)]
)
VELOCITY = MIXTURE.velocity(paths.Linear())
# The class of every unit; units that are no word of ours say nothing, which is the null class.
CLASSES = np.full(len(TOKENIZER.units), MIXTURE.null, np.int32)
CLASSES[[TOKENIZER.units.index(word + WORD_END) for word in WORDS]] = range(3)
LABELLED = bundle_of(VELOCITY, condition=Labels(3), image_shape=(2, 2, 1))


def by_prompt(x, t, cond):
    """The mixture told by the first unit of a prompt."""
    return VELOCITY(x, t, jnp.asarray(CLASSES)[cond["ids"][:, 1]])


PROMPTED = bundle_of(by_prompt, condition=Prompts(TOKENIZER), image_shape=(2, 2, 1))
DRAWN = Method(scale=3.0, steps=4)


def test_a_prompt_of_one_unit_is_the_label_bit_for_bit():
    by_label = pipelines.sample(LABELLED, [0, 2, 1], DRAWN)
    same(pipelines.sample(PROMPTED, ["red", "tan", "blue"], DRAWN), by_label)
    parts = Named({"prompt": Prompts(TOKENIZER)})
    named = bundle_of(by_prompt, condition=parts, image_shape=(2, 2, 1))
    asked = [{"prompt": word} for word in ("red", "tan", "blue")]
    same(pipelines.sample(named, asked, DRAWN), by_label)


def test_numbers_and_images_give_the_labels_numbers_bit_for_bit():
    by_label = pipelines.sample(LABELLED, [0, 2, 1], DRAWN)

    def number(x, t, cond):
        return VELOCITY(x, t, cond["y"].astype(jnp.int32))

    def image(x, t, cond):
        return VELOCITY(x, t, cond[:, 0, 0, 0].astype(jnp.int32))

    numbers = Numbers(("y",), (float(MIXTURE.null),))
    images = Images((1, 1, 1), blank=float(MIXTURE.null))
    bundle = bundle_of(number, condition=numbers, image_shape=(2, 2, 1))
    same(pipelines.sample(bundle, [0, 2, 1], DRAWN), by_label)
    bundle = bundle_of(image, condition=images, image_shape=(2, 2, 1))
    asked = [np.full((1, 1, 1), y) for y in (0, 2, 1)]
    same(pipelines.sample(bundle, asked, DRAWN), by_label)


def test_an_empty_negative_prompt_is_the_null_and_the_prompt_itself_guides_nothing():
    plain = pipelines.sample(PROMPTED, ["red", "blue"], DRAWN)
    same(pipelines.sample(PROMPTED, ["red", "blue"], DRAWN, negative=""), plain)
    away = pipelines.sample(PROMPTED, ["red", "red"], DRAWN, negative="red")
    unguided = pipelines.sample(PROMPTED, ["red", "red"], Method(steps=4))
    np.testing.assert_allclose(away, unguided, atol=1e-6)


def test_a_negative_prompt_takes_the_nulls_place():
    # Led by red away from blue: the same as labels with blue as the null class.
    away = pipelines.sample(PROMPTED, ["red"], DRAWN, negative="blue")
    model = pipelines.guided_model(LABELLED, DRAWN, null=jnp.int32(1))
    x, t = jnp.ones((1, 2, 2, 1)), jnp.full(1, 0.5)
    other = pipelines.guided_model(
        PROMPTED, DRAWN, null=jax.tree.map(lambda leaf: leaf[0], Prompts(TOKENIZER).parse(["blue"]))
    )
    red = Prompts(TOKENIZER).parse(["red"])
    same(other(x, t, red), model(x, t, jnp.zeros(1, jnp.int32)))
    assert np.abs(away - pipelines.sample(PROMPTED, ["red"], DRAWN)).max() > 0.01
