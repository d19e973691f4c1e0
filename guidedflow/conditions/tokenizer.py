"""Prompts as numbered byte-pair units, by the `tokenizers` package: `pip install guidedflow[text]`.

Units as CLIP's: every word is a row of bytes, the last one marked as the end of the word, and pairs
of units are merged in the order in which they were learned (Sennrich et al. 2016).
"""

import dataclasses
import functools
import hashlib
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Int32

START, END, WORD_END = "<|startoftext|>", "<|endoftext|>", "</w>"
POSITIONS = 77

# Contractions, words, single digits, and the rest: how CLIP cuts a prompt before it merges.
_PIECES = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
_FORMAT = "guidedflow-byte-pairs-1"


class Encoded(NamedTuple):
    """Prompts as arrays.

    Attributes:
      tokens: unit numbers; start, units, end, then padding.
      mask: True up to and with the end, False on padding.
      lost: for each prompt the words that did not fit, "" where all did.
    """

    tokens: Int32[np.ndarray, "b n"]
    mask: Bool[np.ndarray, "b n"]
    lost: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Tokenizer:
    """A vocabulary of byte-pair units and how prompts are cut, bounded and padded.

    Attributes:
      units: unit number i is units[i].
      merges: pairs of units, the first merged first.
      length: positions of an encoded prompt, with the start and end units.
      pad: the unit that fills up; CLIP repeats the end, Stable Diffusion 2 has "!".
    Raises:
      ValueError: a unit twice, no start or end unit, a merge or `pad` of unknown units, or fewer than
        3 positions.
    """

    units: tuple[str, ...]
    merges: tuple[tuple[str, str], ...]
    length: int = POSITIONS
    pad: str = END

    def __post_init__(self) -> None:
        if not isinstance(self.length, int) or self.length < 3:
            raise ValueError(f"expected at least 3 positions, got {self.length!r}")
        if len(self._numbers) != len(self.units):
            raise ValueError("a vocabulary holds every unit once")
        for name, unit in (("start", START), ("end", END), ("padding", self.pad)):
            if unit not in self._numbers:
                raise ValueError(f"the vocabulary lacks the {name} unit {unit!r}")
        for first, second in self.merges:
            for unit in (first, second, first + second):
                if unit not in self._numbers:
                    raise ValueError(f"merge {first} {second} needs {unit!r}, which is no unit")

    def encode(self, prompts: Sequence[str]) -> Encoded:
        """Return the prompts as unit numbers, in lower case, cut and padded to `length`.

        A prompt that is too long keeps its first units and the end; `lost` names what it lost.

        Raises:
          ValueError: not a sequence of strings.
          ImportError: the package `tokenizers` is missing.
        """
        if isinstance(prompts, str) or not all(isinstance(prompt, str) for prompt in prompts):
            raise ValueError(f"expected a sequence of prompts, got {prompts!r:.80}")
        tokens = np.full((len(prompts), self.length), self._numbers[self.pad], np.int32)
        mask = np.zeros(tokens.shape, bool)
        lost = []
        for row, prompt in enumerate(prompts):
            found = self._backend.encode(prompt, add_special_tokens=False)
            kept = found.ids[: self.length - 2]
            line = [self._numbers[START], *kept, self._numbers[END]]
            tokens[row, : len(line)] = line
            mask[row, : len(line)] = True
            lost.append(_rest(prompt, found.offsets, len(kept)))
        return Encoded(tokens, mask, tuple(lost))

    def decode(self, tokens: Int32[np.ndarray, "b n"]) -> list[str]:
        """Return the prompts that unit numbers stand for, in lower case, up to the end unit.

        Raises:
          ImportError: the package `tokenizers` is missing.
        """
        bytes_to_text = _library().decoders.ByteLevel().decode
        prompts = []
        for line in tokens.tolist():
            last = line.index(self.end) if self.end in line else len(line)
            units = [self.units[number] for number in line[1:last]]
            # The letter that stands for the byte of a space.
            parts = [f"{u.removesuffix(WORD_END)}Ġ" if u.endswith(WORD_END) else u for u in units]
            prompts.append(bytes_to_text(parts).strip())
        return prompts

    @property
    def end(self) -> int:
        """The number of the end unit, where a text encoder pools."""
        return self._numbers[END]

    def identity(self) -> dict[str, Any]:
        """Return what a checkpoint must agree about: plain JSON values."""
        digest = hashlib.sha256(self.to_json().encode()).hexdigest()[:16]
        return {"vocabulary": digest, "size": len(self.units), "length": self.length}

    def to_json(self) -> str:
        """Return the whole vocabulary as a text, the same for equal ones."""
        stored = {"format": _FORMAT, **dataclasses.asdict(self)}
        return json.dumps(stored, ensure_ascii=False, separators=(",", ":"))

    @functools.cached_property
    def _numbers(self) -> dict[str, int]:
        return {unit: number for number, unit in enumerate(self.units)}

    @functools.cached_property
    def _backend(self) -> Any:
        return _backend(self._numbers, self.merges)

    def __getstate__(self) -> dict[str, Any]:
        # What is derived is made anew in the process that needs it.
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)


@dataclasses.dataclass(frozen=True)
class Tokenize:
    """A map of a data set's batches: "caption" becomes "tokens" (b, n) and "mask" (b, n)."""

    tokenizer: Tokenizer

    def __call__(self, batch: Mapping[str, np.ndarray], draws: object) -> dict[str, np.ndarray]:
        if "caption" not in batch:
            raise ValueError(f"the data set has no captions; a batch of it has {', '.join(batch)}")
        encoded = self.tokenizer.encode(batch["caption"].tolist())
        rest = {name: part for name, part in batch.items() if name != "caption"}
        return {**rest, "tokens": encoded.tokens, "mask": encoded.mask}


def learn(captions: Iterable[str], size: int = 2048, length: int = POSITIONS) -> Tokenizer:
    """Learn units from captions; the same captions always give the same units.

    512 units are bytes, within a word and at its end, so that every prompt can be written; the most
    frequent pair is merged until `size` is reached or nothing is left to merge.

    Args:
      captions: the training captions.
      size: the largest number of units, with the bytes and the start and end units: at least 514.
      length: positions of an encoded prompt.
    Raises:
      ValueError: `size` is too small, or there is no caption.
      ImportError: the package `tokenizers` is missing.
    """
    library = _library()
    letters = sorted(library.pre_tokenizers.ByteLevel.alphabet())
    base = [*letters, *(letter + WORD_END for letter in letters)]
    least = len(base) + 2
    if size < least:
        raise ValueError(f"expected at least {least} units, got {size}")
    backend = _backend({START: 0, END: 1}, ())
    # Given as special units the bytes are numbered by us: left to the trainer, their numbers, which
    # break ties between pairs, follow the order of a hash table and differ from run to run.
    trainer = library.trainers.BpeTrainer(
        vocab_size=size - 2, special_tokens=base, end_of_word_suffix=WORD_END, show_progress=False
    )
    counted = [caption for caption in captions if caption.strip()]
    if not counted:
        raise ValueError("there is no caption to learn units from")
    backend.train_from_iterator(counted, trainer)
    merges = tuple((a, b) for a, b in json.loads(backend.to_str())["model"]["merges"])
    units = dict.fromkeys([*base, *(first + second for first, second in merges), START, END])
    return Tokenizer(tuple(units), merges, length)


def read_clip(
    vocabulary: str | os.PathLike,
    merges: str | os.PathLike,
    *,
    length: int = POSITIONS,
    pad: str = END,
) -> Tokenizer:
    """Read CLIP's vocab.json and merges.txt, as they lie in a checkpoint's `tokenizer` folder.

    Args:
      vocabulary: JSON, unit -> number, numbers 0 to n - 1.
      merges: a pair of units a line; a first line "#version…" is passed over.
      length: positions of an encoded prompt.
      pad: the unit that fills up.
    Raises:
      ValueError: a file that cannot be read or is not of this form; the message names it.
    """
    try:
        numbers = json.loads(Path(vocabulary).read_text(encoding="utf-8"))
        if not isinstance(numbers, dict):
            raise ValueError(f"expected a mapping, got {numbers!r:.80}")
        units = tuple(sorted(numbers, key=numbers.__getitem__))
        if [numbers[unit] for unit in units] != list(range(len(units))):
            raise ValueError("expected numbers 0 to n - 1, each once")
    except (OSError, ValueError, TypeError) as error:
        raise ValueError(f"cannot read the vocabulary {vocabulary}: {error}") from error
    try:
        lines = Path(merges).read_text(encoding="utf-8").split("\n")
        pairs = _pairs(lines[1:] if lines[0].startswith("#version") else lines)
        return Tokenizer(units, pairs, length, pad)
    except (OSError, ValueError) as error:
        raise ValueError(f"cannot read {merges} with {vocabulary}: {error}") from error


def from_json(text: str) -> Tokenizer:
    """Return the tokenizer that `Tokenizer.to_json` wrote.

    Raises:
      ValueError: another text.
    """
    try:
        stored = json.loads(text)
        if stored["format"] != _FORMAT:
            raise ValueError(f"format {stored['format']!r}, expected {_FORMAT!r}")
        pairs = tuple((first, second) for first, second in stored["merges"])
        return Tokenizer(tuple(stored["units"]), pairs, stored["length"], stored["pad"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"cannot read the vocabulary: {error}") from error


def _pairs(lines: Sequence[str]) -> tuple[tuple[str, str], ...]:
    pairs = []
    for number, line in enumerate(lines, 1):
        if line.strip():
            parts = line.split()
            if len(parts) != 2:
                raise ValueError(f"expected two units, got {line!r:.80} (merge {number})")
            pairs.append((parts[0], parts[1]))
    return tuple(pairs)


def _rest(prompt: str, offsets: Sequence[tuple[int, int]], kept: int) -> str:
    """Return the prompt from the first word on that is not whole among the kept units."""
    if kept == len(offsets):
        return ""
    cut = offsets[kept][0]
    broken = re.split(r"\s", prompt[:cut])[-1]
    return " ".join(prompt[cut - len(broken) :].split())


def _library() -> Any:
    try:
        import tokenizers
    except ImportError as error:
        raise ImportError(
            "text needs the package tokenizers: pip install 'guidedflow[text]'"
        ) from error
    return tokenizers


def _backend(numbers: Mapping[str, int], merges: Sequence[tuple[str, str]]) -> Any:
    """Return the package's encoder: CLIP's normalisation and pieces, bytes, then the merges."""
    library = _library()
    cut, normal = library.pre_tokenizers, library.normalizers
    backend = library.Tokenizer(
        library.models.BPE(
            vocab=dict(numbers), merges=list(merges), end_of_word_suffix=WORD_END, unk_token=END
        )
    )
    backend.normalizer = normal.Sequence(
        [normal.NFC(), normal.Replace(library.Regex(r"\s+"), " "), normal.Lowercase()]
    )
    backend.pre_tokenizer = cut.Sequence(
        [
            cut.Split(library.Regex(_PIECES), behavior="removed", invert=True),
            cut.ByteLevel(add_prefix_space=False),
        ]
    )
    return backend
