"""Which parameters of another network fit, by name and shape."""

import numpy as np
import pytest

from guidedflow.training.warm_start import match

HERE = {"a/kernel": np.zeros((2, 3)), "a/bias": np.zeros(3), "head/kernel": np.zeros((3, 5))}


def test_parameters_fit_by_name_and_shape_and_the_others_are_listed():
    there = {"a/kernel": np.ones((2, 3)), "head/kernel": np.ones((3, 4)), "old/bias": np.ones(1)}
    fit = match(there, HERE, {})
    assert fit.taken == {"a/kernel": "a/kernel"}
    assert fit.missing == ["a/bias"]
    assert fit.reshaped == ["head/kernel [3, 4] there, [3, 5] here"]
    assert fit.left_out == ["old/bias"]
    assert [line.split(":")[1] for line in fit.lines()] == [" 1", " 1", " 1"]


def test_a_name_is_changed_for_everything_below_it_and_for_nothing_else():
    there = {"b/kernel": np.ones((2, 3)), "b/bias": np.ones(3), "bb/kernel": np.ones((3, 5))}
    fit = match(there, HERE, {"b": "a"})
    assert fit.taken == {"a/kernel": "b/kernel", "a/bias": "b/bias"}
    assert fit.left_out == ["bb/kernel"]
    whole = match(there, HERE, {"b": "a", "bb/kernel": "head/kernel"})
    assert whole.taken["head/kernel"] == "bb/kernel"
    assert whole.lines() == []


@pytest.mark.parametrize(
    ("there", "renames", "message"),
    [
        (["a/kernl"], {}, "no parameter fits by name and shape"),
        (["a/bias"], {}, "no parameter fits"),
        (["a/kernel"], {"aa": "b"}, "no parameter 'aa' .did you mean 'a'"),
        (["a/kernel", "b/kernel"], {"b": "a"}, "two parameters would be 'a/kernel'"),
    ],
)
def test_what_does_not_fit_is_refused(there, renames, message):
    with pytest.raises(ValueError, match=message):
        match({name: np.ones((2, 3)) for name in there}, HERE, renames)
