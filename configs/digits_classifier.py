"""Classifier of noised handwritten digits, whose gradient guides a generator.

guidedflow train --config=configs/digits_classifier.py --workdir=runs/digits-classifier
guidedflow sample --workdir=runs/digits --unconditional --classifier=runs/digits-classifier \\
  --classifier_scale=2 --out=grid.png

Meant for a CPU, as configs/digits.py. Not run to its end as it stands: no figure stands here.
"""

from ml_collections import ConfigDict

from guidedflow.training.config import defaults


def get_config() -> ConfigDict:
    """Cross-entropy over noised images at uniform times, with the path of configs/digits.py."""
    config = defaults()
    config.dataset.name = "digits"
    config.dataset.held_out = "test"
    config.task = "classifier"
    config.network.preset = "digits-classifier"
    config.steps = 1000
    config.batch = 128
    config.optimizer.learning_rate = 1e-3
    config.optimizer.warm_up = 100
    config.optimizer.weight_decay = 0.05
    config.sample.classes = 10
    return config
