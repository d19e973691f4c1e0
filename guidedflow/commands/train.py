"""guidedflow train: train what a config file describes, in a workdir.

  guidedflow train --config=digits --workdir=runs/digits [--config.x.y=value] [--resume]

--config takes the path of a config file, or the name of one that `guidedflow configs` lists. With --resume
it may be left out: the run goes on with the config in its workdir.

  --override=FIELD[,FIELD]  with --resume: fields of the config that change on purpose from here on, as
                            optimizer.learning_rate,batch; WORKDIR/history.jsonl keeps what they were
  --init_from=WORKDIR       begin with the parameters of another run, those that fit by name and shape
  --rename=OLD:NEW[,…]      names of parameters there to names here, or of all below a name

Several hosts: the same command on each, with --distributed where a cluster says who is who (SLURM,
Open MPI, Cloud TPU, TPU nodes of GKE), or with --coordinator=host:port --process_count=N --process_index=I.

SIGTERM saves and ends the run with exit code 0, or with --stop_code=N where a scheduler starts again only
what failed.
"""

import logging
import os
import sys
from collections import Counter
from pathlib import Path

from absl import flags
from ml_collections import ConfigDict, config_flags

from guidedflow.config_files import load as load_config
from guidedflow.training import config as configs
from guidedflow.training import config_reference, processes, workdir
from guidedflow.training.config_check import open_network
from guidedflow.training.options import Start


def _run_flags() -> flags.FlagValues:
    values = flags.FlagValues()
    flags.DEFINE_string("workdir", None, "folder of the run", flag_values=values)
    flags.DEFINE_bool("resume", False, "go on from the newest checkpoint", flag_values=values)
    flags.DEFINE_list(
        "override", [], "fields that may differ from the checkpoint's", flag_values=values
    )
    flags.DEFINE_string("init_from", None, "workdir to begin from", flag_values=values)
    flags.DEFINE_list("rename", [], "old:new names of parameters", flag_values=values)
    flags.DEFINE_integer(
        "stop_code", 0, "exit code of a run that was stopped, and saved", flag_values=values
    )
    flags.DEFINE_bool("distributed", False, "join the cluster's processes", flag_values=values)
    flags.DEFINE_string("coordinator", None, "host:port of process 0", flag_values=values)
    flags.DEFINE_integer("process_count", None, "processes in all", flag_values=values)
    flags.DEFINE_integer("process_index", None, "this process, from 0", flag_values=values)
    return values


def _config(files: list[str], line: list[str]) -> ConfigDict:
    """Return the config that the command line names, or that of the run it goes on with."""
    if files:
        return load_config(files[0])
    values = _run_flags()
    try:
        values(line, known_only=True)
    except flags.Error as error:
        raise ValueError(str(error)) from error
    if not (values.resume and values.workdir):
        raise ValueError("--config is missing: guidedflow train --config=… --workdir=…")
    return configs.from_resolved(workdir.read_config(Path(values.workdir)))


_NETWORK = "--config.network."


def _open_network(config: ConfigDict, arguments: list[str]) -> None:
    """Let flags set any field of the network that they name or the config has."""
    given = [one.removeprefix(_NETWORK) for one in arguments if one.startswith(_NETWORK)]
    fields = {name: value for name, _, value in (one.partition("=") for one in given)}
    open_network(config, list(fields), fields.get("preset", config.network.preset))


def start_of(values: flags.FlagValues) -> Start:
    """Return how the run is to begin.

    Raises:
      ValueError: options that do not go together, or a renaming that is no old:new.
    """
    renames = {}
    for pair in values.rename:
        old, _, new = pair.partition(":")
        if not old or not new:
            raise ValueError(f"--rename takes old:new, got {pair!r}")
        renames[old] = new
    origin = Path(values.init_from) if values.init_from else None
    return Start(values.resume, tuple(values.override), origin, renames)


def parse(arguments: list[str]) -> flags.FlagValues:
    """Read the command line.

    Raises:
      ValueError: unknown or repeated flags, fields or files, values of another type.
    """
    names = [argument.split("=")[0] for argument in arguments if argument.startswith("--")]
    repeated = [name for name, count in Counter(names).items() if count > 1]
    if repeated:
        raise ValueError(f"{repeated[0]} is given more than once")
    files = [a.removeprefix("--config=") for a in arguments if a.startswith("--config=")]
    rest = [argument for argument in arguments if not argument.startswith("--config=")]
    line = ["guidedflow train", *rest]
    config = _config(files, line)
    if "network" in config:
        _open_network(config, rest)
    values = _run_flags()
    try:
        config_flags.DEFINE_config_dict("config", config, flag_values=values, sys_argv=line)
        unexpected = values(line)[1:]
    except (AttributeError, KeyError) as error:
        raise ValueError(f"unknown config field {error.args[0]}") from error
    except (flags.Error, TypeError) as error:
        raise ValueError(str(error)) from error
    if unexpected:
        raise ValueError(f"unexpected argument {unexpected[0]!r}")
    if values.workdir is None:
        raise ValueError("--workdir is missing: guidedflow train --config=… --workdir=…")
    return values


def _not_of_a_save(record: logging.LogRecord) -> bool:
    return record.module != "future"


def _say_failed_saves_once() -> None:
    """Keep the traces of orbax's threads off the screen: a failed save ends the run with one line.

    Each thread of the save logs its own, and writes that are under way report to an event loop that is
    closed by then. GUIDEDFLOW_TRACEBACK=1 shows them.
    """
    if os.environ.get("GUIDEDFLOW_TRACEBACK"):
        return
    logging.getLogger("absl").addFilter(_not_of_a_save)
    before = sys.unraisablehook

    def hook(what: "sys.UnraisableHookArgs") -> None:
        if str(what.exc_value) != "Event loop is closed":
            before(what)

    sys.unraisablehook = hook


def main(arguments: list[str]) -> int:
    """Train; return 0 when the last step is reached, --stop_code when the run stopped as asked."""
    if arguments in (["--help"], ["-h"]):
        print(__doc__)
        print("The fields of a config, with their defaults:\n")
        print(config_reference.as_text(config_reference.fields()))
        return 0
    values = parse(arguments)
    start = start_of(values)
    _say_failed_saves_once()
    processes.join(
        values.coordinator, values.process_count, values.process_index, cluster=values.distributed
    )
    from guidedflow.training.loop import train  # after the processes have joined

    outcome = train(values.config, Path(values.workdir), start=start)
    return values.stop_code if outcome.stopped else 0
