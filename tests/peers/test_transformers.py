"""CLIP's tokenizer and text transformer against transformers', with made-up vocabulary and weights."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from guidedflow.conditions import tokenizer as ours
from guidedflow.models.text import TextEncoder

torch = pytest.importorskip("torch", reason="the peers extra (torch) is not installed")

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


TOKENS = np.array(
    [[1, 5, 6, 40, 7, 40, 40], [1, 8, 9, 3, 4, 40, 40], [1, 40, 40, 40, 40, 40, 40]], np.int32
)


def parameters(state):
    """A torch state dict as the tree of names that it spells."""
    tree = {}
    for name, value in state.items():
        name = re.sub(r"layers\.(\d+)", r"layers_\1", name.removeprefix("text_model."))
        *path, last = name.split(".")
        value = value.numpy()
        if last == "weight" and path[-1].endswith("_embedding"):
            last = "embedding"
        elif last == "weight":
            last, value = ("scale", value) if value.ndim == 1 else ("kernel", value.T)
        node = tree
        for part in path:
            node = node.setdefault(part, {})
        node[last] = value
    return {"params": tree}


@pytest.mark.parametrize(
    ("activation", "end", "masked"), [("quick_gelu", 2, False), ("gelu", 40, True)]
)
def test_the_text_transformer_is_transformers(activation, end, masked):
    config = transformers.CLIPTextConfig(
        vocab_size=41,
        hidden_size=32,
        intermediate_size=72,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=9,
        hidden_act=activation,
        projection_dim=12,
        eos_token_id=end,
        bos_token_id=1,
        pad_token_id=40,
    )
    torch.manual_seed(0)
    theirs = transformers.CLIPTextModelWithProjection(config).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.normal_(0, 0.3)
    mask = np.cumsum(TOKENS == 40, axis=1) <= 1
    given = {"attention_mask": torch.from_numpy(mask.astype(int))} if masked else {}
    with torch.no_grad():
        expected = theirs(torch.from_numpy(TOKENS).long(), **given)
    net = TextEncoder(
        41, end, width=32, depth=3, heads=4, hidden=72, positions=9,
        activation=activation, projection=12,
    )  # fmt: skip
    params = parameters(theirs.state_dict())
    made = net.init(jax.random.key(0), TOKENS)
    assert jax.tree.map(np.shape, params) == jax.tree.map(np.shape, made)
    found = net.apply(params, jnp.asarray(TOKENS), jnp.asarray(mask) if masked else None)
    for ours_, theirs_ in [
        (found.tokens, expected.last_hidden_state),
        (found.pooled, expected.text_embeds),
    ]:
        error = np.abs(np.asarray(ours_) - theirs_.numpy()).max()
        assert error <= 1e-5 * np.abs(theirs_.numpy()).max()
