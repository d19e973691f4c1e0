"""Both ends of every path: conversions, weights and draws are their limits where these are finite."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from guidedflow import losses, paths, predictions, times

ZERO_SNR = paths.DiscreteBeta(paths.zero_snr(paths.linear_betas))
EVERY = [
    paths.Linear(),
    paths.Trigonometric(),
    paths.VariancePreserving(),
    ZERO_SNR,
    paths.VarianceExploding(),
    paths.EDM(),
]
every_path = pytest.mark.parametrize(
    "path", EVERY, ids=["linear", "trigonometric", "vp", "zero-snr", "ve", "edm"]
)
KINDS = [getattr(predictions, kind) for kind in ("velocity", "score", "noise", "data", "v")]
PAIRS = list(itertools.permutations(KINDS, 2))


def exact_limits(path):
    """(pair, end, p or q) from just inside, solved in float64; and which ends have a finite limit."""
    with jax.enable_x64(True):
        inside = np.asarray([1e-8, 1e-10])
        t = jnp.asarray([*inside, *(1 - inside)])
        rows = {kind: jnp.stack(kind(path, t)) for kind in KINDS}
        rows = {kind: np.asarray(row).T for kind, row in rows.items()}
        x = np.asarray(jnp.stack([path.alpha(t), path.sigma(t)])).T
    solved = [
        [np.linalg.solve(np.stack([x[i], rows[a][i]]).T, rows[b][i]) for i in range(4)]
        for a, b in PAIRS
    ]
    before, limit = np.asarray(solved)[:, [0, 2]], np.asarray(solved)[:, [1, 3]]
    return limit, np.all(np.abs(limit) < 2 * np.abs(before) + 1, axis=-1)


@pytest.mark.parametrize("path", EVERY[::5] + EVERY[2:4], ids=["linear", "edm", "vp", "zero-snr"])
def test_a_conversion_is_its_limit_where_that_is_finite(path):
    limit, finite = exact_limits(path)
    # Both kinds of end are among them.
    assert 10 < finite.sum() < finite.size
    ends = jnp.asarray([0.0, 1.0])
    at = np.asarray([np.asarray(predictions.limits(path, ends, *pair)).T for pair in PAIRS])
    np.testing.assert_allclose(at[finite], limit[finite], rtol=3e-3, atol=3e-3)
    assert not np.any(np.all(np.isfinite(at), axis=-1) & ~finite)


def test_a_conversion_in_bfloat16_is_its_limit_too():
    one, to = jnp.ones(1, jnp.bfloat16), (predictions.velocity, predictions.data)
    for path in (paths.EDM(), paths.VariancePreserving()):
        data = predictions.convert(path, 3 * one, one, one[0], *to)
        assert data.dtype == jnp.bfloat16
        assert float(data[0]) == pytest.approx(1, rel=1e-2)


WEIGHTINGS = [
    losses.unit,
    losses.min_snr(),
    losses.min_snr(soft=True),
    losses.truncated_snr(),
    losses.edm(),
    losses.sigmoid(1.0),
]


@every_path
def test_weights_at_the_ends_are_their_limits(path):
    """Of SNR s: min(s, 5), s 5 / (s + 5), max(s, 1), s + 4 and 1 / (1 / s + exp(-1))."""
    last = float(path.sigma(jnp.ones(())))
    first = float(path.alpha(jnp.zeros(()))) / float(path.sigma(jnp.zeros(())))
    for t, snr in ((0.0, first**2), (1.0, np.inf if last == 0 else last**-2)):
        inverse = 1 / snr if snr else np.inf
        wanted = [1, min(snr, 5), 1 / (inverse + 1 / 5), max(snr, 1), snr + 4]
        wanted.append(1 / (inverse + np.exp(-1)))
        for dtype in (jnp.float32, jnp.bfloat16):
            got = [weighting(path, jnp.asarray(t, dtype)) for weighting in WEIGHTINGS]
            np.testing.assert_allclose(np.asarray(got, float), wanted, rtol=2e-3)


def test_a_soft_cap_near_clean_data_is_the_cap():
    """At t = 0.999 EDM's SNR is 1.5e38, which times gamma leaves float32."""
    weight = losses.min_snr(soft=True)(paths.EDM(), jnp.float32(0.999))
    assert float(weight) == pytest.approx(5, rel=1e-6)


@pytest.mark.parametrize("path", [EVERY[2], paths.EDM(10.0)], ids=["vp", "edm"])
@pytest.mark.parametrize("kind", KINDS[:3], ids=lambda kind: kind.__name__)
def test_a_capped_loss_at_the_ends_equals_its_value_in_float64(path, kind):
    """The weight alone, the slope alone or the target alone may be outside float32 there."""
    capped = [losses.min_snr(), losses.min_snr(soft=True), losses.sigmoid(1.0), losses.unit]

    def each(dtype):
        data = jnp.asarray([[1.0, -0.5], [0.3, 2.0]], dtype)
        noise = jnp.asarray([[0.5, 1.0], [-1.0, 0.25]], dtype)
        t = jnp.asarray([0, 1], jnp.promote_types(dtype, jnp.float32))
        loss = functools.partial(losses.denoising, path=path, predicts=kind, t=t)
        values = [
            loss(lambda x, t, c: 0.5 * x, data=data, noise=noise, weighting=w) for w in capped
        ]
        return np.asarray(values, np.float64)

    with jax.enable_x64(True):
        wanted = each(jnp.float64)
    np.testing.assert_allclose(each(jnp.float32), wanted, rtol=5e-3, atol=1e-30)
    np.testing.assert_allclose(each(jnp.bfloat16), wanted, rtol=5e-2, atol=1e-30)


@pytest.mark.parametrize(
    "draw",
    [
        functools.partial(times.draw_logit_normal, mean=30.0),
        functools.partial(times.draw_logit_normal, mean=-200.0),
        functools.partial(times.draw_shifted, factor=1e-30),
        functools.partial(times.draw_shifted, factor=1e30),
        functools.partial(times.draw_log_normal_sigma, path=paths.EDM(), mean=-300.0),
        functools.partial(times.draw_log_normal_sigma, path=paths.Linear(), mean=300.0),
    ],
)
def test_the_farthest_draws_are_in_the_range_and_never_clean_data(draw):
    """At t = 1 the velocity of some paths is infinite: one draw in a run would end it."""
    t = draw(jax.random.key(0), 64)
    assert np.all((t >= 0) & (t < 1))


@every_path
@pytest.mark.parametrize("steps", [1, 40])
def test_karras_grid_fits_every_path(path, steps):
    grid = times.karras_grid(steps, path)
    times.check_grid(grid)
    assert len(grid) == steps + 1
    t = jnp.asarray(grid)
    ratio = np.asarray(path.sigma(t)[:-1] / path.alpha(t)[:-1])
    reach = float(path.sigma(t[-1])), float(path.sigma(0 * t[0]) / path.alpha(0 * t[0]))
    np.testing.assert_allclose(ratio[0], min(80, reach[1]), rtol=1e-3)
    levels = np.append(ratio, reach[0]) if reach[0] else ratio
    if steps > 2:
        # Even in the seventh root of sigma.
        np.testing.assert_allclose(np.diff(levels ** (1 / 7), 2), 0, atol=2e-3)
    if not reach[0] and steps > 1:
        np.testing.assert_allclose(ratio[-1], 0.002, rtol=1e-2)


def test_a_table_that_keeps_much_data_has_a_karras_grid_too():
    path = paths.DiscreteBeta(paths.scaled_linear_betas)
    grid = times.karras_grid(20, path)
    assert grid[0] == 0
    np.testing.assert_allclose(path.sigma(grid[:1]) / path.alpha(grid[:1]), 14.6, rtol=1e-2)


@pytest.mark.parametrize(
    ("path", "settings"),
    [
        (paths.VarianceExploding(), {"sigma_max": 80.0}),
        (paths.VarianceExploding(), {"sigma_min": 0.002}),
        (paths.EDM(10.0), {"sigma_max": 80.0}),
        (paths.VarianceExploding(100.0, 200.0), {"sigma_max": 80.0}),
    ],
)
def test_a_range_that_is_asked_for_and_not_reached_is_refused(path, settings):
    with pytest.raises(ValueError, match=r"does not hold sigma_max|sigma_max must be"):
        times.karras_grid(8, path, **settings)


@every_path
def test_log_snr_grid_fits_every_path(path):
    times.check_grid(times.log_snr_grid(20, path))
