"""Fréchet distance against its closed forms, neighbours against brute force, manifolds on known sets."""

import numpy as np
import pytest

from guidedflow.evaluation import (
    Gaussian,
    fit_gaussian,
    frechet,
    frechet_of,
    inception_score,
    nearest,
    precision_recall,
)
from guidedflow.evaluation.distances import check_size


def _spd(rng, d):
    root = rng.standard_normal((d, d))
    return root @ root.T


def test_equal_gaussians_are_at_distance_zero():
    rng = np.random.default_rng(0)
    a = Gaussian.of(rng.standard_normal(5), _spd(rng, 5))
    assert frechet(a, a) == pytest.approx(0, abs=1e-9)


def test_a_shift_of_the_mean_counts_by_its_square():
    rng = np.random.default_rng(1)
    covariance, shift = _spd(rng, 4), rng.standard_normal(4)
    a, b = Gaussian.of(np.zeros(4), covariance), Gaussian.of(shift, covariance)
    assert frechet(a, b) == pytest.approx(np.sum(shift**2), rel=1e-9)


def test_diagonal_covariances_differ_by_their_standard_deviations():
    a = Gaussian.of(np.zeros(3), np.diag([1.0, 4.0, 9.0]))
    b = Gaussian.of(np.zeros(3), np.diag([16.0, 4.0, 0.0]))
    assert frechet(a, b) == pytest.approx((1 - 4) ** 2 + 0 + 3**2, rel=1e-12)


def test_covariances_that_do_not_commute_match_a_matrix_square_root():
    linalg = pytest.importorskip("scipy.linalg")
    rng = np.random.default_rng(2)
    a, b = (Gaussian.of(rng.standard_normal(6), _spd(rng, 6)) for _ in range(2))
    root = linalg.sqrtm(a.covariance @ b.covariance)
    expected = np.sum((a.mean - b.mean) ** 2) + np.trace(a.covariance + b.covariance - 2 * root)
    assert frechet(a, b) == pytest.approx(expected.real, rel=1e-8)
    assert frechet(b, a) == pytest.approx(frechet(a, b), rel=1e-9)


def test_the_distance_does_not_change_under_a_common_rotation():
    rng = np.random.default_rng(3)
    x, y = rng.standard_normal((200, 5)), 2 * rng.standard_normal((300, 5)) + 1
    rotation, _ = np.linalg.qr(rng.standard_normal((5, 5)))
    assert frechet_of(x @ rotation, y @ rotation) == pytest.approx(frechet_of(x, y), rel=1e-9)


@pytest.mark.parametrize("sizes", [(7, 9), (7, 60), (60, 7), (60, 50)])
def test_sets_with_more_dimensions_than_rows_match_their_covariances(sizes):
    """Against the matrix square root of 24 x 24 covariances, whichever form each set is kept in."""
    linalg = pytest.importorskip("scipy.linalg")
    rng = np.random.default_rng(12)
    x, y = (rng.standard_normal((n, 24)) * np.arange(1, 25) + 1 / n for n in sizes)
    c, d = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    np.testing.assert_allclose(fit_gaussian(x).covariance, c, atol=1e-10)
    assert len(fit_gaussian(x).factor) == min(sizes[0], 24)
    # The root of a singular product is ill-conditioned: a ridge, which counts by its root in each of
    # the 24 directions.
    ridge = 1e-9 * np.eye(24)
    root = linalg.sqrtm((c + ridge) @ (d + ridge)).real
    tolerance = 2 * 24 * np.sqrt(1e-9 * max(np.trace(c), np.trace(d)))
    expected = np.sum((x.mean(0) - y.mean(0)) ** 2) + np.trace(c + d - 2 * root)
    assert frechet_of(x, y) == pytest.approx(expected, abs=tolerance)
    assert frechet_of(x, x) == pytest.approx(0, abs=1e-9)


def test_a_shift_in_very_many_dimensions_takes_no_covariance():
    """A covariance of 200,000 dimensions would be 320 GB."""
    x = np.random.default_rng(13).standard_normal((12, 200_000))
    assert frechet_of(x, x + 0.5) == pytest.approx(0.25 * 200_000, rel=1e-9)


def test_constant_features_give_a_finite_distance():
    rng = np.random.default_rng(4)
    x = np.concatenate([rng.standard_normal((50, 3)), np.zeros((50, 40))], axis=1)
    y = np.concatenate([rng.standard_normal((30, 3)), np.zeros((30, 40))], axis=1)
    assert frechet_of(x, y) == pytest.approx(frechet_of(x[:, :3], y[:, :3]), abs=1e-9)


def test_samples_of_one_law_approach_distance_zero_as_one_over_n():
    rng = np.random.default_rng(5)
    d, sizes = 8, (250, 4000)
    means = [
        np.mean([frechet_of(*rng.standard_normal((2, n, d))) for _ in range(20)]) for n in sizes
    ]
    # The bias is c / n: sixteen times the samples, a sixteenth of it, within the spread of 20 draws.
    assert means[0] / means[1] == pytest.approx(16, rel=0.25)


def test_nearest_matches_brute_force_over_more_rows_than_one_block():
    rng = np.random.default_rng(6)
    x, y = rng.standard_normal((1500, 4)), rng.standard_normal((70, 4))
    brute = np.linalg.norm(x[:, None] - y[None], axis=-1).min(axis=1)
    np.testing.assert_allclose(nearest(x, y), brute, rtol=1e-6)


def test_a_copy_of_a_reference_is_at_distance_zero():
    rng = np.random.default_rng(7)
    y = rng.standard_normal((20, 9))
    np.testing.assert_allclose(nearest(y[3:5], y), 0, atol=1e-6)


def test_equal_sets_have_full_precision_and_recall():
    x = np.random.default_rng(8).standard_normal((60, 3))
    assert precision_recall(x, x) == (1.0, 1.0)


def test_far_sets_have_none():
    rng = np.random.default_rng(9)
    x = rng.standard_normal((60, 3))
    assert precision_recall(x + 100, x) == (0.0, 0.0)


def test_one_of_two_modes_has_precision_without_recall():
    rng = np.random.default_rng(10)
    modes = rng.standard_normal((2, 400, 2)) + np.array([[[0.0, 0.0]], [[50.0, 0.0]]])
    precision, recall = precision_recall(rng.standard_normal((400, 2)), modes.reshape(-1, 2))
    assert precision > 0.9
    assert recall == pytest.approx(0.5, abs=0.05)


def test_a_manifold_reaches_to_the_kth_other_neighbour():
    references = np.array([[0.0], [1.0], [3.0], [6.0], [10.0]])
    for k, inside, outside in ((1, -0.9, -1.1), (2, -2.9, -3.1), (3, -5.9, -6.1)):
        far = 100 * np.arange(1.0, 4.0)[:, None]
        for point, expected in ((inside, 0.25), (outside, 0.0)):
            samples = np.concatenate([[[point]], far])
            assert precision_recall(samples, references, k=k)[0] == expected, (k, point)


def test_precision_and_recall_swap_with_their_sets():
    rng = np.random.default_rng(11)
    x, y = rng.standard_normal((80, 3)), 1.5 * rng.standard_normal((90, 3))
    assert precision_recall(x, y) == precision_recall(y, x)[::-1]


def test_inception_score_runs_from_one_to_the_number_of_classes():
    assert inception_score(np.full((12, 4), 0.25)) == pytest.approx(1)
    assert inception_score(np.eye(4)) == pytest.approx(4, rel=1e-9)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: fit_gaussian(np.zeros((1, 3))), "at least 2 rows"),
        (lambda: check_size(9_000, 200_000), "9,000 features in 200,000 dimensions takes too long"),
        (lambda: fit_gaussian(np.array([[1.0], [np.nan]])), "finite; 1 numbers"),
        (lambda: frechet_of(np.zeros((3, 2)), np.zeros((3, 4))), "one dimension"),
        (lambda: nearest(np.zeros((3, 2)), np.zeros((3, 4))), "one dimension, got 2 and 4"),
        (lambda: precision_recall(np.zeros((3, 2)), np.zeros((9, 2))), "at least 4 rows"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
