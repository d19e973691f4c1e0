"""Reuse of the guidance difference: its limits, what it costs, and how its error falls."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from mixture import PLANE

from guidedflow import guidance, paths, samplers, times

LINEAR = paths.Linear()
MODEL = PLANE.velocity(LINEAR)
NULL = PLANE.null
NOISE = samplers.draw_noise(jax.random.key(0), (64, 2))
LABELS = jnp.arange(64) % PLANE.num_classes


def run(model, steps=8, step=samplers.euler):
    return np.asarray(
        samplers.sample_ode(model, NOISE, times.uniform_grid(steps), LABELS, step=step)
    )


def free(scale, **options):
    return guidance.classifier_free(MODEL, NULL, scale, **options)


def reused(scale, **options):
    return guidance.reuse(MODEL, NULL, scale, **options)


def evaluations(scale, steps=8, step=samplers.euler, **options):
    """How many evaluations a run takes, counted while it runs, branch by branch."""
    seen = []

    def counting(x, t, cond):
        jax.debug.callback(lambda _: seen.append(1), (t[0], cond))
        return MODEL(x, t, cond)

    guided = guidance.reuse(counting, NULL, scale, **options)
    grid = times.uniform_grid(steps)
    jax.block_until_ready(samplers.sample_ode(guided, NOISE, grid, LABELS, step=step))
    jax.effects_barrier()
    return len(seen)


@pytest.mark.parametrize("step", [samplers.euler, samplers.heun])
def test_in_every_step_it_is_classifier_free_guidance(step):
    np.testing.assert_allclose(
        run(reused(3.0, every=1), step=step), run(free(3.0), step=step), 1e-5
    )
    alone = reused(3.0)(NOISE, jnp.full(64, 0.4), LABELS)
    np.testing.assert_allclose(alone, free(3.0)(NOISE, jnp.full(64, 0.4), LABELS), 1e-5)


def test_at_scale_one_it_is_the_conditional_model_whatever_is_remembered():
    np.testing.assert_allclose(run(reused(jnp.float32(1), every=4)), run(MODEL), atol=1e-5)
    np.testing.assert_array_equal(run(reused(1.0)), run(MODEL))


@pytest.mark.parametrize(
    ("options", "count"),
    [
        ({"every": 1}, 16),
        ({"every": 2, "order": 0}, 8 + 4),
        ({"every": 4, "order": 0}, 8 + 2),
        # The line needs two differences to begin with: steps 0, 1, 3, 5, 7 and 0, 1, 5.
        ({"every": 2}, 8 + 5),
        ({"every": 4}, 8 + 3),
    ],
)
def test_a_second_branch_is_evaluated_once_in_so_many_steps(options, count):
    assert evaluations(3.0, **options) == count


def test_both_evaluations_of_a_step_of_heun_are_treated_alike():
    assert evaluations(3.0, step=samplers.heun, every=4, order=0) == 2 * (8 + 2)


def test_steps_that_a_schedule_leaves_alone_are_not_counted():
    """Guided at t = 0.25 to 0.625 and with it in four steps of eight: 8 + 2 of every = 2."""
    inside = guidance.interval(3.0, 0.25, 0.7)
    assert evaluations(inside, every=2, order=0) == 8 + 2
    # Guided at 0 and 0.125, then at 0.75 and 0.875: what was known before the gap is not used.
    gap = guidance.stepwise([0.2, 0.7], [3.0, 1.0, 3.0])
    assert evaluations(gap, every=8, order=0) == 8 + 2


def linear_in_time(x, t, cond):
    """A model whose branches differ by a line in t: c - u = 1 + 2 t."""
    difference = jnp.where(cond == NULL, 0.0, 1 + 2 * t)[:, None]
    return jnp.sin(x) + difference


def test_a_difference_that_is_a_line_in_time_is_carried_on_exactly():
    wanted = run(guidance.classifier_free(linear_in_time, NULL, 3.0), 12, samplers.heun)
    for every in (2, 5):
        line = guidance.reuse(linear_in_time, NULL, 3.0, every=every)
        np.testing.assert_allclose(run(line, 12, samplers.heun), wanted, rtol=1e-5, atol=1e-5)
    held = guidance.reuse(linear_in_time, NULL, 3.0, every=2, order=0)
    assert np.abs(run(held, 12, samplers.heun) - wanted).max() > 0.05


@pytest.mark.parametrize(("order", "falls"), [(0, 1), (1, 2)])
def test_the_error_falls_with_the_step_to_one_power_above_its_order(order, falls):
    """Against guidance by both branches on the same grid, so that the solver's error is not in it."""
    errors = []
    for steps in (32, 64, 128):
        whole = run(free(3.0), steps, samplers.midpoint)
        gap = run(reused(3.0, every=2, order=order), steps, samplers.midpoint) - whole
        errors.append(np.sqrt(np.mean(gap**2)))
    slope = np.polyfit(np.log([32, 64, 128]), np.log(errors), 1)[0]
    assert -slope == pytest.approx(falls, abs=0.25)


def test_a_line_costs_fewer_evaluations_than_fewer_steps_for_eulers_error():
    exact = run(free(3.0), 256, samplers.rk4)
    error = [np.sqrt(np.mean((run(m, n) - exact) ** 2)) for m, n in (
        (reused(3.0, every=4), 32),  # 41 evaluations
        (free(3.0), 21),  # 42
        (free(3.0), 32),  # 64
    )]  # fmt: skip
    assert error[0] < 0.8 * error[1]
    assert error[0] < 1.1 * error[2]


def test_rules_take_the_guessed_branch():
    rule = guidance.projected(LINEAR)
    gap = run(reused(3.0, every=2, rule=rule), 64) - run(free(3.0, rule=rule), 64)
    assert 0 < np.abs(gap).max() < 0.1 * np.abs(run(free(3.0), 64) - run(MODEL, 64)).max()


def test_a_sweep_over_scales_traces_once():
    traced = [0]

    def counting(x, t, cond):
        traced[0] += 1
        return MODEL(x, t, cond)

    for w in (2.0, 3.0):
        run(guidance.reuse(counting, NULL, jnp.float32(w)))
        first = first if w == 3.0 else traced[0]
    assert traced[0] == first > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [({"every": 0}, "every must be"), ({"every": 1.5}, "every must"), ({"order": 2}, "order must")],
)
def test_bad_input_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        reused(2.0, **options)
