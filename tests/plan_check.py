"""Bytes that DiT-XL/2 moves between the chips of a slice, from the compiler for TPUs; no TPU is needed.

`make plan-check` runs it in an environment of its own, since that compiler takes 0.7 GB.
"""

import os
import sys

from guidedflow import config_files, plan
from guidedflow.commands.plan import without_devices

CONFIG, TOPOLOGY, MOST = "imagenet256_dit_xl2", "v5e:4x4", 4.1e9


def main():
    """Print the plan of a training step, and fail where it moves more or another thing than it may."""
    without_devices(os.environ)
    config = config_files.load(CONFIG)
    made = plan.plan(config, TOPOLOGY, plan.dataset_for(config, None, None))
    print(plan.as_table([made]))
    failures = []
    if made.refusal:
        failures.append(f"it does not compile: {made.refusal}")
    if made.bytes_moved > MOST:
        failures.append(f"collectives of {made.bytes_moved / 1e9:.2f} GB, at most {MOST / 1e9} GB")
    if made.state > 1.05 * made.ideal:
        failures.append(f"a state of {made.state} bytes a device, its even share is {made.ideal}")
    if made.warnings:
        failures.append(f"{len(made.warnings)} kinds of activations move")
    strange = set(made.moved) - {"all-gather", "all-reduce", "reduce-scatter"}
    if strange:
        failures.append(f"it has {', '.join(sorted(strange))}")
    if failures:
        sys.exit("plan-check: " + "; ".join(failures))


if __name__ == "__main__":
    main()
