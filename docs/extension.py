"""The extension of Griffe, which reads the docstrings for mkdocstrings, that rewrites them for the site."""

import sys
from pathlib import Path

import griffe

sys.path.insert(0, str(Path(__file__).parent))
from docstrings import rewritten


class Docstrings(griffe.Extension):
    """Rewrites every docstring once, as its object has been read."""

    def on_object(self, *, obj: griffe.Object, **_: object) -> None:
        """Rewrite one object's docstring."""
        if obj.docstring is not None:
            obj.docstring.value = rewritten(obj.docstring.value)
