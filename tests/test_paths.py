"""Paths: their ends, their slopes, and DDPM's published tables."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from guidedflow import paths

EVERY = [
    paths.Linear(),
    paths.Trigonometric(),
    paths.VariancePreserving(),
    paths.DiscreteBeta(),
    paths.DiscreteBeta(paths.cosine_betas),
    paths.DiscreteBeta(paths.scaled_linear_betas),
    paths.VarianceExploding(),
    paths.EDM(),
]
every_path = pytest.mark.parametrize("path", EVERY, ids=lambda p: type(p).__name__)
preserving = pytest.mark.parametrize("path", EVERY[1:6], ids=lambda p: type(p).__name__)
TIMES = np.linspace(0, 1, 41, dtype=np.float32)


def on_grid(path, times=TIMES):
    alpha, sigma = jax.jit(lambda t: (jax.vmap(path.alpha)(t), jax.vmap(path.sigma)(t)))(times)
    return np.asarray(alpha), np.asarray(sigma)


@pytest.mark.parametrize(
    ("path", "start", "end"),
    [
        (paths.Linear(), (0, 1), (1, 0)),
        (paths.Trigonometric(), (0, 1), (1, 0)),
        # exp(-(20 - 0.1) / 4 - 0.1 / 2) = 0.00657
        (paths.VariancePreserving(), (0.00657, 0.99998), (1, 0)),
        (paths.DiscreteBeta(), (0.00635, 0.99998), (1, 0)),
        (paths.VarianceExploding(0.01, 50), (1, 50), (1, 0.01)),
        (paths.EDM(80), (1, 80), (1, 0)),
    ],
)
def test_path_runs_from_noise_to_data(path, start, end):
    alpha, sigma = on_grid(path)
    np.testing.assert_allclose((alpha[0], sigma[0]), start, rtol=1e-3)
    np.testing.assert_allclose((alpha[-1], sigma[-1]), end, rtol=1e-5, atol=0)


@every_path
def test_data_grows_and_noise_falls(path):
    alpha, sigma = on_grid(path)
    assert np.all(np.diff(alpha) >= 0)
    assert np.all(np.diff(sigma) <= 0)
    assert np.all(np.diff(np.log(alpha[1:-1]) - np.log(sigma[1:-1])) > 0)


@preserving
def test_variance_is_preserved(path):
    alpha, sigma = on_grid(path)
    np.testing.assert_allclose(alpha**2 + sigma**2, 1, rtol=1e-5)


@every_path
def test_slope_equals_the_difference_quotient(path):
    # Off the kinks of the discrete tables, which lie at multiples of 1 / 1000.
    t, h = TIMES[2:-2] + np.float32(5e-4), 2e-4

    def both(t):
        _, _, alpha_dot, sigma_dot = paths.derivatives(path, t)
        return alpha_dot, sigma_dot

    slopes = jax.jit(jax.vmap(both))(t)
    right, left = on_grid(path, t + np.float32(h)), on_grid(path, t - np.float32(h))
    step = (t + np.float32(h)).astype(np.float64) - (t - np.float32(h))
    for slope, above, below in zip(slopes, right, left, strict=True):
        quotient = (above.astype(np.float64) - below) / step
        size = np.abs(above).max() / h * 1e-7
        np.testing.assert_allclose(slope, quotient, rtol=5e-3, atol=10 * size)


@every_path
def test_interpolation_moves_with_its_velocity(path):
    data, noise = jnp.asarray([1.5, -2.0]), jnp.asarray([0.3, 0.8])
    at = jax.jit(lambda t: paths.interpolate(path, data, noise, t))
    t, h = 0.4305, 1e-4
    (x, velocity), (after, _), (before, _) = (at(jnp.float32(s)) for s in (t, t + h, t - h))
    alpha, sigma = path.alpha(jnp.float32(t)), path.sigma(jnp.float32(t))
    np.testing.assert_allclose(x, alpha * data + sigma * noise, rtol=1e-6)
    size = float(jnp.max(jnp.abs(x)))
    np.testing.assert_allclose(velocity, (after - before) / (2 * h), rtol=1e-2, atol=5e-3 * size)


@pytest.mark.parametrize(
    ("betas", "step", "alpha_bar"),
    [
        # Ho et al. 2020: alpha_bar_T = 4.04e-5; Stable Diffusion's table ends at 0.0047.
        (paths.linear_betas, 999, 4.0358e-5),
        (paths.linear_betas, 0, 0.9999),
        (paths.scaled_linear_betas, 999, 4.6604e-3),
        (paths.scaled_linear_betas, 0, 0.99915),
        # cos^2((0.5 + 0.008) / 1.008 pi / 2) / cos^2(0.008 / 1.008 pi / 2)
        (paths.cosine_betas, 499, 0.49384),
    ],
)
def test_tables_reach_the_published_values(betas, step, alpha_bar):
    path = paths.DiscreteBeta(betas)
    alpha = path.alpha(path.time(jnp.asarray(step)))
    np.testing.assert_allclose(alpha**2, alpha_bar, rtol=3e-4)


def test_every_step_of_a_table_stands_at_its_time():
    path = paths.DiscreteBeta()
    steps = np.arange(1000)
    times = path.time(steps).astype(np.float32)
    product = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))
    alpha, sigma = on_grid(path, times)
    np.testing.assert_allclose(alpha**2, product, rtol=3e-5)
    np.testing.assert_allclose(sigma**2, 1 - product, rtol=2e-4)
    np.testing.assert_allclose(path.index(times), steps, atol=1e-3)


def test_cosine_table_is_capped():
    assert paths.cosine_betas(1000).max() == 0.999
    assert paths.cosine_betas(1000, limit=0.5).max() == 0.5


def test_continuous_and_discrete_variance_preserving_paths_agree():
    """Ho's table is the 1000-step form of Song's linear beta from 0.1 to 20."""
    alpha, _ = on_grid(paths.VariancePreserving())
    table, _ = on_grid(paths.DiscreteBeta())
    np.testing.assert_allclose(alpha**2, table**2, atol=2e-3)


def test_uniform_time_on_edm_is_the_grid_of_karras():
    i, rho = np.arange(5) / 4, 7.0
    np.testing.assert_allclose(
        on_grid(paths.EDM(80.0, rho), i.astype(np.float32))[1],
        (80 ** (1 / rho) + i * (0 - 80 ** (1 / rho))) ** rho,
        rtol=1e-5,
    )


def test_equal_paths_compare_and_hash_equal():
    assert paths.EDM(80.0) == paths.EDM()
    assert hash(paths.DiscreteBeta()) == hash(paths.DiscreteBeta(paths.linear_betas, 1000))
    assert paths.DiscreteBeta() != paths.DiscreteBeta(paths.cosine_betas)
    assert all(isinstance(path, paths.Path) for path in EVERY)


def test_log_snr_is_infinite_at_the_ends_and_zero_where_they_meet():
    at = [float(paths.log_snr(paths.Linear(), jnp.float32(t))) for t in (0, 0.5, 1)]
    assert at == [-np.inf, 0.0, np.inf]
    np.testing.assert_allclose(paths.interior(jnp.asarray([0.0, 0.5, 1.0])), [1e-3, 0.5, 0.999])


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: paths.VariancePreserving(beta_min=2.0, beta_max=1.0), "beta_max must be"),
        (lambda: paths.VariancePreserving(beta_min=-1.0), "beta_min must be"),
        (lambda: paths.VariancePreserving("a"), "beta_min must be a number"),
        (lambda: paths.VarianceExploding(sigma_min=0.0), "sigma_min must be"),
        (lambda: paths.VarianceExploding(2.0, 1.0), "sigma_max must be"),
        (lambda: paths.EDM(sigma_max=-1.0), "sigma_max must be"),
        (lambda: paths.EDM(rho=0.5), "rho must be"),
        (lambda: paths.DiscreteBeta(steps=0), "steps must be"),
        (lambda: paths.DiscreteBeta(lambda n: np.full(n, 1.5)), "betas must be 1000 numbers"),
        (lambda: paths.DiscreteBeta(lambda n: np.full(n - 1, 0.5)), "got shape \\(999,\\)"),
        (lambda: paths.DiscreteBeta(lambda n: np.ones(n)), "only the last may be 1"),
        (lambda: paths.DiscreteBeta(paths.zero_snr(paths.linear_betas), 1), "at least 2 steps"),
    ],
)
def test_a_path_out_of_range_is_refused(make, says):
    with pytest.raises(ValueError, match=says):
        make()


@pytest.mark.parametrize(
    ("data", "noise", "t", "says"),
    [
        (np.ones(2), np.ones(3), 0.5, "one shape"),
        (np.ones(2, int), np.ones(2), 0.5, "data must be floating"),
        (np.ones(2), np.ones(2, int), 0.5, "noise must be floating"),
        (np.ones(2), np.ones(2), 1.5, r"lie in \[0, 1\]"),
        (np.ones(2), np.ones(2), 1, "t must be floating"),
        (np.ones(2), np.ones(2), np.full(2, 0.5), "vmap over the batch"),
    ],
)
def test_interpolation_refuses_bad_input(data, noise, t, says):
    with pytest.raises(ValueError, match=says):
        paths.interpolate(paths.Linear(), data, noise, t)


@pytest.mark.parametrize("betas", [paths.linear_betas, paths.scaled_linear_betas])
def test_a_rescaled_table_ends_in_pure_noise_and_begins_as_before(betas):
    """Lin et al. 2024, algorithm 1: sqrt(alpha_bar) moved and stretched, its first entry kept."""
    before, after = betas(1000), paths.zero_snr(betas)(1000)
    assert after[-1] == 1
    np.testing.assert_allclose(after[0], before[0], rtol=1e-9)
    old, new = (np.sqrt(np.cumprod(1 - table)) for table in (before, after))
    slopes = np.diff(new) / np.diff(old)
    np.testing.assert_allclose(slopes, slopes[0], rtol=1e-6)


def test_the_path_of_a_table_to_pure_noise_is_smooth_there():
    path = paths.DiscreteBeta(paths.zero_snr(paths.scaled_linear_betas))
    assert path == paths.DiscreteBeta(paths.zero_snr(paths.scaled_linear_betas))
    alpha, sigma, alpha_dot, sigma_dot = (float(v) for v in paths.derivatives(path, jnp.zeros(())))
    assert (alpha, sigma, sigma_dot) == (0, 1, 0)
    step = float(path.alpha(jnp.float32(1e-3)))
    assert alpha_dot == pytest.approx(1000 * step, rel=1e-3)
    t = np.float32([1e-4, 5e-4, 1e-3, 1.5e-3, 0.5, 0.999])
    alpha, sigma = on_grid(path, t)
    np.testing.assert_allclose(alpha**2 + sigma**2, 1, rtol=1e-5)
    assert np.all(np.diff(alpha) > 0)


def test_noise_falls_infinitely_steeply_at_clean_data():
    for path in (paths.VariancePreserving(), paths.DiscreteBeta()):
        assert float(paths.derivatives(path, jnp.ones(()))[3]) == -np.inf
