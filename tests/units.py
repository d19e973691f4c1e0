"""For tests of the kernels compiled for a processor: each of its units, and skips what it lacks."""

import platform

import jax
import pytest

from guidedflow.models import native


def has_units(name):
    needs = set(native.UNITS[name].needs)
    return platform.machine() == "x86_64" and needs <= native.processor_units()


def _parameter(name):
    skip = pytest.mark.skipif(not has_units(name), reason=f"the processor has no {name}")
    return pytest.param(name, marks=skip)


on_all_units = pytest.mark.parametrize("units", [_parameter(name) for name in native.UNITS])


def normal(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)
