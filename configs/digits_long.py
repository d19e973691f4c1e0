"""The digits for longer and with a larger network: overnight on a CPU, for quality.

guidedflow train --config=configs/digits_long.py --workdir=runs/digits_long

On two cores of an Intel Xeon that other work shared a step took 1.0 s in a run of 24: five to six
hours for all 20,000. Not run to its end, so no figure stands here.
"""

from ml_collections import ConfigDict

from guidedflow.training.config import defaults


def get_config() -> ConfigDict:
    """One token a pixel, ten times the demo's steps, slower averaging, the best by held-out loss."""
    config = defaults()
    config.dataset.name = "digits"
    config.dataset.held_out = "test"
    config.network.preset = "digits-large"
    config.steps = 20_000
    config.batch = 128
    config.optimizer.learning_rate = 5e-4
    config.optimizer.warm_up = 500
    config.optimizer.weight_decay = 0.01
    config.ema.decay = 0.9995
    config.checkpoint.every = config.held_out.every = config.sample.every = 1000
    config.checkpoint.keep_best = 1
    config.sample.classes = 10
    return config
