"""Products by compiled kernels against float64 and XLA; what falls back, and what it says."""

import logging
import os
import platform
import re
import subprocess
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from units import SHAPES, bound, exact, has_units, normal, on_all_units

from guidedflow import models
from guidedflow.benchmark.workload import random_params
from guidedflow.native import library, operations
from guidedflow.native.matmul import multiply
from guidedflow.nn.fallbacks import say_once
from guidedflow.nn.operations import XLA
from guidedflow.training.flops import counted


def by(name, platform="cpu"):
    return operations(name, XLA(platform))


@pytest.fixture
def fresh(monkeypatch, tmp_path):
    """Nothing loaded or compiled yet, nothing said."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    library.find_hindrance.cache_clear()
    say_once.cache_clear()
    yield tmp_path / "guidedflow" / "native"
    library.find_hindrance.cache_clear()


@on_all_units
@pytest.mark.parametrize("transpose_y", [False, True])
@pytest.mark.parametrize("transpose_x", [False, True])
@pytest.mark.parametrize(("m", "k", "n"), SHAPES)
def test_products_have_the_error_of_float32(units, m, k, n, transpose_x, transpose_y):
    x = normal(0, *((k, m) if transpose_x else (m, k)))
    y = normal(1, *((n, k) if transpose_y else (k, n)))
    error = np.abs(
        multiply(x, y, units, transpose_x, transpose_y) - exact(x, y, transpose_x, transpose_y)
    )
    assert (error <= bound(x, y, transpose_x, transpose_y)).all()


@on_all_units
@pytest.mark.parametrize("transpose_x", [False, True])
def test_fewer_multiplications_lose_two_bits_at_most(units, transpose_x):
    x, y = normal(0, *((768, 256) if transpose_x else (256, 768))), normal(1, 768, 300)
    right = exact(x, y, transpose_x)
    plain = np.linalg.norm(jnp.matmul(x.T if transpose_x else x, y) - right)
    assert np.linalg.norm(multiply(x, y, units, transpose_x) - right) <= 4 * plain


@on_all_units
def test_a_row_depends_on_its_neighbour_alone(units):
    x, y = normal(0, 301, 400), normal(1, 400, 140)
    whole = np.asarray(multiply(x, y, units))
    got = np.asarray(multiply(x.at[7].set(jnp.nan), y, units))
    others = np.delete(np.arange(301), [6, 7])
    assert np.isnan(got[7]).all()
    np.testing.assert_array_equal(got[others], whole[others])
    np.testing.assert_array_equal(multiply(x[:256], y, units), whole[:256])


@on_all_units
def test_numbers_of_many_sizes_keep_24_bits(units):
    """A diagonal alone: no sum, so that each entry must be right to float32's last bits."""
    values = np.float32(np.logspace(-30, 30, 64)) * np.float32(1 + 2**-23)
    scale = np.float32(1 / 3)
    got = multiply(jnp.diag(values), scale * jnp.eye(64), units)
    np.testing.assert_allclose(np.diag(got), np.float64(values) * np.float64(scale), rtol=2**-22)


@on_all_units
@pytest.mark.parametrize("count", [1, 3, 40])
def test_stacks_are_products_entry_by_entry(units, count):
    x, y = normal(0, count, 40, 70), normal(1, count, 50, 70)
    got = jax.jit(lambda x, y: multiply(x, y, units, transpose_y=True))(x, y)
    assert (np.abs(got - exact(x, y, False, True)) <= bound(x, y, False, True)).all()


@on_all_units
@pytest.mark.parametrize(("m", "k", "n"), [(0, 4, 3), (3, 4, 0), (3, 0, 4)])
def test_empty_operands(units, m, k, n):
    np.testing.assert_array_equal(
        multiply(jnp.ones((m, k)), jnp.ones((k, n)), units), np.zeros((m, n))
    )


@on_all_units
def test_what_is_not_finite_stays_visible(units):
    for value in (np.inf, -np.inf, np.nan):
        x = jnp.ones((4, 40)).at[1, 3].set(value)
        got = np.asarray(multiply(x, jnp.ones((40, 5)), units))
        assert not np.isfinite(got[1]).any()
        np.testing.assert_array_equal(got[[0, 2, 3]], 40)


AXES = [(0, None), (None, 0), (0, 0), (1, 1), (2, None)]


@on_all_units
@pytest.mark.parametrize("transpose_y", [False, True])
@pytest.mark.parametrize("transpose_x", [False, True])
@pytest.mark.parametrize("axes", AXES)
def test_vmap_is_a_loop(units, axes, transpose_x, transpose_y):
    x, y = normal(0, 4, 4, 4), normal(1, 4, 4, 4)
    x, y = (v if axis is not None else v[0] for v, axis in zip((x, y), axes, strict=True))
    apply = jax.vmap(lambda x, y: multiply(x, y, units, transpose_x, transpose_y), axes)
    entries = [
        v[None].repeat(4, 0) if axis is None else np.moveaxis(v, axis, 0)
        for v, axis in zip((x, y), axes, strict=True)
    ]
    np.testing.assert_allclose(apply(x, y), exact(*entries, transpose_x, transpose_y), atol=1e-5)


@on_all_units
def test_nested_vmap_and_stacks(units):
    x, y = normal(0, 2, 3, 5, 6), normal(1, 2, 3, 6, 4)
    apply = partial(multiply, units=units)
    got = jax.vmap(jax.vmap(apply))(x, y)
    np.testing.assert_allclose(got, exact(x, y), atol=1e-5)
    got = jax.vmap(apply, (None, 0))(x[0], y)
    np.testing.assert_allclose(got, exact(x[:1], y), atol=1e-5)


@on_all_units
@pytest.mark.parametrize("transpose_y", [False, True])
@pytest.mark.parametrize("transpose_x", [False, True])
def test_derivatives_of_two_orders_are_those_of_the_product(units, transpose_x, transpose_y):
    def plain(x, y):
        return (x.T if transpose_x else x) @ (y.T if transpose_y else y)

    def of(f):
        def loss(x, y):
            return jnp.sum(jnp.sin(f(x, y)))

        return jax.jit(jax.hessian(loss, (0, 1))), jax.jit(jax.grad(loss, (0, 1)))

    x = normal(0, *((3, 2) if transpose_x else (2, 3)))
    y = normal(1, *((4, 3) if transpose_y else (3, 4)))
    for got, expected in zip(
        of(lambda x, y: multiply(x, y, units, transpose_x, transpose_y)), of(plain), strict=True
    ):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), got(x, y), expected(x, y)
        )


@on_all_units
def test_a_sharded_product_is_the_same(units):
    mesh = Mesh(np.asarray(jax.devices()[:4]), ("data",))
    x, y = normal(0, 64, 32), normal(1, 32, 16)
    rows = jax.device_put(x, NamedSharding(mesh, P("data")))
    apply = partial(multiply, units=units)
    expected = apply(x, y)
    np.testing.assert_array_equal(jax.jit(apply)(rows, y), expected)
    mapped = jax.shard_map(apply, mesh=mesh, in_specs=(P("data"), P()), out_specs=P("data"))
    np.testing.assert_array_equal(jax.jit(mapped)(rows, y), expected)


@on_all_units
def test_under_shard_map_the_gradient_of_what_all_devices_share_is_their_sum(units):
    mesh = Mesh(np.asarray(jax.devices()[:4]), ("data",))
    x, y = normal(0, 64, 32), normal(1, 32, 16)

    def loss(x, y):
        return jax.lax.psum(jnp.sum(jnp.sin(multiply(x, y, units))), "data")

    mapped = jax.shard_map(
        jax.grad(loss, (0, 1)), mesh=mesh, in_specs=(P("data"), P()), out_specs=(P("data"), P())
    )
    expected = jax.grad(lambda x, y: jnp.sum(jnp.sin(x @ y)), (0, 1))(x, y)
    for got, right in zip(jax.jit(mapped)(x, y), expected, strict=True):
        np.testing.assert_allclose(got, right, atol=5e-5)


@on_all_units
@pytest.mark.parametrize(
    ("x", "y"),
    [
        (jnp.ones((2, 3)), jnp.ones((4, 5))),
        (jnp.ones((2, 3, 4)), jnp.ones((4, 5))),
        (jnp.ones((2, 3, 4)), jnp.ones((3, 4, 5))),
        (jnp.ones((2, 3), jnp.bfloat16), jnp.ones((3, 5), jnp.bfloat16)),
    ],
)
def test_other_shapes_and_dtypes_are_refused(units, x, y):
    with pytest.raises(ValueError, match="no product of"):
        multiply(x, y, units)


@on_all_units
def test_operations_are_counted(units):
    x, y = jnp.ones((8, 3, 5)), jnp.ones((8, 3, 7))
    assert counted(lambda x, y: multiply(x, y, units, transpose_x=True), x, y) == 8 * 2 * 3 * 5 * 7


@pytest.fixture(scope="module")
def networks():
    plain = models.create("tiny", image_size=(32, 32), patch=2, depth=1)
    params = random_params(plain, (32, 32, plain.channels))
    return plain, params


@on_all_units
def test_a_network_and_its_gradient_are_the_same(units, networks):
    plain, params = networks
    fast = plain.clone(operations=by(units))
    x, t = normal(0, 4, 32, 32, plain.channels), jnp.array([0.2, 0.7, 0.3, 0.9])

    def loss(params, x, network):
        return jnp.mean(network.apply({"params": params}, x, t, jnp.array([1, 2, 0, 3])) ** 2)

    text = jax.jit(loss, static_argnums=2).lower(params, x, fast).as_text()
    # The patches, four layers of the block and the final one; the others have few rows.
    assert text.count(f"@{library.target(library.AFFINE, units)}(") == 6
    assert text.count(f"@{library.target(library.ATTENTION, units)}(") == 1
    expected = jax.jit(jax.value_and_grad(loss, (0, 1)), static_argnums=2)(params, x, plain)
    got = jax.jit(jax.value_and_grad(loss, (0, 1)), static_argnums=2)(params, x, fast)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5 * np.abs(b).max())
    tangent = jax.jvp(lambda x: loss(params, x, fast), (x,), (x,))[1]
    np.testing.assert_allclose(tangent, jnp.vdot(expected[1][1], x), rtol=1e-4)


@on_all_units
def test_the_program_is_compiled_once_and_kept(units, fresh, monkeypatch):
    made = library._compiled(units)
    assert list(fresh.iterdir()) == [made]

    def refuse(*arguments, **options):
        raise AssertionError("compiled again")

    monkeypatch.setattr(subprocess, "run", refuse)
    assert library._compiled(units) == made


def falls_back(caplog, reason, name="amx"):
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert by(name) == XLA("cpu")
    assert len(caplog.messages) == 1
    assert caplog.messages[0].startswith("XLA computes: ")
    assert reason in caplog.messages[0]
    assert "\n" not in caplog.messages[0]


@pytest.mark.parametrize(
    ("name", "reason"), [("amx", "amx_bf16, amx_tile"), ("native", "avx2, fma")]
)
def test_a_processor_without_the_units_falls_back(fresh, monkeypatch, caplog, name, reason):
    monkeypatch.setattr(library, "processor_units", set)
    falls_back(caplog, f"the processor has no {reason}", name)
    assert not fresh.exists()


@pytest.mark.parametrize(
    ("has", "expected"),
    [(("amx", "avx512", "avx2"), "amx"), (("avx512", "avx2"), "avx512"), (("avx2",), "avx2")],
)
def test_native_is_the_fastest_units_of_the_processor(monkeypatch, has, expected):
    monkeypatch.setattr(library, "find_hindrance", lambda units: "" if units in has else "none")
    assert by("native").name == expected
    assert by("avx2").name == "avx2"


@pytest.mark.skipif(not has_units("avx2"), reason="the processor has no AVX2")
def test_native_runs_where_there_is_avx2():
    native = by("native")
    text = jax.jit(native.matmul).lower(normal(0, 1024, 8), normal(1, 8, 3)).as_text()
    assert f"@{library.target(library.PRODUCT, native.name)}(" in text


@on_all_units
def test_few_rows_are_left_to_xla(units):
    least = library.UNITS[units].least_rows
    kernel, bias = normal(1, 8, 3), normal(2, 3)
    for rows, calls in ((least - 1, 0), (least, 1)):
        x = jnp.ones((rows, 8))
        for layer in (by(units).linear, lambda x, k, b: by(units).matmul(x, k)):
            text = jax.jit(layer).lower(x, kernel, bias).as_text()
            assert text.count("custom_call @guidedflow") == calls


def targets(function, *operands):
    text = jax.jit(function).lower(*operands).as_text()
    return sorted(re.findall(r"custom_call @(guidedflow_\w+)\(", text))


@on_all_units
def test_of_few_rows_the_gradient_of_kernel_and_bias_alone_is_compiled(units):
    def loss(x, kernel, bias, made):
        return jnp.sum(jnp.sin(made.linear(x, kernel, bias, gelu=True)))

    operands = normal(0, 16, 8), normal(1, 8, 3), normal(2, 3)
    gradient = jax.grad(partial(loss, made=by(units)), (0, 1, 2))
    assert targets(gradient, *operands) == [library.target(library.AFFINE_GRADIENT, units)]
    expected = jax.grad(partial(loss, made=XLA("cpu")), (0, 1, 2))(*operands)
    for got, right in zip(gradient(*operands), expected, strict=True):
        np.testing.assert_allclose(got, right, rtol=1e-5, atol=1e-6)


@on_all_units
def test_the_rows_of_a_mapped_axis_count(units):
    """The branches of guidance are mapped: a layer of half the rows has enough with them."""
    least = library.UNITS[units].least_rows
    x, kernel, bias = normal(0, 2, least // 2, 8), normal(1, 8, 3), normal(2, 3)

    def mapped(x, kernel, bias):
        return jax.vmap(lambda x: by(units).linear(x, kernel, bias))(x)

    assert targets(mapped, x, kernel, bias) == [library.target(library.AFFINE, units)]
    assert targets(mapped, x[:, :-1], kernel, bias) == []
    np.testing.assert_allclose(
        mapped(x, kernel, bias), exact(x, kernel) + np.asarray(bias), atol=1e-5
    )


@pytest.mark.parametrize(
    ("compiler", "reason"),
    [("/no/such/compiler", "/no/such/compiler"), ("false", "false refused: no reason given")],
)
def test_without_a_compiler_that_works_xla_computes(fresh, monkeypatch, caplog, compiler, reason):
    monkeypatch.setattr(library, "processor_units", lambda: set(library.UNITS["amx"].needs))
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    monkeypatch.setenv("CXX", compiler)
    falls_back(caplog, reason)
    assert list(fresh.iterdir()) == []


def test_a_compiler_that_refuses_is_asked_once_for_each_units(fresh, monkeypatch):
    everything = {need for units in library.UNITS.values() for need in units.needs}
    monkeypatch.setattr(library, "processor_units", lambda: everything)
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    monkeypatch.setenv("CXX", "false")
    asked = []

    def refuse(command, **options):
        asked.append(command)
        raise subprocess.CalledProcessError(1, command, stderr="")

    monkeypatch.setattr(subprocess, "run", refuse)
    for _ in range(3):
        assert by("native") == XLA("cpu")
    assert len(asked) == len(library.UNITS)


def test_no_compiler_at_all_is_said(fresh, monkeypatch, caplog):
    monkeypatch.setattr(library, "processor_units", lambda: set(library.UNITS["amx"].needs))
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    monkeypatch.setenv("PATH", os.devnull)
    falls_back(caplog, "there is no C++ compiler")


def test_other_platforms_and_unknown_names():
    assert by("native", "tpu") == XLA("tpu")
    with pytest.raises(ValueError, match=r"unknown kernels 'axm' \(did you mean 'amx'"):
        by("axm")


@on_all_units
def test_sixteen_bits_are_left_to_xla(units):
    least = library.UNITS[units].least_rows
    x, kernel, bias = normal(0, least, 8), normal(1, 8, 3), normal(2, 3)
    half = [v.astype(jnp.bfloat16) for v in (x, kernel, bias)]
    assert targets(by(units).linear, *half) == []
    np.testing.assert_array_equal(by(units).linear(*half), XLA("cpu").linear(*half))
