"""Timesteps in training: draws against closed forms, the shift by size, and the buckets of sizes."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from helpers import media_of, tiny_config
from transfusion_jax.config import TIMESTEPS, DiffusionConfig
from transfusion_jax.diffusion.noise_schedules import cosine, linear, straight
from transfusion_jax.diffusion.objective import corrupt, image_keys
from transfusion_jax.diffusion.schedule import draw_timestep
from transfusion_jax.tasks.transfusion import size_buckets

DRAWS = 6000
PATHS = {"cosine": cosine(1000), "linear": linear(1000), "straight": straight(1000)}
DISTRIBUTIONS = {  # the config's fields, and P(u ≤ x) as SciPy has it
    "uniform": (dict(), stats.uniform.cdf),
    "logit_normal": (dict(), lambda x: stats.norm.cdf(logit(x))),
    "logit_normal, moved": (
        dict(timestep_mean=-0.8, timestep_deviation=1.7),
        lambda x: stats.norm.cdf(logit(x), -0.8, 1.7),
    ),
    "beta": (dict(), stats.beta(1.5, 1).cdf),
    "beta, moved": (dict(timestep_beta=(0.6, 3.0)), stats.beta(0.6, 3).cdf),
}


def logit(x):
    with np.errstate(divide="ignore"):
        return np.log(x) - np.log1p(-x)


def config_of(name, **others):
    return DiffusionConfig(timestep_distribution=name.split(",")[0], **DISTRIBUTIONS[name][0], **others)


def drawn(config, limit, path="cosine", elements=1, count=DRAWS, seed=0):
    keys = jax.random.split(jax.random.key(seed), count)
    return np.asarray(drawer(config, path)(keys, jnp.int32(limit), jnp.int32(elements)))


@functools.cache
def drawer(config, path):
    """Compiled, from a key for each draw."""
    return jax.jit(jax.vmap(lambda *how: draw_timestep(*how, PATHS[path], config), (0, None, None)))


def probability(timesteps, cumulative):
    """Of draws at least as far, by χ², from P(t ≤ k) for k of 0 … limit; values are grouped to some 20 bins."""
    share = np.round(cumulative * 20)
    ends = np.append(np.flatnonzero(np.diff(share)), len(cumulative) - 1)  # the last value of each bin
    ends = np.unique(ends[ends > 0])
    expected = np.diff(np.concatenate([[0], cumulative[ends]])) * len(timesteps)
    assert expected.min() > 5
    observed = np.histogram(timesteps, np.concatenate([[0.5], ends + 0.5]))[0]
    assert observed.sum() == len(timesteps)
    return stats.chisquare(observed, expected).pvalue if len(ends) > 1 else 1.0


@pytest.mark.parametrize("limit", [1, 2, 7, 500, 1000])
@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_timesteps_have_the_distribution_of_the_config(name, limit):
    timesteps, boundaries = drawn(config_of(name), limit), np.arange(limit + 1) / limit
    assert timesteps.dtype == np.int32
    assert (timesteps.min() >= 1) & (timesteps.max() <= limit)
    assert probability(timesteps, DISTRIBUTIONS[name][1](boundaries)) > 1e-3
    if limit > 2:
        others = [other for key, (_, other) in DISTRIBUTIONS.items() if key != name]
        assert max(probability(timesteps, other(boundaries)) for other in others) < 1e-6  # the test can fail


@pytest.mark.parametrize("limit", [500, 1000])
@pytest.mark.parametrize("elements", [16, 64, 1024])  # of 64: √(m / n) is 1/2, 1 and 4
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("name", ["uniform", "logit_normal"])
def test_shifted_timesteps_have_the_distribution_that_a_change_of_variables_gives(name, path, elements, limit):
    timesteps = drawn(config_of(name, timestep_base=64), limit, path, elements)
    by, cumulative, boundaries = (elements / 64) ** 0.5, DISTRIBUTIONS[name][1], np.arange(limit + 1) / limit
    assert probability(timesteps, cumulative(before_the_shift(PATHS[path], boundaries, by))) > 1e-3
    if by != 1:
        assert probability(timesteps, cumulative(boundaries)) < 1e-6


def before_the_shift(path, moved, by):
    """The u of each u' of SD3's formula, solved for the noise's share."""
    if path is PATHS["straight"]:
        return moved / (by - (by - 1) * moved)
    share = path.noises / (path.noises + path.signals)
    share, points = share / share[-1], np.linspace(0, 1, len(share))
    there = np.interp(moved, points, share)
    return np.interp(there / (by - (by - 1) * there), share, points)


@pytest.mark.parametrize("by", [0.25, 0.5, 2.0, 4.0])
@pytest.mark.parametrize(("path", "most"), [("straight", 1e-9), ("cosine", 5e-3), ("linear", 0.05)])
def test_the_shift_moves_the_log_snr(path, most, by):
    """By 2 log(by) (arXiv 2301.11093) where the image is at least a tenth of the noise, as far as T hides it."""
    path = PATHS[path]
    t = np.arange(1, 1000)
    moved = path.shift(t.astype(float), by, np.interp)
    signal, noise = (np.interp(moved, np.arange(1001), table) for table in (path.signals, path.noises))
    before, after = path.signals[t] / path.noises[t], signal / noise
    seen = (np.minimum(before, after) > 0.1) & (moved >= 10)
    assert seen.sum() > 400
    assert np.abs(np.log(after / before * by))[seen].max() < most


@pytest.mark.parametrize("by", [1 / 64, 0.5, 1.0, 2.0, 64.0])
@pytest.mark.parametrize("path", PATHS)
def test_the_shift_maps_the_timesteps_onto_themselves(path, by):
    path, t = PATHS[path], np.linspace(0, 1000, 3001)
    moved = path.shift(t, by, np.interp)
    assert (moved[0], moved[-1]) == (0, 1000)
    assert np.all(np.diff(moved) > 0)
    np.testing.assert_allclose(path.shift(moved, 1 / by, np.interp), t, atol=1e-6)
    np.testing.assert_allclose(path.shift(jnp.asarray(t), by), moved, atol=0.05)  # in float32


@pytest.mark.parametrize(
    ("path", "t"),
    [*itertools.product(("cosine", "straight"), (200, 500, 800)), ("linear", 150), ("linear", 300)],
)
def test_an_image_of_twice_the_side_is_as_noisy_when_it_is_made_small(path, t):
    """Averaged over 2×2 pixels, at its shifted timestep, as the small one is at t."""
    path, random = PATHS[path], np.random.default_rng(0)
    small, large_noise = random.standard_normal((128, 128, 1)), random.standard_normal((256, 256, 1))
    large, noise = small.repeat(2, 0).repeat(2, 1), random.standard_normal(small.shape)
    by = DiffusionConfig(timestep_base=64).shift(256)
    shifted = int(np.round(path.shift(np.float64(t), by, np.interp)))

    def snr(noised):
        """Of the small image in one of its size."""
        signal = (noised * small).mean() / np.square(small).mean()
        return signal / (noised - signal * small).std()

    def pooled(t):
        noised = path.add_noise(large, large_noise, jnp.int32(t))
        return np.asarray(noised).reshape(128, 2, 128, 2, 1).mean((1, 3))

    expected = snr(np.asarray(path.add_noise(small, noise, jnp.int32(t))))
    assert snr(pooled(shifted)) == pytest.approx(expected, rel=0.05)
    assert snr(pooled(t)) == pytest.approx(2 * expected, rel=0.05)


@pytest.mark.parametrize("limit", [0, 1, 500, 1000])
def test_the_papers_draw_is_that_of_former_versions(limit):
    keys = jax.random.split(jax.random.key(3), 500)
    former = jax.vmap(lambda key: jax.random.randint(key, (), 1, max(limit, 1) + 1))(keys) * (limit > 0)
    found = drawn(DiffusionConfig(), limit, elements=7, count=500, seed=3)
    np.testing.assert_array_equal(found, former)


@pytest.mark.parametrize("name", ["uniform", "logit_normal", "beta"])
def test_a_draw_depends_on_its_key_and_its_image_alone(name):
    config, path = DiffusionConfig(timestep_distribution=name, timestep_base=16), PATHS["cosine"]
    keys = jax.random.split(jax.random.key(0), 24)
    limits, elements = jnp.arange(24) * 40, 1 + jnp.arange(24) % 5 * 20

    def one(key, limit, elements):
        return draw_timestep(key, limit, elements, path, config)

    flat = np.asarray(jax.jit(jax.vmap(one))(keys, limits, elements))
    assert flat[0] == 0  # its limit
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    square = jax.device_put([x.reshape(8, 3) for x in (keys, limits, elements)], rows)
    np.testing.assert_array_equal(np.ravel(jax.jit(jax.vmap(jax.vmap(one)))(*square)), flat)  # on eight devices
    some = np.array([7, 3, 23])
    np.testing.assert_array_equal(jax.jit(jax.vmap(one))(keys[some], limits[some], elements[some]), flat[some])


def test_images_are_noised_at_the_timesteps_that_are_drawn():
    path, config = PATHS["straight"], config_of("logit_normal", timestep_base=16, objective="flow")
    keys = jax.jit(image_keys, static_argnums=2)(jax.random.key(0), np.arange(50), 1)
    draws, means = drawer(config, "straight"), []
    for side in (4, 8, 16):
        model = tiny_config(model__latent_shape=(side, side, 2), data__context_length=80).model
        media = media_of(np.ones((50, 1, side, side, 2), np.float32), model)
        how = jax.jit(lambda c, media=media, model=model: corrupt(keys, media, model, c, path), static_argnums=0)
        noised, target, timesteps = how(config)
        for row in (0, 7, 49):
            key = jax.random.split(keys[row, 0])[0]
            expected = draws(key[None], jnp.int32(1000), jnp.int32(model.patches))
            assert timesteps[row, 0] == expected[0]
        share = np.asarray(timesteps)[..., None, None, None] / 1000
        expected = media.unpack(media.patches, model) + share * target
        np.testing.assert_allclose(noised.unpack(noised.patches, model), expected, atol=1e-5)
        means.append(np.mean(how(config_of("logit_normal", objective="flow"))[2] - timesteps))
    assert means[0] > means[1] == 0 > means[2]  # 16 patches are not shifted


def test_a_distribution_of_ones_own(monkeypatch):
    monkeypatch.setattr(TIMESTEPS, "_added", dict(TIMESTEPS._added))
    TIMESTEPS.add("noisy", lambda key, config: 1 - jax.random.uniform(key) / 10, help="The noisiest tenth.")
    timesteps = drawn(DiffusionConfig(timestep_distribution="noisy"), 1000, count=200)
    assert (timesteps.min() > 900) & (timesteps.max() <= 1000)


def test_images_are_sorted_by_size():
    elements = np.array([[0, 1, 16, 17], [64, 65, 256, 300]])
    found = size_buckets(elements, 256)
    assert list(found) == ["size_0", "size_1", "size_2"]
    bucket = sum(number * np.asarray(here) for number, here in enumerate(found.values(), start=1))
    assert bucket.tolist() == [[0, 1, 1, 2], [2, 3, 3, 3]]
    assert sum(np.asarray(here).sum() for here in found.values()) == 7  # each once
    on_device = jax.jit(size_buckets, static_argnums=1)(jnp.asarray(elements), 256)
    jax.tree.map(np.testing.assert_array_equal, on_device, found)
