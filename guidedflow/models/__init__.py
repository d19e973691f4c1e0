"""Networks in Flax Linen: `network.apply({"params": p}, x, t, cond)` is a velocity field."""

from guidedflow.models.classifier import Classifier
from guidedflow.models.dit import DiT
from guidedflow.models.modulations import tabulated
from guidedflow.models.presets import PRESETS, create, fields_of, settable
from guidedflow.models.text import TextEncoder
from guidedflow.models.text_conditioned import TextConditioned
from guidedflow.models.unet import UNet
from guidedflow.models.unet_conditional import UNetConditional
from guidedflow.models.uvit import UViT
from guidedflow.nn.microbatching import in_groups
from guidedflow.nn.stacking import stack_blocks, unstack_blocks

__all__ = [
    "PRESETS",
    "Classifier",
    "DiT",
    "TextConditioned",
    "TextEncoder",
    "UNet",
    "UNetConditional",
    "UViT",
    "create",
    "fields_of",
    "in_groups",
    "settable",
    "stack_blocks",
    "tabulated",
    "unstack_blocks",
]
