"""Random words that are a function of integers."""

import numpy as np
import pytest

from guidedflow.data.draws import coins, hash64, normals, permutation


def test_the_mixing_function_is_splitmix64():
    """First outputs of the public reference generator (Vigna's splitmix64.c) from state 0."""
    reference = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]
    golden = 0x9E3779B97F4A7C15
    for k, expected in enumerate(reference):
        # One word that cancels the initial state leaves the k-th state of the generator.
        word = (((k + 1) * golden) % 2**64) ^ golden
        assert int(hash64(np.uint64(word))[0]) == expected


def test_order_and_number_of_words_matter():
    words = [hash64(1, 2), hash64(2, 1), hash64(1), hash64(1, 2, 0), hash64(3), hash64(0, 1, 2)]
    assert len({int(word[0]) for word in words}) == len(words)


def test_words_broadcast():
    table = hash64(5, np.arange(3)[:, None], np.arange(4)[None])
    assert table.shape == (3, 4)
    assert table[2, 1] == hash64(5, 2, 1)[0]


@pytest.mark.parametrize("length", [1, 2, 1000])
def test_a_permutation_holds_every_index_once(length):
    assert sorted(permutation(9, 4, length)) == list(range(length))


def test_coins_are_fair_and_differ_by_purpose():
    draws = hash64(np.arange(10_000))
    one, other = coins(draws, 1), coins(draws, 2)
    tolerance = 5 * 0.5 / np.sqrt(10_000)
    assert abs(one.mean() - 0.5) < tolerance
    assert abs(np.mean(one == other) - 0.5) < tolerance


def test_normals_have_the_moments_of_a_normal():
    """Means of n numbers: sd 1/sqrt(n); of squares sqrt(2/n); of fourth powers sqrt(96/n)."""
    z = normals(hash64(np.arange(100)), (10, 10, 4), 3).astype(np.float64)
    n = z.size
    assert z.shape == (100, 10, 10, 4)
    assert abs(z.mean()) < 5 / np.sqrt(n)
    assert abs((z**2).mean() - 1) < 5 * np.sqrt(2 / n)
    assert abs((z**4).mean() - 3) < 5 * np.sqrt(96 / n)


def test_normals_that_share_bits_are_independent():
    """The two halves of an example come in pairs: neither they nor their squares correlate."""
    first, second = np.split(normals(hash64(np.arange(20_000)), (2,), 3), 2, axis=1)
    tolerance = 5 / np.sqrt(20_000)
    assert abs(np.corrcoef(first[:, 0], second[:, 0])[0, 1]) < tolerance
    assert abs(np.corrcoef(first[:, 0] ** 2, second[:, 0] ** 2)[0, 1]) < tolerance


def test_normals_of_an_example_depend_on_its_draw_alone():
    draws = hash64(np.arange(5))
    assert np.array_equal(normals(draws, (3,), 0)[3:], normals(draws[3:], (3,), 0))
    assert normals(draws, (3, 5, 1), 0).dtype == np.float32
