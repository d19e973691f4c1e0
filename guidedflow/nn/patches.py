"""Images as sequences of patches, and back."""

from einops import rearrange
from jaxtyping import Array, Float


def patchify(x: Float[Array, "b h w c"], patch: int) -> Float[Array, "b n p"]:
    """Cut an image into patches: tokens in rows from the top left, values in order (p, q, c)."""
    return rearrange(x, "b (h p) (w q) c -> b (h w) (p q c)", p=patch, q=patch)


def unpatchify(
    tokens: Float[Array, "b n p"], patch: int, grid: tuple[int, int]
) -> Float[Array, "b h w c"]:
    """Put an image together from its patches; the inverse of `patchify`.

    Args:
      tokens: values of each patch in order (p, q, c), c fastest.
      patch: side of a patch.
      grid: patches in a column, patches in a row.
    """
    return rearrange(
        tokens,
        "b (h w) (p q c) -> b (h p) (w q) c",
        h=grid[0],
        w=grid[1],
        p=patch,
        q=patch,
    )
