"""The subcommands of `guidedflow`, one a module: `main(arguments) -> exit code`."""

import argparse
from typing import NoReturn


class Parser(argparse.ArgumentParser):
    """An argument parser whose complaint is a ValueError, so that all errors read alike."""

    def error(self, message: str) -> NoReturn:
        """Raise ValueError with the complaint.

        Raises:
          ValueError: always.
        """
        raise ValueError(message)
