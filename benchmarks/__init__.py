"""Other programs on the same weights, for `guidedflow bench --against=...`; needs `guidedflow[peers]`.

Not part of the package: these modules import PyTorch and diffusers.
"""

from collections.abc import Callable

from guidedflow.benchmark import Workload
from guidedflow.benchmark.peers import Peer

from . import diffusers_dit, torch_dit

# Name to what makes it from a workload.
PEERS: dict[str, Callable[[Workload], Peer]] = {
    "torch": torch_dit.eager,
    "torch-compile": torch_dit.compiled,
    "diffusers": diffusers_dit.pipeline,
}

# Training steps of the same network: (workload, learning rate) to a run of one step.
TRAINING: dict[str, Callable[[Workload, float], Callable[[], None]]] = {
    "torch": torch_dit.training,
}
