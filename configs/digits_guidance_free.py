"""Class-conditional DiT on the digits that learns guided sampling from data alone, without a teacher.

guidedflow train --config=configs/digits_guidance_free.py --workdir=runs/digits-guidance-free
guidedflow sample --workdir=runs/digits-guidance-free --scale=2 --out=grid.png

Meant for a CPU, as configs/digits.py. Not run to its end as it stands: no figure stands here.
"""

from ml_collections import ConfigDict

from guidedflow.training.config import defaults


def get_config() -> ConfigDict:
    """Beta = 1 / w uniform in [0, 1), conditions dropped one time in ten."""
    config = defaults()
    config.dataset.name = "digits"
    config.dataset.held_out = "test"
    config.network.preset = "digits"
    config.task = "guidance_free"
    config.guidance_free.low = 0.0
    config.steps = 1500
    config.batch = 128
    config.network.patch = 4
    config.optimizer.learning_rate = 2e-3
    config.optimizer.warm_up = 200
    config.sample.classes = 10
    return config
