"""Whole trajectories against diffusers' schedulers, on one analytic noise prediction, in float32.

The data is two Gaussians at +-1 in every coordinate, so that the noise prediction is a formula that both
sides evaluate. Draws of noise are ours, handed to diffusers. Where diffusers' defaults are not the
published algorithm they are set so that both sides compute one thing; each such setting says why.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from guidedflow import paths, predictions, samplers, times

torch = pytest.importorskip("torch", reason="the peers extra (torch) is not installed")
pytest.importorskip("diffusers", reason="the peers extra (diffusers) is not installed")
import diffusers  # noqa: E402
from diffusers.schedulers import (  # noqa: E402
    scheduling_ddpm,
    scheduling_dpmsolver_multistep,
    scheduling_edm_euler,
)

# diffusers 0.40 makes torch call numpy in a way that numpy 2 deprecates.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

PATH = paths.DiscreteBeta(paths.linear_betas)
STEPS = [10, 25, 50]
SHAPE = (3, 2, 2, 4)
TOLERANCE = 1e-4


def denoised(x, alpha, sigma, tanh):
    """E[data given x] of two Gaussians at +-1 of deviation 0.3 in every coordinate."""
    variance = 0.09 * alpha**2 + sigma**2
    side = tanh(alpha * x / variance)
    return side + 0.09 * alpha / variance * (x - alpha * side)


def predicted_noise(x, alpha, sigma, tanh):
    return (x - alpha * denoised(x, alpha, sigma, tanh)) / sigma


def network(x, t, cond):
    def one(x, t):
        return predicted_noise(x, PATH.alpha(t), PATH.sigma(t), jnp.tanh)

    return jax.vmap(one)(x, t)


# The margin keeps a prediction finite at the ends; diffusers has none, and begins at k = 999 itself.
MODEL = predictions.as_velocity(network, PATH, predictions.noise, margin=1e-6)
KEY = jax.random.key(0)
NOISE = samplers.draw_noise(KEY, SHAPE)


def draws(steps):
    """What `run` draws in each step: its contract, written out."""

    def one(step, example):
        key = jax.random.fold_in(jax.random.fold_in(KEY, example), step + 1)
        return jax.random.normal(jax.random.fold_in(key, 0), SHAPE[1:])

    over_batch = jax.vmap(one, (None, 0))
    all_draws = jax.vmap(over_batch, (0, None))(jnp.arange(steps), jnp.arange(SHAPE[0]))
    return torch.from_numpy(np.array(all_draws))


def make(kind, **settings):
    """A scheduler on the linear betas of DDPM; samples are not clipped, as the papers' are not."""
    defaults = {"num_train_timesteps": 1000, "beta_start": 1e-4, "beta_end": 0.02}
    known = "clip_sample" in kind.__init__.__annotations__
    return kind(**defaults, **({"clip_sample": False} if known else {}), **settings)


def theirs(scheduler, steps, monkeypatch=None, module=None, fed=False):
    """Run a scheduler in the variance-preserving state; return its timesteps and every state."""
    scheduler.set_timesteps(steps)
    noises, now = draws(steps), {"step": 0}
    if monkeypatch is not None:
        monkeypatch.setattr(module, "randn_tensor", lambda *_, **__: noises[now["step"]])
    x = torch.from_numpy(np.array(NOISE))
    states = [x]
    for i, k in enumerate(scheduler.timesteps):
        now["step"] = i
        bar = scheduler.alphas_cumprod[int(k)]
        eps = predicted_noise(x, bar**0.5, (1 - bar) ** 0.5, torch.tanh)
        extra = {"eta": fed, "variance_noise": noises[i]} if fed else {}
        x = scheduler.step(eps, k, x, **extra).prev_sample
        states.append(x)
    return scheduler.timesteps.numpy(), np.stack([s.numpy() for s in states])


def check(ours, reference, timesteps, grid):
    np.testing.assert_array_equal(np.round(PATH.index(np.asarray(grid[:-1]))), timesteps)
    ours = np.asarray(ours)
    for i, (a, b) in enumerate(zip(ours, reference, strict=True)):
        error = np.abs(a - b).max() / np.abs(b).max()
        assert error < TOLERANCE, f"state {i}: relative difference {error:.1e}"


def leading(steps):
    return times.leading_grid(steps, PATH)


def trailing(steps):
    return times.trailing_grid(steps, PATH)


def multistep_grid(steps):
    return times.linspace_grid(steps, PATH, drop_last=True)


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("variance", ["smallest", "largest"])
def test_ddpm(steps, variance, monkeypatch):
    kind = {"smallest": "fixed_small", "largest": "fixed_large"}[variance]
    scheduler = make(diffusers.DDPMScheduler, variance_type=kind, timestep_spacing="leading")
    timesteps, states = theirs(scheduler, steps, monkeypatch, scheduling_ddpm)
    ours = samplers.sample_ddpm(
        MODEL,
        NOISE,
        leading(steps),
        key=KEY,
        path=PATH,
        variance=getattr(samplers, variance),
        trajectory=True,
    )
    check(ours, states, timesteps, leading(steps))


@pytest.mark.parametrize("steps", STEPS)
def test_ddpm_with_learned_range(steps, monkeypatch):
    """The variance channels are sin(x): any function of the state that both sides can evaluate."""
    scheduler = make(
        diffusers.DDPMScheduler, variance_type="learned_range", timestep_spacing="leading"
    )
    scheduler.set_timesteps(steps)
    noises = draws(steps)
    x, states = torch.from_numpy(np.array(NOISE)), [np.asarray(NOISE)]
    for i, k in enumerate(scheduler.timesteps):
        monkeypatch.setattr(
            scheduling_ddpm, "randn_tensor", lambda *_, i=i, **__: noises[i].movedim(-1, 1)
        )
        bar = scheduler.alphas_cumprod[int(k)]
        eps = predicted_noise(x, bar**0.5, (1 - bar) ** 0.5, torch.tanh)
        # diffusers keeps channels second.
        output = torch.cat([eps, torch.sin(x)], -1).movedim(-1, 1)
        x = scheduler.step(output, k, x.movedim(-1, 1)).prev_sample.movedim(1, -1)
        states.append(x.numpy())

    def doubled(x, t, cond):
        return jnp.concatenate([network(x, t, cond), jnp.sin(x)], -1)

    model = predictions.as_velocity(doubled, PATH, predictions.noise, margin=1e-6)
    grid = leading(steps)
    ours = samplers.sample_ddpm(
        model, NOISE, grid, key=KEY, path=PATH, variance=samplers.learned, trajectory=True
    )
    check(ours, states, scheduler.timesteps.numpy(), grid)


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize(("eta", "spacing"), [(0.0, trailing), (0.5, leading)])
def test_ddim(steps, eta, spacing):
    scheduler = make(diffusers.DDIMScheduler, timestep_spacing=spacing.__name__)
    timesteps, states = theirs(scheduler, steps, fed=eta)
    ours = samplers.sample_ddim(
        MODEL, NOISE, spacing(steps), path=PATH, eta=eta, key=KEY, trajectory=True
    )
    check(ours, states, timesteps, spacing(steps))


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize(("order", "spacing"), [(2, multistep_grid), (3, trailing)])
def test_dpm_solver_multistep(steps, order, spacing):
    name = "trailing" if spacing is trailing else "linspace"
    scheduler = make(
        diffusers.DPMSolverMultistepScheduler, solver_order=order, timestep_spacing=name
    )
    timesteps, states = theirs(scheduler, steps)
    ours = samplers.sample_dpmpp(
        MODEL, NOISE, spacing(steps), path=PATH, order=order, trajectory=True
    )
    check(ours, states, timesteps, spacing(steps))


@pytest.mark.parametrize("steps", STEPS)
def test_dpm_solver_multistep_with_exact_moments_is_their_heun(steps):
    scheduler = make(diffusers.DPMSolverMultistepScheduler, solver_order=2, solver_type="heun")
    timesteps, states = theirs(scheduler, steps)
    grid = multistep_grid(steps)
    ours = samplers.sample_dpmpp(
        MODEL, NOISE, grid, path=PATH, moments=samplers.exact, trajectory=True
    )
    check(ours, states, timesteps, grid)


@pytest.mark.parametrize("steps", STEPS)
def test_dpm_solver_sde(steps, monkeypatch):
    """2M SDE. Of 3M SDE diffusers 0.40 has the sign of the last coefficient wrong; it is left out."""
    scheduler = make(
        diffusers.DPMSolverMultistepScheduler,
        algorithm_type="sde-dpmsolver++",
        solver_order=2,
    )
    timesteps, states = theirs(scheduler, steps, monkeypatch, scheduling_dpmsolver_multistep)
    grid = multistep_grid(steps)
    ours = samplers.sample_dpmpp(
        MODEL, NOISE, grid, path=PATH, order=2, eta=1.0, key=KEY, trajectory=True
    )
    check(ours, states, timesteps, grid)


@pytest.mark.parametrize("steps", STEPS)
def test_dpm_solver_singlestep(steps):
    scheduler = make(
        diffusers.DPMSolverSinglestepScheduler,
        solver_order=2,
        final_sigmas_type="zero",
        lower_order_final=True,
    )
    timesteps, states = theirs(scheduler, steps)
    grid = multistep_grid(steps)
    ours = samplers.sample_dpmpp_singlestep(MODEL, NOISE, grid, path=PATH, trajectory=True)
    check(ours, states, timesteps, grid)


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize(("order", "rate"), [(2, "bh2"), (3, "bh2"), (3, "bh1")])
def test_unipc(steps, order, rate):
    """With bh1 diffusers multiplies 0 by infinity in a step to sigma = 0: there both end at k = 0."""
    end = "sigma_min" if rate == "bh1" else "zero"
    scheduler = make(
        diffusers.UniPCMultistepScheduler,
        solver_order=order,
        solver_type=rate,
        final_sigmas_type=end,
    )
    timesteps, states = theirs(scheduler, steps)
    grid = multistep_grid(steps)
    if rate == "bh1":
        grid[-1] = PATH.time(0)
    ours = samplers.sample_unipc(
        MODEL,
        NOISE,
        grid,
        path=PATH,
        order=order,
        rate=getattr(samplers, rate),
        trajectory=True,
    )
    check(ours, states, timesteps, grid)


@pytest.mark.parametrize("steps", STEPS)
def test_heun_without_churn(steps):
    """HeunDiscreteScheduler has no churn; its timesteps hold every evaluation, ours every step."""
    scheduler = make(diffusers.HeunDiscreteScheduler, timestep_spacing="trailing")
    scheduler.set_timesteps(steps)
    grid = trailing(steps)
    y = torch.from_numpy(np.array(NOISE)) * (scheduler.sigmas[0] ** 2 + 1) ** 0.5
    states = [np.asarray(NOISE)]
    for i, k in enumerate(scheduler.timesteps):
        sigma = scheduler.sigmas[i]
        alpha = 1 / (sigma**2 + 1) ** 0.5
        x = scheduler.scale_model_input(y, k)
        eps = predicted_noise(x, alpha, alpha * sigma, torch.tanh)
        y = scheduler.step(eps, k, y).prev_sample
        if scheduler.state_in_first_order:
            states.append((y / (scheduler.sigmas[i + 1] ** 2 + 1) ** 0.5).numpy())
    states.append(y.numpy())
    ours = samplers.sample_edm(MODEL, NOISE, grid, path=PATH, trajectory=True)
    timesteps = np.unique(scheduler.timesteps.numpy())[::-1]
    check(ours, states, timesteps, grid)


EDM_PATH = paths.EDM(sigma_max=200.0)


def edm_network(x, t, cond):
    def one(x, t):
        return predicted_noise(x, EDM_PATH.alpha(t), EDM_PATH.sigma(t), jnp.tanh)

    return jax.vmap(one)(x, t)


@pytest.mark.parametrize("steps", STEPS)
def test_edm_euler_with_churn(steps, monkeypatch):
    """diffusers conditions on sigma before the churn; here the prediction is handed the churned one.

    A network cannot be: it is called before `step`. We evaluate where Karras et al. do.
    """
    scheduler = diffusers.EDMEulerScheduler(sigma_min=0.002, sigma_max=80.0, sigma_data=0.5)
    scheduler.set_timesteps(steps)
    noises = draws(steps)
    x = torch.from_numpy(np.array(NOISE)) * 80
    states = [x.numpy()]
    churn, low, high = 4.0, 0.05, 50.0
    for i, k in enumerate(scheduler.timesteps):
        monkeypatch.setattr(scheduling_edm_euler, "randn_tensor", lambda *_, i=i, **__: noises[i])
        scheduler.scale_model_input(x, k)
        sigma = scheduler.sigmas[i]
        gamma = min(churn / (len(scheduler.sigmas) - 1), 2**0.5 - 1) if low <= sigma <= high else 0
        raised = sigma * (1 + gamma)
        begun = x + noises[i] * (raised**2 - sigma**2) ** 0.5
        output = raised_output(begun, raised)
        x = scheduler.step(
            output, k, x, s_churn=churn, s_tmin=low, s_tmax=high, s_noise=1.0
        ).prev_sample
        states.append(x.numpy())
    model = predictions.as_velocity(edm_network, EDM_PATH, predictions.noise, margin=1e-6)
    ours = samplers.sample_edm(
        model,
        80.0 * NOISE,
        times.karras_grid(steps, EDM_PATH),
        path=EDM_PATH,
        churn=churn,
        churn_low=low,
        churn_high=high,
        corrects=False,
        key=KEY,
        trajectory=True,
    )
    for i, (a, b) in enumerate(zip(np.asarray(ours), states, strict=True)):
        assert np.abs(a - b).max() / np.abs(b).max() < TOLERANCE, f"state {i}"


def raised_output(x, sigma, sigma_data=0.5):
    """The network output F with  D = c_skip x + c_out F,  EDM's preconditioning inverted."""
    skip = sigma_data**2 / (sigma**2 + sigma_data**2)
    out = sigma * sigma_data / (sigma**2 + sigma_data**2) ** 0.5
    return (denoised(x, torch.tensor(1.0), sigma, torch.tanh) - skip * x) / out


SPACINGS = {
    "leading": functools.partial(times.leading_grid, path=PATH),
    "trailing": functools.partial(times.trailing_grid, path=PATH),
    "linspace": functools.partial(times.linspace_grid, path=PATH),
}


@pytest.mark.parametrize("spacing", list(SPACINGS))
@pytest.mark.parametrize("steps", [1, 3, 7, 10, 25, 50, 333, 1000])
def test_discrete_spacings(spacing, steps):
    scheduler = make(diffusers.DDIMScheduler, timestep_spacing=spacing)
    scheduler.set_timesteps(steps)
    grid = SPACINGS[spacing](steps)
    if (spacing, steps) == ("linspace", 1):
        # numpy's linspace of one point is its start, which diffusers counts from the data.
        assert grid[0] == 0
        return
    np.testing.assert_array_equal(np.round(PATH.index(grid[:-1])), scheduler.timesteps.numpy())


@pytest.mark.parametrize("spacing", ["leading", "linspace"])
@pytest.mark.parametrize("steps", [3, 7, 10, 25, 50, 333])
def test_discrete_spacings_of_multistep_schedulers(spacing, steps):
    scheduler = make(diffusers.UniPCMultistepScheduler, timestep_spacing=spacing)
    scheduler.set_timesteps(steps)
    grid = SPACINGS[spacing](steps, drop_last=True)
    np.testing.assert_array_equal(np.round(PATH.index(grid[:-1])), scheduler.timesteps.numpy())
