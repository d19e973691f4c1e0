"""Networks by name: the published sizes for 256-pixel latents, U-Nets, and small ones.

A run or a caller gives another image size, channels and classes; those here only stand in for them.
"""

import dataclasses
from typing import Any

from flax import linen as nn

from guidedflow.models.classifier import Classifier
from guidedflow.models.dit import DiT
from guidedflow.models.unet import UNet
from guidedflow.models.unet_conditional import UNetConditional
from guidedflow.models.uvit import UViT
from guidedflow.registry import choose, nearest

# Peebles & Xie 2023, table 1.
_SIZES = {
    "S": {"width": 384, "depth": 12, "heads": 6},
    "B": {"width": 768, "depth": 12, "heads": 12},
    "L": {"width": 1024, "depth": 24, "heads": 16},
    "XL": {"width": 1152, "depth": 28, "heads": 16},
}
# Of the configurations that Bao et al. 2023 published with their code.
_UVIT_SIZES = {
    "S": {"width": 512, "depth": 13, "heads": 8},
    "M": {"width": 768, "depth": 17, "heads": 12},
    "L": {"width": 1024, "depth": 21, "heads": 16},
    "H": {"width": 1152, "depth": 29, "heads": 16},
}
# CLIP's text features are 768 wide in Stable Diffusion 1.
_TEXT = {"image_size": 32, "channels": 4, "token_width": 768}
_LATENTS = {"image_size": 32, "channels": 4, "num_classes": 1000, "double_channels": True}
# L has the width, depth and attention of public flags for ImageNet 64×64 (guided-diffusion); S and M are ours.
_UNETS = {
    "S": {"width": 64, "multipliers": (1, 2, 2), "blocks": 2, "attend": (2,)},
    "M": {"width": 128, "multipliers": (1, 2, 2, 2), "blocks": 3, "attend": (1, 2)},
    "L": {"width": 192, "multipliers": (1, 2, 3, 4), "blocks": 3, "attend": (1, 2, 3)},
}
_PIXELS = {"image_size": 32, "channels": 3, "num_classes": 10}
_DIGITS = {"image_size": 8, "channels": 1, "num_classes": 10}

PRESETS: dict[str, tuple[type[nn.Module], dict[str, Any]]] = {
    **{
        f"DiT-{size}/{patch}": (DiT, {**_LATENTS, **fields, "patch": patch})
        for size, fields in _SIZES.items()
        for patch in (2, 4, 8)
    },
    **{
        f"DiT-{size}/{patch}-text": (DiT, {**_TEXT, **fields, "patch": patch})
        for size, fields in _SIZES.items()
        for patch in (2, 4, 8)
    },
    **{
        f"U-ViT-{size}/{patch}": (UViT, {**_TEXT, **fields, "patch": patch})
        for size, fields in _UVIT_SIZES.items()
        for patch in (2, 4)
    },
    "SD1": (UNetConditional, {**_TEXT, "image_size": 64}),
    **{f"UNet-{size}": (UNet, {**_PIXELS, **fields}) for size, fields in _UNETS.items()},
    "small": (DiT, {**_PIXELS, "patch": 4, "width": 128, "depth": 4, "heads": 4}),
    "digits": (DiT, {**_DIGITS, "patch": 2, "width": 128, "depth": 4, "heads": 4}),
    "digits-large": (DiT, {**_DIGITS, "patch": 1, "width": 192, "depth": 6, "heads": 6}),
    "tiny": (DiT, {**_DIGITS, "patch": 4, "width": 16, "depth": 2, "heads": 2}),
    "digits-unet": (UNet, {**_DIGITS, "width": 32, "multipliers": (1, 2), "blocks": 1}),
    "digits-classifier": (Classifier, {**_DIGITS, "width": 32}),
    "tiny-unet": (UNet, {**_DIGITS, "width": 8, "multipliers": (1, 2), "blocks": 1}),
    "tiny-unet-text": (
        UNetConditional,
        {**_DIGITS, "width": 8, "multipliers": (1, 2), "blocks": 1, "attend": (1,), "heads": 2}
        | {"groups": 4},
    ),
    "tiny-uvit": (UViT, {**_DIGITS, "patch": 4, "width": 16, "depth": 3, "heads": 2}),
    "tiny-classifier": (Classifier, {**_DIGITS, "width": 8, "blocks": 1}),
}


def fields_of(name: str) -> list[str]:
    """Return the fields that the network of that name can be given.

    Raises:
      ValueError: an unknown name (the message says the nearest).
    """
    network, _ = choose("network preset", name, PRESETS)
    own = [field.name for field in dataclasses.fields(network)]
    return [field for field in own if field not in ("parent", "name")]


# Fields that follow from the data, the task and the device.
_GIVEN = ("image_size", "channels", "num_classes", "scalars", "dtype", "operations")


def settable(name: str) -> dict[str, Any]:
    """Return the fields of the network of that name that a config may set, with their types.

    All but those that follow from the data, the task and the device.

    Raises:
      ValueError: an unknown name (the message says the nearest).
    """
    network, _ = choose("network preset", name, PRESETS)
    free = [field for field in fields_of(name) if field not in _GIVEN]
    types = {field.name: field.type for field in dataclasses.fields(network)}
    return {field: types[field] for field in free}


def create(name: str, **overrides: Any) -> nn.Module:
    """Return the network of that name, with some of its fields changed.

    Args:
      name: a key of `PRESETS`, as "DiT-XL/2", "digits" or "tiny".
      overrides: fields of the network, as `image_size=(16, 8)` or `dtype=jnp.bfloat16`.
    Raises:
      ValueError: an unknown name or field (the message says the nearest), or fields that contradict
        one another.
    """
    network, fields = choose("network preset", name, PRESETS)
    known = fields_of(name)
    for override in overrides:
        if override not in known:
            hint = nearest(override, known)
            raise ValueError(f"unknown field {override!r} of {name}{hint}; known: {known}")
    return network(**{**fields, **overrides})
