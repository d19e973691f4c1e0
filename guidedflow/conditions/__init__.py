"""What a model is told: conditions, each described by one object.

A condition is a pytree of arrays with the batch first. Its description says how it is made of what a
user asks for or of a batch of data, what its null is, and how it is said in a title. Nothing else in
the package knows labels from prompts.
"""

from guidedflow.conditions.condition import Condition
from guidedflow.conditions.described import KINDS, describe, from_description
from guidedflow.conditions.images import Images
from guidedflow.conditions.labels import Labels
from guidedflow.conditions.named import Named, entries
from guidedflow.conditions.numbers import Numbers
from guidedflow.conditions.prompts import Prompts

__all__ = [
    "KINDS",
    "Condition",
    "Images",
    "Labels",
    "Named",
    "Numbers",
    "Prompts",
    "describe",
    "entries",
    "from_description",
]
