"""Networks in Flax Linen: `network.apply({"params": p}, x, t, cond)` is a velocity field."""

from guidedflow.models.classifier import Classifier
from guidedflow.models.dit import DiT
from guidedflow.models.grouping import in_groups
from guidedflow.models.modulations import tabulated
from guidedflow.models.presets import PRESETS, create
from guidedflow.models.stacking import stack_blocks, unstack_blocks
from guidedflow.models.text import TextEncoder
from guidedflow.models.unet import UNet

__all__ = [
    "PRESETS",
    "Classifier",
    "DiT",
    "TextEncoder",
    "UNet",
    "create",
    "in_groups",
    "stack_blocks",
    "tabulated",
    "unstack_blocks",
]
