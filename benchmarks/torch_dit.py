"""A DiT in PyTorch with fused attention, on the parameters of a `guidedflow.models.DiT`.

Written from Peebles & Xie 2023, as someone who only uses PyTorch would write it: what `guidedflow
bench --against=torch,torch-compile` measures.
"""

import copy
import itertools
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from guidedflow.benchmark import SCALE, Workload
from guidedflow.benchmark.peers import Peer
from guidedflow.models.dit import DiT
from guidedflow.nn.embeddings import grid_positions


class Block(nn.Module):
    """Attention and MLP, each between a modulated normalisation and a gate."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)
        self.modulation = nn.Linear(width, 6 * width)

    def forward(self, x: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(c).unsqueeze(1).chunk(6, -1)
        packed = self.qkv(modulated(x, shift1, scale1))
        q, k, v = packed.unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        x = x + gate1 * self.proj(mixed)
        hidden = F.gelu(self.fc1(modulated(x, shift2, scale2)), approximate="tanh")
        return x + gate2 * self.fc2(hidden)


def modulated(x: torch.Tensor, shift: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Normalise each token and put it on the condition's scale."""
    return F.layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + scale) + shift


class TorchDiT(nn.Module):
    """The network of a `guidedflow.models.DiT`: images b c h w, t in [0, 1], labels."""

    def __init__(self, source: DiT) -> None:
        super().__init__()
        width, values = source.width, source.patch**2 * source.channels
        self.patch, self.grid, self.time_scale = source.patch, source.grid, source.time_scale
        self.embed = nn.Linear(values, width)
        self.time1, self.time2 = nn.Linear(256, width), nn.Linear(width, width)
        self.labels = nn.Embedding(source.num_classes + 1, width)
        self.blocks = nn.ModuleList(
            Block(width, source.heads, round(source.mlp_ratio * width)) for _ in range(source.depth)
        )
        self.modulation = nn.Linear(width, 2 * width)
        self.last = nn.Linear(width, values * (2 if source.double_channels else 1))
        positions = torch.from_numpy(grid_positions(source.grid, width))
        self.register_buffer("positions", positions)
        frequencies = torch.exp(-math.log(10_000.0) * torch.arange(128) / 128)
        self.register_buffer("frequencies", frequencies)

    def forward(self, x: torch.Tensor, t: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        (rows, columns), p = self.grid, self.patch
        cut = x.unflatten(3, (columns, p)).unflatten(2, (rows, p))
        tokens = self.embed(cut.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)) + self.positions
        angles = self.time_scale * t[:, None] * self.frequencies
        waves = torch.cat([angles.cos(), angles.sin()], -1)
        c = F.silu(self.time2(F.silu(self.time1(waves))) + self.labels(labels))
        for block in self.blocks:
            tokens = block(tokens, c)
        shift, scale = self.modulation(c).unsqueeze(1).chunk(2, -1)
        values = self.last(modulated(tokens, shift, scale))
        parts = values.unflatten(2, (p, p, -1)).unflatten(1, (rows, columns))
        return parts.permute(0, 5, 1, 3, 2, 4).flatten(4).flatten(2, 3)


def linear(target: nn.Linear, source: Mapping[str, Any]) -> None:
    """Copy a kernel (d, k) and its bias into a layer that keeps (k, d)."""
    with torch.no_grad():
        target.weight.copy_(torch.from_numpy(np.array(source["kernel"]).T))
        target.bias.copy_(torch.from_numpy(np.array(source["bias"])))


def convert(source: DiT, params: Mapping[str, Any]) -> TorchDiT:
    """Return the network in PyTorch with the same parameters."""
    params = jax.device_get(params)
    network = TorchDiT(source)
    linear(network.embed, params["x_embedder"])
    linear(network.time1, params["t_embedder"]["mlp_0"])
    linear(network.time2, params["t_embedder"]["mlp_2"])
    with torch.no_grad():
        table = np.array(params["y_embedder"]["embedding_table"])
        network.labels.weight.copy_(torch.from_numpy(table))
    for index, block in enumerate(network.blocks):
        own = params[f"blocks_{index}"]
        linear(block.qkv, own["attn"]["qkv"])
        linear(block.proj, own["attn"]["proj"])
        linear(block.fc1, own["mlp"]["fc1"])
        linear(block.fc2, own["mlp"]["fc2"])
        linear(block.modulation, own["adaLN_modulation"])
    linear(network.modulation, params["final_layer"]["adaLN_modulation"])
    linear(network.last, params["final_layer"]["linear"])
    return network


def to_torch(images: Any) -> torch.Tensor:
    """Return images b h w c as b c h w."""
    return torch.from_numpy(np.array(images).transpose(0, 3, 1, 2).copy())


def make(work: Workload, wrap: Callable[[Any], Any]) -> Peer:
    """Return the guided Euler loop whose one step is `wrap`ped."""
    if work.solver != "euler":
        raise ValueError(f"--against=torch has the solver euler alone, got {work.solver}")
    network = convert(work.network, work.params).eval()
    noise = to_torch(work.noise)
    labels = torch.from_numpy(np.array(work.labels)).long()
    both = torch.cat([labels, torch.full_like(labels, work.network.num_classes)])
    channels = noise.shape[1]
    ts = torch.tensor(np.asarray(work.ts), dtype=torch.float32)

    def guided(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        output = network(torch.cat([x, x]), t.expand(2 * len(x)), both)[:, :channels]
        conditional, null = output.chunk(2)
        return null + SCALE * (conditional - null)

    def step(x: torch.Tensor, t: torch.Tensor, end: torch.Tensor) -> torch.Tensor:
        return x + (end - t) * guided(x, t)

    advance = wrap(step)

    def run() -> None:
        x = noise
        with torch.no_grad():
            for t, end in itertools.pairwise(ts):
                x = advance(x, t, end)

    def evaluate(t: float) -> np.ndarray:
        # Through the step that is timed: a step of length 1 without its beginning.
        with torch.no_grad():
            start = torch.tensor(t)
            velocity = advance(noise, start, start + 1) - noise
        return velocity.numpy().transpose(0, 2, 3, 1)

    return Peer(run, evaluate, relative=1e-5)


def eager(work: Workload) -> Peer:
    """Return the loop as PyTorch runs it, one operation after another."""
    return make(work, lambda step: step)


def compiled(work: Workload) -> Peer:
    """Return the loop with a step that `torch.compile` has compiled for this batch."""
    return make(work, lambda step: torch.compile(step, dynamic=False))


def training(work: Workload, learning_rate: float) -> Callable[[], None]:
    """Return one training step: velocity loss, AdamW, and the moving average of the parameters."""
    network = convert(work.network, work.params).train()
    average = copy.deepcopy(network).requires_grad_(False)
    optimizer = torch.optim.AdamW(network.parameters(), lr=learning_rate, weight_decay=0.0)
    data, labels = to_torch(work.noise), torch.from_numpy(np.array(work.labels)).long()
    kept, live = list(average.parameters()), list(network.parameters())
    channels, null = data.shape[1], work.network.num_classes

    def run() -> None:
        noise, t = torch.randn_like(data), torch.rand(len(data))
        dropped = torch.where(torch.rand(len(data)) < 0.1, null, labels)
        level = t[:, None, None, None]
        output = network(level * data + (1 - level) * noise, t, dropped)[:, :channels]
        optimizer.zero_grad()
        F.mse_loss(output, data - noise).backward()
        optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(kept, live, 1e-4)

    return run
