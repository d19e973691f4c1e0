"""The expensive operations of networks, as methods of one object that every network is given.

A network calls `linear`, `attention`, `self_attention`, `adaptive_normalize` and `convolve` of the
object in its field `operations`, and contains no code for devices. `XLA` writes them for XLA's compiler in
the form that suits the platform. Another object with the same methods can replace it.
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

# Measured with DiT-S/2 on two cores: of 256 to 4096 token rows per micro-batch, 1024 was fastest.
CPU_ROWS = 1024


class Operations(Protocol):
    """The operations that a network calls. An implementation is frozen and compares by value, for `jit`.

    Attributes:
      name: "xla", or the name of the kernels.
      platform: "cpu", "gpu" or "tpu".
      devices: number of devices that a batch is spread over.
      rows_per_turn: token rows per micro-batch that run fastest, or None for the whole batch.
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

    def unfused(self) -> "Operations":
        """Return operations that a trace shows in full: no fused attention, no kernels."""

    def linear(
        self,
        x: Float[Array, "rows d"],
        kernel: Float[Array, "d k"],
        bias: Float[Array, " k"],
        gelu: bool = False,
    ) -> Float[Array, "rows k"]:
        """Return x·kernel + bias; with `gelu`, gelu(x)·kernel + bias (hyperbolic-tangent form)."""

    def matmul(self, x: Float[Array, "rows d"], kernel: Float[Array, "d k"]) -> Array:
        """Return x·kernel."""

    def attention(self, q: Array, k: Array, v: Array, mask: Array | None = None) -> Array:
        """Attend from `q` to `k` and `v`, see `nn.attention.attention`."""

    def attention_name(self, dtype: Any) -> str:
        """Return which attention runs for this dtype."""

    def self_attention(self, packed: Float[Array, "b n three_h_d"], heads: int) -> Array:
        """Attend from every token to every token; features in order (q k v), head, d."""

    def adaptive_normalize(self, x: Array, shift: Array, scale: Array) -> Array:
        """Return (1 + scale)·normalize(x) + shift; tokens are normalised over their features."""

    def convolve(self, x: Array, kernel: Array, stride: int) -> Array:
        """Convolve b h w c with an odd square kernel and zero padding."""

    def whole(self, parameter: Array) -> Array:
        """Return the whole parameter; if it is sharded over a mesh, it is gathered first."""


@dataclasses.dataclass(frozen=True)
class XLA:
    """Operations as XLA compiles them for a platform.

    Attributes:
      platform: "cpu", "gpu" (or "cuda") or "tpu"; by default what is attached when it is made.
      attention_backend: see `nn.attention.pick`.
      devices: number of devices that a batch is spread over. If there are several, an axis that `vmap`
        adds is not folded into the rows, because this would move rows between devices.
      mesh: in training, the mesh whose axes the batch is spread over. Rows then stay on their devices,
        and parameters are gathered for use. Parameters and their gradients move between devices,
        activations never.
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
        if self.mesh is not None and self.mesh.size == 1:
            object.__setattr__(self, "mesh", None)  # there is nothing to keep in place
        pick(self.attention_backend, platform, jnp.float32)

    @property
    def name(self) -> str:
        """XLA."""
        return "xla"

    def over(self, devices: int) -> "XLA":
        """Return the operations for a batch that is spread over so many devices, to draw with."""
        return dataclasses.replace(self, devices=devices, mesh=None)

    def unfused(self) -> "XLA":
        """Return operations that a trace shows whole: no fused attention."""
        return XLA(self.platform, "xla")

    def attention_name(self, dtype: Any) -> str:
        """Return which attention runs for this dtype."""
        name, _ = pick(self.attention_backend, self.platform, dtype)
        return name if self._folds or name != "cpu" else "xla"

    @property
    def rows_per_turn(self) -> int | None:
        """About 1024 rows on a CPU, so that the activations between two matmuls fit in its caches."""
        return CPU_ROWS * self.devices if self.platform == "cpu" else None

    @property
    def _folds(self) -> bool:
        # The compilers for accelerators fold a mapped axis themselves.
        return self.platform == "cpu" and self.devices == 1 and self.mesh is None

    def whole(self, parameter: Array) -> Array:
        """Return the whole parameter; if it is sharded over the mesh, it is gathered first."""
        if self.mesh is None:
            return parameter
        return jax.lax.with_sharding_constraint(parameter, NamedSharding(self.mesh, P()))

    def _in_place(self, x: Float[Array, "rows *d"]) -> Array:
        """Keep rows on their devices, if the number of rows divides over the devices."""
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
        """Return x·kernel + bias; with `gelu`, gelu(x)·kernel + bias."""
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
        """Return (1 + scale)·normalize(x) + shift; only the arguments are kept for a derivative."""
        return _recomputed_normalize(x, shift, scale)

    def convolve(self, x: Array, kernel: Array, stride: int) -> Array:
        """Convolve b h w c with an odd square kernel and zero padding.

        On a CPU it is one matmul over gathered neighbourhoods, for two reasons. Gradient accumulation
        computes the kernel's gradient inside a loop, and there XLA's CPU convolution takes about 25
        times as long. A matmul can also fold an axis that `vmap` adds.
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


# For a derivative, the elementwise work between two matmuls is computed again from the result of the
# first. On a CPU this is faster than keeping the intermediate results.
recomputed_gelu = jax.checkpoint(functools.partial(jax.nn.gelu, approximate=True))


@jax.checkpoint
def _recomputed_normalize(
    x: Float[Array, "b n d"], shift: Float[Array, "b d"], scale: Float[Array, "b d"]
) -> Float[Array, "b n d"]:
    return modulate(normalize(x), shift, scale)


def _cpu_matmul(x: Float[Array, "rows d"], kernel: Float[Array, "d k"]) -> Float[Array, "rows k"]:
    # XLA's CPU compiler has a fast 16-bit matmul (AMX) only if the result is float32.
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


# JAX itself would merge an axis that `vmap` adds before the batch, and so move a batch between devices.
_convolutions = {
    stride: fold_mapped(functools.partial(_convolution, stride=stride), (True, False), behind=True)
    for stride in (1, 2)
}


def _neighbourhoods(x: Float[Array, "b h w c"], side: int, stride: int) -> Array:
    """Gather the side×side neighbourhood of every output position, b i j side²·c."""
    height, width = x.shape[1:3]
    around = (side // 2, side // 2)
    padded = jnp.pad(x, ((0, 0), around, around, (0, 0)))
    shifted = [
        padded[:, row : row + height : stride, column : column + width : stride]
        for row in range(side)
        for column in range(side)
    ]
    return jnp.concatenate(shifted, axis=-1)
