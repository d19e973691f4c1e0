"""From a bundle and a list of conditions to images."""

from guidedflow.pipelines.methods import GRIDS, GUIDANCE, SOLVERS, WEAKER, Method
from guidedflow.pipelines.sampling import guided_model, sample

__all__ = ["GRIDS", "GUIDANCE", "SOLVERS", "WEAKER", "Method", "guided_model", "sample"]
