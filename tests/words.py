"""A tokenizer of a few words, each one unit, that needs no captions to learn from."""

from guidedflow.conditions.tokenizer import END, START, WORD_END, Tokenizer

WORDS = ("red", "blue", "tan")


def word_tokenizer(length=6):
    """A tokenizer of which each of `WORDS` is one unit, and of whose letters any text is made."""
    letters = "abcdefghijklmnopqrstuvwxyz"
    units, merges = [START, END, *letters, *(c + WORD_END for c in letters)], []
    for word in WORDS:
        parts = [*word[:-1], word[-1] + WORD_END]
        while len(parts) > 1:
            merges.append((parts[0], parts[1]))
            parts[:2] = ["".join(parts[:2])]
            units.append(parts[0])
    return Tokenizer(tuple(dict.fromkeys(units)), tuple(dict.fromkeys(merges)), length)
