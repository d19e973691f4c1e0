"""Programs of a config, compiled for devices that are not there."""

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, PyTree
from ml_collections import ConfigDict

from guidedflow.bundle import Bundle
from guidedflow.data import Dataset
from guidedflow.nn.capabilities import over_devices, unfused
from guidedflow.pipelines import GRIDS, SOLVERS, Method, guided_model
from guidedflow.target import Target
from guidedflow.training.build import Setup, build
from guidedflow.training.flops import counted
from guidedflow.training.parallel import abstract_state


class RefusedError(ValueError):
    """The compiler does not compile the program for this target; the message is one line."""


def setup_for(config: ConfigDict, target: Target, dataset: Dataset) -> Setup:
    """Return what a run is made of on devices that are not there.

    `pmap` runs on attached devices alone: "data" takes its place, which puts the same on each device
    and averages the same gradients.

    Raises:
      ValueError: as `build` has it.
    """
    if config.parallel.strategy in ("auto", "pmap"):
        config = config.copy_and_resolve_references()
        config.parallel.strategy = "data"
    return build(config, target=target, dataset=dataset)


def state_of(setup: Setup) -> PyTree:
    """Return shapes, dtypes and shardings of a run's state."""
    return abstract_state(setup.init, setup.strategy)


def compile_step(setup: Setup, state: PyTree) -> Any:
    """Compile a run's training step.

    Raises:
      RefusedError: the compiler refuses it.
    """
    rows = NamedSharding(setup.strategy.mesh, P(setup.strategy.mesh.axis_names))
    one = {**setup.dataset.take(1), "index": np.zeros(1, np.int32)}
    batch = {
        name: jax.ShapeDtypeStruct((setup.config.batch, *leaf.shape[1:]), leaf.dtype, sharding=rows)
        for name, leaf in one.items()
        if leaf.dtype != object
    }
    return _compiled(lambda: setup.strategy.compile(setup.step(), state, batch, _key()))


def compile_sampling(setup: Setup, method: Method, batch: int) -> tuple[Any, PyTree, float]:
    """Compile one chunk of a sampling job, its batch spread over all devices.

    Returns:
      the program, the parameters' shapes as it takes them, and its operations over all devices.
    Raises:
      RefusedError: the compiler refuses it.
      ValueError: the network is a classifier, or the batch does not divide over the devices.
    """
    if setup.task.output != "field":
        raise ValueError(f"config.task={setup.config.task!r} trains a network that draws no images")
    if batch % setup.target.count:
        raise ValueError(
            f"a batch of {batch} images does not divide over {setup.target.count} devices"
        )
    mesh = setup.target.mesh()
    whole, rows = NamedSharding(mesh, P()), NamedSharding(mesh, P("data"))
    ts = jnp.asarray(GRIDS[method.grid](method.steps, setup.path))

    def draw(network: Any) -> Any:
        def run(params: PyTree, noise: Array, cond: PyTree, keys: Array) -> Array:
            bundle = Bundle(
                network=network,
                params=params,
                path=setup.path,
                predicts=setup.predicts,
                condition=setup.parts.condition,
                image_shape=setup.dataset.image_shape,
                takes_scale=setup.takes_scale,
            )
            model = guided_model(bundle, method)
            return SOLVERS[method.solver](model, noise, ts, cond, keys, setup.path)

        return run

    def placed(tree: PyTree, sharding: NamedSharding) -> PyTree:
        return jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), tree
        )

    params = placed(jax.eval_shape(setup.init, jax.random.key(0)).ema, whole)
    inputs = jax.eval_shape(
        lambda: (
            jnp.zeros((batch, *setup.dataset.image_shape)),
            setup.parts.condition.example(batch),
            jax.random.split(jax.random.key(0), batch),
        )
    )
    arguments = (params, *placed(inputs, rows))
    network = over_devices(setup.network, setup.target.count)
    jitted = jax.jit(draw(network), out_shardings=rows)
    compiled = _compiled(lambda: jitted.lower(*arguments).compile())
    return compiled, params, counted(draw(unfused(network)), *arguments)


def _key() -> Any:
    return jax.eval_shape(lambda: jax.random.key(0))


def _compiled(compile_it: Any) -> Any:
    """Return what is compiled, a refusal as one line."""
    try:
        return compile_it()
    except jax.errors.JaxRuntimeError as error:
        raise RefusedError(_refusal(str(error))) from error


def _refusal(text: str) -> str:
    """Return the compiler's refusal as one line."""
    used = re.search(r"Used (\S+) of (\S+) (\w+)", text)
    if used:
        return f"out of memory: needs {used[1]} of {used[2]} {used[3]}"
    return " ".join(text.split())[:200]
