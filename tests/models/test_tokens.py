"""Networks that are told tokens, vectors, labels and numbers: one call, masks, and what is refused."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from guidedflow.models import DiT, UNetConditional, UViT, create, stack_blocks, unstack_blocks
from guidedflow.nn.capabilities import capabilities

DIT = {"image_size": (4, 8), "channels": 2, "patch": 2, "width": 8, "depth": 2, "heads": 2}
TOKENS = {"num_classes": 3, "scalars": ("scale",), "token_width": 6, "vector_width": 5}


def dit(**fields):
    return DiT(**{**DIT, **TOKENS, **fields})


def unet(**fields):
    small = {"image_size": (4, 8), "channels": 2, "width": 4, "multipliers": (1, 2), "blocks": 1}
    here = {"attend": (1,), "heads": 2, "groups": 2}
    return UNetConditional(**{**small, **here, **TOKENS, **fields})


def uvit(**fields):
    return UViT(**{**DIT, **TOKENS, "depth": 3, "token_positions": 7, **fields})


NETWORKS = {
    "dit": dit(),
    "dit, other ways": dit(inject=("in_context", "adaptive"), scan_layers=True),
    "u-net": unet(),
    "u-vit": uvit(),
}


def batch(padding=3):
    """Example 0 and what is changed of it, an example a change; see `CHANGES`."""
    rng = np.random.default_rng(1)
    size, length = len(CHANGES), 3 + padding
    tokens = np.zeros((size, length, 6), np.float32) + 9
    tokens[:, :3] = rng.normal(size=(3, 6))
    mask = np.zeros((size, length), bool)
    mask[:, :2] = True
    cond = {
        "label": np.full(size, 1),
        "scale": np.full(size, 2.0, np.float32),
        "vector": np.tile(rng.normal(size=5).astype(np.float32), (size, 1)),
        "tokens": tokens,
        "mask": mask,
    }
    for row, change in enumerate(CHANGES):
        if "padding" in change:
            tokens[row, 2:] = np.nan
        if "nothing" in change:
            mask[row] = False
    cond["label"][CHANGES.index("label")] = 3
    cond["scale"][CHANGES.index("scale")] += 0.01
    cond["vector"][CHANGES.index("vector")] += 0.5
    tokens[CHANGES.index("token"), 1] += 0.5
    mask[CHANGES.index("mask"), 2] = True
    x = np.tile(rng.normal(size=(1, 4, 8, 2)).astype(np.float32), (size, 1, 1, 1))
    return jnp.asarray(x), jnp.full(size, 0.3), jax.tree.map(jnp.asarray, cond)


CHANGES = (
    *("none", "padding", "label", "scale", "vector", "token", "mask", "nothing"),
    "nothing, padding",
)


@functools.partial(jax.jit, static_argnums=0)
def run(net, params, x, t, cond):
    return net.apply({"params": params}, x, t, cond)


@functools.cache
def random_params(net):
    """Parameters without the zeros of a new network, so that every part counts."""
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(net.init, jax.random.key(0), *batch())["params"]
    return jax.tree.map(lambda a: jnp.asarray(rng.normal(0, 0.3, a.shape), a.dtype), shapes)


@pytest.mark.parametrize("name", NETWORKS)
def test_every_entry_counts_and_padding_never_does(name):
    """Neither what stands in it nor how much there is, also where nothing else stands."""
    net = NETWORKS[name]
    out = run(net, random_params(net), *batch())
    rows = dict(zip(CHANGES, np.asarray(out), strict=True))
    np.testing.assert_allclose(rows["padding"], rows["none"], atol=2e-5)
    np.testing.assert_allclose(rows["nothing, padding"], rows["nothing"], atol=2e-5)
    for change in ("label", "scale", "vector", "token", "mask", "nothing"):
        assert np.abs(rows[change] - rows["none"]).max() > 1e-4, change
    shorter = run(net, random_params(net), *batch(padding=0))
    np.testing.assert_allclose(shorter, out, atol=2e-5)


def test_without_a_mask_all_tokens_count():
    net, (x, t, cond) = NETWORKS["dit, other ways"], batch(padding=0)
    cond["tokens"] = jnp.nan_to_num(cond["tokens"])
    whole = run(net, random_params(net), x, t, {**cond, "mask": jnp.ones((len(t), 3), bool)})
    cond.pop("mask")
    np.testing.assert_allclose(run(net, random_params(net), x, t, cond), whole, atol=2e-5)


@pytest.mark.parametrize("name", ["dit, other ways", "u-net"])
def test_mapping_the_condition_equals_two_calls(name):
    net, (x, t, cond) = NETWORKS[name], batch()
    null = {**cond, "label": jnp.full(len(t), 3), "mask": jnp.zeros_like(cond["mask"])}
    both = jax.tree.map(lambda *leaves: jnp.stack(leaves), null, cond)
    mapped = jax.jit(jax.vmap(lambda c: run(net, random_params(net), x, t, c)))(both)
    for found, one in zip(mapped, (null, cond), strict=True):
        np.testing.assert_allclose(found, run(net, random_params(net), x, t, one), atol=1e-4)


def test_a_new_cross_attention_leaves_the_transformer_as_it_is():
    """To rounding: names and values of all other parameters are those of the network without it."""
    x, t, cond = batch()
    plain = dit(token_width=None, vector_width=None)
    labels = {"label": cond["label"], "scale": cond["scale"]}
    net = dit()
    new = jax.jit(net.init)(jax.random.key(0), x, t, cond)["params"]
    old = jax.jit(plain.init)(jax.random.key(0), x, t, labels)["params"]
    names = [set(block) for name, block in old.items() if name.startswith("blocks")]
    assert names == [{"adaLN_modulation", "attn", "mlp"}] * 2
    assert set(new) - set(old) == {"token_embedder", "vector_embedder"}

    def joined(of, into):
        """The values of one tree in the places that the other has of it."""
        return {
            name: joined(of[name], leaf)
            if isinstance(leaf, dict) and name in of
            else of.get(name, leaf)
            for name, leaf in into.items()
        }

    jax.tree.map(np.testing.assert_array_equal, joined(new, old), old)
    trained = jax.tree.map(lambda leaf: leaf + 0.1, old)
    expected = run(plain, trained, x, t, labels)
    assert jnp.abs(expected).max() > 0.1
    np.testing.assert_allclose(run(net, joined(trained, new), x, t, cond), expected, atol=1e-5)


def gradient(net, params):
    return jax.jit(jax.grad(lambda p: jnp.square(run(net, p, *batch())).mean()))(params)


def test_scan_and_rematerialisation_change_no_gradient_and_every_parameter_has_one():
    ways = ("cross_attention", "in_context", "adaptive")
    net, other = dit(inject=ways), dit(inject=ways, scan_layers=True, remat="dots")
    params = random_params(net)
    expected = gradient(net, params)
    found = unstack_blocks(gradient(other, stack_blocks(params, 2)), 2)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4), found, expected
    )
    for path, leaf in jax.tree.leaves_with_path(expected):
        assert jnp.abs(leaf).max() > 0, jax.tree_util.keystr(path)


@pytest.mark.parametrize("name", ["dit", "u-net", "u-vit"])
def test_sixteen_bits_and_rematerialisation_inside_keep_the_result(name):
    net = NETWORKS[name]
    exact = run(net, random_params(net), *batch())
    half = net.clone(dtype=jnp.bfloat16, remat="full")
    out = run(half, random_params(net), *batch())
    assert out.dtype == jnp.float32
    assert 1e-4 < jnp.linalg.norm(out - exact) / jnp.linalg.norm(exact) < 0.1


@pytest.mark.parametrize("name", ["dit", "u-net", "u-vit"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tokens": jnp.zeros((9, 4, 5))}, r"tokens: expected shape \(9, m, 6\).*got \(9, 4, 5\)"),
        ({"tokens": jnp.zeros((2, 4, 6))}, r"tokens: expected shape \(9, m, 6\)"),
        ({"tokens": jnp.zeros((9, 0, 6))}, "m at least 1"),
        ({"tokens": jnp.zeros((9, 6, 6), int)}, "features of a floating dtype, got int32"),
        ({"mask": jnp.ones((9, 5), bool)}, r"mask: expected booleans of shape \(9, 6\)"),
        ({"mask": jnp.ones((9, 6))}, r"mask: expected booleans of shape \(9, 6\), got float32"),
        ({"vector": jnp.zeros((9, 4))}, r"vector: expected floating numbers of shape \(9, 5\)"),
        ({"prompt": jnp.zeros(3)}, "cond: expected a mapping of"),
    ],
)
def test_conditions_that_do_not_fit_are_refused_in_one_line(name, change, message):
    net = NETWORKS[name]
    x, t, cond = batch()
    with pytest.raises(ValueError, match=message) as caught:
        jax.eval_shape(net.init, jax.random.key(0), x, t, {**cond, **change})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("fields", [{}, {"num_classes": None}, {"vector_width": 5}])
def test_tokens_that_a_network_cannot_take_are_refused(fields):
    net = DiT(**{**DIT, "num_classes": 3, **fields})
    x, t, cond = batch()
    cond.pop("scale")
    assert "tokens" not in capabilities(net).takes
    with pytest.raises(ValueError, match="cond: "):
        jax.eval_shape(net.init, jax.random.key(0), x, t, cond)


def test_networks_declare_what_they_take():
    for net in NETWORKS.values():
        assert capabilities(net).takes == {"label", "scalars", "tokens", "vector"}
        assert not capabilities(net).tabulated
    assert capabilities(DiT(**DIT)).takes == {"label", "scalars"}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"inject": ("in_contxt",)}, "did you mean 'in_context'"),
        ({"inject": ()}, "inject: expected some of"),
        ({"inject": ("in_context",), "perturbation": "blur"}, "in_context adds other tokens"),
    ],
)
def test_contradictory_ways_of_injection_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        dit(**fields)


@pytest.mark.parametrize(
    ("make", "fields", "message"),
    [
        (unet, {"attend": ()}, "tokens need a level that attends to them"),
        (unet, {"attend": (2,)}, r"expected levels in \[0, 2\)"),
        (unet, {"groups": 3}, "groups: 3 does not divide 4 channels"),
        (unet, {"heads": 3}, "heads: 3 does not divide 4 channels"),
        (unet, {"heads": (1, 2, 4)}, r"heads: expected one number or 2, got \(1, 2, 4\)"),
        (unet, {"remat": "ful"}, "did you mean 'full'"),
        (uvit, {"depth": 2}, "depth: expected an odd number of blocks, got 2"),
        (uvit, {"heads": 3}, "heads: 3 does not divide the width 8"),
        (uvit, {"patch": 3}, "patch: 3 does not divide the image 4×8"),
        (uvit, {"token_positions": 0}, "token_positions: expected at least 1"),
    ],
)
def test_contradictory_fields_are_refused(make, fields, message):
    with pytest.raises(ValueError, match=message):
        make(**fields)


def test_more_tokens_than_positions_are_refused():
    with pytest.raises(ValueError, match="tokens: expected at most 7, got 8"):
        jax.eval_shape(uvit().init, jax.random.key(0), *batch(padding=5))


def test_stable_diffusions_network_has_its_published_size():
    net = create("SD1")
    cond = {"tokens": jnp.zeros((1, 77, 768))}
    x = jnp.zeros((1, 64, 64, 4))
    shapes = jax.eval_shape(net.init, jax.random.key(0), x, jnp.zeros(1), cond)
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == 859_520_964
