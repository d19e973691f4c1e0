"""Class-conditional DiT-S/2 on CIFAR-10 pixels, 32×32×3 in 256 tokens.

guidedflow prepare cifar10
guidedflow train --config=configs/cifar10.py --workdir=runs/cifar10

Meant for one GPU or several. Not run: the tests take a step of it on made-up images with a small
network, and trace its own.
"""

from ml_collections import ConfigDict

from guidedflow.training.config import defaults


def get_config() -> ConfigDict:
    """Linear path, times drawn logit-normally, mirrored images."""
    config = defaults()
    config.dataset.name = "cifar10"
    config.dataset.held_out = "test"
    config.dataset.flip = True
    config.network.preset = "DiT-S/2"
    config.network.double_channels = False
    config.time.name = "logit_normal"
    config.steps = 400_000
    config.batch = 256
    config.optimizer.learning_rate = 2e-4
    config.optimizer.warm_up = 5000
    config.ema.decay = 0.9999
    config.log.every = 100
    config.checkpoint.every = config.held_out.every = config.sample.every = 10_000
    config.checkpoint.keep_every = 100_000
    config.sample.classes = 10
    return config
