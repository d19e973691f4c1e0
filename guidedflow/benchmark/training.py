"""Benchmark of the training step: flow matching, AdamW and the EMA, in steps per second."""

import dataclasses
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, PyTree

from guidedflow import losses, paths
from guidedflow.benchmark.counting import matmul_peak, matmuls, network_flops
from guidedflow.benchmark.timing import peak_memory, program_bytes, spread, timed
from guidedflow.benchmark.workload import Workload, image_channels
from guidedflow.nn.microbatching import micro_batches_for_device
from guidedflow.target import Target, attached

LEARNING_RATE = 1e-4
STRATEGIES = ("one", "auto", "pmap", "data", "fsdp", "mesh")


@dataclasses.dataclass(frozen=True)
class TrainingStep:
    """A compiled training step.

    Attributes:
      run: takes one step and waits.
      compile_seconds: lowering and compiling.
      peak_bytes: peak memory on one device, according to XLA.
    """

    run: Callable[[], None]
    compile_seconds: float
    peak_bytes: int


def strategy_of(name: str, mesh: tuple[int, int] = (0, 1)) -> Any:
    """Return a strategy of `guidedflow train` by its name.

    Args:
      name: a name of STRATEGIES; "one" is the first device alone, "auto" is pmap on several devices.
      mesh: sizes of the axes data and fsdp, for "mesh".
    Raises:
      ValueError: the mesh does not fit the devices.
    """
    from guidedflow.training import parallel

    target = attached()
    if name == "one":
        return _one_device(target)
    return parallel.STRATEGIES[name](target, *mesh)


def _one_device(target: Target) -> Any:
    """Return the sharded strategy on the first device only."""
    from guidedflow.training import parallel

    class OneDevice(parallel.Sharded):
        def place_batch(self, batch: PyTree) -> PyTree:
            return jax.device_put(batch, NamedSharding(self.mesh, P()))

    return OneDevice(Mesh(np.asarray(target.devices[:1]).reshape(1), ("data",)))


def loss_of(work: Workload) -> Callable[[PyTree, Any, Array], Array]:
    """Return the flow-matching loss of each example; a condition is dropped with probability 0.1."""
    apply, null = image_channels(work.network), jnp.int32(work.network.num_classes)

    def loss(params: PyTree, batch: Any, key: Array) -> Array:
        of_t, of_noise, of_drop = jax.random.split(key, 3)
        data, size = batch["image"], len(batch["image"])
        t = jax.random.uniform(of_t, (size,))
        noise = jax.random.normal(of_noise, data.shape)
        cond = losses.drop_condition(of_drop, batch["label"], null, 0.1)

        def model(x: Array, t: Array, cond: Any) -> Array:
            return apply(params, x, t, cond)

        return losses.flow_matching(model, paths.Linear(), data, noise, t, cond)

    return loss


def step_of(work: Workload, accumulate: int = 1, strategy: Any = None) -> TrainingStep:
    """Compile the training step of `guidedflow train`.

    Args:
      work: the workload; its noise is used as the data.
      accumulate: micro-batches per step; as in training, smaller ones are used if that suits the device.
      strategy: the sharding strategy; None is the first device alone.
    Raises:
      ValueError: the batch is not divisible by the number of devices.
    """
    import optax

    from guidedflow.training import state, step

    strategy = strategy_of("one") if strategy is None else strategy
    rows = work.batch // (strategy.mesh.devices.size * accumulate)
    optimizer = optax.adamw(LEARNING_RATE, weight_decay=0.0)
    update = step.make_step(
        loss_of(work),
        optimizer,
        ema_decay=step.ema_schedule(0.9999),
        learning_rate=lambda count: jnp.float32(LEARNING_RATE),
        accumulate=accumulate * micro_batches_for_device(work.network, rows),
        axis_name=strategy.axis_name,
        in_turn=attached().platform == "cpu",
    )
    batch = strategy.place_batch(
        {"image": np.asarray(work.noise), "label": np.asarray(work.labels)}
    )
    key = jax.device_put(jax.random.key(0), NamedSharding(strategy.mesh, P()))
    # The state is donated: the workload's own parameters must outlive it.
    fresh = state.create(jax.tree.map(jnp.copy, work.params), optimizer)
    held = [jax.device_put(fresh, strategy.shardings(fresh))]
    began = time.perf_counter()
    compiled = strategy.compile(update, held[0], batch, key)
    seconds = time.perf_counter() - began

    def run() -> None:
        held[0], metrics = compiled(held[0], batch, key)
        jax.block_until_ready((held[0], metrics))

    return TrainingStep(run, seconds, program_bytes(compiled))


def gradient_flops(work: Workload) -> float:
    """Return the operations of the matmuls in one step's loss and gradient, from their jaxpr.

    XLA's own count takes the body of a loop only once, and a step is a loop over micro-batches.
    """
    from guidedflow.training.flops import counted

    loss, key = loss_of(work), jax.random.key(0)
    batch = {"image": work.noise, "label": work.labels}

    def mean(params: PyTree) -> Array:
        return jnp.mean(loss(params, batch, key))

    return counted(jax.grad(mean), work.params)


def bench_training(
    work: Workload,
    repeats: int,
    report: Callable[[str], None],
    others: Mapping[str, Callable[[], None]],
    accumulate: int = 1,
    strategy: Any = None,
) -> dict[str, Any]:
    """Measure the training step together with the device's peak and other programs' steps.

    Returns:
      compile_seconds, steps_per_second, images_per_second (evaluations with their gradient per second),
      utilisation (a step has the operations of three forward evaluations, because the backward pass
      takes two), the ratio of the operations counted in the jaxpr to those, memory, and the seconds of
      every round.
    """
    report("compiling the training step")
    strategy = strategy_of("one") if strategy is None else strategy
    step = step_of(work, accumulate, strategy)
    memory = peak_memory(step.run, step.peak_bytes)
    dtype = getattr(work.network, "dtype", jnp.float32)
    products = matmuls(work.network, work.batch, dtype)
    runs = {name: product.run for name, product in products.items()}
    seconds = timed({"training": step.run, **others, **runs}, repeats, report)
    devices = int(strategy.mesh.devices.size)
    peak = devices * matmul_peak(products, seconds)[0]
    taken = np.asarray(seconds["training"])
    flops, _ = network_flops(work)
    return {
        "accumulate": accumulate,
        "strategy": type(strategy).__name__,
        "mesh": dict(strategy.mesh.shape),
        "compile_seconds": step.compile_seconds,
        "steps_per_second": spread(1 / taken),
        "images_per_second": spread(work.batch / taken),
        "evaluations_per_second": spread(work.batch / taken),
        "utilisation": spread(3 * flops / taken / peak),
        "counted_over_formula": gradient_flops(work) / (3 * flops),
        "memory": memory,
        "seconds": seconds,
    }


def line(figures: Mapping[str, Any]) -> str:
    """Return the figures of `bench_training` as two lines."""
    rate, memory = figures["steps_per_second"], figures["memory"]
    return (
        f"training      {rate['median']:.3g} ({rate['min']:.3g} .. {rate['max']:.3g}) steps/s, "
        f"{figures['images_per_second']['median']:.3g} images/s, each forward and backward; "
        f"utilisation {figures['utilisation']['median']:.0%}; "
        f"compiled in {figures['compile_seconds']:.1f} s\n"
        f"memory {memory['bytes'] / 1e6:.1f} MB, by {memory['from']}; {figures['strategy']} over "
        f"{' x '.join(f'{n} {axis}' for axis, n in figures['mesh'].items())}; the trace holds "
        f"{figures['counted_over_formula']:.2f} times three forward evaluations"
    )
