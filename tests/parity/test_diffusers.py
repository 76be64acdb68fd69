"""Schedules, objectives and samplers against diffusers' schedulers.

diffusers counts timesteps from 0, so its t is ours minus one. Its spacing is set to "trailing", as ours is. Where
our model is asked for ε as if x were less noisy (`sampler.noisiest_asked`), theirs is told the ε of the same clean
image: there the move is compared.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
)
from diffusers.schedulers import scheduling_ddpm

from transfusion_jax.config import OBJECTIVES
from transfusion_jax.diffusion.noise_schedules import cosine, linear, straight
from transfusion_jax.diffusion.sampler import make_steps, sample, take_step
from transfusion_jax.diffusion.schedule import evenly

pytestmark = pytest.mark.parity

SCHEDULE = cosine(1000)
SHAPE = (2, 4, 4, 3)
BOUNDS = (-1.0, 1.0)

step = jax.jit(take_step)


def test_cosine_schedule_equals_squaredcos_cap_v2():
    theirs = DDPMScheduler(beta_schedule="squaredcos_cap_v2").alphas_cumprod
    assert SCHEDULE.alpha_bar[0] == 1
    # Theirs is float32: 1 − 0.999, the last α, has a relative error of 1.3e-5 there.
    np.testing.assert_allclose(SCHEDULE.alpha_bar[1:], theirs, rtol=2e-5)
    np.testing.assert_allclose(SCHEDULE.alpha_bar[1:-1], theirs[:-1], rtol=1e-6)


@pytest.mark.parametrize("by", [0.5, 2.0, 3.0])
def test_timesteps_of_a_flow_are_shifted_as_theirs(by):
    theirs = FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, shift=by)
    theirs.set_timesteps(sigmas=np.linspace(1, 0, 21)[:-1].tolist())
    found = make_steps(straight(1000), 20, "flow", shift=by).timesteps
    np.testing.assert_allclose(found, theirs.timesteps, atol=0.501)  # ours are whole


@pytest.mark.parametrize("steps", [1000, 750, 600, 501, 334, 250, 100, 50, 10, 7, 3, 2, 1])
def test_timesteps_equal_trailing_spacing(steps):
    visited = evenly(1000, steps)
    np.testing.assert_array_equal(visited[:-1], scheduler(steps).timesteps + 1)
    assert visited[-1] == 0


def test_noised_images_are_equal():
    t = np.arange(1, 1001)
    clean, noise = np.random.default_rng(0).normal(size=(2, len(t), *SHAPE[1:])).astype(np.float32)
    theirs = DDPMScheduler(beta_schedule="squaredcos_cap_v2")
    expected = theirs.add_noise(torch.tensor(clean), torch.tensor(noise), torch.tensor(t - 1))
    found = SCHEDULE.add_noise(jnp.asarray(clean), jnp.asarray(noise), jnp.asarray(t))
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize("steps", [250, 50])
def test_every_ancestral_step_is_equal(steps, clip):
    theirs = scheduler(steps, clip)
    ours = make_steps(SCHEDULE, steps)
    random = np.random.default_rng(0)
    bounds = BOUNDS if clip else None
    for number, t in enumerate(ours.timesteps.tolist()):
        x, predicted = random.normal(size=(2, *SHAPE))
        generator = torch.Generator().manual_seed(t)
        fresh = torch.randn(SHAPE, generator=generator, dtype=torch.float64).numpy()
        again = generator.manual_seed(t)
        told = torch.tensor(told_to_theirs(SCHEDULE, ours, number, x, predicted))
        expected = theirs.step(told, t - 1, torch.tensor(x), again).prev_sample.numpy()
        weights = jax.tree.map(lambda w, n=number: w[n], ours.weights)
        with jax.enable_x64(True):
            exact, _ = step(x, 0 * x, predicted, fresh, weights, bounds)
        np.testing.assert_allclose(exact, expected, rtol=1e-10, atol=1e-9, err_msg=f"t = {t}")
        single, _ = step(*jax.tree.map(np.float32, (x, 0 * x, predicted, fresh, weights)), bounds)
        assert single.dtype == jnp.float32
        np.testing.assert_allclose(single, expected, atol=1e-6 * np.abs(expected).max(), err_msg=f"t = {t}")


@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize("steps", [250, 50])
def test_whole_chain_is_equal(steps, clip, monkeypatch):
    mixing = np.eye(SHAPE[-1]) + 0.1 * np.random.default_rng(0).normal(size=(SHAPE[-1], SHAPE[-1]))
    keys = jax.random.split(jax.random.key(0), SHAPE[0])

    def predict(x, t):
        return x @ mixing * t / 1000

    def noise(index):
        draw = jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, index), SHAPE[1:]))
        return np.float64(draw(keys))

    theirs = scheduler(steps, clip)
    fresh = (torch.tensor(noise(index)) for index in range(1, steps + 1))  # the last with a deviation of 1e-10
    monkeypatch.setattr(scheduling_ddpm, "randn_tensor", lambda *_, **__: next(fresh))
    expected = noise(0)
    ours = make_steps(SCHEDULE, steps)
    for number, t in enumerate(theirs.timesteps):
        told = told_to_theirs(SCHEDULE, ours, number, expected, predict(expected, ours.asked[number]))
        expected = theirs.step(torch.tensor(told), t, torch.tensor(expected)).prev_sample.numpy()
    assert next(fresh, None) is None

    found = sample(predict, keys, SHAPE[1:], ours, BOUNDS if clip else None)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, expected, atol=5e-4 * np.abs(expected).max())


@pytest.mark.parametrize("timesteps", [1000, 500])
def test_linear_schedule_equals_theirs(timesteps):
    scale = 1000 / timesteps
    theirs = DDPMScheduler(timesteps, beta_start=scale * 1e-4, beta_end=scale * 0.02, beta_schedule="linear")
    found = linear(timesteps).alpha_bar
    assert found[0] == 1
    np.testing.assert_allclose(found[1:], theirs.alphas_cumprod, rtol=2e-4)  # theirs is a float32 product


@pytest.mark.parametrize("schedule", [cosine(1000), linear(1000)], ids=["cosine", "linear"])
def test_the_target_of_v_equals_their_velocity(schedule):
    clean, noise = np.random.default_rng(0).normal(size=(2, 1000, *SHAPE[1:]))
    t = np.arange(1, 1001)
    theirs = DDPMScheduler()
    theirs.alphas_cumprod = torch.tensor(schedule.alpha_bar[1:])
    expected = theirs.get_velocity(torch.tensor(clean), torch.tensor(noise), torch.tensor(t - 1))
    found = OBJECTIVES["v"](clean, noise, *schedule.weights(jnp.asarray(t)))
    np.testing.assert_allclose(found, expected, atol=1e-5)


THEIR_NAMES = {"epsilon": "epsilon", "v": "v_prediction", "x": "sample"}


@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize("objective", THEIR_NAMES)
@pytest.mark.parametrize("schedule", [cosine(1000), linear(1000)], ids=["cosine", "linear"])
def test_every_objectives_step_is_equal(schedule, objective, clip):
    steps = 25
    options = dict(variance_type="fixed_small", timestep_spacing="trailing")
    theirs = DDPMScheduler(**options, clip_sample=clip, prediction_type=THEIR_NAMES[objective])
    theirs.alphas_cumprod = torch.tensor(schedule.alpha_bar[1:])
    theirs.set_timesteps(steps)
    ours = make_steps(schedule, steps, objective)
    np.testing.assert_array_equal(ours.timesteps, theirs.timesteps + 1)
    random = np.random.default_rng(0)
    for number, t in enumerate(ours.timesteps.tolist()):
        x, predicted = random.normal(size=(2, *SHAPE))
        generator = torch.Generator().manual_seed(t)
        fresh = torch.randn(SHAPE, generator=generator, dtype=torch.float64).numpy()
        again = generator.manual_seed(t)
        told = torch.tensor(told_to_theirs(schedule, ours, number, x, predicted, objective))
        expected = theirs.step(told, t - 1, torch.tensor(x), again).prev_sample.numpy()
        here = jax.tree.map(lambda w, n=number: w[n], ours.weights)
        with jax.enable_x64(True):
            exact, _ = step(x, 0 * x, predicted, fresh, here, BOUNDS if clip else None)
        np.testing.assert_allclose(exact, expected, rtol=1e-10, atol=1e-9, err_msg=f"t = {t}")


@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize("objective", THEIR_NAMES)
@pytest.mark.parametrize("steps", [250, 20, 10, 1])
def test_every_step_of_ddim_is_equal(steps, objective, clip):
    # Theirs keeps the noise of the image before it is clipped unless it is told otherwise, each time.
    how = {"use_clipped_model_output": True} if clip else {}
    options = dict(beta_schedule="squaredcos_cap_v2", timestep_spacing="trailing", set_alpha_to_one=True)
    theirs = DDIMScheduler(**options, prediction_type=THEIR_NAMES[objective], clip_sample=clip)
    follow_theirs(theirs, "ddim", steps, objective, BOUNDS if clip else None, **how)


@pytest.mark.filterwarnings("ignore:__array__ implementation")  # theirs, of PyTorch with NumPy 2
@pytest.mark.parametrize("objective", THEIR_NAMES)
@pytest.mark.parametrize("steps", [250, 20, 10, 2, 1])
def test_every_step_of_dpm_solver_is_equal(steps, objective):
    theirs = DPMSolverMultistepScheduler(
        beta_schedule="squaredcos_cap_v2",
        timestep_spacing="trailing",
        prediction_type=THEIR_NAMES[objective],
        final_sigmas_type="zero",
    )
    follow_theirs(theirs, "dpm++", steps, objective, None)


def follow_theirs(theirs, name, steps, objective, bounds, **how):
    """Both go from the same noise with the same answers, and are compared at each step."""
    # squaredcos_cap_v2 in float32 differs in the seventh digit; what is compared here is the steps.
    theirs.alphas_cumprod = torch.tensor(SCHEDULE.alpha_bar[1:])
    theirs.final_alpha_cumprod = torch.tensor(1.0, dtype=torch.float64)
    ours = make_steps(SCHEDULE, steps, objective, name)
    theirs.set_timesteps(steps)
    np.testing.assert_array_equal(ours.timesteps, np.asarray(theirs.timesteps) + 1)
    random = np.random.default_rng(0)
    x = previous = random.normal(size=SHAPE)
    for number, t in enumerate(theirs.timesteps):
        predicted = random.normal(size=SHAPE)
        told = torch.tensor(told_to_theirs(SCHEDULE, ours, number, x, predicted, objective))
        expected = theirs.step(told, t, torch.tensor(x), **how).prev_sample.numpy()
        weights = jax.tree.map(lambda w, n=number: w[n], ours.weights)
        with jax.enable_x64(True):
            x, previous = map(np.asarray, step(x, previous, predicted, 0 * x, weights, bounds))
        np.testing.assert_allclose(x, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max(), err_msg=f"t = {t}")


@pytest.mark.parametrize("steps", [250, 7, 2])
def test_every_step_of_heun_is_equal(steps):
    ours = make_steps(straight(1000), steps, "flow", "heun")
    theirs = FlowMatchHeunDiscreteScheduler(num_train_timesteps=1000)
    theirs.set_timesteps(steps)
    visited = np.unique(ours.timesteps)[::-1]
    sigmas = torch.tensor(np.append(visited / 1000, 0.0))
    theirs.sigmas = torch.cat([sigmas[:1], sigmas[1:-1].repeat_interleave(2), sigmas[-1:]])
    theirs.timesteps = torch.tensor(ours.timesteps, dtype=torch.float64)
    random = np.random.default_rng(0)
    x = previous = random.normal(size=SHAPE)
    for number in range(len(ours.timesteps)):
        predicted = random.normal(size=SHAPE)
        expected = theirs.step(
            torch.tensor(predicted), theirs.timesteps[number], torch.tensor(x)
        ).prev_sample.numpy()
        weights = jax.tree.map(lambda w, n=number: w[n], ours.weights)
        with jax.enable_x64(True):
            x, previous = map(np.asarray, step(x, previous, predicted, 0 * x, weights))
        np.testing.assert_allclose(x, expected, rtol=1e-6, atol=1e-6, err_msg=f"evaluation {number}")


@pytest.mark.parametrize("steps", [1000, 250, 7])
def test_a_flow_is_followed_as_they_do(steps):
    schedule = straight(1000)
    ours = make_steps(schedule, steps, "flow")
    visited = ours.timesteps
    assert visited[0] == 1000
    theirs = FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000)
    theirs.set_timesteps(sigmas=(visited / 1000).tolist())
    np.testing.assert_allclose(theirs.timesteps, visited, rtol=1e-6)
    random = np.random.default_rng(0)
    clean, noise = random.normal(size=(2, *SHAPE)).astype(np.float32)
    noised = theirs.scale_noise(torch.tensor(clean), theirs.timesteps[steps // 2 :][:1], torch.tensor(noise))
    found = schedule.add_noise(jnp.asarray(clean), jnp.asarray(noise), jnp.full(len(clean), visited[steps // 2]))
    np.testing.assert_allclose(found, noised, atol=1e-6)

    for number, t in enumerate(theirs.timesteps):
        x, predicted = random.normal(size=(2, *SHAPE)).astype(np.float32)
        expected = theirs.step(torch.tensor(predicted), t, torch.tensor(x)).prev_sample.numpy()
        here = jax.tree.map(lambda w, n=number: np.float32(w[n]), ours.weights)
        found, _ = step(x, 0 * x, predicted, np.float32(random.normal(size=SHAPE)), here)  # no weight on the noise
        np.testing.assert_allclose(found, expected, atol=3e-6, err_msg=f"t = {t}")


def test_a_flow_to_a_single_image_ends_there():
    clean = np.random.default_rng(0).normal(size=SHAPE[1:]).astype(np.float32)
    keys = jax.random.split(jax.random.key(0), 3)

    def predict(x, t):
        return (x - clean) * 1000 / t

    drawn = sample(predict, keys, SHAPE[1:], make_steps(straight(1000), 10, "flow"))
    np.testing.assert_allclose(drawn, np.broadcast_to(clean, drawn.shape), atol=1e-5)


def scheduler(steps, clip=False):
    """Their scheduler at `steps` timesteps, with our table of ᾱ in float64: its own is the same, rounded."""
    options = dict(beta_schedule="squaredcos_cap_v2", variance_type="fixed_small", timestep_spacing="trailing")
    result = DDPMScheduler(**options, clip_sample=clip)
    result.alphas_cumprod = torch.tensor(SCHEDULE.alpha_bar[1:])
    result.set_timesteps(steps)
    return result


def told_to_theirs(schedule, ours, number, x, predicted, objective="epsilon"):
    """The prediction that makes theirs find the clean image that ours takes from `predicted`."""
    t, asked = ours.timesteps[number], ours.asked[number]
    if t == asked:
        return predicted
    assert objective == "epsilon"
    clean = (x - schedule.noises[asked] * predicted) / schedule.signals[asked]
    return (x - schedule.signals[t] * clean) / schedule.noises[t]
