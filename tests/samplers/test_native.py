"""A network's own prediction reaches the samplers as it is, guided or not, on every grid."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from guidedflow import guidance, paths, predictions, samplers
from guidedflow.types import evaluate

EPS = float(np.finfo(np.float32).eps)
TABLE = paths.DiscreteBeta(paths.cosine_betas)
# Both ends of each grid lie within the margin that velocities keep from t = 0 and t = 1.
CASES = [
    (paths.Linear(), 1e-4),
    (paths.Trigonometric(), 2e-4),
    (paths.VariancePreserving(), 0.0),
    (TABLE, 0.0),
    (paths.EDM(20.0), 0.0),
]
every_case = pytest.mark.parametrize(
    ("path", "start"), CASES, ids=lambda value: type(value).__name__
)
X = np.random.default_rng(0).normal(size=(3, 2)).astype(np.float32)
LABELS = np.asarray([0, 1, 1])
NULL = 2


def grid(path, start):
    end = 0.97 if isinstance(path, paths.EDM) else 1 - 3e-4
    return np.asarray([start, 0.1, 0.25, 0.5, 0.8, 0.9, 0.95, end, 1.0], np.float32)


def constant_noise(x, t, cond):
    """The same noise at every state and time, another one for each label."""
    return jnp.broadcast_to(0.3 + 0.5 * cond[:, None], x.shape)


def always(path, predicts, noise, data):
    """A network of any type whose data and noise are always the same."""

    def network(x, t, cond):
        a, b = jax.vmap(lambda s: predicts(path, s))(t)
        return a[:, None] * data + b[:, None] * noise

    return network


DATA_SAMPLERS = [
    samplers.sample_ddim,
    samplers.sample_dpmpp,
    samplers.sample_dpmpp_singlestep,
    samplers.sample_unipc,
    samplers.sample_edm,
]
CONSTANT = [
    *((samplers.sample_ddim, *case, 2.5) for case in CASES),
    *((sampler, TABLE, 0.0, 2.5) for sampler in DATA_SAMPLERS[1:]),
    (samplers.sample_dpmpp, TABLE, 0.0, None),
]


@pytest.mark.parametrize(("sampler", "path", "start", "w"), CONSTANT)
def test_constant_noise_ends_where_the_formula_says(sampler, path, start, w):
    """With noise e always, D = (x - sigma e) / alpha stays the same, and the end is the first D."""
    model = predictions.as_velocity(constant_noise, path, predictions.noise)
    labels = LABELS.astype(np.float64)
    if w is not None:
        model = guidance.classifier_free(model, NULL, w)
        labels = NULL + w * (labels - NULL)
    with jax.enable_x64(True):
        t = jnp.float64(np.float32(start))
        alpha, sigma = (float(f(t)) for f in (path.alpha, path.sigma))
    noise = 0.3 + 0.5 * labels[:, None]
    x = (alpha * X + sigma * noise).astype(np.float32)
    got = sampler(model, x, grid(path, start), LABELS, path=path)
    wanted = (x - sigma * noise) / alpha
    # Rounding of the first D; multistep methods carry differences of such on, a few times as large.
    tolerance = 64 * EPS * np.max((np.abs(x) + sigma * np.abs(noise)) / alpha)
    np.testing.assert_allclose(got, wanted, atol=tolerance)


@every_case
def test_every_prediction_is_read_as_it_is(path, start):
    """Data and noise that made a prediction are what a sampler reads, right up to both ends."""
    data, noise = jnp.full((2, 3), 1.5), jnp.full((2, 3), -0.5)
    t = jnp.asarray([max(start, 1e-5), 1 - 2e-4])

    @jax.jit
    def read():
        x = jax.vmap(lambda d, n, s: path.alpha(s) * d + path.sigma(s) * n)(data, noise, t)
        got = {}
        for kind in ("noise", "data", "score", "v"):
            predicts = getattr(predictions, kind)
            network = always(path, predicts, noise, data)
            at, _ = evaluate(predictions.as_velocity(network, path, predicts), (), x, t, None, t)
            got[kind] = (
                at.native.output,
                [
                    predictions.read(path, at.native, at.velocity, x, t, what)[0]
                    for what in (predictions.data, predictions.noise, predicts)
                ],
            )
        return x, got

    x, got = read()
    alpha, sigma = (
        np.asarray(jax.vmap(f)(t), np.float64)[:, None] for f in (path.alpha, path.sigma)
    )
    for kind, (output, (got_data, got_noise, same)) in got.items():
        np.testing.assert_array_equal(same, output)
        scale = 16 * EPS * (np.abs(x) + np.abs(output) + 1.5)
        if kind == "score":
            scale = scale * np.maximum(1, sigma**2)
        # What is solved for is divided by its own coefficient.
        assert np.all(np.abs(got_data - data) <= scale / np.minimum(alpha, 1) + 1e-6), kind
        assert np.all(np.abs(got_noise - noise) <= scale / np.minimum(sigma, 1) + 1e-6), kind


def test_where_the_prediction_says_nothing_the_velocity_is_read():
    """At alpha = 0 noise says nothing of the data: DDIM's step is Euler's along the velocity."""
    path, ts = paths.Linear(), np.asarray([0.0, 0.25], np.float32)
    model = predictions.as_velocity(lambda x, t, c: 0.9 * x, path, predictions.noise)
    got = samplers.sample_ddim(model, X, ts, path=path)
    wanted = X + 0.25 * model(X, jnp.zeros(3), None)
    np.testing.assert_allclose(got, wanted, rtol=1e-5)


def test_ddim_is_its_formula_step_by_step():
    """x_s = alpha_s (x - sigma_t n) / alpha_t + sigma_s n for n = k(t) x, so a product over steps."""
    path, ts, w, labels = TABLE, grid(TABLE, 0.0), 3.0, jnp.asarray([0.0, 1.0, 2.0])

    def network(x, t, cond):
        return (0.4 + 0.1 * cond[:, None] + 0.2 * t[:, None]) * x

    model = guidance.classifier_free(
        predictions.as_velocity(network, path, predictions.noise), 5.0, w
    )
    got = samplers.sample_ddim(model, X, ts, labels, path=path)
    alpha, sigma = (
        np.asarray(jax.vmap(f)(jnp.asarray(ts)), np.float64) for f in (path.alpha, path.sigma)
    )
    factor = np.ones(3)
    for i, t in enumerate(ts[:-1].astype(np.float64)):
        k = 0.4 + 0.1 * (5 + w * (np.arange(3) - 5)) + 0.2 * t
        factor *= alpha[i + 1] * (1 - sigma[i] * k) / alpha[i] + sigma[i + 1] * k
    np.testing.assert_allclose(got, factor[:, None] * X, rtol=200 * EPS)


def test_thresholding_is_seen_by_the_sampler():
    """After it the data estimate lies in [-1, 1], also where alpha is far below the margin's."""
    model = predictions.as_velocity(lambda x, t, c: 0.2 * x, TABLE, predictions.noise)
    limited = guidance.dynamic_threshold(model, TABLE, quantile=1.0)
    t = jnp.zeros(3)

    def largest(model):
        at, _ = evaluate(model, (), jnp.asarray(X), t, None, t)
        data, _ = predictions.read(TABLE, at.native, at.velocity, X, t, predictions.data)
        return float(jnp.abs(data).max())

    assert largest(model) > 1e3
    np.testing.assert_allclose(largest(limited), 1, rtol=0.02)


def test_standing_still_is_not_read_as_the_network():
    model = predictions.as_velocity(constant_noise, TABLE, predictions.noise)
    still = guidance.zero_init(model, 0.5)
    at, _ = evaluate(still, (), X, jnp.full(3, 0.2), LABELS, jnp.float32(0.2))
    assert at.native is None
    np.testing.assert_array_equal(at.velocity, np.zeros_like(X))
