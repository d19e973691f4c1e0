"""Four CPU host devices, strict rank promotion; set before anything touches JAX."""

import os

# Virtual CPU devices can deadlock on few cores when the thread pool is sized from the core count.
os.environ.setdefault("NPROC", "16")
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=4"
)

import jax

jax.config.update("jax_numpy_rank_promotion", "raise")
