"""Class-conditional DiT on MNIST, 28×28 pixels in 49 tokens.

guidedflow prepare mnist
guidedflow train --config=configs/mnist.py --workdir=runs/mnist

Meant for one GPU. Not run: the tests take a step of it on made-up images with a small network, and
trace its own.
"""

from ml_collections import ConfigDict

from guidedflow.training.config import defaults


def get_config() -> ConfigDict:
    """Linear path, velocity prediction, AdamW with cosine."""
    config = defaults()
    config.dataset.name = "mnist"
    config.dataset.held_out = "test"
    config.network.preset = "digits-large"
    config.network.patch = 4
    config.steps = 20_000
    config.batch = 256
    config.optimizer.learning_rate = 5e-4
    config.optimizer.warm_up = 500
    config.ema.decay = 0.9995
    config.checkpoint.every = config.held_out.every = config.sample.every = 1000
    config.sample.classes = 10
    return config
