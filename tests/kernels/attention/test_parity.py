"""The accelerators' kernels, run by Pallas's interpreter on the CPU, beside the reference."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from attending import assert_close, gradients, grouped_arrays, repeated
from helpers import stand_in
from layouts import LAYOUTS, LENGTH, layout_spans, random_arrays
from transfusion_jax.config import ATTENTION, MeshConfig
from transfusion_jax.kernels.attention import gpu, tpu
from transfusion_jax.kernels.attention.reference import attention as reference
from transfusion_jax.kernels.spans import Spans, dense_mask
from transfusion_jax.model.attention import attention
from transfusion_jax.parallel.mesh import make_mesh

ALL = list(LAYOUTS)
BLOCKS = [(16, 16), (16, 8), (20, 36), (64, 64)]


@functools.cache
def tpu_kernel(queries, keys):
    return jax.jit(functools.partial(tpu.tpu_span_attention, blocks=tpu.Blocks(queries, keys), interpret=True))


@functools.cache
def gpu_kernel(queries, keys):
    """Backward, each program keeps so many elements of its own as it has queries in a block forward."""
    tiles = gpu.Tiles(gpu.Tile(queries, keys), gpu.Tile(queries, keys))
    return jax.jit(functools.partial(gpu.gpu_span_attention, tiles=tiles, interpret=True))


every_kernel = pytest.mark.parametrize("kernel", [tpu_kernel, gpu_kernel])


@every_kernel
@pytest.mark.parametrize("blocks", BLOCKS)
def test_matches_the_reference_forward_and_backward(kernel, blocks):
    spans = layout_spans(ALL)
    q, k, v, weight = random_arrays(4, (len(ALL), LENGTH, 3, 8))
    expected = gradients(lambda *qkv: reference(*qkv, *spans), q, k, v, weight)
    assert_close(gradients(lambda *qkv: kernel(*blocks)(*qkv, *spans), q, k, v, weight), expected)


@every_kernel
@pytest.mark.parametrize(
    ("blocks", "heads", "shared", "channels"), [((16, 8), 4, 2, 8), ((20, 36), 6, 3, 16), ((16, 16), 4, 1, 24)]
)
def test_grouped_queries_equal_repeated_keys_forward_and_backward(kernel, blocks, heads, shared, channels):
    spans = layout_spans(ALL)
    arrays = grouped_arrays(len(ALL), LENGTH, heads, shared, channels)
    expected = gradients(repeated(lambda *qkv: reference(*qkv, *spans)), *arrays)
    actual = gradients(lambda *qkv: kernel(*blocks)(*qkv, *spans), *arrays)
    assert [x.shape for x in actual[1]] == [x.shape for x in arrays[:3]]
    assert_close(actual, expected)


@every_kernel
@pytest.mark.parametrize("queries", [slice(0, 16), slice(17, 41), slice(47, 48)])
def test_queries_may_stand_anywhere_among_the_keys(kernel, queries):
    spans = Spans(*(x[:, queries] for x in layout_spans(ALL)))
    q, k, v, weight = random_arrays(4, (len(ALL), LENGTH, 2, 8))
    q, weight = q[:, queries], weight[:, queries]
    expected = gradients(lambda *qkv: reference(*qkv, *spans), q, k, v, weight)
    assert_close(gradients(lambda *qkv: kernel(16, 8)(*qkv, *spans), q, k, v, weight), expected)


@every_kernel
def test_bfloat16_is_close_to_float32_forward_and_backward(kernel):
    spans = layout_spans(ALL)
    q, k, v, weight = grouped_arrays(len(ALL), LENGTH, 4, 2, 8)
    exact = gradients(lambda *qkv: reference(*qkv, *spans), q, k, v, weight)[1]
    coarse = [x.astype(jnp.bfloat16) for x in (q, k, v, weight)]
    actual = gradients(lambda *qkv: kernel(16, 16)(*qkv, *spans), *coarse)[1]
    assert {x.dtype for x in actual} == {jnp.dtype(jnp.bfloat16)}
    assert_close([x.astype(jnp.float32) for x in actual], list(exact), atol=0.06)


@every_kernel
@pytest.mark.parametrize("layout", ["pure text", "ragged packed documents", "documents of one element"])
def test_blocks_that_no_span_touches_are_not_read(kernel, layout):
    """They are full of NaN, and the others' results are what they were, to the last bit."""
    spans, queries, block = layout_spans([layout]), slice(10, 20), 8
    own = Spans(*(x[:, queries] for x in spans))
    q, k, v, weight = random_arrays(4, (1, LENGTH, 2, 8))
    touched = np.asarray(dense_mask(*own, LENGTH)).any((0, 1)).reshape(-1, block).any(1).repeat(block)
    assert not touched.all()
    poisoned = [jnp.where(touched[:, None, None], x, jnp.nan) for x in (k, v)]

    def run(k, v):
        return gradients(lambda *qkv: kernel(8, block)(*qkv, *own), q[:, queries], k, v, weight[:, queries])

    (out, (d_q, *d_kv)), clean = run(*poisoned), run(k, v)
    assert_close((out, (d_q, *d_kv)), clean, rtol=0, atol=0)
    assert all((np.asarray(x)[:, ~touched] == 0).all() for x in d_kv)


@every_kernel
@pytest.mark.parametrize("layout", ["adjacent images", "ragged packed documents", "documents of one element"])
def test_queries_reach_only_the_key_blocks_that_they_touch(kernel, layout):
    """A block of queries is full of NaN; the gradients of key blocks that it does not touch are what they were."""
    spans, block, bad = layout_spans([layout]), 8, slice(8, 16)
    q, k, v, weight = random_arrays(4, (1, LENGTH, 2, 8))
    touched = np.asarray(dense_mask(*(x[:, bad] for x in spans), LENGTH)).any((0, 1))
    touched = touched.reshape(-1, block).any(1).repeat(block)

    def run(q):
        _, (_, *d_kv) = gradients(lambda *qkv: kernel(block, block)(*qkv, *spans), q, k, v, weight)
        return [np.asarray(x)[:, ~touched] for x in d_kv]

    assert_close(run(q.at[:, bad].set(jnp.nan)), run(q), rtol=0, atol=0)


@every_kernel
def test_it_is_split_over_rows_and_heads_like_the_others(kernel, monkeypatch):
    stand_in(monkeypatch, ATTENTION, "kernel", kernel(16, 16))
    spans = layout_spans(ALL[:4])
    q, k, v, weight = random_arrays(4, (4, LENGTH, 2, 8))
    expected = gradients(lambda *qkv: reference(*qkv, *spans), q, k, v, weight)
    with jax.set_mesh(make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))):
        actual = gradients(lambda *qkv: attention(*qkv, spans, implementation="kernel"), q, k, v, weight)
    assert_close(actual, expected)


@every_kernel
def test_queries_split_over_a_context_axis_equal_the_whole(kernel):
    """Each device has some queries with their spans, and gathers all keys and values."""
    spans = layout_spans(["ragged packed documents", "texts continued over both seams"])
    q, k, v, weight = random_arrays(4, (2, LENGTH, 2, 8))

    def local(q, k, v, start, end):
        k, v = (jax.lax.all_gather(x, "context", axis=1, tiled=True) for x in (k, v))
        return kernel(16, 8)(q, k, v, start, end)

    own = P(None, "context")
    mesh = jax.make_mesh((8,), ("context",), axis_types=(AxisType.Auto,))
    split = jax.shard_map(local, mesh=mesh, in_specs=(own,) * 5, out_specs=own, check_vma=False)
    expected = gradients(lambda *qkv: reference(*qkv, *spans), q, k, v, weight)
    assert_close(gradients(lambda *qkv: split(*qkv, *spans), q, k, v, weight), expected)
