"""Prompts: rows of unit numbers with a mask, made by a tokenizer."""

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from guidedflow.conditions.condition import PartRates
from guidedflow.conditions.tokenizer import Tokenizer, from_json

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Prompts:
    """One prompt an example, {"ids": (b, n), "mask": (b, n)}; the null is the empty prompt.

    A negative prompt is a prompt that takes the null's place.

    Attributes:
      tokenizer: text to unit numbers; or its JSON.
      has_null: whether the empty prompt was trained, so that it may be asked for.
    """

    tokenizer: Tokenizer
    has_null: bool = True

    def __post_init__(self) -> None:
        if isinstance(self.tokenizer, str):
            object.__setattr__(self, "tokenizer", from_json(self.tokenizer))

    @property
    def fields(self) -> tuple[str, ...]:
        """A batch of data has what the map `tokenizer.Tokenize` makes of its captions."""
        return ("tokens", "mask")

    @property
    def gives(self) -> frozenset[str]:
        """A network must take prompts, itself or through a text encoder."""
        return frozenset({"prompts"})

    @property
    def part_rates(self) -> PartRates:
        """A prompt is dropped whole."""
        return ()

    def from_batch(self, batch: Mapping[str, Any]) -> dict[str, Array]:
        """Return the prompts of a batch of data."""
        return {"ids": batch["tokens"], "mask": batch["mask"]}

    def parse(self, asked: Sequence[Any]) -> dict[str, np.ndarray]:
        """Return prompts; what does not fit is named once, in one line of this module's logger.

        Raises:
          ValueError: an entry that is no text, or an empty one where there is no null.
        """
        prompts = list(asked)
        if not self.has_null and any(isinstance(p, str) and not p.strip() for p in prompts):
            raise ValueError(
                "an empty prompt is the null, and this model was trained without one "
                "(config.drop_rate=0)"
            )
        encoded = self.tokenizer.encode(prompts)
        lost = list(dict.fromkeys(words for words in encoded.lost if words))
        if lost:
            logger.warning(
                "prompts are cut at %d units; left out: %s",
                self.tokenizer.length,
                "; ".join(map(repr, lost)),
            )
        return {"ids": encoded.tokens, "mask": encoded.mask}

    def null(self) -> dict[str, Array]:
        """Return the empty prompt."""
        empty = self.tokenizer.encode([""])
        return {"ids": jnp.asarray(empty.tokens[0]), "mask": jnp.asarray(empty.mask[0])}

    def example(self, batch: int) -> dict[str, Array]:
        """Return the empty prompt for all."""
        return {name: jnp.stack([leaf] * batch) for name, leaf in self.null().items()}

    def every(self) -> list[Any]:
        """Prompts have no list."""
        return []

    def say(self, cond: Mapping[str, Any]) -> list[str]:
        """Return the prompts as the tokenizer reads them back, in lower case."""
        return self.tokenizer.decode(np.asarray(cond["ids"]))

    def identity(self) -> dict[str, Any]:
        """A checkpoint must have the same vocabulary and length."""
        return self.tokenizer.identity()

    def network_fields(self) -> dict[str, Any]:
        """A text encoder has an embedding of every unit and every position."""
        tokenizer = self.tokenizer
        return {
            "vocabulary": len(tokenizer.units),
            "end": tokenizer.end,
            "positions": tokenizer.length,
        }

    def description(self) -> dict[str, Any]:
        """Return the fields, the tokenizer as its JSON."""
        return {"tokenizer": self.tokenizer.to_json(), "has_null": self.has_null}
