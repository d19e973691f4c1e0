"""One process of a run of the one-layer network, for tests that kill it or run several.

python worker.py --workdir=… [any flag of guidedflow train]
"""

import os
import sys
from pathlib import Path

from guidedflow import cli
from guidedflow.commands import train

sys.path.insert(0, os.fspath(Path(__file__).parent))


def main(arguments):
    """Run `guidedflow train` on the tests' tiny config."""
    import conftest

    conftest.PRESETS["one layer"] = (conftest.OneLayer, {})
    train.load_config = lambda file: conftest.tiny_config()
    return cli.main(["train", "--config=tiny", "--resume", *arguments])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
