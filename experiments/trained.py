"""The networks that the digits' experiments share, trained once and kept in runs/experiments/.

generator: the EMA parameters of configs/digits.py; also those of an early step, the "bad version" that
autoguidance guides away from. noisy_classifier: log p(class given x_t, t).
"""

import hashlib
import json
import runpy
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, PyTree

from experiments.results import say
from guidedflow import models, paths
from guidedflow.evaluation import Judge, fit_gaussian, frechet
from guidedflow.files import replacing
from guidedflow.samplers import draw_noise
from guidedflow.training.build import Setup, build
from guidedflow.training.config import identity
from guidedflow.training.grids import to_uint8
from guidedflow.training.state import create, leaf_names
from guidedflow.training.step import LossFn, make_step
from guidedflow.types import ModelFn

ROOT = Path(__file__).parents[1]
CACHE = ROOT / "runs" / "experiments"


def task_of_digits(steps: int = 0, **network: Any) -> Setup:
    """Return the run of configs/digits.py, perhaps shorter or with another network."""
    config = runpy.run_path(str(ROOT / "configs" / "digits.py"))["get_config"]()
    if steps:
        config.steps = steps
        config.optimizer.warm_up = min(config.optimizer.warm_up, steps // 4)
    for field, value in network.items():
        config.network[field] = value
    return build(config)


def train(
    loss_fn: LossFn,
    params: PyTree,
    optimizer: optax.GradientTransformation,
    batches: Any,
    steps: int,
    *,
    ema_decay: float,
    keep: Sequence[int] = (),
    name: str,
) -> list[PyTree]:
    """Return the averaged parameters after each of the steps in `keep`, and after the last.

    The average is young while the run is: its decay is min(ema_decay, (1 + step) / (10 + step)).
    """

    def decay(step: Array) -> Array:
        return jnp.minimum(ema_decay, (1 + step) / (10 + step))

    step = jax.jit(
        make_step(loss_fn, optimizer, ema_decay=decay, learning_rate=jnp.zeros_like),
        donate_argnums=0,
    )
    state, key = create(params, optimizer), jax.random.key(0)
    kept, recent, said = [], [], time.monotonic()
    for number in range(1, steps + 1):
        state, metrics = step(state, batches(number - 1), key)
        recent.append(metrics["loss"])
        if number in keep or number == steps:
            kept.append(jax.device_get(state.ema))
        if time.monotonic() - said > 10 or number == steps:
            said = time.monotonic()
            say(f"{name}: step {number} of {steps}, loss {float(np.mean(recent[-100:])):.4f}")
            recent = recent[-100:]
    return kept


def cached(name: str, facts: Any, make: Callable[[], PyTree], like: PyTree) -> PyTree:
    """Return what `make` makes, from the file that an earlier run with the same facts wrote."""
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:12]
    file = CACHE / f"{name}-{digest}.npz"
    if not file.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        made = make()
        with replacing(file) as temporary:
            np.savez(temporary, **leaf_names(made))
    with np.load(file) as arrays:
        leaves = [jnp.asarray(arrays[leaf]) for leaf in leaf_names(like)]
    return jax.tree.unflatten(jax.tree.structure(like), leaves)


def generator(task: Setup, early: Sequence[int] = ()) -> tuple[ModelFn, ...]:
    """Return the trained velocity field, and before it those of the steps `early`."""
    return tuple(task.model(params) for params in generator_params(task, early))


def generator_params(task: Setup, early: Sequence[int] = ()) -> list[PyTree]:
    """Return the averaged parameters of the steps `early`, and of the last."""
    config, abstract = task.config, jax.eval_shape(task.init, jax.random.key(0)).params

    def make() -> list[PyTree]:
        indices = np.arange(config.batch, dtype=np.int32)
        source = task.batches()
        return train(
            task.loss_fn,
            jax.jit(task.init)(jax.random.key(config.seed)).params,
            task.optimizer,
            lambda step: {**source[step], "index": indices},
            config.steps,
            ema_decay=config.ema.decay,
            keep=early,
            name="generator",
        )

    facts = [identity(config), config.steps, list(early)]
    return cached("generator", facts, make, [abstract] * (len(early) + 1))


def noisy_classifier(task: Setup, steps: int, preset: str = "digits-classifier") -> ModelFn:
    """Return log p(label given x_t), (x, t, label) -> b, of a network trained on noised digits."""
    network, path = models.create(preset), task.path
    data, batch = task.dataset.take(), task.config.batch

    def log_prob(params: PyTree, x: Array, t: Array, label: Array) -> Array:
        logits = network.apply({"params": params}, x, t)
        return jnp.take_along_axis(jax.nn.log_softmax(logits), label[:, None], 1)[:, 0]

    def loss_fn(params: PyTree, batch: dict[str, Array], key: Array) -> Array:
        key_t, key_noise = jax.random.split(key)
        image, label = batch["image"], batch["label"]
        t = jax.random.uniform(key_t, label.shape)
        noise = jax.random.normal(key_noise, image.shape)
        noised = jax.vmap(lambda d, n, s: paths.interpolate(path, d, n, s)[0])(image, noise, t)
        return -log_prob(params, noised, t, label)

    def batches(step: int) -> dict[str, Array]:
        chosen = np.random.default_rng(step).integers(len(data["label"]), size=batch)
        return {"image": data["image"][chosen], "label": data["label"][chosen]}

    x, t = jnp.zeros((1, *task.dataset.image_shape)), jnp.zeros(1)
    params = network.init(jax.random.key(1), x, t)["params"]
    schedule = optax.cosine_decay_schedule(2e-3, steps)

    def make() -> PyTree:
        optimizer = optax.adamw(schedule, weight_decay=0.05)
        return train(
            loss_fn, params, optimizer, batches, steps, ema_decay=0.99, name="noisy classifier"
        )[0]

    facts = [preset, repr(network), repr(path), batch, steps]
    return jax.tree_util.Partial(log_prob, cached("classifier", facts, make, params))


class Bench:
    """Draws and judges digits: the same labels, noise and judge for every method.

    Attributes:
      task: of the generator.
      judge: learned from training images; its distances are those to the held-out ones.
      labels: as many of each class as of any other.
    """

    def __init__(self, task: Setup, images: int) -> None:
        train, held_out = task.dataset.take(), task.held_out.take()
        self.task = task
        self.judge = Judge((train["image"], train["label"]), (held_out["image"], held_out["label"]))
        self.labels = jnp.arange(images, dtype=jnp.int32) % task.dataset.num_classes
        self._train = fit_gaussian(_flat(train["image"]))

    def noise(self, seed: int) -> Array:
        """Return the seed's noise, one image a label."""
        return draw_noise(jax.random.key(seed), (self.labels.size, *self.task.dataset.image_shape))

    def score(self, images: Array) -> dict[str, float]:
        """Return accuracy, both Fréchet distances to held-out images, and that to training images.

        Methods are chosen by the last, so that no choice looks at what it is judged by.
        """
        rounded = to_uint8(np.asarray(images)) / 127.5 - 1
        scores = self.judge.score(rounded, np.asarray(self.labels))
        return {
            "accuracy": scores.accuracy,
            "frechet_pixels": scores.frechet_pixels,
            "frechet_features": scores.frechet_features,
            "recall": scores.recall,
            "frechet_to_training": frechet(fit_gaussian(_flat(rounded)), self._train),
        }


def _flat(images: np.ndarray) -> np.ndarray:
    return images.reshape(len(images), -1)
