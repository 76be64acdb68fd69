import jax.numpy as jnp
import numpy as np
import pytest

from transfusion_jax.diffusion.noise_schedules import LARGEST_BETA, cosine, linear, straight
from transfusion_jax.diffusion.schedule import evenly


@pytest.mark.parametrize(
    ("t", "expected"),
    [(100, 0.9721), (250, 0.8470), (500, 0.4938), (750, 0.1443), (900, 0.0241), (999, 2.43e-6)],
)
def test_the_published_values_of_the_cosine_schedule(t, expected):
    digits = 4 if expected > 1e-3 else 8
    assert round(cosine(1000).alpha_bar[t], digits) == expected


@pytest.mark.parametrize("timesteps", [1, 2, 10, 1000])
def test_the_signal_falls_from_one_towards_zero(timesteps):
    alpha_bar = cosine(timesteps).alpha_bar
    assert cosine(timesteps).timesteps == timesteps
    assert alpha_bar.shape == (timesteps + 1,)
    assert alpha_bar[0] == 1
    assert np.all(np.diff(alpha_bar) < 0)
    assert 0 < alpha_bar[-1] < 0.01
    assert np.max(1 - alpha_bar[1:] / alpha_bar[:-1]) <= LARGEST_BETA + 1e-12


def test_signal_and_noise_share_the_variance():
    schedule = cosine(1000)
    t = jnp.arange(1001).reshape(7, 11, 13)
    assert schedule.signal(t).shape == (7, 11, 13)
    assert schedule.signal(t).dtype == jnp.float32
    np.testing.assert_allclose(schedule.signal(t) ** 2 + schedule.noise(t) ** 2, 1, rtol=1e-6)
    np.testing.assert_allclose(schedule.signal(t).ravel() ** 2, schedule.alpha_bar, rtol=1e-5)


def test_noise_is_added_to_each_image_at_its_own_timestep():
    random = np.random.default_rng(0)
    schedule, t = cosine(1000), jnp.array([[0, 250, 1000], [500, 1, 999]])
    clean, noise = (random.standard_normal((2, 3, 64, 64, 2)).astype(np.float32) for _ in range(2))
    noised = schedule.add_noise(clean, noise, t)
    np.testing.assert_array_equal(noised[0, 0], clean[0, 0])
    np.testing.assert_allclose(noised[0, 2], noise[0, 2], atol=1e-3)
    np.testing.assert_allclose(noised.var(axis=(2, 3, 4)), 1, atol=0.06)  # unit latents stay of unit variance
    for b, n in np.ndindex(2, 3):
        expected = np.sqrt(schedule.alpha_bar[t[b, n]])
        correlation = np.corrcoef(noised[b, n].ravel(), clean[b, n].ravel())[0, 1]
        assert correlation == pytest.approx(expected, abs=0.03)


@pytest.mark.parametrize("steps", [0, -1, 1001])
def test_more_steps_than_timesteps_are_refused(steps):
    with pytest.raises(ValueError, match=f"sampling takes 1 to 1000 steps, not {steps}"):
        evenly(1000, steps)


@pytest.mark.parametrize("timesteps", [21, 100, 1000])
def test_the_linear_schedule_ends_alike_for_every_number_of_timesteps(timesteps):
    alpha_bar = linear(timesteps).alpha_bar
    assert alpha_bar.shape == (timesteps + 1,)
    assert alpha_bar[0] == 1
    assert np.all(np.diff(alpha_bar) < 0)
    assert 0 < alpha_bar[-1] < 5e-5
    if timesteps >= 100:
        assert alpha_bar[timesteps // 2] == pytest.approx(linear(1000).alpha_bar[500], rel=0.1)


def test_the_straight_line_goes_from_image_to_noise():
    line, t = straight(10), jnp.array([0, 3, 10])
    assert line.timesteps == 10
    clean, noise = jnp.full((3, 1, 1, 1), 2.0), jnp.full((3, 1, 1, 1), -4.0)
    np.testing.assert_allclose(line.add_noise(clean, noise, t).ravel(), [2.0, 0.2, -4.0], rtol=1e-6)


@pytest.mark.parametrize(
    ("timesteps", "steps", "expected"),
    [(1000, 4, [1000, 750, 500, 250, 0]), (10, 3, [10, 7, 3, 0]), (2, 2, [2, 1, 0]), (1000, 1, [1000, 0])],
)
def test_evenly_spaced_timesteps_by_hand(timesteps, steps, expected):
    assert evenly(timesteps, steps).tolist() == expected


@pytest.mark.parametrize("timesteps", [1, 2, 37, 250])
def test_evenly_spaced_timesteps_fall_from_the_noisiest_to_zero(timesteps):
    for steps in range(1, timesteps + 1):
        visited = evenly(timesteps, steps)
        assert (visited[0], visited[-1], len(visited)) == (timesteps, 0, steps + 1)
        assert np.all(np.diff(visited) < 0)
        assert np.ptp(np.diff(visited)) <= (2 if timesteps % steps else 0)
