"""Student of the digits model that takes the guidance scale, so that sampling costs one branch.

guidedflow train --config=configs/digits.py --workdir=runs/digits
guidedflow train --config=configs/digits_distilled.py --workdir=runs/digits-distilled
guidedflow sample --workdir=runs/digits-distilled --scale=2 --out=grid.png

Meant for a CPU, as configs/digits.py. Not run to its end as it stands;
experiments/distilled_student.py holds figures of such a student.
"""

from ml_collections import ConfigDict

from guidedflow.training.config import defaults


def get_config() -> ConfigDict:
    """Scales from 0 (unconditional) to 5, learnt from the averaged parameters of runs/digits."""
    config = defaults()
    config.dataset.name = "digits"
    config.dataset.held_out = "test"
    config.network.preset = "digits"
    config.task = "distillation"
    config.distillation.teacher = "runs/digits"
    config.distillation.low = 0.0
    config.distillation.high = 5.0
    config.steps = 1500
    config.batch = 128
    config.network.patch = 4
    config.optimizer.learning_rate = 2e-3
    config.optimizer.warm_up = 200
    config.sample.classes = 10
    return config
