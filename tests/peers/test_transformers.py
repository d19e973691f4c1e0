"""CLIP's tokenizer and text transformer against transformers', with made-up vocabulary and weights."""

import pytest

from guidedflow.conditions import tokenizer as ours

transformers = pytest.importorskip(
    "transformers", reason="the peers extra (transformers) is not installed"
)

PROMPTS = [
    "A photo of the astronaut's cat",
    "",
    "don't they'll  we've\tI'm\n'RE",
    "42 žluťoučký kůň, 心 and 🏽!!! (é)",
    "x" * 200,
    "one two three four five six seven eight nine ten eleven twelve",
]


@pytest.mark.parametrize("pad", [ours.END, "!"])
def test_tokens_and_masks_are_transformers(pad):
    made = ours.learn([*PROMPTS, "the cat and the astronaut"] * 2, size=600, length=16)
    made = ours.Tokenizer(made.units, made.merges, 16, pad)
    numbers = {unit: number for number, unit in enumerate(made.units)}
    theirs = transformers.CLIPTokenizer(vocab=numbers, merges=list(made.merges), pad_token=pad)
    expected = theirs(PROMPTS, padding="max_length", max_length=16, truncation=True)
    tokens, mask, _ = made.encode(PROMPTS)
    assert tokens.tolist() == expected["input_ids"]
    assert mask.astype(int).tolist() == expected["attention_mask"]
