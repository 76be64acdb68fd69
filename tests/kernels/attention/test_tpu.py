"""What is the TPU kernel's own: its list of steps, its limits, and programs for TPUs that are not here."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from attending import abstract_mesh, assert_close, gradients, grouped_arrays, lowered
from helpers import tiny_config
from layouts import LAYOUTS, LENGTH, layout_spans
from transfusion_jax.kernels.attention.reference import attention as reference
from transfusion_jax.kernels.attention.schedule import BlockSteps, count_blocks, plan_steps
from transfusion_jax.kernels.attention.tpu import Blocks, tpu_span_attention
from transfusion_jax.kernels.spans import Spans, dense_mask
from transfusion_jax.model.attention import attention
from transfusion_jax.model.transfusion import Model

KINDS = ["TPU v5 lite", "TPU v5", "TPU v6 lite"]
ALL = list(LAYOUTS)


def plan(*arguments):
    """Steps on the host, made by one program."""
    return jax.device_get(jax.jit(plan_steps, static_argnums=(1, 2, 3, 4))(*arguments))


@pytest.mark.parametrize("queries", [slice(0, LENGTH), slice(0, 16)])
def test_nothing_is_read_that_was_not_written_nor_beyond_an_array(queries):
    """On a simulated TPU, whose memory is NaN until it is written."""
    strict = pltpu.InterpretParams(uninitialized_memory="nan", out_of_bounds_reads="raise")
    spans = Spans(*(x[:, queries] for x in layout_spans(["ragged packed documents", "image at the end"])))
    q, k, v, weight = grouped_arrays(2, LENGTH, 2, 1, 8)
    q, weight = q[:, queries], weight[:, queries]
    expected = gradients(lambda *qkv: reference(*qkv, *spans), q, k, v, weight)
    actual = gradients(lambda *qkv: tpu_span_attention(*qkv, *spans, Blocks(16, 8), strict), q, k, v, weight)
    assert_close(actual, expected)


@pytest.mark.parametrize("outer", ["query", "key"])
@pytest.mark.parametrize("blocks", [(16, 16), (16, 8), (8, 24)])
def test_steps_are_the_touched_pairs_and_no_others(blocks, outer):
    spans = layout_spans(ALL)
    steps, count = plan(np.stack(spans, 1), *blocks, LENGTH, outer)
    tile, inner = jax.device_get(jax.jit(BlockSteps.at)(steps, np.arange(count)))
    row, block = np.divmod(tile, LENGTH // blocks[outer == "key"])
    pairs = np.stack([row, block, inner] if outer == "query" else [row, inner, block], 1)
    mask = np.asarray(dense_mask(*spans, LENGTH)).reshape(len(ALL), -1, blocks[0], LENGTH // blocks[1], blocks[1])
    expected = np.argwhere(mask.any((2, 4)))
    np.testing.assert_array_equal(np.unique(pairs, axis=0), expected)
    assert count == len(expected) == count_blocks(*spans, *blocks, keys=LENGTH).visited


def test_a_key_block_that_no_query_sees_has_one_step_at_some_query_block():
    spans = Spans(*(x[:, 16:32] for x in layout_spans(["ragged packed documents"])))
    steps, count = plan(np.stack(spans, 1), 8, 8, LENGTH, "key")
    tile, query_block = jax.device_get(jax.jit(BlockSteps.at)(steps, np.arange(count)))
    assert set(tile) == set(range(LENGTH // 8))
    assert set(query_block) == {0, 1}
    alone = steps.end == steps.begin
    assert alone.any()
    assert (np.bincount(tile)[alone] == 1).all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("heads", "shared", "channels", "dtype"),
    [(2, 2, 64, "bfloat16"), (1, 1, 128, "float32"), (4, 2, 128, "bfloat16")],
)
def test_it_lowers_for_a_tpu_forward_and_backward(kind, heads, shared, channels, dtype):
    with jax.sharding.use_abstract_mesh(tpu_mesh(kind)):
        assert kernels_in(lowered("tpu", 4096, heads, channels, dtype, "tpu", shared)) == 2


def test_auto_takes_it_on_a_tpu_unless_queries_are_few():
    with jax.sharding.use_abstract_mesh(tpu_mesh(KINDS[0])):
        assert kernels_in(lowered("tpu", 256, 1, 64, "bfloat16", "auto")) == 2
        assert kernels_in(lowered("tpu", 8, 1, 64, "bfloat16", "auto")) == 0


@pytest.mark.parametrize(("remat", "kernels"), [("none", 2), ("dots", 2), ("full", 3)])
def test_the_trunk_on_a_mesh_of_tpus_runs_it_forward_and_backward_and_again_if_all_is_recomputed(remat, kernels):
    mesh = tpu_mesh(KINDS[0], data=2, fsdp=2, context=1, tensor=2)
    model = Model(tiny_config(model__remat=remat, data__context_length=256).model)
    whole, rows = NamedSharding(mesh, P()), NamedSharding(mesh, P(("data", "fsdp")))
    params = jax.tree.map(lambda p: p.update(sharding=whole), model.abstract_params())
    x, span = (jax.ShapeDtypeStruct((4, 256, *w), d, sharding=rows) for w, d in [((16,), "float32"), ((), "int32")])

    def loss(params, x, start, end, positions):
        return model.bind(params).trunk(x, Spans(start, end), positions)[0].sum()

    with jax.sharding.use_abstract_mesh(mesh):
        program = jax.export.export(jax.jit(jax.grad(loss)), platforms=["tpu"])(params, x, span, span, span)
    assert program.nr_devices == 8
    assert kernels_in(program.mlir_module()) == kernels


def test_naming_it_elsewhere_is_refused():
    q = jnp.zeros((1, 256, 1, 64))
    spans = Spans(jnp.zeros((1, 256), jnp.int32), jnp.arange(1, 257)[None])
    with pytest.raises(ValueError, match=r"runs on TPU, not on cpu; model.attention='blocked' runs anywhere"):
        attention(q, q, q, spans, implementation="tpu")


@pytest.mark.parametrize(
    ("shape", "dtype", "blocks", "message"),
    [
        ((1, 256, 1, 72), "bfloat16", Blocks(), "a multiple of 16 channels in bfloat16, not 72"),
        ((1, 256, 1, 64), "float16", Blocks(), "float32 or bfloat16, not float16"),
        ((1, 256, 1, 64), "bfloat16", Blocks(128, 64), "a multiple of 128 elements, not 128 and 64"),
        ((1, 1 << 16, 1, 128), "bfloat16", Blocks(), "at most 32768 queries of 128 channels per device, not 65536"),
        ((16, 1 << 15, 1, 64), "bfloat16", Blocks(256, 256), "at most 131072 pairs of blocks per device"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_one_that_takes_it(shape, dtype, blocks, message):
    q, span = jax.ShapeDtypeStruct(shape, dtype), jax.ShapeDtypeStruct(shape[:2], "int32")
    with pytest.raises(ValueError, match=f"{message}.*model.attention='blocked' takes these"):
        jax.eval_shape(functools.partial(tpu_span_attention, blocks=blocks), q, q, q, span, span)


def tpu_mesh(kind, **axes):
    return abstract_mesh("tpu", kind, **axes)


def kernels_in(program):
    return program.count("@tpu_custom_call")
