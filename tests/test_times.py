"""Times: the laws of the draws and the points of the grids."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from guidedflow import paths, times

N = 4000


def law(draw, cdf, seed=0):
    """Kolmogorov-Smirnov p-value of N draws against a distribution function."""
    t = np.asarray(draw(jax.random.key(seed), N), np.float64)
    assert t.shape == (N,)
    assert np.all((t >= 0) & (t <= 1))
    return stats.kstest(t, cdf).pvalue


def logit(t):
    return np.log(t / (1 - t))


# A correct draw falls below this once in 10,000 seeds; the seed is fixed.
RARE = 1e-4


@pytest.mark.parametrize(
    ("draw", "cdf"),
    [
        (times.draw_uniform, lambda t: t),
        (times.draw_stratified, lambda t: t),
        (
            functools.partial(times.draw_logit_normal, mean=0.5, std=0.8),
            lambda t: stats.norm.cdf((logit(t) - 0.5) / 0.8),
        ),
        # t / (1 - t) = tan(pi u / 2)
        (times.draw_cosmap, lambda t: 2 / np.pi * np.arctan(t / (1 - t))),
        # The noise's share 1 - t is 3 s / (1 + 2 s) of a uniform s.
        (times.draw_shifted, lambda t: 1 - (1 - t) / (3 - 2 * (1 - t))),
    ],
)
def test_draws_follow_their_law(draw, cdf):
    assert law(draw, cdf) > RARE
    assert law(lambda k, n: draw(k, n) ** 1.1, cdf) < RARE


def test_log_normal_sigma_is_normal_in_log_sigma():
    path = paths.EDM(80.0)
    t = jax.jit(functools.partial(times.draw_log_normal_sigma, batch=N, path=path))(
        jax.random.key(1)
    )
    sigma = np.asarray(jax.vmap(path.sigma)(t), np.float64)
    assert stats.kstest(np.log(sigma), stats.norm(-1.2, 1.2).cdf).pvalue > RARE


def test_stratified_draws_put_one_time_in_each_part():
    t = np.asarray(times.draw_stratified(jax.random.key(0), 64))
    np.testing.assert_array_equal(np.sort(np.floor(t * 64)), np.arange(64))
    assert np.any(np.diff(t) < 0)


def test_time_of_ratio_inverts_the_path_and_stops_at_its_ends():
    for path in (paths.Linear(), paths.VariancePreserving(), paths.VarianceExploding()):
        t = np.linspace(0.05, 0.95, 19, dtype=np.float32)
        ratio = path.sigma(t) / path.alpha(t)
        np.testing.assert_allclose(
            jax.jit(functools.partial(times.time_of_ratio, path))(ratio), t, atol=2e-6
        )
    ends = times.time_of_ratio(paths.VarianceExploding(), jnp.asarray([1e3, 1e-3]))
    np.testing.assert_allclose(ends, [0, 1], atol=1e-6)


def test_shift_moves_times_towards_the_noise():
    t = jnp.asarray([0.0, 0.5, 1.0])
    np.testing.assert_allclose(times.shift(t, 3.0), [0, 0.25, 1], rtol=1e-6)
    np.testing.assert_allclose(times.shift(t, 1.0), t)


GRIDS = {
    "uniform": times.uniform_grid,
    "shifted": times.shifted_grid,
    "quadratic": times.quadratic_grid,
    "karras": lambda n: times.karras_grid(n, paths.EDM()),
    "karras on linear": lambda n: times.karras_grid(n, paths.Linear()),
    "log-SNR": lambda n: times.log_snr_grid(n, paths.Linear()),
    "log-SNR on VP": lambda n: times.log_snr_grid(n, paths.VariancePreserving()),
}


@pytest.mark.parametrize("make", GRIDS.values(), ids=GRIDS)
@pytest.mark.parametrize("steps", [1, 10])
def test_grids_have_one_more_point_than_steps_and_increase_to_the_data(make, steps):
    grid = make(steps)
    assert grid.shape == (steps + 1,)
    assert grid.dtype == np.float32
    times.check_grid(grid)
    assert grid[-1] == 1


@pytest.mark.parametrize("make", GRIDS.values(), ids=GRIDS)
def test_grids_can_be_made_while_tracing(make):
    """A grid's points are known when a sampler is traced, also inside jit."""
    made = []

    @jax.jit
    def inside(x):
        made.append(make(4))
        return x + made[0][1]

    inside(jnp.zeros(()))
    np.testing.assert_array_equal(made[0], make(4))


def test_ends_of_a_grid_can_be_moved():
    for make in (times.uniform_grid, times.quadratic_grid):
        np.testing.assert_allclose(make(4, low=0.1, high=0.9)[[0, -1]], [0.1, 0.9], rtol=1e-6)


def test_karras_grid_has_the_published_noise_levels():
    """The first and last levels of EDM's 18-step CIFAR-10 sampler (Karras et al. 2022)."""
    path = paths.EDM()
    sigma = np.asarray(jax.vmap(path.sigma)(times.karras_grid(18, path)))
    np.testing.assert_allclose(sigma[:3], [80.0, 57.586, 40.786], rtol=1e-3)
    np.testing.assert_allclose(sigma[-3:], [0.0075, 0.002, 0.0], rtol=1e-2, atol=1e-9)


def test_log_snr_grid_is_even_in_log_snr():
    for path in (paths.Linear(), paths.VariancePreserving()):
        grid = times.log_snr_grid(8, path)
        level = np.asarray(jax.vmap(functools.partial(paths.log_snr, path))(grid[:-1]))
        np.testing.assert_allclose(np.diff(level), np.diff(level).mean(), rtol=2e-2)


def test_quadratic_steps_shrink_towards_the_data():
    np.testing.assert_allclose(times.quadratic_grid(2), [0, 0.75, 1])


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: times.uniform_grid(0), "steps must be a whole number"),
        (lambda: times.uniform_grid(2.5), "steps must be a whole number"),
        (lambda: times.uniform_grid(True), "steps must be a whole number"),
        (lambda: times.uniform_grid(3, 0.5, 0.5), "low < high"),
        (lambda: times.uniform_grid(3, -0.1), "low must be"),
        (lambda: times.quadratic_grid(3, 0.2, 1.1), "high must be"),
        (lambda: times.shifted_grid(3, 0.0), "factor must be"),
        (lambda: times.karras_grid(3, paths.EDM(), sigma_min=0.0), "sigma_min must be"),
        (lambda: times.karras_grid(3, paths.EDM(), sigma_min=2, sigma_max=1), "sigma_max must be"),
        (lambda: times.karras_grid(3, paths.EDM(), rho=0), "rho must be"),
        (
            lambda: times.karras_grid(9, paths.VariancePreserving(), sigma_max=1e9, rho=1),
            "does not hold",
        ),
        (lambda: times.log_snr_grid(3, paths.Linear(), low=0.0), "must be finite"),
        (lambda: times.draw_logit_normal(jax.random.key(0), 2, std=-1.0), "std must be"),
        (lambda: times.check_grid(np.ones(1)), "at least 2 times"),
        (lambda: times.check_grid(np.ones((2, 2))), "1-d grid"),
        (lambda: times.check_grid(np.arange(2)), "floating point"),
        (lambda: times.check_grid(np.asarray([0.0, 0.5, 0.5])), "must increase"),
        (lambda: times.check_grid(np.asarray([0.0, np.nan])), r"lie in \[0, 1\]"),
    ],
)
def test_bad_input_is_refused(make, says):
    with pytest.raises(ValueError, match=says):
        make()
