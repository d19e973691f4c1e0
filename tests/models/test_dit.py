"""The diffusion transformer: sizes, initial state, equal programs, inputs it refuses."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from guidedflow.models import DiT, create, stack_blocks, unstack_blocks

FIELDS = {"image_size": (4, 8), "channels": 2, "patch": 2, "width": 16, "depth": 2, "heads": 2}


def network(**fields):
    return DiT(**{**FIELDS, "num_classes": 5, **fields})


@functools.cache
def xl_2():
    return shapes(create("DiT-XL/2"))


def shapes(net, cond=None):
    x = jax.ShapeDtypeStruct((1, *net.size, net.channels), jnp.float32)
    t = jax.ShapeDtypeStruct((1,), jnp.float32)
    cond = jax.ShapeDtypeStruct((1,), jnp.int32) if cond is None else cond
    return jax.eval_shape(net.init, jax.random.key(0), x, t, cond)["params"]


@functools.partial(jax.jit, static_argnums=0)
def run(net, params, x, t, cond=None):
    return net.apply({"params": params}, x, t, cond)


@functools.partial(jax.jit, static_argnums=0)
def start(net, x, t, cond=None):
    return net.init(jax.random.key(0), x, t, cond)["params"]


def batch(size=3, image=(4, 8, 2)):
    x = jax.random.normal(jax.random.key(1), (size, *image))
    return x, jnp.linspace(0.1, 0.9, size), jnp.arange(size) % 6


@pytest.fixture(scope="module")
def params():
    return random_params(network())


def random_params(net, cond=None):
    """Parameters without the zeros of a new network, so that every part counts."""
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda a: jnp.asarray(rng.normal(0, 0.25, a.shape), a.dtype),
        shapes(net, cond and jax.tree.map(lambda a: a[:1], cond)),
    )


def test_xl_2_has_the_values_of_the_published_checkpoint():
    sizes = [leaf.size for leaf in jax.tree.leaves(xl_2())]
    fixed_positions = 256 * 1152
    assert sum(sizes) + fixed_positions == 675_129_632


@pytest.mark.parametrize(
    ("name", "millions"),
    [("DiT-S/2", 33), ("DiT-B/4", 131), ("DiT-L/2", 458), ("DiT-L/8", 459), ("DiT-XL/4", 676)],
)
def test_presets_have_the_papers_size(name, millions):
    # Scanned, one block is traced for all.
    count = sum(leaf.size for leaf in jax.tree.leaves(shapes(create(name, scan_layers=True))))
    assert count == pytest.approx(millions * 1e6, rel=0.01)


def test_names_and_shapes_follow_the_published_checkpoint():
    tree = xl_2()
    expected = {
        "x_embedder/kernel": (16, 1152),
        "t_embedder/mlp_0/kernel": (256, 1152),
        "t_embedder/mlp_2/kernel": (1152, 1152),
        "y_embedder/embedding_table": (1001, 1152),
        "blocks_27/attn/qkv/kernel": (1152, 3456),
        "blocks_0/attn/proj/kernel": (1152, 1152),
        "blocks_0/mlp/fc1/kernel": (1152, 4608),
        "blocks_0/mlp/fc2/kernel": (4608, 1152),
        "blocks_0/adaLN_modulation/kernel": (1152, 6912),
        "final_layer/linear/kernel": (1152, 32),
        "final_layer/adaLN_modulation/kernel": (1152, 2304),
    }
    for path, shape in expected.items():
        leaf = tree
        for part in path.split("/"):
            leaf = leaf[part]
        assert (path, leaf.shape, leaf.dtype) == (path, shape, jnp.float32)


def test_a_new_network_gives_zero():
    x, t, y = batch()
    net = network()
    assert jnp.all(run(net, start(net, x, t, y), x, t, y) == 0)


def test_a_new_block_is_the_identity_for_the_tokens():
    x, t, y = batch()
    net = network()
    new = start(net, x, t, y)
    new["final_layer"] = random_params(net)["final_layer"]
    shallow = {k: v for k, v in new.items() if not k.startswith("blocks_")}
    deep = run(net, new, x, t, y)
    none = run(network(depth=0), shallow, x, t, y)
    assert jnp.abs(deep).max() > 0.1
    np.testing.assert_allclose(deep, none, rtol=1e-6)


def test_every_input_counts(params):
    x, t, y = batch()
    net = network()
    base = run(net, params, x, t, y)
    assert base.shape == x.shape
    for other in ((x + 1, t, y), (x, t + 0.05, y), (x, t, y + 1)):
        assert jnp.all(jnp.abs(run(net, params, *other) - base).max((1, 2, 3)) > 1e-3)


def test_examples_do_not_see_one_another(params):
    x, t, y = batch()
    net = network()
    alone = [run(net, params, x[i : i + 1], t[i : i + 1], y[i : i + 1]) for i in (0, 2)]
    together = run(net, params, x, t, y)
    np.testing.assert_allclose(together[::2], jnp.concatenate(alone), atol=1e-5)


def test_doubled_channels_are_the_second_half():
    x, t, y = batch()
    net = network(double_channels=True)
    assert run(net, random_params(net), x, t, y).shape == (3, 4, 8, 4)


def test_mapping_the_condition_equals_a_larger_batch(params):
    x, t, y = batch()
    null = jnp.full_like(y, 5)

    def apply(x, t, y):
        return run(network(), params, x, t, y)

    mapped = jax.jit(jax.vmap(apply, in_axes=(None, None, 0)))(x, t, jnp.stack([null, y]))

    def twice(a):
        return jnp.concatenate([a, a])

    joined = apply(twice(x), twice(t), jnp.concatenate([null, y]))
    np.testing.assert_allclose(mapped.reshape(joined.shape), joined, atol=1e-5)


def test_gradients_through_a_mapped_network_equal_those_of_two_calls(params):
    x, t, y = batch()
    conds = jnp.stack([jnp.full_like(y, 5), y])

    def apply(p, x, y):
        return run(network(), p, x, t, y)

    def mapped(p, x):
        return jnp.sin(jax.vmap(apply, (None, None, 0))(p, x, conds)).sum()

    def called(p, x):
        return sum(jnp.sin(apply(p, x, c)).sum() for c in conds)

    got = jax.jit(jax.grad(mapped, argnums=(0, 1)))(params, x)
    expected = jax.jit(jax.grad(called, argnums=(0, 1)))(params, x)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-3), got, expected)


def value_and_gradient(net, params):
    x, t, y = batch()

    def loss(p):
        return jnp.square(net.apply({"params": p}, x, t, y)).mean()

    return jax.jit(jax.value_and_grad(loss))(params)


@pytest.fixture(scope="module")
def base(params):
    return value_and_gradient(network(), params)


@pytest.mark.parametrize(
    ("scan", "remat"), [(False, "full"), (False, "dots"), (True, "none"), (True, "dots")]
)
def test_scan_and_rematerialisation_change_no_value_and_no_gradient(params, base, scan, remat):
    same = stack_blocks(params, 2) if scan else params
    value, grad = value_and_gradient(network(scan_layers=scan, remat=remat), same)
    np.testing.assert_allclose(value, base[0], rtol=1e-5)
    grad = unstack_blocks(grad, 2) if scan else grad
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3), grad, base[1])


def test_a_scanned_network_starts_with_stacked_parameters():
    scanned = shapes(network(scan_layers=True))
    assert scanned["blocks"]["attn"]["qkv"]["kernel"].shape == (2, 16, 48)
    stacked = jax.eval_shape(lambda p: stack_blocks(p, 2), shapes(network()))
    assert jax.tree.map(jnp.shape, scanned) == jax.tree.map(jnp.shape, stacked)


def test_full_rematerialisation_computes_products_again(params):
    x, t, y = batch()

    def products(remat):
        def loss(p):
            return run(network(remat=remat), p, x, t, y).sum()

        return str(jax.make_jaxpr(jax.grad(loss))(params)).count("dot_general")

    assert products("full") > products("dots") > products("none")


def test_further_numbers_start_without_effect_and_then_count():
    x, t, y = batch()
    net = network(scalars=("scale",))
    cond = {"label": y, "scale": jnp.array([1.0, 2.0, 3.0])}
    new = start(net, x, t, cond)
    full = random_params(net, cond)
    without = {k: v for k, v in full.items() if k != "scale_embedder"}
    joined = {**full, "scale_embedder": new["scale_embedder"]}
    np.testing.assert_allclose(
        run(net, joined, x, t, cond),
        run(network(), without, x, t, y),
        atol=1e-5,
    )
    other = {**cond, "scale": cond["scale"] + 0.01}
    change = run(net, full, x, t, cond) - run(net, full, x, t, other)
    assert jnp.abs(change).max() > 1e-3


def test_an_unconditional_network_does_not_look_at_the_condition():
    x, t, y = batch()
    net = network(num_classes=None)
    p = random_params(net)
    assert "y_embedder" not in p
    none, some = (run(net, p, x, t, cond) for cond in (None, y))
    np.testing.assert_array_equal(none, some)


def test_sixteen_bits_inside_keep_parameters_and_result_in_thirty_two(params):
    x, t, y = batch()
    net = network(dtype=jnp.bfloat16)
    leaves = jax.tree.leaves(shapes(net))
    assert {leaf.dtype for leaf in leaves} == {jnp.dtype(jnp.float32)}
    out = run(net, params, x, t, y)
    exact = run(network(), params, x, t, y)
    assert out.dtype == jnp.float32
    error = jnp.linalg.norm(out - exact) / jnp.linalg.norm(exact)
    assert 1e-4 < error < 5e-2


def test_a_label_out_of_range_gives_nan_and_never_another_class(params):
    x, t, _ = batch()
    out = run(network(), params, x, t, jnp.array([-1, 5, 6]))
    assert jnp.isnan(out).all(axis=(1, 2, 3)).tolist() == [True, False, True]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"patch": 3}, "patch: 3 does not divide the image 4×8"),
        ({"heads": 3}, "heads: 3 does not divide the width 16"),
        ({"width": 18}, "multiple of 4, got 18"),
        ({"attention": "cuddn"}, "did you mean 'cudnn'"),
        ({"remat": "ful"}, "did you mean 'full'"),
        ({"perturbation": "blurr"}, "did you mean 'blur'"),
        ({"perturb_blocks": (2,)}, r"expected indices in \[0, 2\), got 2"),
        ({"blur_sigma": 0.0}, "blur_sigma: expected a positive"),
    ],
)
def test_contradictory_fields_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        network(**fields)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": jnp.zeros((3, 4, 8, 3))}, r"expected shape \(b, 4, 8, 2\), got \(3, 4, 8, 3\)"),
        ({"x": jnp.zeros((3, 8, 4, 2))}, r"expected shape \(b, 4, 8, 2\)"),
        ({"x": jnp.zeros((3, 4, 8, 2), int)}, "x: expected a floating dtype, got int"),
        ({"t": jnp.zeros(())}, r"t: expected shape \(3,\)"),
        ({"t": jnp.zeros(3, int)}, "t: expected a floating dtype"),
        ({"y": jnp.zeros(3)}, "labels: expected an array of integers, got float32"),
        ({"y": jnp.zeros(2, int)}, r"labels: expected shape \(3,\) as t has, got \(2,\)"),
        ({"y": None}, "labels: expected an array of integers, got NoneType"),
        ({"y": {"label": jnp.zeros(3, int)}}, "expected an array of labels, got a mapping"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(params, change, message):
    x, t, y = batch()
    inputs = {"x": x, "t": t, "y": y} | change
    with pytest.raises(ValueError, match=message):
        run(network(), params, inputs["x"], inputs["t"], inputs["y"])


def test_a_mapping_with_missing_numbers_is_refused():
    x, t, y = batch()
    with pytest.raises(ValueError, match=r"expected a mapping of \['label', 'scale'\]"):
        network(scalars=("scale",)).init(jax.random.key(0), x, t, {"label": y})


def test_unknown_presets_and_fields_say_the_nearest():
    with pytest.raises(ValueError, match=r"did you mean 'DiT-XL/2'"):
        create("DiT-XL2")
    with pytest.raises(ValueError, match=r"unknown field 'widht' of tiny \(did you mean 'width'"):
        create("tiny", widht=8)


def test_equal_networks_compare_equal_so_that_nothing_is_compiled_twice():
    assert create("tiny") == create("tiny")
    assert hash(create("tiny")) == hash(create("tiny"))
    assert create("tiny") != create("tiny", width=32)
