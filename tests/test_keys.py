"""Every example draws by itself, whatever generator the key belongs to."""

import functools
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import guidedflow
from guidedflow import distillation, keys, losses, paths, samplers, times

OTHERS = ["rbg", "unsafe_rbg"]
DRAWS = {
    "uniform": times.draw_uniform,
    "logit-normal": times.draw_logit_normal,
    "cosmap": times.draw_cosmap,
    "log-normal-sigma": functools.partial(times.draw_log_normal_sigma, path=paths.EDM()),
    "shifted": times.draw_shifted,
    "scale": distillation.draw_scale,
}


def words(key):
    return np.asarray(jax.random.key_data(key))


def test_example_keys_fold_in_the_index():
    key = jax.random.key(5)
    got = keys.example_keys(key, 3)
    for i in range(3):
        assert got[i] == jax.random.fold_in(key, i)
    assert keys.example_keys(got, 3) is got


def test_old_style_keys_draw_as_new_ones_do():
    old, new = (keys.example_keys(make(5), 3) for make in (jax.random.PRNGKey, jax.random.key))
    np.testing.assert_array_equal(words(old), words(new))
    np.testing.assert_array_equal(words(keys.example_keys(words(new), 3)), words(new))


@pytest.mark.parametrize("impl", OTHERS)
def test_keys_of_other_generators_become_threefry_keys_of_all_their_words(impl):
    key = jax.random.key(5, impl=impl)
    old = keys.threefry(jnp.asarray(words(key)))
    assert str(jax.random.key_impl(old)) == keys.THREEFRY
    assert keys.threefry(key) == old
    for place in range(4):
        other = words(key).copy()
        other[place] += 1
        assert (words(keys.threefry(other)) != words(old)).any()
    batch = jax.random.split(key, 3)
    assert (keys.example_keys(batch, 3)[1] == keys.threefry(batch[1])).all()


@pytest.mark.parametrize("impl", OTHERS)
def test_an_image_depends_on_its_seed_and_not_on_its_batch(impl):
    key = jax.random.key(5, impl=impl)
    large = samplers.draw_noise(key, (5, 3))
    np.testing.assert_array_equal(samplers.draw_noise(key, (2, 3)), large[:2])
    some = np.asarray([4, 1])
    np.testing.assert_array_equal(
        samplers.draw_noise(keys.fold_each(key, some), (2, 3)), large[some]
    )
    assert len(np.unique(large)) == large.size

    def sample(noise, key):
        path, grid = paths.Linear(), times.uniform_grid(2, 0.1)
        return samplers.sample_sde(lambda x, t, c: -x, noise, grid, key=key, path=path)

    np.testing.assert_allclose(sample(large, key)[:2], sample(large[:2], key), rtol=1e-6)


@pytest.mark.parametrize("impl", OTHERS)
def test_a_condition_is_dropped_by_the_example_s_own_coin(impl):
    key, cond = jax.random.key(5, impl=impl), jnp.arange(64)
    dropped = losses.drop_condition(key, cond, jnp.int32(-1), 0.5)
    some = np.arange(63, 0, -3)
    coins = keys.fold_each(key, some)
    np.testing.assert_array_equal(
        losses.drop_condition(coins, cond[some], jnp.int32(-1), 0.5), dropped[some]
    )
    # 64 coins: the count is within 5 standard deviations, 20, of 32.
    assert 12 < np.sum(np.asarray(dropped) == -1) < 52


@pytest.mark.parametrize("draw", DRAWS)
def test_a_training_draw_depends_on_its_place_and_not_on_the_batch(draw):
    key = jax.random.key(5)
    large = np.asarray(DRAWS[draw](key, batch=8))
    np.testing.assert_allclose(DRAWS[draw](key, batch=3), large[:3], rtol=1e-6)
    assert len(np.unique(large)) == 8
    for impl in OTHERS:
        other = jax.random.key(5, impl=impl)
        np.testing.assert_array_equal(
            DRAWS[draw](other, batch=8), DRAWS[draw](keys.threefry(other), batch=8)
        )


def test_examples_get_their_keys_in_one_place_alone():
    root = Path(guidedflow.__file__).parent
    split = re.compile(r"vmap\([^\n]*fold_in")
    found = [str(f.relative_to(root)) for f in root.rglob("*.py") if split.search(f.read_text())]
    assert found == ["keys.py"]


@pytest.mark.parametrize("key", [0, None, "a", np.float32(1), np.zeros(3, np.uint32)])
def test_what_is_no_key_is_refused(key):
    with pytest.raises(ValueError, match="key must be"):
        keys.example_keys(key, 3)


def test_a_batch_of_keys_of_another_size_is_refused():
    with pytest.raises(ValueError, match=r"one an example \(3,\), got \(2,\)"):
        keys.example_keys(jax.random.split(jax.random.key(0), 2), 3)
