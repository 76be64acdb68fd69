import jax
import jax.numpy as jnp
import numpy as np
import pytest

from helpers import as_latents, media_of, tiny_config
from transfusion_jax.config import DiffusionConfig
from transfusion_jax.diffusion.noise_schedules import cosine
from transfusion_jax.diffusion.objective import corrupt, image_keys

MODEL, SCHEDULE = tiny_config().model, cosine(1000)
ROWS, IMAGES, SHAPE = 500, 4, (4, 4, 2)


def test_noise_and_time_depend_on_the_row_and_the_slot_alone():
    rows = np.arange(ROWS)
    rows[7] = 2**31 - 2
    whole = noised(rows)
    order = np.random.default_rng(0).permutation(ROWS)
    for one, other in zip(noised(rows[order]), whole, strict=True):  # in another place of the batch
        np.testing.assert_array_equal(one, other[order])
    some = np.array([7, 3])  # and in a smaller one
    drawn = jax.random.key_data(keys_of(rows[some], 2))
    np.testing.assert_array_equal(drawn, jax.random.key_data(keys_of(rows, IMAGES))[some, :2])


def test_every_image_has_noise_of_its_own():
    _, noise, timesteps = noised()
    assert len({bytes(n) for n in noise.reshape(ROWS * IMAGES, -1)}) == ROWS * IMAGES
    assert noise.mean() == pytest.approx(0, abs=0.02)
    assert noise.std() == pytest.approx(1, abs=0.02)
    assert np.abs(np.corrcoef(timesteps.T) - np.eye(IMAGES)).max() < 0.2
    assert not np.array_equal(noised(seed=1)[1], noise)


@pytest.mark.parametrize("limit", [1, 2, 500, 1000])
def test_timesteps_are_uniform_from_one_to_the_limit(limit):
    _, _, timesteps = noised(limits=limit)
    assert timesteps.min() == 1 if limit < 10 else timesteps.min() < limit * 0.01
    assert limit * 0.99 < timesteps.max() <= limit
    bins = min(limit, 10)
    counts = np.bincount((timesteps.ravel() - 1) * bins // limit, minlength=bins)
    np.testing.assert_allclose(counts, ROWS * IMAGES / bins, rtol=0.25)


def test_each_image_keeps_its_own_limit():
    _, _, timesteps = noised(limits=np.array([0, 1, 10, 1000]))
    assert timesteps.max(axis=0)[:3].tolist() == [0, 1, 10]
    assert timesteps.min(axis=0)[:3].tolist() == [0, 1, 1]
    assert timesteps[:, 3].max() > 900


def test_a_limit_of_zero_leaves_the_image_clean():
    mixed, _, timesteps = noised(limits=np.array([0, 1000, 0, 1000]))
    np.testing.assert_array_equal(timesteps[:, ::2], 0)
    np.testing.assert_array_equal(mixed[:, ::2], latents()[:, ::2])
    assert np.all(np.abs(mixed - latents())[:, 1::2].max(axis=(2, 3, 4)) > 0)


def test_an_image_is_noised_with_the_noise_that_is_the_target():
    mixed, noise, t = noised()
    alpha_bar = SCHEDULE.alpha_bar[t][..., None, None, None]
    expected = np.sqrt(alpha_bar) * latents() + np.sqrt(1 - alpha_bar) * noise
    np.testing.assert_allclose(mixed, expected, atol=1e-5)


def noised(rows=None, limits=1000, seed=0):
    rows = jnp.arange(ROWS) if rows is None else jnp.asarray(rows)
    result = compiled(jax.random.key(seed), rows, latents(), np.broadcast_to(limits, (ROWS, IMAGES)))
    return [np.asarray(x) for x in result]


def keys_of(rows, images):
    return jax.jit(image_keys, static_argnums=2)(jax.random.key(0), jnp.asarray(rows), images)


@jax.jit
def compiled(key, rows, latents, limits):
    keys, media = image_keys(key, rows, latents.shape[1]), media_of(latents, MODEL, limits)
    noised, target, timesteps = corrupt(keys, media, MODEL, DiffusionConfig(), SCHEDULE)
    return as_latents(noised.patches, MODEL), target, timesteps


def latents():
    clean = np.random.default_rng(5).uniform(-2, 2, (1, IMAGES, *SHAPE)).astype(np.float32)
    return np.broadcast_to(clean, (ROWS, IMAGES, *SHAPE))
