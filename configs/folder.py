"""Class-conditional DiT on a folder of your own pictures, 32×32×3 in 64 tokens.

guidedflow train --config=folder --config.dataset.name=folder:PATH --workdir=runs/pictures

PATH holds one subfolder a class. docs/tutorial.md goes through it. Meant for a CPU or one GPU. Not run to
its end as it stands: the tests train a smaller network with it.
"""

from ml_collections import ConfigDict

from guidedflow.training.config import defaults


def get_config() -> ConfigDict:
    """Linear path, velocity prediction, pictures mirrored at random, AdamW with cosine."""
    config = defaults()
    config.dataset.name = "folder:pictures"
    config.dataset.held_out = ""
    config.dataset.image_size = 32
    config.dataset.flip = True
    config.network.preset = "digits-large"
    config.network.patch = 4
    config.steps = 10_000
    config.batch = 64
    config.optimizer.learning_rate = 5e-4
    config.optimizer.warm_up = 500
    config.checkpoint.every = config.held_out.every = config.sample.every = 1000
    return config
