"""guidedflow configs: list the configs that `guidedflow train --config=NAME` knows by name.

A config is a Python file with a function `get_config()`. To change one, copy it from the folder that is
printed last, or set its fields on the command line, as --config.steps=2000.
"""

import argparse

from guidedflow import config_files
from guidedflow.commands import Parser


def main(arguments: list[str]) -> int:
    """Print every config's name with the first line of its docstring, and where the files are."""
    Parser(
        prog="guidedflow configs",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    ).parse_args(arguments)
    described = config_files.descriptions()
    width = max(map(len, described), default=0)
    for name, line in described.items():
        print(f"{name:<{width}}  {line}")
    print(f"\nfiles: {config_files.folder()}")
    return 0
