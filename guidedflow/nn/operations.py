"""The operations that networks spend their time in, behind one object that a network is given.

A network calls `linear`, `attention`, `self_attention`, `adaptive_normalize` and `convolve` of the
object in its field `operations` and knows nothing of devices. `XLA` leaves them to XLA's compiler, in
the form that suits a platform; another object with the same methods takes its place.
"""

import dataclasses
import functools
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from einops import rearrange
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float

from guidedflow.nn.attention import attention, pick
from guidedflow.nn.normalization import modulate, normalize
from guidedflow.nn.vmapped_rows import fold_mapped
from guidedflow.target import attached, check_platform

# Measured on two cores with DiT-S/2: of 256 to 4096 token rows a turn, 1024 gave the most evaluations.
CPU_ROWS = 1024


class Operations(Protocol):
    """What a network calls. An implementation is frozen and compares by value, since jit keys on it.

    Attributes:
      name: "xla", or of kernels.
      platform: "cpu", "gpu" or "tpu".
      devices: how many devices a batch is spread over.
      rows_per_turn: token rows that are best evaluated together, or None for the whole batch.
    """

    @property
    def name(self) -> str: ...

    @property
    def platform(self) -> str: ...

    @property
    def rows_per_turn(self) -> int | None: ...

    @property
    def devices(self) -> int: ...

    def over(self, devices: int) -> "Operations":
        """Return the operations for a batch that is spread over so many devices, to draw with."""

    def linear(
        self,
        x: Float[Array, "rows d"],
        kernel: Float[Array, "d k"],
        bias: Float[Array, " k"],
        gelu: bool = False,
    ) -> Float[Array, "rows k"]:
        """Return x·kernel + bias, or with GELU (hyperbolic-tangent form) of x for x."""

    def matmul(self, x: Float[Array, "rows d"], kernel: Float[Array, "d k"]) -> Array:
        """Return x·kernel."""

    def attention(self, q: Array, k: Array, v: Array, mask: Array | None = None) -> Array:
        """Attend from `q` to `k` and `v`, see `nn.attention.attention`."""

    def attention_name(self, dtype: Any) -> str:
        """Return which attention runs for this dtype."""

    def self_attention(self, packed: Float[Array, "b n three_h_d"], heads: int) -> Array:
        """Attend from every token to every token; features in order (q k v), head, d."""

    def adaptive_normalize(self, x: Array, shift: Array, scale: Array) -> Array:
        """Return (1 + scale)·normalize(x) + shift, tokens normalised over their features."""

    def convolve(self, x: Array, kernel: Array, stride: int) -> Array:
        """Convolve b h w c with an odd square kernel, zeros around the image."""

    def whole(self, parameter: Array) -> Array:
        """Return a parameter as a computation needs it, gathered where a mesh has it in shards."""


@dataclasses.dataclass(frozen=True)
class XLA:
    """Operations as XLA compiles them for a platform.

    Attributes:
      platform: "cpu", "gpu" (or "cuda") or "tpu"; by default what is attached when it is made.
      attention_backend: see `nn.attention.pick`.
      devices: how many devices a batch is spread over; an axis that `vmap` adds is then not folded
        into the rows, which would tear them from their devices.
      mesh: in training, the mesh that the batch is spread over, on all its axes. Rows then stay where
        they are, and parameters are gathered where they are used: what moves between devices is
        parameters and their gradients, never activations.
    Raises:
      ValueError: an unknown platform or backend.
    """

    platform: str = ""
    attention_backend: str = "auto"
    devices: int = 1
    mesh: Mesh | None = None

    def __post_init__(self) -> None:
        platform = check_platform(self.platform) if self.platform else attached().platform
        object.__setattr__(self, "platform", platform)
        pick(self.attention_backend, platform, jnp.float32)

    @property
    def name(self) -> str:
        """XLA."""
        return "xla"

    def over(self, devices: int) -> "XLA":
        """Return the operations for a batch that is spread over so many devices, to draw with."""
        return dataclasses.replace(self, devices=devices, mesh=None)

    def attention_name(self, dtype: Any) -> str:
        """Return which attention runs for this dtype."""
        name, _ = pick(self.attention_backend, self.platform, dtype)
        return name if self._folds or name != "cpu" else "xla"

    @property
    def rows_per_turn(self) -> int | None:
        """About 1024 rows on a CPU, whose caches then hold what lies between two products."""
        return CPU_ROWS * self.devices if self.platform == "cpu" else None

    @property
    def _folds(self) -> bool:
        # Accelerators' compilers fold a mapped axis themselves.
        return self.platform == "cpu" and self.devices == 1 and self.mesh is None

    def whole(self, parameter: Array) -> Array:
        """Return a parameter as a computation needs it, gathered where the mesh has it in shards."""
        if self.mesh is None:
            return parameter
        return jax.lax.with_sharding_constraint(parameter, NamedSharding(self.mesh, P()))

    def _in_place(self, x: Float[Array, "rows *d"]) -> Array:
        """Keep rows on their devices, where they divide over them."""
        if self.mesh is None or x.shape[0] % self.mesh.size:
            return x
        rows = P(self.mesh.axis_names, *(None for _ in x.shape[1:]))
        return jax.lax.with_sharding_constraint(x, NamedSharding(self.mesh, rows))

    def matmul(self, x: Float[Array, "rows d"], kernel: Float[Array, "d k"]) -> Array:
        """Return x·kernel in their dtype, accumulated in float32 or wider on a CPU."""
        if self._folds:
            return folded_matmul(x, kernel)
        return self._in_place(self._in_place(x) @ self.whole(kernel))

    def linear(
        self,
        x: Float[Array, "rows d"],
        kernel: Float[Array, "d k"],
        bias: Float[Array, " k"],
        gelu: bool = False,
    ) -> Float[Array, "rows k"]:
        """Return x·kernel + bias, or with GELU of x for x."""
        return self.matmul(recomputed_gelu(x) if gelu else x, kernel) + self.whole(bias)[None]

    def attention(self, q: Array, k: Array, v: Array, mask: Array | None = None) -> Array:
        """Attend from `q` to `k` and `v`, see `nn.attention.attention`."""
        return attention(q, k, v, mask, backend=self.attention_name(q.dtype))

    def self_attention(self, packed: Float[Array, "b n three_h_d"], heads: int) -> Array:
        """Attend from every token to every token; features in order (q k v), head, d."""
        q, k, v = rearrange(packed, "b n (three h d) -> three b n h d", three=3, h=heads)
        return rearrange(self.attention(q, k, v), "b n h d -> b n (h d)")

    def adaptive_normalize(
        self, x: Float[Array, "b n d"], shift: Float[Array, "b d"], scale: Float[Array, "b d"]
    ) -> Float[Array, "b n d"]:
        """Return (1 + scale)·normalize(x) + shift; a derivative keeps the arguments alone."""
        return _recomputed_normalize(x, shift, scale)

    def convolve(self, x: Array, kernel: Array, stride: int) -> Array:
        """Convolve b h w c with an odd square kernel, zeros around the image.

        On a CPU it runs as one product of matrices over gathered neighbourhoods: XLA's CPU
        convolutions take some 25 times as long for the gradient of the kernel inside a loop, where
        gradient accumulation puts it, and products fold an axis that `vmap` adds.
        """
        side, features = kernel.shape[0], kernel.shape[-1]
        if self._folds:
            near = _neighbourhoods(x, side, stride)
            rows = near.reshape(-1, near.shape[-1])
            return self.matmul(rows, kernel.reshape(-1, features)).reshape(
                *near.shape[:-1], features
            )
        convolution = _convolutions[stride]
        return self._in_place(convolution(self._in_place(x), self.whole(kernel)))


# A derivative computes element by element what lies between two products again, from what the first
# one gave: on a CPU that is faster than keeping the parts.
recomputed_gelu = jax.checkpoint(functools.partial(jax.nn.gelu, approximate=True))


@jax.checkpoint
def _recomputed_normalize(
    x: Float[Array, "b n d"], shift: Float[Array, "b d"], scale: Float[Array, "b d"]
) -> Float[Array, "b n d"]:
    return modulate(normalize(x), shift, scale)


def _cpu_matmul(x: Float[Array, "rows d"], kernel: Float[Array, "d k"]) -> Float[Array, "rows k"]:
    # XLA's CPU compiler has fast 16-bit products (AMX) only for those that end in float32.
    dtype: Any = jnp.promote_types(x.dtype, jnp.float32)
    return jnp.matmul(x, kernel, preferred_element_type=dtype).astype(x.dtype)


folded_matmul = fold_mapped(_cpu_matmul, (True, False))


def _convolution(x: Array, kernel: Array, *, stride: int) -> Array:
    side = kernel.shape[0]
    around = ((side // 2, side // 2),) * 2
    order = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), around, dimension_numbers=order
    )


# JAX itself would merge an axis that `vmap` adds before the batch, and so tear one that is spread.
_convolutions = {
    stride: fold_mapped(functools.partial(_convolution, stride=stride), (True, False), behind=True)
    for stride in (1, 2)
}


def _neighbourhoods(x: Float[Array, "b h w c"], side: int, stride: int) -> Array:
    """Gather the side×side places around every output place, b i j side²·c."""
    height, width = x.shape[1:3]
    around = (side // 2, side // 2)
    padded = jnp.pad(x, ((0, 0), around, around, (0, 0)))
    shifted = [
        padded[:, row : row + height : stride, column : column + width : stride]
        for row in range(side)
        for column in range(side)
    ]
    return jnp.concatenate(shifted, axis=-1)
