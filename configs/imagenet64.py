"""Class-conditional DiT-B/4 on ImageNet pixels at 64×64, 256 tokens.

guidedflow prepare imagenet_resized/64x64
guidedflow train --config=configs/imagenet64.py --workdir=runs/imagenet64

Meant for eight GPUs or a slice of a TPU pod. The set decoded takes 16 GB: beyond what is kept in
memory by default, so that eight threads decode it anew in every epoch. Not run: the tests take a
step of it on made-up images with a small network, and trace its own.
"""

from ml_collections import ConfigDict

from guidedflow.training.config import defaults


def get_config() -> ConfigDict:
    """Linear path, times drawn logit-normally, DiT's optimiser with its batch of 256."""
    config = defaults()
    config.dataset.name = "imagenet_resized/64x64"
    config.dataset.held_out = "validation"
    config.dataset.flip = True
    config.network.preset = "DiT-B/4"
    config.network.double_channels = False
    config.network.scan_layers = True
    config.time.name = "logit_normal"
    config.steps = 400_000
    config.batch = 256
    config.optimizer.learning_rate = 1e-4
    config.optimizer.warm_up = 5000
    config.optimizer.schedule = "constant"
    config.ema.decay = 0.9999
    config.input.threads = 8
    config.log.every = 100
    config.checkpoint.every = config.held_out.every = config.sample.every = 10_000
    config.checkpoint.keep_every = 100_000
    config.sample.classes = 10
    return config
