"""A network that takes features of text, together with the text encoder that makes them."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from guidedflow.models.text import TextEncoder
from guidedflow.nn.capabilities import Capabilities, capabilities


class TextConditioned(nn.Module):
    """A network told prompts: `encode` turns unit numbers into features, and the call takes either.

    Attributes:
      network: takes "tokens" b n d with "mask" b n, "vector" b p, or both, as it declares in its
        capabilities; and whatever else the condition holds.
      text: prompts to features; learned with the network.
    Raises:
      ValueError: at construction, the network takes neither.
    """

    network: Any
    text: TextEncoder

    def __post_init__(self) -> None:
        if not capabilities(self.network).takes & {"tokens", "vector"}:
            raise ValueError(
                f"a {type(self.network).__name__} takes no features of text, which are tokens or a "
                f"vector; it takes {', '.join(sorted(capabilities(self.network).takes))}"
            )
        super().__post_init__()

    @property
    def capabilities(self) -> Capabilities:
        """Those of the network, which is told prompts besides; its modulations are no table."""
        own = capabilities(self.network)
        return dataclasses.replace(
            own, takes=own.takes | {"prompts"}, encodes=True, tabulated=False
        )

    @property
    def dtype(self) -> Any:
        """The network's compute dtype."""
        return getattr(self.network, "dtype", jnp.float32)

    def encode(self, cond: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return a condition with features in the prompts' place, those that the network takes.

        Args:
          cond: with "ids" b n and "mask" b n, and other entries, which stay; one without "ids" stays
            as it is.
        Returns:
          "tokens" b n d with "mask", and "vector" b p.
        """
        if "ids" not in cond:
            return cond
        # The encoder is causal: no position before the padding sees it.
        features = self.text(cond["ids"], cond["mask"])
        made = {"tokens": features.tokens, "mask": cond["mask"], "vector": features.pooled}
        takes = capabilities(self.network).takes
        names = {"tokens", "vector"} & takes | ({"mask"} if "tokens" in takes else set())
        rest = {name: leaf for name, leaf in cond.items() if name not in ("ids", "mask")}
        return {**rest, **{name: made[name] for name in sorted(names)}}

    def __call__(
        self, x: Float[Array, "b *d"], t: Float[Array, " b"], cond: Mapping[str, Any]
    ) -> Float[Array, "b *d"]:
        """Return what the network makes of (x, t) and the condition, encoded here if it is not yet."""
        return self.network(x, t, self.encode(cond))

    def perturbed(self, how: str) -> "TextConditioned":
        """Return it with the network's middle block perturbed, with the same parameters."""
        return self.clone(network=self.network.perturbed(how))
