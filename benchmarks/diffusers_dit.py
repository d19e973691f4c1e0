"""The DiT of diffusers on the parameters of a `guidedflow.models.DiT`, run by its `DiTPipeline`."""

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import torch
from diffusers import DDIMScheduler, DiTPipeline, DiTTransformer2DModel
from torch import nn

from guidedflow.benchmark import SCALE, Workload
from guidedflow.benchmark.peers import Peer
from guidedflow.models.dit import DiT
from guidedflow.nn.embeddings import grid_positions

from .torch_dit import linear, to_torch


class NoDecoder(nn.Module):
    """Stands for the VAE, so that the loop alone is timed: latents come back as they are."""

    config = SimpleNamespace(scaling_factor=1.0)
    device = torch.device("cpu")

    def decode(self, latents: torch.Tensor) -> SimpleNamespace:
        return SimpleNamespace(sample=latents)


def convert(source: DiT, params: Mapping[str, Any]) -> DiTTransformer2DModel:
    """Return diffusers' network with the same parameters.

    It embeds time and label in every block anew, keeps q, k and v apart, and has other defaults for
    an epsilon and for the spacing of the time's frequencies than the DiT it was made for.
    """
    params = jax.device_get(params)
    network = DiTTransformer2DModel(
        num_attention_heads=source.heads,
        attention_head_dim=source.width // source.heads,
        in_channels=source.channels,
        out_channels=source.channels * (2 if source.double_channels else 1),
        num_layers=source.depth,
        sample_size=source.size[0],
        patch_size=source.patch,
        num_embeds_ada_norm=source.num_classes,
        norm_eps=1e-6,
    )
    with torch.no_grad():
        # A kernel (p q c, d) as a convolution's (d, c, p, q).
        patches = np.array(params["x_embedder"]["kernel"])
        kernel = patches.reshape(source.patch, source.patch, source.channels, source.width)
        network.pos_embed.proj.weight.copy_(torch.from_numpy(kernel.transpose(3, 2, 0, 1).copy()))
        network.pos_embed.proj.bias.copy_(torch.from_numpy(np.array(params["x_embedder"]["bias"])))
        positions = torch.from_numpy(grid_positions(source.grid, source.width))
        network.pos_embed.pos_embed.copy_(positions[None])
    for index, block in enumerate(network.transformer_blocks):
        fill(block, params[f"blocks_{index}"], params)
    linear(network.proj_out_1, params["final_layer"]["adaLN_modulation"])
    linear(network.proj_out_2, params["final_layer"]["linear"])
    return network.eval()


def fill(block: nn.Module, own: Mapping[str, Any], params: Mapping[str, Any]) -> None:
    """Copy one block, and the embedders that all blocks share in ours."""
    embedder = block.norm1.emb
    embedder.time_proj.downscale_freq_shift = 0
    linear(embedder.timestep_embedder.linear_1, params["t_embedder"]["mlp_0"])
    linear(embedder.timestep_embedder.linear_2, params["t_embedder"]["mlp_2"])
    table = np.array(params["y_embedder"]["embedding_table"])
    with torch.no_grad():
        embedder.class_embedder.embedding_table.weight.copy_(torch.from_numpy(table))
    linear(block.norm1.linear, own["adaLN_modulation"])
    kernels = np.split(np.array(own["attn"]["qkv"]["kernel"]), 3, axis=1)
    biases = np.split(np.array(own["attn"]["qkv"]["bias"]), 3)
    layers = (block.attn1.to_q, block.attn1.to_k, block.attn1.to_v)
    for layer, kernel, bias in zip(layers, kernels, biases, strict=True):
        linear(layer, {"kernel": kernel, "bias": bias})
    linear(block.attn1.to_out[0], own["attn"]["proj"])
    linear(block.ff.net[0].proj, own["mlp"]["fc1"])
    linear(block.ff.net[2], own["mlp"]["fc2"])


def pipeline(work: Workload) -> Peer:
    """Return DiTPipeline's own loop, DDIM scheduler included, over as many steps.

    Raises:
      ValueError: the pipeline cannot run this network: it has 1000 classes and square images.
    """
    if work.network.num_classes != 1000 or work.network.size[0] != work.network.size[1]:
        raise ValueError(
            "--against=diffusers: its pipeline takes 1000 classes and square images, got "
            f"{work.network.num_classes} classes and images of {work.network.size}"
        )
    network = convert(work.network, work.params)
    pipe = DiTPipeline(network, NoDecoder(), DDIMScheduler())
    pipe.set_progress_bar_config(disable=True)
    labels = np.array(work.labels)
    noise = to_torch(work.noise)

    def run() -> None:
        pipe(
            labels.tolist(), guidance_scale=SCALE, num_inference_steps=work.steps, output_type="np"
        )

    def evaluate(t: float) -> np.ndarray:
        both = torch.from_numpy(np.concatenate([labels, np.full_like(labels, 1000)])).long()
        timestep = torch.full((len(both),), work.network.time_scale * t)
        with torch.no_grad():
            output = network(torch.cat([noise, noise]), timestep, both).sample
        conditional, null = output[:, : noise.shape[1]].chunk(2)
        return (null + SCALE * (conditional - null)).numpy().transpose(0, 2, 3, 1)

    return Peer(run, evaluate, relative=1e-4)
