"""Class-conditional DiT on the 8×8 handwritten digits.

guidedflow train --config=configs/digits.py --workdir=runs/digits
"""

from ml_collections import ConfigDict

from guidedflow.training.config import defaults


def get_config() -> ConfigDict:
    """Linear path, velocity prediction, conditions dropped one time in ten, AdamW with cosine."""
    config = defaults()
    config.steps = 1500
    config.batch = 128
    # Four tokens an image: a quarter of the work of patches of 2, and faithful digits sooner.
    config.network.patch = 4
    config.optimizer.learning_rate = 2e-3
    config.optimizer.warm_up = 200
    config.ema.decay = 0.999
    return config
