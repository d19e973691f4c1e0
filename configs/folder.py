"""Class-conditional DiT on a folder of your own pictures, 32×32×3 in 64 tokens.

guidedflow train --config=folder --config.dataset.name=folder:PATH --workdir=runs/pictures

PATH holds one subfolder a class. One picture in ten is held out, for the loss and for `evaluate`; where PATH
has folders of its own for that, --config.dataset.split=train --config.dataset.held_out=test takes them.
docs/tutorial.md goes through it. Meant for a CPU or one GPU. Not run to its end as it stands: the tests train
a smaller network with it.
"""

from ml_collections import ConfigDict

from guidedflow.training.config import defaults


def get_config() -> ConfigDict:
    """Linear path, velocity prediction, pictures mirrored at random, AdamW with cosine."""
    config = defaults()
    config.dataset.name = "folder:pictures"
    config.dataset.split = "train[:90%]"
    config.dataset.held_out = "train[90%:]"
    config.dataset.image_size = 32
    config.dataset.flip = True
    config.network.preset = "small"
    config.steps = 3000
    config.batch = 32
    config.optimizer.learning_rate = 1e-3
    config.checkpoint.every = config.held_out.every = config.sample.every = 500
    return config
