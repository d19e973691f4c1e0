"""What a model is told: conditions, each described by one object.

A condition is a pytree of arrays with the batch first. Its description says how it is made of what a
user asks for or of a batch of data, what its null is, and how it is said in a title. Nothing else in
the package knows labels from prompts.
"""

from guidedflow.conditions.condition import Condition
from guidedflow.conditions.described import KINDS, describe, from_description
from guidedflow.conditions.labels import Labels

__all__ = ["KINDS", "Condition", "Labels", "describe", "from_description"]
