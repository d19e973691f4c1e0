"""One process of a run of the one-layer network, for tests that kill it or run several.

python worker.py --workdir=… [any flag of guidedflow train]
python worker.py sample --workdir=… --out=… then evaluate --workdir=…

FAULT="kill 40", "raise 70", "term in evaluation 20" or "term in drawing 20" brings that to this process,
after that step or while what is due at it runs.
"""

import os
import signal
import sys
from pathlib import Path

from jax._src import distributed

from guidedflow import cli
from guidedflow.commands import train

sys.path.insert(0, os.fspath(Path(__file__).parent))


def main(arguments):
    """Run `guidedflow` on the tests' tiny config, one command after another."""
    import conftest

    conftest.PRESETS["one layer"] = (conftest.OneLayer, {})
    train.load_config = lambda file: conftest.tiny_config()
    what, _, step = os.environ.get("FAULT", "").rpartition(" ")
    if what:
        prepare_fault(what, int(step))
    if arguments[0].startswith("--"):
        return cli.main(["train", "--config=tiny", "--resume", *arguments])
    while "then" in arguments:
        cut = arguments.index("then")
        if code := cli.main(arguments[:cut]):
            return code
        arguments = arguments[cut + 1 :]
    return cli.main(arguments)


def prepare_fault(what, step):
    """Wrap the part of the loop that the fault comes from."""
    from guidedflow.training import batches, loop

    if what in ("kill", "raise"):
        after = loop.Run._after_step

        def ending(run, *rest):
            after(run, *rest)
            if run.step == step and what == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            elif run.step == step:
                raise KeyError("a fault of this process alone")

        loop.Run._after_step = ending
    elif what == "term in drawing":
        loop.Run._draw = after_sigterm(loop.Run._draw, lambda run: run.step == step)
    elif what == "term in evaluation":
        judge = batches.HeldOut.__call__
        batches.HeldOut.__call__ = after_sigterm(
            judge, lambda judge, state: int(state.step) == step
        )
    else:
        raise ValueError(f"unknown fault {what!r}")


def after_sigterm(function, due):
    """Return `function`, with SIGTERM sent to this process where it begins and `due` says so.

    Of several processes it begins when all know: the others wait in it for this one.
    """

    def wrapped(*arguments):
        if due(*arguments):
            os.kill(os.getpid(), signal.SIGTERM)
            wait_until_all_know()
        return function(*arguments)

    return wrapped


def wait_until_all_know():
    """Ask the coordinator until every process has written how often it asked whether to stop.

    From then until they have agreed on a step a process holds the lock that it asks under.
    """
    import jax

    if jax.process_count() == 1:
        return
    client = distributed.global_state.client
    while len(client.key_value_dir_get("PREEMPTION_CURRENT_COUNTER/")) < jax.process_count():
        pass


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
