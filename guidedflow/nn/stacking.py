"""A stack of equal blocks, unrolled or scanned, and its rematerialisation policy."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array

from guidedflow.registry import choose

# A policy says which values the forward pass keeps. The backward pass computes the others again.
_POLICIES: dict[str, Any] = {
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}
REMAT = ("none", *_POLICIES)


def check_remat(name: str) -> None:
    """Check the name of a policy.

    Raises:
      ValueError: not one of "none" (keep everything), "full" (keep nothing inside a block), "dots"
        (keep the matmuls with parameters, compute attention again).
    """
    choose("remat policy", name, dict.fromkeys(REMAT))


def run_stack(
    make_block: Callable[..., nn.Module],
    x: Any,
    c: Array,
    *,
    depth: int,
    scan: bool,
    perturbed: tuple[int, ...],
    perturbation: str,
    shared: tuple[Any, ...] = (),
) -> Any:
    """Run `depth` blocks one after another.

    Call it inside a module's compact method.  An unrolled stack has parameters `blocks_0`, `blocks_1`,
    ….  A scanned stack has one tree `blocks` with a leading axis of blocks, and only one block is compiled.

    Args:
      make_block: (name, perturbation) -> a block; `block(x, c, active, *shared)` with `active` whether
        its perturbation applies, None for always.
      x: the tokens; None to have what every block returns without any, stacked on a first axis.
      c: the condition b d, or each block's own, depth b k.
      depth: number of blocks.
      scan: whether to scan.
      perturbed: indices of the blocks that are perturbed.
      perturbation: what is done to them.
      shared: what every block is given besides.
    """
    own, collects = c.ndim == 3, x is None
    if not scan:
        collected = []
        for index in range(depth):
            kind = perturbation if index in perturbed else "none"
            block = make_block(f"blocks_{index}", kind)
            value = block(x, c[index] if own else c, None, *shared)
            if collects:
                collected.append(value)
            else:
                x = value
        return jnp.stack(collected) if collects else x
    is_perturbed = jnp.array([index in perturbed for index in range(depth)])

    def step(block: nn.Module, x: Any, c: Array, active: Array, *shared: Any) -> tuple[Any, Any]:
        value = block(x, c, active, *shared)
        return (None, value) if collects else (value, None)

    scanned = nn.scan(
        step,
        variable_axes={"params": 0},
        split_rngs={"params": True},
        in_axes=(0 if own else nn.broadcast, 0, *(nn.broadcast for _ in shared)),
        length=depth,
    )
    block = make_block("blocks", perturbation if perturbed else "none")
    return scanned(block, x, c, is_perturbed, *shared)[1 if collects else 0]


def rematerialized(block: type[nn.Module], policy: str, scan: bool) -> type[nn.Module]:
    """Return the block class; its backward pass computes again the values that the policy does not keep."""
    if policy == "none":
        return block
    # The body of a scan is a boundary already. The guard against common-subexpression elimination
    # would only prevent fusions in it.
    return nn.remat(block, policy=_POLICIES[policy], prevent_cse=not scan)


def stack_blocks(params: dict[str, Any], depth: int) -> dict[str, Any]:
    """Convert parameters of an unrolled stack to those of a scanned stack.

    Args:
      params: a network's parameters with entries `blocks_0` … `blocks_{depth − 1}`.
      depth: number of blocks.
    Returns:
      The same tree with one entry `blocks`, leaves stacked on a new first axis.
    """
    blocks = [params[f"blocks_{index}"] for index in range(depth)]
    rest = {name: value for name, value in params.items() if not name.startswith("blocks_")}
    return rest | {"blocks": jax.tree.map(lambda *leaves: jnp.stack(leaves), *blocks)}


def unstack_blocks(params: dict[str, Any], depth: int) -> dict[str, Any]:
    """Convert parameters of a scanned stack to those of an unrolled stack; inverse of `stack_blocks`."""
    rest = {name: value for name, value in params.items() if name != "blocks"}
    for index in range(depth):
        rest[f"blocks_{index}"] = jax.tree.map(lambda leaf, i=index: leaf[i], params["blocks"])
    return rest
