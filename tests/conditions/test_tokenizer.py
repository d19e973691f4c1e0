"""Byte-pair units: CLIP's files, units learned from captions, what is lost, what a checkpoint keeps."""

import json
import pickle

import numpy as np
import pytest

from guidedflow.conditions.tokenizer import (
    END,
    START,
    Tokenize,
    Tokenizer,
    from_json,
    learn,
    read_clip,
)

tokenizers = pytest.importorskip("tokenizers", reason="the text extra is not installed")

LETTERS = "aehort"
MERGES = [("h", "e"), ("he", "a"), ("r", "t</w>"), ("hea", "rt</w>"), ("r", "e"), ("re", "t</w>")]


@pytest.fixture
def made():
    """A few letters, in a word and at its end, and merges that make "heart" and "ret" one unit."""
    base = [*LETTERS, *(letter + "</w>" for letter in LETTERS)]
    units = (*base, *(a + b for a, b in MERGES), START, END)
    return Tokenizer(units, tuple(MERGES), length=6)


@pytest.fixture(scope="module")
def learned():
    captions = ["red heart", "blue heart", "woman judge", "red hair", "woman with red hair"] * 3
    return learn(captions, size=600, length=12)


def text(tokenizer, row):
    return [tokenizer.units[number] for number in row]


def test_merges_run_in_their_order_and_the_rest_is_padded_with_the_end(made):
    tokens, mask, lost = made.encode(["  Heart\tret ", "tea", ""])
    assert tokens.dtype == np.int32
    assert text(made, tokens[0]) == [START, "heart</w>", "ret</w>", END, END, END]
    assert text(made, tokens[1]) == [START, "t", "e", "a</w>", END, END]
    assert text(made, tokens[2]) == [START, END, END, END, END, END]
    assert mask.sum(1).tolist() == [4, 5, 2]
    assert lost == ("", "", "")


def test_the_end_is_kept_and_the_words_that_were_lost_are_named(made):
    tokens, mask, lost = made.encode(["heart heart heart tea, RATE", "heart heart heart heart"])
    assert text(made, tokens[0])[4:] == ["t", END]
    assert mask.all()
    assert lost == ("tea, RATE", "")


def test_another_padding_unit_leaves_the_mask(made):
    padded = Tokenizer(made.units, made.merges, 6, pad="a").encode(["heart"])
    assert text(made, padded.tokens[0]) == [START, "heart</w>", END, "a", "a", "a"]
    assert padded.mask.sum() == 3


def test_learned_units_are_the_same_every_time():
    """64 words of equal count leave every merge to the breaking of ties."""
    ties = [a + b + c for a in "abcd" for b in "abcd" for c in "abcd"]
    assert len({learn(ties, size=580).to_json() for _ in range(6)}) == 1


def test_every_prompt_can_be_written_with_learned_units(learned):
    """The bytes of letters that no caption had; a space is written as the end of a word."""
    assert text(learned, learned.encode(["woman judge"]).tokens[0])[:4] == [
        START, "woman</w>", "judge</w>", END,
    ]  # fmt: skip
    prompt = "žlu 心 é!"
    tokens, mask, lost = Tokenizer(learned.units, learned.merges, 30).encode([prompt])
    spelled = "".join(text(learned, tokens[0][mask[0]][1:-1])).replace("</w>", "Ġ")
    assert tokenizers.decoders.ByteLevel().decode([spelled]).replace(" !", "!").strip() == prompt
    assert lost == ("",)


def test_the_size_bounds_what_is_learned():
    assert len(learn(["abc abd"] * 4, size=515).units) == 515
    assert len(learn(["ab"] * 4, size=9999).units) == 515
    with pytest.raises(ValueError, match="expected at least 514 units, got 100"):
        learn(["ab"], size=100)
    with pytest.raises(ValueError, match="no caption to learn"):
        learn(["", " "])


def test_a_text_holds_the_whole_vocabulary_and_equal_ones_have_one_identity(learned):
    again = from_json(learned.to_json())
    assert again == learned
    assert hash(again) == hash(learned)
    assert again.identity() == learned.identity()
    assert json.loads(json.dumps(learned.identity())) == learned.identity()
    other = Tokenizer(learned.units, learned.merges, 13)
    assert other.identity()["vocabulary"] != learned.identity()["vocabulary"]
    assert pickle.loads(pickle.dumps(learned)) == learned


def write(folder, tokenizer):
    vocabulary = {unit: number for number, unit in enumerate(tokenizer.units)}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    lines = "".join(f"{a} {b}\n" for a, b in tokenizer.merges)
    (folder / "merges.txt").write_text("#version: 0.2\n" + lines)
    return folder / "vocab.json", folder / "merges.txt"


def test_clips_files_give_the_tokenizer_they_were_written_from(made, tmp_path):
    assert read_clip(*write(tmp_path, made), length=6) == made


@pytest.mark.parametrize(
    ("vocabulary", "merges", "message"),
    [
        (None, "", r"cannot read the vocabulary .*vocab.json: .*No such file"),
        ("[1]", "", r"cannot read the vocabulary"),
        ('{"a": 0, "b": 2}', "", r"expected numbers 0 to n - 1"),
        ('{"a": 0}', "", r"lacks the start unit '<\|startoftext\|>'"),
        (f'{{"{START}": 0, "{END}": 1}}', "a b c", r"expected two units, got 'a b c' \(merge 1\)"),
        (f'{{"{START}": 0, "{END}": 1}}', "a b", r"merge a b needs 'a', which is no unit"),
    ],
)
def test_files_of_another_form_are_named(tmp_path, vocabulary, merges, message):
    files = tmp_path / "vocab.json", tmp_path / "merges.txt"
    if vocabulary is not None:
        files[0].write_text(vocabulary)
    files[1].write_text(merges)
    with pytest.raises(ValueError, match=message) as caught:
        read_clip(*files)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "stored", ["", "[]", "{}", '{"format": "x"}', '{"format": "guidedflow-byte-pairs-1"}']
)
def test_another_text_is_no_vocabulary(stored):
    with pytest.raises(ValueError, match="cannot read the vocabulary"):
        from_json(stored)


def test_prompts_of_another_form_are_refused(made):
    for prompts in ("heart", [1], [None]):
        with pytest.raises(ValueError, match="expected a sequence of prompts"):
            made.encode(prompts)
    with pytest.raises(ValueError, match="at least 3 positions, got 2"):
        Tokenizer(made.units, made.merges, 2)
    with pytest.raises(ValueError, match="lacks the padding unit '!'"):
        Tokenizer(made.units, made.merges, 6, pad="!")
    with pytest.raises(ValueError, match="every unit once"):
        Tokenizer((*made.units, "a"), made.merges, 6)


def test_a_map_of_a_data_set_puts_tokens_in_place_of_captions(made):
    batch = {"label": np.arange(2), "caption": np.array(["heart", "tea"], object)}
    mapped = Tokenize(made)(batch, None)
    expected = made.encode(["heart", "tea"])
    assert set(mapped) == {"label", "tokens", "mask"}
    assert np.array_equal(mapped["tokens"], expected.tokens)
    assert np.array_equal(mapped["mask"], expected.mask)
    with pytest.raises(ValueError, match="no captions; a batch of it has label"):
        Tokenize(made)({"label": np.arange(2)}, None)
