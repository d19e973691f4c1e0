"""For tests of what runs on the matrix units: the mark that skips them where there are none."""

import platform

import jax
import pytest

from guidedflow.models import native


def has_units():
    return platform.machine() == "x86_64" and set(native._UNITS) <= native.processor_units()


units = pytest.mark.skipif(not has_units(), reason="the processor has no AMX")


def normal(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)
