"""How many training steps a second a device gives: flow matching, AdamW and the moving average."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from guidedflow import losses, paths
from guidedflow.benchmark import (
    Apply,
    Workload,
    counted_flops,
    product_of,
    spread,
    timed,
)

LEARNING_RATE = 1e-4


def step_of(work: Workload, accumulate: int = 1) -> Callable[[], None]:
    """Compile the training step of `guidedflow train` and return a run of one step.

    Args:
      work: its noise stands for the data.
      accumulate: micro-batches a step.
    """
    import optax

    from guidedflow.training import state, step

    apply = Apply(work.network)
    null = jnp.int32(work.network.num_classes)

    def loss(params: PyTree, batch: Any, key: Array) -> Array:
        of_t, of_noise, of_drop = jax.random.split(key, 3)
        data, size = batch["image"], len(batch["image"])
        t = jax.random.uniform(of_t, (size,))
        noise = jax.random.normal(of_noise, data.shape)
        cond = losses.drop_condition(of_drop, batch["label"], null, 0.1)

        def model(x: Array, t: Array, cond: Any) -> Array:
            return apply(params, x, t, cond)

        return losses.flow_matching(model, paths.Linear(), data, noise, t, cond)

    optimizer = optax.adamw(LEARNING_RATE, weight_decay=0.0)
    update = step.make_step(
        loss,
        optimizer,
        ema_decay=step.ema_schedule(0.9999),
        learning_rate=lambda count: jnp.float32(LEARNING_RATE),
        accumulate=accumulate,
    )
    batch = {"image": work.noise, "label": work.labels}
    key = jax.random.key(0)
    # The state is donated: the workload's own parameters must outlive it.
    held = [state.create(jax.tree.map(jnp.copy, work.params), optimizer)]
    compiled = jax.jit(update, donate_argnums=0).lower(held[0], batch, key).compile()

    def run() -> None:
        held[0], metrics = compiled(held[0], batch, key)
        jax.block_until_ready((held[0], metrics))

    return run


def bench_training(
    work: Workload,
    repeats: int,
    report: Callable[[str], None],
    others: Mapping[str, Callable[[], None]],
    accumulate: int = 1,
) -> dict[str, Any]:
    """Measure the training step beside the device's peak and other programs' steps.

    Returns:
      steps_per_second, images_per_second, utilisation (three forward evaluations' operations a
      step: the backward pass takes two) and the seconds of every round.
    """
    report("compiling the training step")
    run = step_of(work, accumulate)
    dtype = getattr(work.network, "dtype", jnp.float32)
    product, operations = product_of(work.network, work.batch, dtype)
    seconds = timed({"training": run, **others, "product": product}, repeats, report)
    peak = operations / np.asarray(seconds.pop("product"))
    taken = np.asarray(seconds["training"])
    return {
        "accumulate": accumulate,
        "steps_per_second": spread(1 / taken),
        "images_per_second": spread(work.batch / taken),
        "utilisation": spread(3 * counted_flops(work) / taken / peak),
        "seconds": seconds,
    }


def line(figures: Mapping[str, Any]) -> str:
    """Return the figures of `bench_training` as one line."""
    rate = figures["steps_per_second"]
    return (
        f"training      {rate['median']:.3g} ({rate['min']:.3g} .. {rate['max']:.3g}) steps/s, "
        f"{figures['images_per_second']['median']:.3g} images/s, "
        f"utilisation {figures['utilisation']['median']:.0%}"
    )
