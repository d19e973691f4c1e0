"""How a network is given the guidance scale: by its null branch, or as an input that it was trained with."""

import dataclasses
from collections.abc import Mapping
from typing import Protocol

import jax
from jaxtyping import Array

from guidedflow import distillation, guidance
from guidedflow.distillation import Student
from guidedflow.types import Cond, ModelFn, Scale


class TakesScale(Protocol):
    """How one network is guided without any other network.

    Attributes:
      scalars: names of the numbers that the network takes besides its condition.
      in_one_branch: whether the network takes the scale as a number, and needs no null branch.
    """

    @property
    def scalars(self) -> tuple[str, ...]: ...

    @property
    def in_one_branch(self) -> bool: ...

    def number(self, scale: float) -> float:
        """Return the number that the network takes for the scale w.

        Raises:
          ValueError: it was not trained for that scale.
        """

    def guided(self, model: ModelFn, null: Cond, number: Scale) -> ModelFn:
        """Return the guided model at a number, or at a schedule of numbers."""

    def unconditional(self, model: ModelFn, null: Cond) -> ModelFn:
        """Return the model without its condition."""


@dataclasses.dataclass(frozen=True)
class ByNull:
    """Classifier-free guidance with the network's own null branch."""

    scalars: tuple[str, ...] = ()
    in_one_branch: bool = False

    def number(self, scale: float) -> float:
        """Return w itself."""
        return scale

    def guided(self, model: ModelFn, null: Cond, number: Scale) -> ModelFn:
        """Return null + w·(cond − null)."""
        return guidance.classifier_free(model, null, number)

    def unconditional(self, model: ModelFn, null: Cond) -> ModelFn:
        """Return the null branch."""
        return guidance.fixed(model, null)


@dataclasses.dataclass(frozen=True)
class _Named:
    """Puts the condition and a number into the mapping that a network with `scalars` takes."""

    name: str

    def __call__(self, model: ModelFn, x: Array, t: Array, cond: Cond, number: Array) -> Array:
        return model(x, t, beside(cond, {self.name: number}))


def beside(cond: Cond, numbers: Mapping[str, Array]) -> Cond:
    """Return a condition with numbers beside it: a mapping's own, or of "label" and the numbers."""
    if not numbers:
        return cond
    return {**(cond if isinstance(cond, Mapping) else {"label": cond}), **numbers}


def student(model: ModelFn, name: str) -> Student:
    """Return a velocity field of {the condition, name} as a student (x, t, cond, number)."""
    return jax.tree_util.Partial(_Named(name), model)


@dataclasses.dataclass(frozen=True)
class ByScale:
    """A student of guidance distillation takes w itself, in [low, high]; w = 0 is unconditional."""

    low: float
    high: float
    scalars: tuple[str, ...] = ("scale",)
    in_one_branch: bool = True

    def number(self, scale: float) -> float:
        """Return w.

        Raises:
          ValueError: w lies outside [low, high].
        """
        if not self.low <= scale <= self.high:
            raise ValueError(
                f"this student was distilled for scales in [{self.low:g}, {self.high:g}], "
                f"got {scale:g}"
            )
        return scale

    def guided(self, model: ModelFn, null: Cond, number: Scale) -> ModelFn:
        """Return the student at that scale."""
        return distillation.at_scale(student(model, "scale"), number)

    def unconditional(self, model: ModelFn, null: Cond) -> ModelFn:
        """Return the student at w = 0."""
        return self.guided(model, null, self.number(0.0))


@dataclasses.dataclass(frozen=True)
class ByInverse:
    """A network of guidance-free training takes beta = 1/w, in [low, 1]."""

    low: float
    scalars: tuple[str, ...] = ("beta",)
    in_one_branch: bool = True

    def number(self, scale: float) -> float:
        """Return 1/w.

        Raises:
          ValueError: 1/w lies outside [low, 1].
        """
        if scale < 1 or 1 / scale < self.low:
            most = f"to {1 / self.low:g}" if self.low else "on"
            raise ValueError(f"this guidance-free model knows scales from 1 {most}, got {scale:g}")
        return 1 / scale

    def guided(self, model: ModelFn, null: Cond, number: Scale) -> ModelFn:
        """Return the network at that beta."""
        return distillation.at_scale(student(model, "beta"), number)

    def unconditional(self, model: ModelFn, null: Cond) -> ModelFn:
        """Return the network under the null condition at beta = 1."""
        return guidance.fixed(self.guided(model, null, 1.0), null)
