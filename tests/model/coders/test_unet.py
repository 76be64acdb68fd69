import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from helpers import as_latents, media_of, tiny_batch, tiny_config
from transfusion_jax.config import ConfigError, MeshConfig
from transfusion_jax.model.coders.unet import PatchCoder, stages
from transfusion_jax.model.layers import LayerNorm
from transfusion_jax.model.transfusion import Model
from transfusion_jax.parallel.mesh import check_batch, make_mesh
from transfusion_jax.parallel.sharding import batch_sharding, state_shardings
from transfusion_jax.tasks.transfusion import TransfusionTask
from transfusion_jax.training.loop import to_global

TINY = dict(model__patch_coder="unet", model__unet_channels=(8, 16), model__unet_blocks=1, model__layers=1)


def test_every_skip_is_taken_once_at_its_own_size():
    for size, widths in ((1, (8,)), (2, (8, 16)), (4, (4, 8, 12))):
        config = tiny_config(**TINY | dict(model__patch_size=size, model__unet_channels=widths)).model
        down, up = stages(config)
        left = [(0, widths[0]), *((stage.level, stage.outputs) for stage in down)]
        last = widths[-1]
        for stage in up:
            if stage.kind == "block":
                level, skipped = left.pop()
                assert (stage.level, stage.inputs) == (level, last + skipped)
            last = stage.outputs
        assert not left
        assert (stage.level, last) == (0, widths[0])
        assert down[-1].level == len(widths) - 1  # the trunk's grid


@pytest.mark.parametrize(("size", "widths"), [(1, (8,)), pytest.param(4, (4, 8, 12), marks=pytest.mark.slow)])
def test_images_are_coded_apart_and_both_ways_see_the_timestep(size, widths):
    changes = dict(model__patch_size=size, model__unet_channels=widths)
    config = tiny_config(**TINY | changes, data__context_length=96).model
    latents = jax.random.normal(jax.random.key(2), (2, 3, *config.latent_shape))
    times = jnp.array([[1, 500, 1000], [0, 3, 30]])
    encode, decode = coder(config)
    patches, skips = encode(latents, times)
    assert patches.shape == (2, 3, config.patches, config.width)
    assert decode(patches, times, skips).shape == latents.shape
    assert 0.2 < np.std(patches) < 5

    moved = latents.at[1, 2].add(1.0)
    other, other_skips = encode(moved, times)
    changed = np.abs(other - patches).max((2, 3)) > 0
    np.testing.assert_array_equal(changed, [[0, 0, 0], [0, 0, 1]])
    assert np.all(np.abs(other - patches)[1, 2].max(-1) > 0)  # every patch sees the whole image
    for skip, before in zip(other_skips, skips, strict=True):
        np.testing.assert_array_equal(skip[:5], before[:5])

    later = times.at[0, 1].add(100)
    assert np.abs(encode(latents, later)[0] - patches).max((2, 3))[0].tolist() > [0, 1e-4, 0]
    for change in (dict(timesteps=later), dict(skips=other_skips), dict(hidden=other)):
        inputs = dict(hidden=patches, timesteps=times, skips=skips) | change
        where = np.abs(decode(**inputs) - decode(patches, times, skips)).max((2, 3, 4)) > 0
        expected = np.zeros((2, 3), bool)
        expected[(0, 1) if "timesteps" in change else (1, 2)] = True
        np.testing.assert_array_equal(where, expected)


@pytest.mark.slow
def test_a_fresh_coder_predicts_nothing_and_learns():
    config = tiny_config(**TINY, batch_rows=2)
    task, batch = TransfusionTask(config), tiny_batch(config)
    params = jax.jit(task.init)(jax.random.key(0))
    step = jax.jit(task.gradients)
    _, first = step(params, batch, jax.random.key(1), 0)
    for _ in range(12):
        gradients = jax.device_get(step(params, batch, jax.random.key(1), 0)[0])
        size = np.sqrt(sum(np.sum(g**2) for g in jax.tree.leaves(gradients)))
        params = jax.tree.map(lambda p, g, n=size: np.asarray(p) - 0.3 * g / n, params, gradients)
    _, last = step(params, batch, jax.random.key(1), 0)
    before, after = (float(np.divide(*m.sums["loss_image"])) for m in (first, last))
    assert before == pytest.approx(1, abs=0.15)  # the mean square of the noise
    assert after < 0.75 * before


def test_a_layer_norm_is_that_of_the_definition():
    x = np.random.default_rng(0).normal(3, 2, (5, 7)).astype(np.float32)
    found = LayerNorm(7, 1e-5)(jnp.asarray(x))
    np.testing.assert_allclose(found, (x - x.mean(-1, keepdims=True)) / x.std(-1, keepdims=True), atol=1e-4)


def test_kernels_are_split_over_fsdp_and_what_cannot_be_is_refused():
    config = tiny_config(**TINY, batch_rows=8)
    model, mesh = Model(config.model), make_mesh(MeshConfig(data=1, fsdp=8))
    specs = jax.tree.map(lambda s: s.spec, state_shardings(model.abstract_params(), mesh, model.axes()))
    block = specs["patch_coder"]["down"]["parts"]["block_1_0"]
    assert block["conv_in"] == P(None, None, None, ("fsdp", "context"))
    assert specs["patch_coder"]["latents_out"] == P(None, None, ("fsdp", "context"), None)
    narrow = tiny_config(**TINY | dict(model__unet_channels=(4, 16)), batch_rows=8)
    with pytest.raises(ConfigError, match="4 channels of the U-Net cannot be split over 8 devices"):
        check_batch(make_mesh(MeshConfig(data=1, fsdp=8)), narrow)


@pytest.mark.parametrize(
    "mesh",
    [
        dict(data=2, context=2, tensor=2),
        pytest.param(dict(data=2, fsdp=4), marks=pytest.mark.slow),
        pytest.param(dict(data=1, fsdp=2, context=4), marks=pytest.mark.slow),
    ],
    ids=str,
)
@pytest.mark.slow
def test_every_mesh_gives_the_gradients_of_one_device(mesh):
    results = []
    for axes, devices in ((dict(data=1), 1), (mesh, 8)):
        config = tiny_config(**TINY, batch_rows=8, mesh=axes)
        task, placed = TransfusionTask(config), make_mesh(config.mesh, jax.devices()[:devices])
        params = moved(jax.jit(task.init)(jax.random.key(0)))
        params = jax.device_put(params, state_shardings(params, placed, task.axes()))
        with jax.set_mesh(placed):
            batch = to_global(tiny_batch(config), batch_sharding(placed))
            gradients, metrics = jax.jit(task.gradients)(params, batch, jax.random.key(9), 0)
        results.append((jax.tree.map(np.asarray, gradients), float(metrics.loss)))
    (one, loss), (other, other_loss) = results
    assert other_loss == pytest.approx(loss, rel=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4 * np.abs(b).max() + 1e-8), other, one)


def test_the_papers_sizes_have_widths_of_their_own():
    for size in (1, 2, 4, 8):
        config = tiny_config(
            model__latent_shape=(32, 32, 8),
            model__patch_size=size,
            model__patch_coder="unet",
            data__context_length=1100,
        ).model
        assert len(config.coder_channels) == size.bit_length()
        assert all(width % 256 == 0 for width in config.coder_channels)


def coder(config):
    """Its two ways, compiled, with every parameter moved: some begin as zeros."""
    model = Model(config)
    params = moved(jax.jit(model.init)(jax.random.key(0)))
    assert isinstance(model.bind(params).patch_coder, PatchCoder)

    @jax.jit
    def encode(params, latents, timesteps):
        vectors, skips = model.bind(params).patch_coder.encode(media_of(latents, config), timesteps)
        return vectors.reshape(*timesteps.shape, config.patches, -1), skips

    @jax.jit
    def decode(params, hidden, timesteps, skips):
        media = media_of(jnp.zeros((*timesteps.shape, *config.latent_shape)), config)
        hidden = hidden.reshape(len(hidden), -1, hidden.shape[-1])
        return as_latents(model.bind(params).patch_coder.decode(hidden, media, timesteps, skips), config)

    return functools.partial(encode, params), functools.partial(decode, params)


def moved(params):
    random = np.random.default_rng(0)
    return jax.tree.map(lambda p: np.asarray(p) + 0.1 * random.standard_normal(p.shape, np.float32), params)
