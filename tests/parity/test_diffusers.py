"""The noise schedule and the ancestral sampler against diffusers' `DDPMScheduler`.

diffusers counts timesteps from 0, so its t is ours minus one.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler
from diffusers.schedulers import scheduling_ddpm

from transfusion_jax.diffusion.sampler import ancestral_step, posterior, sample
from transfusion_jax.diffusion.schedule import cosine, respace

pytestmark = pytest.mark.parity

SCHEDULE = cosine(1000)
SHAPE = (2, 4, 4, 3)
BOUNDS = (-1.0, 1.0)


def test_cosine_schedule_equals_squaredcos_cap_v2():
    theirs = DDPMScheduler(beta_schedule="squaredcos_cap_v2").alphas_cumprod
    assert SCHEDULE.alpha_bar[0] == 1
    # Theirs is float32: 1 − 0.999, the last α, has a relative error of 1.3e-5 there.
    np.testing.assert_allclose(SCHEDULE.alpha_bar[1:], theirs, rtol=2e-5)
    np.testing.assert_allclose(SCHEDULE.alpha_bar[1:-1], theirs[:-1], rtol=1e-6)


@pytest.mark.parametrize("steps", [1000, 250, 100, 50, 10])
def test_respaced_timesteps_equal_leading_spacing(steps):
    visited = respace(1000, steps)
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
    visited = respace(1000, steps)
    random = np.random.default_rng(0)
    step = jax.jit(ancestral_step)
    bounds = BOUNDS if clip else None
    for t, following in itertools.pairwise(visited.tolist()):
        x, predicted = random.normal(size=(2, *SHAPE))
        generator = torch.Generator().manual_seed(t)
        fresh = torch.randn(SHAPE, generator=generator, dtype=torch.float64).numpy()
        again = generator.manual_seed(t)
        expected = theirs.step(torch.tensor(predicted), t - 1, torch.tensor(x), again).prev_sample.numpy()
        weights = posterior(SCHEDULE.alpha_bar[t], SCHEDULE.alpha_bar[following])
        with jax.enable_x64(True):
            exact = step(x, predicted, fresh, weights, bounds)
        np.testing.assert_allclose(exact, expected, rtol=1e-10, atol=1e-10, err_msg=f"t = {t}")
        single = step(*jax.tree.map(np.float32, (x, predicted, fresh, weights)), bounds)
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
    fresh = (torch.tensor(noise(index)) for index in range(1, steps))
    monkeypatch.setattr(scheduling_ddpm, "randn_tensor", lambda *_, **__: next(fresh))
    expected = noise(0)
    for t in theirs.timesteps:
        predicted = torch.tensor(predict(expected, t.item() + 1))
        expected = theirs.step(predicted, t, torch.tensor(expected)).prev_sample.numpy()
    assert next(fresh, None) is None

    found = sample(predict, keys, SHAPE[1:], SCHEDULE, steps, BOUNDS if clip else None)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, expected, atol=5e-4 * np.abs(expected).max())


def scheduler(steps, clip=False):
    """Their scheduler at `steps` timesteps, with our table of ᾱ in float64: its own is the same, rounded."""
    result = DDPMScheduler(beta_schedule="squaredcos_cap_v2", variance_type="fixed_small", clip_sample=clip)
    result.alphas_cumprod = torch.tensor(SCHEDULE.alpha_bar[1:])
    result.set_timesteps(steps)
    return result
