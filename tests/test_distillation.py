"""Trained forms of guidance: what their losses are least at, and what they leave untouched."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from mixture import PLANE

from guidedflow import distillation, guidance, losses, paths, samplers, times

LINEAR = paths.Linear()
MODEL, NULL = PLANE.velocity(LINEAR), PLANE.null
BATCH = 8
DATA, LABEL = PLANE.sample(jax.random.key(0), BATCH)
NOISE = samplers.draw_noise(jax.random.key(1), (BATCH, 2))
T = jnp.linspace(0.05, 0.95, BATCH)
NUMBER = jnp.linspace(0.1, 1, BATCH)
GUIDED = functools.partial(guidance.classifier_free, MODEL, NULL)


def guided_by(x, t, cond, scale):
    """The exact student: u + w (c - u), one w an example."""
    null = MODEL(x, t, jnp.full_like(cond, NULL))
    return null + scale[:, None] * (MODEL(x, t, cond) - null)


def test_the_guided_teacher_is_the_least_of_distillation():
    def loss(student):
        return distillation.guidance_distillation(
            student, GUIDED, LINEAR, DATA, NOISE, T, LABEL, 10 * NUMBER
        )

    np.testing.assert_allclose(loss(guided_by), 0, atol=1e-8)
    off = loss(lambda x, t, c, w: guided_by(x, t, c, w) + 0.5)
    np.testing.assert_allclose(off, 0.25, rtol=1e-3)


def test_a_student_learns_any_method_of_guidance():
    rule = guidance.projected(LINEAR, momentum=0.0)
    teacher = functools.partial(guidance.classifier_free, MODEL, NULL, rule=rule)
    loss = distillation.guidance_distillation(
        lambda x, t, c, w: teacher(w)(x, t, c), teacher, LINEAR, DATA, NOISE, T, LABEL, NUMBER
    )
    np.testing.assert_allclose(loss, 0, atol=1e-8)


def test_no_gradient_goes_through_the_teacher_or_the_null_branch():
    def distilled(gain):
        teacher = functools.partial(
            guidance.classifier_free, lambda x, t, c: gain * MODEL(x, t, c), NULL
        )
        return jnp.sum(
            distillation.guidance_distillation(
                guided_by, teacher, LINEAR, DATA, NOISE, T, LABEL, NUMBER
            )
        )

    def free(gain):
        def student(x, t, c, beta):
            is_null = (c == NULL)[:, None]
            return jnp.where(is_null, gain, 1.0) * guided_by(x, t, c, 1 / beta)

        return jnp.sum(
            distillation.guidance_free(student, LINEAR, DATA, NOISE, T, LABEL, NULL, NUMBER)
        )

    assert jax.grad(distilled)(2.0) == 0
    assert jax.grad(free)(2.0) == 0


def test_at_beta_one_guidance_free_training_is_flow_matching():
    ones = jnp.ones(BATCH)

    def student(x, t, cond, beta):
        return beta[:, None] * MODEL(x, t, cond) + x

    ours = distillation.guidance_free(student, LINEAR, DATA, NOISE, T, LABEL, NULL, ones)
    plain = losses.flow_matching(lambda x, t, c: MODEL(x, t, c) + x, LINEAR, DATA, NOISE, T, LABEL)
    np.testing.assert_allclose(ours, plain, rtol=1e-5)


def test_the_model_guided_by_one_over_beta_is_the_least_of_guidance_free_training():
    """Whatever beta, its loss is the flow-matching loss of the exact conditional model."""

    def student(x, t, cond, beta):
        return guided_by(x, t, cond, 1 / beta)

    ours = distillation.guidance_free(student, LINEAR, DATA, NOISE, T, LABEL, NULL, NUMBER)
    least = losses.flow_matching(MODEL, LINEAR, DATA, NOISE, T, LABEL)
    np.testing.assert_allclose(ours, least, rtol=1e-3, atol=1e-5)


def test_the_gradient_of_guidance_free_training_vanishes_on_average_at_its_least():
    """Over many draws of noise, a shift of the student is not worth it; elsewhere it is."""
    count = 20_000
    data, label = PLANE.sample(jax.random.key(2), count)
    noise = samplers.draw_noise(jax.random.key(3), (count, 2))
    t = times.draw_uniform(jax.random.key(4), count)
    beta = distillation.draw_scale(jax.random.key(5), count, 0.2, 1.0)

    def slope(error):
        def loss(shift):
            def student(x, t, cond, beta):
                right = guided_by(x, t, cond, 1 / beta)
                return right + jnp.where((cond == NULL)[:, None], 0.0, shift + error)

            return jnp.mean(
                distillation.guidance_free(student, LINEAR, data, noise, t, label, NULL, beta)
            )

        return float(jax.jit(jax.grad(loss))(0.0))

    # d L / d shift = 2 E[beta (c - dx/dt)], of deviation about 2 x 0.6 x 1.1 / sqrt(2 n).
    assert abs(slope(0.0)) < 4 * 1.4 / np.sqrt(2 * count)
    assert slope(0.3) > 0.15


def test_a_bound_student_is_a_model_function_for_every_sampler():
    grid = times.uniform_grid(6)
    wanted = samplers.sample_ode(GUIDED(2.5), NOISE, grid, LABEL)
    bound = distillation.at_scale(guided_by, 2.5)
    np.testing.assert_allclose(
        samplers.sample_ode(bound, NOISE, grid, LABEL), wanted, rtol=1e-4, atol=1e-4
    )
    late = distillation.at_scale(guided_by, guidance.interval(2.5, 0.5, 1.0))
    wanted = samplers.sample_ode(GUIDED(guidance.interval(2.5, 0.5, 1.0)), NOISE, grid, LABEL)
    np.testing.assert_allclose(
        samplers.sample_ode(late, NOISE, grid, LABEL), wanted, rtol=1e-4, atol=1e-4
    )


def test_scales_are_drawn_one_an_example_over_the_whole_range():
    w = np.asarray(distillation.draw_scale(jax.random.key(0), 4000))
    assert w.min() >= 2
    assert w.max() < 14
    # The deviation of a uniform mean is 12 / sqrt(12 n).
    assert abs(w.mean() - 8) < 4 * 12 / np.sqrt(12 * 4000)
    assert len(np.unique(w)) > 3900


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda loss: loss(NOISE[:4], NUMBER), "one shape"),
        (lambda loss: loss(NOISE, NUMBER[:4]), "one an example"),
        (lambda loss: loss(NOISE, 2 * NUMBER), "beta"),
        (lambda loss: distillation.draw_scale(jax.random.key(0), 4, 3.0, 2.0), "high"),
        (lambda loss: distillation.at_scale(guided_by, "2"), "scale"),
    ],
)
def test_bad_input_is_refused(call, message):
    def loss(noise, beta):
        return distillation.guidance_free(guided_by, LINEAR, DATA, noise, T, LABEL, NULL, beta)

    with pytest.raises(ValueError, match=message):
        call(loss)
