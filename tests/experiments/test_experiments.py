"""What the experiments measure with, held against closed forms; and a rehearsal of each family."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib.figure import Figure
from mixture import Mixture as Reference

from experiments import accuracy_and_distance, mixture_densities, results, solver_error
from experiments.closed_form import PLANE
from experiments.counting import evaluations
from guidedflow import guidance, paths, samplers
from guidedflow.times import uniform_grid

REFERENCE = Reference.of(*((row[0], row[1], list(row[2:4]), row[4]) for row in PLANE.rows))


def decay(x, t, cond):
    return -x * cond[:, None]


@pytest.mark.parametrize(
    ("scale", "count"),
    [(2.0, 32), (1.0, 16), (guidance.interval(2.0, 0.25, 0.5), 3 * 4 + 5 * 2)],
    ids=["two branches", "one branch", "interval"],
)
def test_evaluations_are_counted_branch_by_branch(scale, count):
    def job(counter):
        model = guidance.classifier_free(counter.wrap(decay), jnp.float32(0), scale)
        return samplers.sample_ode(model, jnp.ones((3, 2)), uniform_grid(8), jnp.ones(3))

    assert evaluations(job) == count


@pytest.mark.parametrize("path", [paths.Linear(), paths.Trigonometric()], ids=["linear", "cosine"])
@pytest.mark.parametrize("label", [0, 1, 2])
def test_plane_has_the_velocity_and_posterior_of_the_tests_own_mixture(path, label):
    x = jax.random.normal(jax.random.key(0), (50, 2))
    t, labels = jnp.linspace(0.02, 0.98, 50), jnp.full(50, label)
    np.testing.assert_allclose(
        PLANE.velocity(path)(x, t, labels),
        REFERENCE.velocity(path)(x, t, labels),
        rtol=2e-4,
        atol=2e-4,
    )
    if label < 2:
        np.testing.assert_allclose(
            PLANE.log_prob(path)(x, t, labels),
            REFERENCE.log_prob(path)(x, t, labels),
            rtol=1e-3,
            atol=1e-4,
        )


def test_divergence_is_nothing_for_equals_and_one_bit_for_strangers():
    one, other = np.eye(4) / 4, np.eye(4)[::-1] / 4
    assert mixture_densities.divergence(one, one) == 0
    assert mixture_densities.divergence(one, other) == pytest.approx(1)


def test_tilted_target_at_w_one_would_be_the_conditional_density(monkeypatch):
    monkeypatch.setattr(mixture_densities, "SCALE", 1.0)
    conditional, tilted = mixture_densities.exact_densities().values()
    np.testing.assert_allclose(conditional, tilted, rtol=1e-4, atol=1e-9)


def test_fitted_order_of_a_power_law_is_its_power():
    evaluated = [16, 32, 64, 128]
    assert solver_error.order_of(evaluated, [7.0 * n**-3 for n in evaluated]) == pytest.approx(3)


def test_heun_is_measured_at_order_two():
    with jax.enable_x64(True):
        model, x = PLANE.velocity(solver_error.PATH), jnp.ones((2, 2), jnp.float64)
        pairs = [
            solver_error.run(solver_error.DETERMINISTIC["Heun"], model, x, n) for n in (32, 64, 512)
        ]
        ends = [np.asarray(end) for end, _ in pairs]
    errors = [np.abs(end - ends[-1]).max() for end in ends[:2]]
    assert [count for _, count in pairs] == [32, 64, 512]
    assert np.log2(errors[0] / errors[1]) == pytest.approx(2, abs=0.25)


def test_grids_of_the_solvers_share_their_ends():
    for grid in (solver_error.even_in_time, solver_error.even_in_log_snr):
        ts = grid(16)
        assert len(ts) == 17
        assert np.all(np.diff(ts) > 0)
        assert (ts[0], ts[-1]) == (solver_error.LOW, solver_error.HIGH)


def test_budget_buys_more_steps_where_one_branch_is_enough():
    steps = accuracy_and_distance.steps_within
    assert steps(20, jnp.float32(2)) == 10
    assert steps(20, 1.0) == 20
    assert steps(20, guidance.interval(2.0, 0.0, 0.4)) == 14


def test_a_gain_is_against_the_best_of_plain_guidance_with_w_one_among_it():
    def row(w, distance):
        seeds = [dict.fromkeys(("accuracy", "frechet_features"), 1.0) for _ in range(2)]
        for one in seeds:
            one |= {"frechet_pixels": distance, "frechet_to_training": distance}
        return {"w": w, "evaluations": 1, "seeds": seeds}

    rows = {
        "CFG": {"rows": [row(1.0, 0.5), row(2.0, 0.8)]},
        "other": {"rows": [row(1.0, 0.5), row(2.0, 0.4)]},
    }
    table = accuracy_and_distance.compare(rows)
    assert table["CFG"]["w"] == 1.0
    assert table["other"]["gain"]["mean"] == pytest.approx(0.2)
    assert table["other"]["gain_over_w_above_1"]["mean"] == pytest.approx(0.5)


def test_results_replace_their_own_line_and_keep_the_others(tmp_path):
    (tmp_path / "README.md").write_text("# Head\n\n- **[other](other.py)** stays\n")
    for measured in ("Measured 1.", "Measured 2."):
        results.save("mine", Figure(figsize=(1, 1)), {"x": 1}, "Shows.", measured, tmp_path)
    lines = (tmp_path / "README.md").read_text().splitlines()
    assert lines[:3] == ["# Head", "", "- **[other](other.py)** stays"]
    assert len(lines) == 4
    assert lines[3].startswith("- **[mine](mine.py)**")
    assert lines[3].endswith("Measured 2.")
    assert json.loads((tmp_path / "mine.json").read_text())["x"] == 1
    assert (tmp_path / "mine.png").stat().st_size > 0


def test_mixture_experiment_leaves_picture_numbers_and_line(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["mixture_densities", "--quick", f"--out={tmp_path}"])
    monkeypatch.setattr(
        mixture_densities,
        "methods",
        lambda: {
            "w = 1: conditional model": PLANE.velocity(mixture_densities.PATH),
            "classifier-free guidance": guidance.classifier_free(
                PLANE.velocity(mixture_densities.PATH), jnp.asarray(PLANE.null), 3.0
            ),
        },
    )
    monkeypatch.setattr(mixture_densities, "draw", lambda panels, notes: Figure(figsize=(1, 1)))
    mixture_densities.main()
    numbers = json.loads((tmp_path / "mixture_densities.json").read_text())
    plain = numbers["divergence_bits"]["classifier-free guidance"]
    alone = numbers["divergence_bits"]["w = 1: conditional model"]
    assert alone["to_conditional"] < 2 * numbers["floor_conditional"] < plain["to_conditional"]
    assert "mixture_densities" in (tmp_path / "README.md").read_text()
