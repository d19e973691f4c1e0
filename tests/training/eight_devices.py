"""Twenty steps of every strategy on eight devices against one; prints what each device holds."""

import os
import sys
from pathlib import Path

# Of a flag that is given twice, the last counts.
os.environ["XLA_FLAGS"] = " ".join(
    [os.environ.get("XLA_FLAGS", ""), "--xla_force_host_platform_device_count=8"]
)
sys.path.insert(0, os.fspath(Path(__file__).parent))

import jax
import numpy as np
import test_parallel
from test_parallel import parallel, state_bytes

from guidedflow.target import attached


def main():
    """Print a line a strategy, and fail where it leaves the tolerance or its share of bytes."""
    alone, losses = test_parallel.train(None)
    total = sum(leaf.nbytes for leaf in jax.tree.leaves(alone))
    strategies = {
        "pmap": parallel.pmap(attached()),
        "data": parallel.data(attached()),
        "fsdp": parallel.fsdp(attached()),
        "data x fsdp": parallel.Sharded(parallel.make_mesh(attached(), 2, 4)),
    }
    for name, strategy in strategies.items():
        state, its_losses = test_parallel.train(strategy)
        np.testing.assert_allclose(its_losses, losses, rtol=1e-5)
        for got, want in zip(jax.tree.leaves(state), jax.tree.leaves(alone), strict=True):
            np.testing.assert_allclose(np.asarray(got), np.asarray(want), rtol=1e-4, atol=2e-6)
        share = max(state_bytes(state, device) for device in jax.devices()) / total
        print(f"{name}: {share:.2%} of the state's {total} bytes on a device")
        if name == "fsdp" and share > 1 / 8 + 0.05:
            sys.exit("fsdp holds more than 1/8 + 5%")


if __name__ == "__main__":
    main()
