"""What every method of guidance is when its numbers are at their limits, on data known exactly."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from mixture import IMAGES, PLANE

from guidedflow import guidance, paths, predictions, samplers, times

LINEAR = paths.Linear()
PATHS = [LINEAR, paths.Trigonometric(), paths.VariancePreserving(), paths.EDM(5.0, 3.0)]
every_path = pytest.mark.parametrize("path", PATHS, ids=lambda path: type(path).__name__)
SCALES = (0.0, 1.0, 2.5, 7.5)


def points(path, mixture=PLANE, count=16, low=0.05, high=0.95):
    keys = jax.random.split(jax.random.key(1), 3)
    t = jnp.linspace(low, high, count)
    label = jax.random.randint(keys[1], (count,), 0, mixture.num_classes)
    draw = jax.vmap(lambda k, s: mixture.sample_at(k, 1, path, s)[0])
    return draw(jax.random.split(keys[2], count), t), t, label


def close(got, wanted, tolerance=2e-5):
    scale = 1 + np.abs(np.asarray(wanted)).max()
    np.testing.assert_allclose(got, wanted, rtol=tolerance, atol=tolerance * scale)


def guided(path, scale, mixture=PLANE, **options):
    return guidance.classifier_free(mixture.velocity(path), mixture.null, scale, **options)


@every_path
@pytest.mark.parametrize("scale", SCALES)
def test_classifier_free_is_classifier_guidance_with_the_true_classifier(path, scale):
    x, t, label = points(path)
    free = guided(path, scale)
    null = guidance.fixed(PLANE.velocity(path), PLANE.null)
    exact = guidance.classifier(null, path, PLANE.log_prob(path), scale)
    close(exact(x, t, label), free(x, t, label), 1e-3)


@every_path
def test_at_zero_it_is_the_null_model_and_at_one_the_conditional_one(path):
    x, t, label = points(path)
    velocity = PLANE.velocity(path)
    close(guided(path, 0.0)(x, t, label), velocity(x, t, jnp.full_like(label, PLANE.null)))
    close(guided(path, jnp.float32(1))(x, t, label), velocity(x, t, label))
    np.testing.assert_array_equal(guided(path, 1.0)(x, t, label), velocity(x, t, label))


@every_path
@pytest.mark.parametrize("name", ["noise", "data", "v"])
def test_classifier_free_guidance_is_the_same_in_every_prediction(path, name):
    x, t, label = points(path)
    network, predicts = getattr(PLANE, name)(path), getattr(predictions, name)
    outer = guidance.classifier_free(
        predictions.as_velocity(network, path, predicts), PLANE.null, 3.0
    )
    inner = predictions.as_velocity(
        guidance.classifier_free(network, PLANE.null, 3.0), path, predicts
    )
    close(outer(x, t, label), inner(x, t, label), 1e-4)


def in_noise(rule):
    return guidance.in_space(rule, LINEAR, predictions.noise)


def test_rescale_thresholds_and_projections_differ_from_space_to_space():
    x, t, label = points(LINEAR)
    free = guided(LINEAR, 3.0)
    here = guidance.rescale(free)(x, t, label)
    there = guidance.rescale(free, path=LINEAR, predicts=predictions.noise)(x, t, label)
    assert np.abs(here - there).max() > 0.1
    for rule in (guidance.tangential(), guidance.optimized_scale(), guidance.magnitude_aware()):
        here, there = (guided(LINEAR, 3.0, rule=r)(x, t, label) for r in (rule, in_noise(rule)))
        assert np.abs(here - there).max() > 1e-2


@every_path
def test_rescale_in_a_space_is_rescale_of_a_network_of_that_space(path):
    x, t, label = points(path)
    network = guidance.classifier_free(PLANE.noise(path), PLANE.null, 3.0)
    native = predictions.as_velocity(guidance.rescale(network, 0.7), path, predictions.noise)
    ours = guidance.rescale(guided(path, 3.0), 0.7, path=path, predicts=predictions.noise)
    close(ours(x, t, label), native(x, t, label), 1e-3)


def methods(path, scale):
    """Each method at the numbers that make it classifier-free guidance."""
    rule = partial(guided, path, scale)
    model, null = PLANE.velocity(path), PLANE.null
    return {
        "interval of everything": guided(path, guidance.interval(scale, 0.0, 1.0)),
        "sigma interval of everything": guided(
            path, guidance.sigma_interval(scale, path, 0.0, 1e6)
        ),
        "constant ramp": guided(path, guidance.linear(scale, scale)),
        "constant power": guided(path, guidance.power(scale, scale)),
        "one step": guided(path, guidance.stepwise([0.5], [scale, scale])),
        "autoguidance by the null branch": guidance.extrapolate(
            model, guidance.fixed(model, null), scale
        ),
        "projected": rule(
            rule=guidance.projected(path, momentum=0.0, threshold=np.inf, parallel=1.0)
        ),
        "zero star": guidance.zero_init(rule(rule=guidance.optimized_scale(optimize=False)), 0.0),
        "rescale": guidance.rescale(rule(), 0.0),
        "composition of one": WithTuple(guidance.compose(model, null, [scale])),
        "magnitude aware": rule(rule=guidance.magnitude_aware(damping=0.0)),
        "all channels": guidance.guide_channels(rule(), 2),
        "perpendicular": WithPair(guidance.perpendicular(model, null, scale, 0.0)),
        "perturbed by the null branch": guidance.perturbed(
            model, guidance.fixed(model, null), scale - 1
        ),
        "in data": rule(rule=guidance.in_space(guidance.Affine(), path, predictions.data)),
        "concatenated": rule(branches=guidance.concatenated),
        "sequential": rule(branches=guidance.sequential),
    }


class WithTuple:
    def __init__(self, model):
        self.model = model

    def __call__(self, x, t, label):
        return self.model(x, t, (label,))


class WithPair(WithTuple):
    def __call__(self, x, t, label):
        return self.model(x, t, (label, (label + 1) % PLANE.num_classes))


@pytest.mark.parametrize("name", methods(LINEAR, 2.0))
@pytest.mark.parametrize("path", PATHS[::2], ids=lambda path: type(path).__name__)
def test_at_its_limit_it_is_classifier_free_guidance(name, path):
    x, t, label = points(path)
    for scale in (1.0, 2.5):
        method = methods(path, scale)[name]
        wanted = guided(path, scale)(x, t, label)
        close(method(x, t, label), wanted, 2e-4 if name == "in data" else 3e-5)


RULES = {
    "projected": guidance.projected(LINEAR),
    "optimized scale": guidance.optimized_scale(),
    "tangential": guidance.tangential(),
    "magnitude aware": guidance.magnitude_aware(),
    "frequency decoupled": guidance.frequency_decoupled(),
    "in noise": guidance.in_space(guidance.tangential(), LINEAR, predictions.noise),
}


@pytest.mark.parametrize("name", RULES)
def test_towards_one_every_rule_tends_to_the_conditional_model(name):
    x, t, label = points(LINEAR, IMAGES, low=0.0, high=1.0)
    conditional = IMAGES.velocity(LINEAR)(x, t, label)
    rule = RULES[name]
    far = guided(LINEAR, jnp.float32(3), IMAGES, rule=rule)(x, t, label)
    near = guided(LINEAR, jnp.float32(1.001), IMAGES, rule=rule)(x, t, label)
    at = guided(LINEAR, jnp.float32(1), IMAGES, rule=rule)(x, t, label)
    close(at, conditional, 1e-5)
    shares = np.abs(near - conditional).max() / np.abs(far - conditional).max()
    assert 1e-5 < shares < 3e-3


@pytest.mark.parametrize("name", RULES)
def test_a_rule_at_three_is_not_classifier_free_guidance(name):
    x, t, label = points(LINEAR, IMAGES)
    plain = guided(LINEAR, 3.0, IMAGES)(x, t, label)
    other = guided(LINEAR, 3.0, IMAGES, rule=RULES[name])(x, t, label)
    assert np.abs(other - plain).max() > 1e-2


@pytest.mark.parametrize("name", RULES)
def test_an_example_is_guided_alike_in_any_batch(name):
    x, t, label = points(LINEAR, IMAGES)
    model = guided(LINEAR, 3.0, IMAGES, rule=RULES[name])
    alone = jnp.concatenate([model(x[i : i + 1], t[i : i + 1], label[i : i + 1]) for i in (0, 7)])
    close(model(x, t, label)[jnp.asarray([0, 7])], alone)


@pytest.mark.parametrize("name", RULES)
def test_a_rule_is_finite_at_both_ends_and_has_a_gradient(name):
    null = jnp.full((4, 4, 2), 0.5)

    def through(w, x, t):
        model = guidance.classifier_free(lambda x, t, c: c * x, null, w, rule=RULES[name])
        return jnp.sum(model(x, t, jnp.full(x.shape, 2.0)))

    for x in (jnp.ones((2, 4, 4, 2)), jnp.zeros((2, 4, 4, 2))):
        slopes = jax.grad(through, (0, 1))(jnp.float32(2), x, jnp.asarray([0.0, 1.0]))
        assert all(np.all(np.isfinite(slope)) for slope in slopes)


def test_euler_on_the_linear_path_is_ddim():
    noise = samplers.draw_noise(jax.random.key(0), (8, 2))
    label = jnp.arange(8) % PLANE.num_classes
    grid = times.uniform_grid(7)
    model = guided(LINEAR, 2.0)
    euler = samplers.sample_ode(model, noise, grid, label, step=samplers.euler)
    close(samplers.sample_ddim(model, noise, grid, label, path=LINEAR), euler, 1e-4)


@pytest.mark.parametrize(("scale", "law"), [(0.0, None), (1.0, 0)])
def test_samples_follow_the_law_that_the_scale_names(scale, law):
    count = 4000
    noise = samplers.draw_noise(jax.random.key(0), (count, 2))
    label = jnp.zeros(count, jnp.int32)
    model = guided(LINEAR, jnp.float32(scale))
    out = samplers.sample_ode(model, noise, times.uniform_grid(40, high=0.999), label)
    # 1.95 / sqrt(n) is exceeded once in 1,000 lines; one in ten of them is looked at.
    assert PLANE.distance(out, law) < 1.95 / np.sqrt(count) + 0.01
    assert PLANE.distance(out, 1 if law == 0 else 0) > 0.2
