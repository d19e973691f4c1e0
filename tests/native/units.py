"""For tests of the kernels compiled for a processor: each of its units, skips for what it lacks, and
the bound of float32's rounding."""

import platform

import jax
import numpy as np
import pytest

from guidedflow.native import library


def has_units(name):
    needs = set(library.UNITS[name].needs)
    return platform.machine() == "x86_64" and needs <= library.processor_units()


def _parameter(name):
    skip = pytest.mark.skipif(not has_units(name), reason=f"the processor has no {name}")
    return pytest.param(name, marks=skip)


on_all_units = pytest.mark.parametrize("units", [_parameter(name) for name in library.UNITS])


def normal(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


def exact(x, y, transpose_x=False, transpose_y=False):
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    x = np.swapaxes(x, -1, -2) if transpose_x else x
    return x @ (np.swapaxes(y, -1, -2) if transpose_y else y)


def bound(x, y, transpose_x=False, transpose_y=False):
    """Float32's rounding, in sums of k terms: k·2⁻²⁴·|x|·|y|, and 2⁻²² for the terms left out."""
    k = x.shape[-2 if transpose_x else -1]
    return (k * 2**-24 + 2**-22) * exact(np.abs(x), np.abs(y), transpose_x, transpose_y)


# Of these, the vector units compute the last three with fewer multiplications.
SHAPES = [(1, 1, 1), (5, 33, 7), (16, 32, 16), (33, 64, 48), (100, 1000, 129), (300, 513, 70)]
SHAPES += [(16, 1000, 48), (128, 64, 128), (300, 401, 130), (129, 900, 500)]
