"""Places of packed patches, beside images on their own: which stand beside which, convolutions, gradients."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from helpers import tiny_config
from transfusion_jax.kernels.spans import check_spans
from transfusion_jax.model.coders.places import NONE, PatchPlaces, places_of, z_order
from transfusion_jax.model.layers import param
from transfusion_jax.model.media import Media, grid_coords, patchify, unpatchify
from transfusion_jax.model.transfusion import Model

GRIDS = [[(2, 3), (1, 1), (3, 2)], [(4, 1), (1, 5)], [(3, 3)]]  # of the items of each row
ROOM, ITEMS = 14, 4


def media_of_grids(grids, values=1):
    """Rows of items of these grids, of values that mean nothing."""
    item, coords, grid = np.full((len(grids), ROOM), -1), np.zeros((len(grids), ROOM, 3), int), []
    for row, items in enumerate(grids):
        placed = [(n, place) for n, shape in enumerate(items) for place in grid_coords(1, *shape)]
        for patch, (number, place) in enumerate(placed):
            item[row, patch], coords[row, patch] = number, place
        grid.append([(1, *shape) for shape in items] + [(0, 0, 0)] * (ITEMS - len(items)))
    zeros = jnp.zeros((len(grids), ITEMS), jnp.int32)
    return Media(
        patches=jax.random.normal(jax.random.key(0), (len(grids), ROOM, values)),
        item=jnp.asarray(item, jnp.int32),
        coords=jnp.asarray(coords, jnp.int32),
        element=jnp.zeros((len(grids), ROOM), jnp.int32),
        grid=jnp.asarray(grid, jnp.int32),
        weight=zeros.astype(jnp.float32),
        timestep_limit=zeros,
        comes_first=zeros.astype(bool),
        source=zeros,
    )


def places(grids, size, values=1):
    config = tiny_config(model__patch_size=size, model__latent_shape=(8, 8, 2), model__max_side=16).model
    return places_of(media_of_grids(grids, values), config)


@pytest.mark.parametrize("side", [1, 2, 4, 8])
def test_places_of_a_patch_are_in_z_order(side):
    """A place's rank has the bits of its row and column in turn."""
    found = z_order(side)
    for rank, place in enumerate(found):
        y, x = divmod(int(place), side)
        assert rank == sum(((x >> bit & 1) << 2 * bit) | ((y >> bit & 1) << 2 * bit + 1) for bit in range(4))
    assert len(found) == side * side


@pytest.mark.parametrize("side", [1, 2, 4])
def test_what_stands_around_a_place_is_what_a_loop_over_the_item_finds(side):
    random = np.random.default_rng(side)
    rows = [[tuple(random.integers(1, 4, 2)) for _ in range(random.integers(0, 3))] for _ in range(6)]
    rows = [row for row in rows if sum(h * w for h, w in row) <= ROOM] + GRIDS
    found = np.asarray(places(rows, 4).around(side))
    expected = np.full_like(found, NONE)
    rank = {int(place): number for number, place in enumerate(z_order(side))}
    for number, row in enumerate(rows):
        first = 0
        for height, width in row:
            index = {
                (y, x): (first + y // side * width + x // side) * side**2 + rank[y % side * side + x % side]
                for y in range(height * side)
                for x in range(width * side)
            }
            for (y, x), place in index.items():
                around = [(y + down, x + across) for down in (-1, 0, 1) for across in (-1, 0, 1)]
                expected[number, place] = [index.get(other, NONE) for other in around]
            first += height * width
    np.testing.assert_array_equal(found, expected)


def test_a_patch_attends_to_its_item_alone():
    spans = places(GRIDS, 2).spans
    check_spans(spans)
    assert spans.start[0].tolist() == [0] * 6 + [6] + [7] * 6 + [13]
    assert spans.end[0].tolist() == [6] * 6 + [7] + [13] * 6 + [14]


@pytest.mark.parametrize("stride", [1, 2])
def test_a_convolution_is_that_of_each_item_alone(stride):
    """Its values, and its gradients, of items of several shapes; in bfloat16 as near as its numbers are."""
    side, channels = 4, 3
    of_rows = places(GRIDS, side, side * side * channels)
    kernel = jax.random.normal(jax.random.key(1), (3, 3, channels, 5))
    weight = jax.random.normal(jax.random.key(2), (len(GRIDS), ROOM, (side // stride) ** 2 * 5))
    real = (of_rows.media.item >= 0)[..., None]

    def packed(patches, kernel):
        kernel = param(kernel, "window", "window", "inputs", "width")
        out = of_rows.pack(of_rows.convolve(of_rows.unpack(patches, side), kernel, stride))
        return jnp.sum(out.astype(jnp.float32) * weight * real), out

    def alone(patches, kernel):
        total, results = 0.0, []
        for row, items in enumerate(GRIDS):
            first = 0
            for shape in items:
                here = slice(first, first + shape[0] * shape[1])
                image = unpatchify(patches[None, row, here], side, shape)
                out = jax.lax.conv_general_dilated(
                    image, kernel, (stride, stride), ((1, 1), (1, 1)), dimension_numbers=("NHWC", "HWIO", "NHWC")
                )
                results.append(patchify(out, side // stride)[0])
                total += jnp.sum(results[-1] * weight[row, here])
                first = here.stop
        return total, jnp.concatenate(results)

    gradients = functools.partial(jax.value_and_grad, argnums=(0, 1), has_aux=True)
    patches = of_rows.media.patches
    (_, found), d_found = jax.jit(gradients(packed))(patches, kernel)
    (_, expected), d_expected = jax.jit(gradients(alone))(patches, kernel)
    np.testing.assert_allclose(found[real[..., 0]], expected, rtol=1e-4, atol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), d_found, d_expected)
    narrow = [x.astype(jnp.bfloat16) for x in (patches, kernel)]
    (_, rounded), d_rounded = jax.jit(gradients(packed))(*narrow)
    for a, b in ((rounded, found), *zip(d_rounded, d_found, strict=True)):
        assert a.dtype == jnp.bfloat16
        np.testing.assert_allclose(a.astype(jnp.float32), b, atol=0.03 * np.abs(b).max())


def test_unpacking_and_packing_are_each_others_inverse():
    of_rows = places(GRIDS, 4, 32)
    assert isinstance(of_rows, PatchPlaces)
    x = of_rows.unpack(of_rows.media.patches, 4)
    np.testing.assert_array_equal(of_rows.pack(x), of_rows.media.patches)
    first = np.asarray(of_rows.media.patches[0, 0]).reshape(4, 4, 2)
    np.testing.assert_array_equal(x[0, :8], np.concatenate([first[:2, :2], first[:2, 2:]]).reshape(8, 2))
    np.testing.assert_array_equal(of_rows.repeat(x)[:, 5::4], x[:, 1:])


@pytest.mark.slow
def test_what_is_computed_again_changes_no_gradient():
    found = []
    media, times = media_of_grids(GRIDS, 8), jnp.full((len(GRIDS), ITEMS), 7)
    for remat in ("none", "dots", "full"):
        unet = dict(model__patch_coder="unet", model__unet_channels=(4, 8), model__unet_blocks=1)
        model = Model(tiny_config(**unet, model__max_side=8, model__remat=remat, model__layers=1).model)
        shapes = model.abstract_params()
        params = jax.tree.map(lambda p: 0.1 * jnp.cos(jnp.arange(p.size)).reshape(p.shape), shapes)

        @jax.jit
        @jax.grad
        def gradients(params, model=model):
            coder = model.bind(params).patch_coder
            vectors, skips = coder.encode(media, times)
            return jnp.sum(jnp.square(coder.decode(jnp.sin(vectors), media, times, skips)))

        found.append(gradients(params)["patch_coder"])
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(found[0]["down"]))
    for other in found[1:]:
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), other, found[0])
