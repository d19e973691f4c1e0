"""The U-Net told tokens against diffusers' UNet2DConditionModel, with made-up weights."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from guidedflow.models import UNetConditional

torch = pytest.importorskip("torch", reason="the peers extra (torch) is not installed")
diffusers = pytest.importorskip("diffusers", reason="the peers extra (diffusers) is not installed")


def parameters(state):
    """A torch state dict as the tree of names that it spells."""
    tree = {}
    for name, value in state.items():
        *path, last = re.sub(r"\.(\d+)", r"_\1", name).split(".")
        value = value.numpy()
        if path[-1] == "class_embedding":
            last = "embedding_table"
        elif last == "weight" and value.ndim == 1:
            last = "scale"
        elif last == "weight" and value.ndim == 4 and value.shape[-1] == 3:
            last, value = "kernel", value.transpose(2, 3, 1, 0)
        elif last == "weight":
            last, value = "kernel", value.reshape(value.shape[:2]).T
        node = tree
        for part in path:
            node = node.setdefault(part, {})
        node[last] = value
    return {"params": tree}


@pytest.mark.parametrize("scale_shift", [False, True])
def test_the_u_net_is_diffusers(scale_shift):
    torch.manual_seed(0)
    theirs = diffusers.UNet2DConditionModel(
        sample_size=8,
        in_channels=2,
        out_channels=2,
        block_out_channels=(8, 16),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        layers_per_block=2,
        norm_num_groups=4,
        cross_attention_dim=6,
        attention_head_dim=(2, 4),
        num_class_embeds=4,
        use_linear_projection=scale_shift,
        transformer_layers_per_block=2,
        resnet_time_scale_shift="scale_shift" if scale_shift else "default",
    ).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.normal_(0, 0.2)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 8, 8, 2)).astype(np.float32)
    t, label = np.array([0.37, 0.91], np.float32), np.array([1, 3])
    tokens = rng.normal(size=(2, 5, 6)).astype(np.float32)
    mask = np.arange(5) < np.array([[5], [2]])
    with torch.no_grad():
        expected = theirs(
            torch.from_numpy(x).movedim(-1, 1),
            torch.from_numpy(1000 * t),
            torch.from_numpy(tokens),
            class_labels=torch.from_numpy(label),
            encoder_attention_mask=torch.from_numpy(mask),
        ).sample.movedim(1, -1)
    net = UNetConditional(
        8, 2, 8, (1, 2), 2, (0,), heads=(2, 4), transformer_depth=2, groups=4, num_classes=3,
        scale_shift=scale_shift, token_width=6,
    )  # fmt: skip
    cond = {"label": jnp.asarray(label), "tokens": jnp.asarray(tokens), "mask": jnp.asarray(mask)}
    params = parameters(theirs.state_dict())
    made = jax.eval_shape(net.init, jax.random.key(0), jnp.asarray(x), jnp.asarray(t), cond)
    assert jax.tree.map(np.shape, params) == jax.tree.map(np.shape, made)
    found = jax.jit(net.apply)(params, jnp.asarray(x), jnp.asarray(t), cond)
    error = np.abs(np.asarray(found) - expected.numpy()).max()
    assert error <= 1e-4 * np.abs(expected.numpy()).max()
