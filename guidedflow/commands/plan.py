"""guidedflow plan: compile a config's program for TPUs that are not there, and say what it needs.

  guidedflow plan --config=imagenet256_dit_xl2 --topology=v5e:4x4 [--config.x.y=value]
  guidedflow plan --config=imagenet256_dit_xl2 --topology=v5e:4x4 --sample --scale=1.5 --batch=512

It compiles the training step, or with --sample the drawing of one batch, and prints memory, collectives
and operations of a device, from the compiler; seconds only as a lower bound from published peaks. Nothing
runs. The data need not be there: latents that are not have the shape of the network's preset, and
--image_shape and --classes say it of anything else. The compiler for TPUs comes with
pip install 'jax[tpu]', on Linux.
"""

import argparse
import dataclasses
import json
import os
import sys
from collections.abc import MutableMapping
from pathlib import Path

from absl import flags
from ml_collections import ConfigDict, config_flags

from guidedflow.commands import Parser
from guidedflow.commands.options import integer, number, words
from guidedflow.files import check_writable, replacing

# What keeps libtpu from looking for TPUs and their hosts, where the user has not decided otherwise.
QUIET = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}


def image_shape(text: str) -> tuple[int, int, int]:
    """Read a shape as 64x64x3."""
    sizes = text.split("x")
    if len(sizes) != 3 or not all(size.isdecimal() and int(size) for size in sizes):
        raise argparse.ArgumentTypeError(f"expected a shape as 64x64x3, got {text!r}")
    height, width, channels = map(int, sizes)
    return height, width, channels


def parser() -> argparse.ArgumentParser:
    """Return the options of `guidedflow plan`, without the fields of a config."""
    options = Parser(
        "guidedflow plan",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    options.add_argument("--config", required=True, help="a config by path or name")
    options.add_argument("--topology", required=True, help="chips and their slice, as v5e:4x4")
    options.add_argument(
        "--batch", type=integer(1), help="over all devices (default: the config's)"
    )
    options.add_argument("--strategy", help="over devices (default: the config's)")
    options.add_argument(
        "--compare",
        type=words,
        default=[],
        help="further topologies or strategies, as v6e:4x4,data",
    )
    options.add_argument("--image_shape", type=image_shape, help="of an example, as 64x64x3")
    options.add_argument("--classes", type=integer(1), help="of the data set")
    options.add_argument("--sample", action="store_true", help="plan sampling, and not training")
    options.add_argument("--solver", default="euler", help="of sampling (default euler)")
    options.add_argument("--steps", type=integer(1), default=50, help="of it (default 50)")
    options.add_argument("--scale", type=number, default=1.5, help="of guidance (default 1.5)")
    options.add_argument("--guidance", default="classifier-free", help="as of guidedflow sample")
    options.add_argument(
        "--propose",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="where a training step does not fit, compile others until one does (default)",
    )
    options.add_argument("--json", type=Path, help="file for the plan, also as JSON")
    return options


def parse(arguments: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """Return the options, and the fields of the config among the arguments."""
    fields = [argument for argument in arguments if argument.startswith("--config.")]
    given = parser().parse_args([one for one in arguments if one not in fields])
    if given.sample and not given.batch:
        raise ValueError("--sample needs --batch, images at a time over all devices")
    return given, fields


def with_fields(config: ConfigDict, fields: list[str]) -> ConfigDict:
    """Set fields of a config, given as --config.x.y=value.

    Raises:
      ValueError: an unknown field, or a value of another type.
    """
    line = ["guidedflow plan", *fields]
    values = flags.FlagValues()
    try:
        config_flags.DEFINE_config_dict("config", config, flag_values=values, sys_argv=line)
        values(line)
    except (AttributeError, KeyError) as error:
        raise ValueError(f"unknown config field {error.args[0]}") from error
    except (flags.Error, TypeError) as error:
        raise ValueError(str(error)) from error
    return values.config


def without_devices(environment: MutableMapping[str, str]) -> None:
    """Keep JAX to the CPU in this process, and libtpu quiet."""
    import jax

    for name, value in QUIET.items():
        environment.setdefault(name, value)
    jax.config.update("jax_platforms", "cpu")
    # Programs for devices that are not there cannot be read from the cache.
    jax.config.update("jax_compilation_cache_dir", None)


def main(arguments: list[str]) -> int:
    """Print the plan; return 0 where the program compiles, 1 where it does not fit."""
    given, fields = parse(arguments)
    without_devices(os.environ)
    from guidedflow import config_files, plan  # after JAX is told where to look
    from guidedflow.pipelines import Method

    config = with_fields(config_files.load(given.config), fields)
    config.batch = given.batch or config.batch
    config.parallel.strategy = given.strategy or config.parallel.strategy
    if given.json:
        check_writable(given.json)
    method = None
    if given.sample:
        config.accumulate = 1
        method = Method(
            scale=given.scale, solver=given.solver, steps=given.steps, guidance=given.guidance
        )
    topologies = [given.topology, *(one for one in given.compare if ":" in one)]
    for topology in topologies:
        plan.target_of(topology)  # before anything is compiled
    dataset = plan.dataset_for(config, given.image_shape, given.classes)
    plans = []
    for topology, strategy in [
        *((topology, config.parallel.strategy) for topology in topologies),
        *((given.topology, one) for one in given.compare if ":" not in one),
    ]:
        config.parallel.strategy = strategy
        made = plan.plan(config, topology, dataset, method)
        if made.refusal and method is None and given.propose:
            print(f"{topology}: {made.refusal}; looking for what fits", file=sys.stderr)
            made = dataclasses.replace(made, fits=plan.that_fit(made, config, dataset))
        plans.append(made)
    print(plan.as_table(plans))
    if given.json:
        with replacing(given.json) as temporary:
            temporary.write_text(json.dumps(plan.as_json(plans), indent=2) + "\n")
    return int(any(made.refusal for made in plans))
