"""ODE solvers against torchdiffeq on one field, x' = 3 cos(6 t) x - x^3 / 4, in float32."""

import jax.numpy as jnp
import numpy as np
import pytest

from guidedflow import samplers, times

torch = pytest.importorskip("torch", reason="the peers extra (torch) is not installed")
torchdiffeq = pytest.importorskip("torchdiffeq", reason="torchdiffeq is not installed")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

START = np.linspace(-1, 1, 6, dtype=np.float32).reshape(2, 3)


def model(x, t, cond):
    return 3 * jnp.cos(6 * t)[:, None] * x - 0.25 * x**3


def theirs(ts, **settings):
    def field(t, x):
        return 3 * torch.cos(6 * t) * x - 0.25 * x**3

    grid = torch.from_numpy(np.asarray(ts))
    return torchdiffeq.odeint(field, torch.from_numpy(START), grid, **settings).numpy()


@pytest.mark.parametrize(
    ("step", "method"),
    [(samplers.euler, "euler"), (samplers.midpoint, "midpoint"), (samplers.heun, "heun2")],
)
@pytest.mark.parametrize("steps", [10, 50])
def test_fixed_steps(step, method, steps):
    ts = times.uniform_grid(steps)
    ours = samplers.sample_ode(model, START, ts, step=step, trajectory=True)
    np.testing.assert_allclose(ours, theirs(ts, method=method), rtol=1e-4, atol=1e-6)


def test_adaptive_steps():
    pytest.importorskip("diffrax", reason="the adaptive extra (diffrax) is not installed")
    ours = samplers.sample_ode_adaptive(model, START, rtol=1e-6, atol=1e-6)
    reference = theirs(np.float32([0, 1]), method="dopri5", rtol=1e-6, atol=1e-6)[-1]
    np.testing.assert_allclose(ours.x, reference, rtol=1e-4)
