import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transfusion_jax.config import DiffusionConfig, SamplingConfig
from transfusion_jax.diffusion.noise_schedules import cosine, linear, straight
from transfusion_jax.diffusion.sampler import (
    DIFFUSION,
    STRAIGHT,
    make_steps,
    sample,
    sampler_steps,
    samplers_of,
    take_step,
)
from transfusion_jax.diffusion.schedule import evenly

SCHEDULE = cosine(1000)


MEAN, STD = np.array([0.7, -0.5, 2.0], np.float32), np.array([0.5, 1.5, 0.1], np.float32)


def test_a_perfect_predictor_gives_back_the_distribution():
    drawn = draw(perfect, keys(1500), (4, 3), steps=1000)
    assert np.all(np.abs(drawn.mean((0, 1)) - MEAN) < 4 * STD / np.sqrt(6000))
    np.testing.assert_allclose(drawn.std((0, 1)), STD, rtol=0.05)  # the small variance is 2 % short at std 0.1
    pixels = drawn.reshape(1500, -1)
    assert np.abs(np.corrcoef(pixels.T) - np.eye(12)).max() < 0.15  # each is drawn for itself


def test_few_steps_follow_the_same_process():
    at, visited = (0.0, 1.0), evenly(1000, 4)
    for t, s in itertools.pairwise(visited):
        at = moments_after(at, *SCHEDULE.alpha_bar[[t, s, min(t, 981)]])
    drawn = draw(perfect, keys(1500), (4, 3), 4)
    assert np.all(np.abs(drawn.mean((0, 1)) - at[0]) < 4 * np.sqrt(at[1] / 6000))
    np.testing.assert_allclose(drawn.var((0, 1)), at[1], rtol=0.08)


def test_the_predictor_is_asked_at_each_visited_timestep():
    asked = []

    def predict(x, t):
        asked.append(int(t))
        return x

    with jax.disable_jit():
        sample(predict, keys(1), (1,), make_steps(SCHEDULE, 3))
    assert asked == [981, 667, 333]  # of the first, see `noisiest_asked`


def test_a_sample_does_not_depend_on_its_neighbours():
    def predict(x, t):
        return jnp.tanh(x * 3) + t / 1000

    drawer = jax.jit(lambda keys: sample(predict, keys, (3, 2), make_steps(SCHEDULE, 7)))
    one, other = (np.asarray(drawer(keys(10)[np.array(chosen)])) for chosen in ([0, 1, 2, 3, 4], [8, 4, 9, 0, 7]))
    np.testing.assert_array_equal(other[[1, 3]], one[[4, 0]])
    assert len({bytes(x) for x in (*one, *other)}) == 8
    assert one.dtype == np.float32


def test_a_step_is_the_posterior_of_the_forward_process():
    random = np.random.default_rng(0)
    x, clean = random.standard_normal((2, 50))
    steps = make_steps(SCHEDULE, 250)
    for number in (5, 100, 248):
        t, s = steps.timesteps[number : number + 2]
        weights = jax.tree.map(lambda w, n=number: w[n], steps.weights)
        now, following = SCHEDULE.alpha_bar[[t, s]]
        noise = (x - np.sqrt(now) * clean) / np.sqrt(1 - now)
        alpha = now / following  # x_t = √α x_s + √(1 − α) ε, and x_s is known from the clean image: Bayes
        variance = 1 / (1 / (1 - following) + alpha / (1 - alpha))
        mean = variance * (np.sqrt(following) * clean / (1 - following) + np.sqrt(alpha) * x / (1 - alpha))
        with jax.enable_x64(True):
            still, pointed_to = take_step(x, x, noise, np.zeros(50), weights)
            moved, _ = take_step(x, x, noise, np.ones(50), weights)
        np.testing.assert_allclose(still, mean, rtol=1e-6, atol=1e-9)
        np.testing.assert_allclose(pointed_to, clean, rtol=1e-6, atol=1e-9)
        np.testing.assert_allclose(moved - still, np.sqrt(variance), rtol=1e-6)


@pytest.mark.parametrize("name", DIFFUSION)
def test_the_last_step_ends_at_the_clean_image(name):
    x, noise = jnp.array([0.3, -2.0]), jnp.array([1.0, 0.5])
    now = SCHEDULE.alpha_bar[50]
    last = jax.tree.map(lambda w: w[-1], make_steps(SCHEDULE, 20, sampler=name).weights)
    out, clean = take_step(x, 1e6 * x, noise, jnp.full(2, 1e6), last)
    np.testing.assert_allclose(out, (x - np.sqrt(1 - now) * noise) / np.sqrt(now), rtol=1e-6)
    np.testing.assert_allclose(out, clean, rtol=1e-6)


def test_a_sampler_belongs_to_its_path():
    assert list(samplers_of(SCHEDULE)) == ["ancestral", "ddim", "dpm++"]
    with pytest.raises(ValueError, match="no sampler 'heun' of this schedule: one of ancestral, ddim"):
        make_steps(SCHEDULE, 10, sampler="heun")
    with pytest.raises(ValueError, match="one of euler, heun"):
        make_steps(straight(1000), 10, "flow", "ddim")


def test_heun_asks_twice_wherever_it_stops():
    steps = make_steps(straight(1000), 4, "flow", "heun")
    assert steps.timesteps.tolist() == [1000, 750, 750, 500, 500, 250, 250]


@pytest.mark.parametrize("steps", [1, 4, 7, 50, 250, 600, 1000])
@pytest.mark.parametrize("elements", [16, 64, 256, 1024])  # of 64: √(m / n) is 1/2, 1, 2 and 4
def test_timesteps_of_a_flow_are_spaced_by_the_formula(elements, steps):
    diffusion = DiffusionConfig(objective="flow", timestep_base=64)
    found = sampler_steps(straight(1000), diffusion, SamplingConfig(steps=steps), elements).timesteps
    even, by = np.linspace(1, 0, steps + 1)[:-1], (elements / 64) ** 0.5
    expected = 1000 * by * even / (1 + (by - 1) * even)
    if steps <= 50:  # there is room for all
        assert np.abs(found - expected).max() <= 0.5 + 1e-9
    assert (found[0], found[-1] >= 1) == (1000, True)
    assert np.all(np.diff(found) < 0)
    if by == 1:
        np.testing.assert_array_equal(found, evenly(1000, steps)[:-1])


@pytest.mark.parametrize("path", [cosine(1000), linear(1000), cosine(20)], ids=["cosine", "linear", "few"])
def test_timesteps_of_a_diffusion_are_spaced_by_its_own_shift(path):
    diffusion = DiffusionConfig(timesteps=path.timesteps, image_first_limit=1, timestep_base=64)
    for elements, steps in itertools.product((4, 16, 256, 4096), (1, 5, 20)):
        found = sampler_steps(path, diffusion, SamplingConfig(steps=steps), elements)
        even, by = np.linspace(path.timesteps, 0, steps + 1)[:-1], diffusion.shift(elements)
        assert (found.timesteps[0], found.timesteps[-1] >= 1) == (path.timesteps, True)
        assert np.all(np.diff(found.timesteps) < 0)
        assert np.all((found.timesteps >= np.floor(even)) if by > 1 else (found.timesteps <= np.ceil(even)))
        if path.timesteps == 1000:
            moved = path.shift(even, by, np.interp)
            apart = np.append(np.diff(moved) < -1, True)  # others give way
            assert np.abs(found.timesteps - moved)[apart & (moved > steps)].max() <= 1


def test_spacing_can_be_left_even():
    diffusion = DiffusionConfig(objective="flow", timestep_base=64)
    even = sampler_steps(straight(1000), diffusion, SamplingConfig(steps=10, spacing="trailing"), 256)
    np.testing.assert_array_equal(even.timesteps, evenly(1000, 10)[:-1])
    unshifted = sampler_steps(straight(1000), DiffusionConfig(objective="flow"), SamplingConfig(steps=10), 256)
    jax.tree.map(np.testing.assert_array_equal, unshifted, even)
    assert np.any(
        sampler_steps(straight(1000), diffusion, SamplingConfig(steps=10), 256).timesteps != even.timesteps
    )


@pytest.mark.parametrize("name", [*DIFFUSION, *STRAIGHT])
def test_every_sampler_comes_to_a_single_image_at_shifted_timesteps(name):
    flow = name in STRAIGHT
    path, clean = straight(1000) if flow else SCHEDULE, np.array([0.3, -2.0], np.float32)
    diffusion = DiffusionConfig(objective="flow" if flow else "x", timestep_base=4)
    steps = sampler_steps(path, diffusion, SamplingConfig(steps=8, sampler=name), 64)

    def predict(x, t):
        return (x - clean) * 1000 / t if flow else jnp.broadcast_to(clean, x.shape)

    np.testing.assert_allclose(sample(predict, keys(3), (2,), steps), np.tile(clean, (3, 1)), atol=1e-4)


def test_bounds_limit_the_clean_image_and_each_channel_apart():
    bounds = np.array([-0.5, -2.0], np.float32), np.array([0.1, 3.0], np.float32)
    drawer = jax.jit(lambda bounds: sample(lambda x, t: -x, keys(50), (4, 4, 2), make_steps(SCHEDULE, 20), bounds))
    drawn, free = np.asarray(drawer(bounds)), np.asarray(drawer((np.float32([-9e9] * 2), np.float32([9e9] * 2))))
    assert np.abs(free).max() > 3  # without bounds this predictor runs away
    for channel in range(2):
        assert drawn[..., channel].min() == pytest.approx(bounds[0][channel], abs=1e-5)
        assert drawn[..., channel].max() == pytest.approx(bounds[1][channel], abs=1e-5)


def test_too_many_steps_are_refused():
    with pytest.raises(ValueError, match="1 to 1000 steps"):
        make_steps(SCHEDULE, 1001)


def draw(predict, keys, shape, steps):
    return np.asarray(jax.jit(lambda keys: sample(predict, keys, shape, make_steps(SCHEDULE, steps)))(keys))


def perfect(x, t):
    """E[ε | x_t] where each channel of the data is normal."""
    now = jnp.asarray(SCHEDULE.alpha_bar, jnp.float32)[t]
    return jnp.sqrt(1 - now) * (x - jnp.sqrt(now) * MEAN) / (now * STD**2 + 1 - now)


def moments_after(moments, now, following, asked):
    """Mean and variance of each channel after one step with the perfect predictor, which is linear in x."""

    def step(x):
        noise = np.sqrt(1 - asked) * (x - np.sqrt(asked) * MEAN) / (asked * STD**2 + 1 - asked)
        clean = (x - np.sqrt(1 - asked) * noise) / np.sqrt(asked)
        beta = 1 - now / following
        return (np.sqrt(following) * beta * clean + np.sqrt(now / following) * (1 - following) * x) / (1 - now)

    slope = step(1.0) - step(0.0)
    added = (1 - following) / (1 - now) * (1 - now / following)
    return step(moments[0]), slope**2 * moments[1] + added


def keys(count):
    return jax.random.split(jax.random.key(0), count)
