"""How a run is asked to begin; beside its config."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Start:
    """What the user asks for.

    Attributes:
      resume: go on from the newest checkpoint, where there is one.
      override: fields that may differ from the checkpoint's.
      init_from: workdir of the run whose parameters a fresh run begins with.
      renames: parameter's path there to its path here.
    Raises:
      ValueError: options that do not go together.
    """

    resume: bool = False
    override: tuple[str, ...] = ()
    init_from: Path | None = None
    renames: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.override and not self.resume:
            raise ValueError(
                "--override goes with --resume: a new run takes its fields as they are"
            )
        if self.renames and self.init_from is None:
            raise ValueError("--rename goes with --init_from")
