import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from helpers import tiny_config
from transfusion_jax.config import MeshConfig
from transfusion_jax.data.batch import abstract_batch
from transfusion_jax.model.transfusion import Model
from transfusion_jax.parallel.mesh import make_mesh
from transfusion_jax.planning.hlo import group, parse_hlo
from transfusion_jax.planning.hlo_cost import count_program

ROWS, WIDTH = 64, 32
ONE = {"data": 1}


def scanned(layers):
    """The gradient of a scan over layers, for their weights."""

    def loss(weights, x):
        return jnp.sum(jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, weights)[0])

    return jax.grad(loss), [(layers, WIDTH, WIDTH), (ROWS, WIDTH)]


def compiled(function, shapes, mesh=None, specs=None):
    shardings = [NamedSharding(mesh, spec) for spec in specs] if mesh else [None] * len(shapes)
    arguments = [
        jax.ShapeDtypeStruct(shape, jnp.float32, sharding=h) for shape, h in zip(shapes, shardings, strict=True)
    ]
    options = {"out_shardings": shardings[0]} if mesh else {}
    return parse_hlo(jax.jit(function, **options).lower(*arguments).compile().as_text())


@pytest.mark.parametrize("layers", [2, 8])
def test_a_scan_counts_as_many_layers_as_it_has(layers):
    counts = count_program(compiled(*scanned(layers)), ONE)
    product = 2 * ROWS * WIDTH * WIDTH
    assert counts.flops == layers * 3 * product  # forward, and the gradients of weights and inputs
    assert not counts.open_loops


@pytest.mark.parametrize(("remat", "recomputed"), [("none", 0), ("full", 1)])
def test_the_trunks_layers_by_hand(remat, recomputed):
    """Forward, twice that backward, and with remat once more but the last product."""

    def flops(layers):
        config = tiny_config(model__layers=layers, model__remat=remat, model__attention="reference")
        model, batch = Model(config.model), abstract_batch(config)

        def loss(params, x, batch):
            return jnp.sum(model.bind(params).trunk(x, batch.spans, batch.positions)[0])

        x = jax.ShapeDtypeStruct((*batch.tokens.shape, config.model.width), jnp.float32)
        gradient = jax.jit(jax.grad(loss, argnums=(0, 1)))
        return count_program(
            parse_hlo(gradient.lower(model.abstract_params(), x, batch).compile().as_text()), ONE
        ).flops

    model, rows, length = tiny_config().model, tiny_config().batch_rows, tiny_config().data.context_length
    matrices = 4 * model.width**2 + 3 * model.width * model.mlp_width
    forward = 2 * rows * length * (matrices + 2 * length * model.width)
    last = 2 * rows * length * model.width * model.mlp_width
    for layers in (2, 8):
        assert flops(layers) == layers * (3 * forward + recomputed * (forward - last))


def test_collectives_count_in_bytes_sent_along_their_axes_in_every_turn_of_a_loop():
    layers, mesh = 5, make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    specs = [P(None, "fsdp", "tensor"), P(("data", "fsdp"), None)]
    counts = count_program(compiled(*scanned(layers), mesh, specs), dict(mesh.shape))
    sent = {}
    for c in counts.collectives:
        assert c.dtype == "f32"
        sent[c.kind, c.axes] = sent.get((c.kind, c.axes), 0) + c.bytes
    matrix = 4 * WIDTH * WIDTH
    weights = sent["all-gather", ("fsdp",)]  # half of each half of a matrix, forward and backward
    assert weights in (layers * matrix / 4, 2 * layers * matrix / 4)
    reduced = sum(size for (kind, axes), size in sent.items() if "data" in axes and kind != "all-gather")
    assert reduced >= layers * matrix / 4  # the gradients, at the least one quarter of a matrix each
    assert any("tensor" in axes for _, axes in sent)


def test_groups_are_read_in_every_notation():
    assert group("replica_groups={{0,2},{1,3}}, x", 4).tolist() == [0, 2]
    assert group("replica_groups={}, x", 4).tolist() == [0, 1, 2, 3]
    assert group("replica_groups=[4,2]<=[8], x", 8).tolist() == [0, 1]
    assert group("replica_groups=[4,2]<=[2,4]T(1,0), x", 8).tolist() == [0, 4]
    assert group("replica_groups=mesh['a'=2,'b'=4] {'b'}, x", 8).tolist() == [0, 1, 2, 3]
    assert group("replica_groups=mesh['a'=2,'b'=4] {'a'}, x", 8).tolist() == [0, 4]
    assert group("replica_groups=mesh['a'=2,'b'=4] {'b':(1)2}, x", 8).tolist() == [0, 2]
    turned = "replica_groups=mesh['a'=4,'b'=2], device_ids=([2,4]T(1,0)) "
    assert group(turned + "{'a'}, x", 8).tolist() == [0, 1, 2, 3]
    assert group(turned + "{'b'}, x", 8).tolist() == [0, 4]
    with pytest.raises(ValueError, match="unknown notation"):
        group("replica_groups=<2 of 4>, x", 8)
    assert group("source_target_pairs={{3,5},{5,3}}, x", 8).tolist() == [3, 5]


TPU = """HloModule step, is_scheduled=true

%begun (p: bf16[1,16]) -> (bf16[1,16], bf16[8,16]) {
  %p = bf16[1,16]{1,0:T(8,128)(2,1)} parameter(0)
  %gather.1 = bf16[8,16]{1,0:T(8,128)(2,1)} all-gather(%p), channel_id=1, replica_groups=[1,8]<=[8], dimensions={0}
  ROOT %start = (bf16[1,16]{1,0}, bf16[8,16]{1,0}) custom-call(%gather.1), custom_call_target="AsyncCollectiveStart"
}

%async_collective_fusion.2 (a: f32[4,8,6], b: f32[8,5,6], c: bf16[1,16]) -> (f32[4,5,6], bf16[8,16]) {
  %a = f32[4,8,6]{2,1,0} parameter(0)
  %b = f32[8,5,6]{2,1,0} parameter(1)
  %c = bf16[1,16]{1,0} parameter(2)
  %gather.2 = bf16[8,16]{1,0:T(8,128)(2,1)} all-gather(%c), channel_id=1, replica_groups=[1,8]<=[8], dimensions={0}
  %product = f32[4,5,6]{2,1,0} convolution(%a, %b), window={size=6 pad=5_5 rhs_reversal=1}, dim_labels=bf0_io0->bf0
  ROOT %both = (f32[4,5,6]{2,1,0}, bf16[8,16]{1,0}) tuple(%product, %gather.2)
}

%body (s: (s32[], f32[4,8,6], f32[8,5,6], bf16[1,16])) -> (s32[], f32[4,8,6], f32[8,5,6], bf16[1,16]) {
  %s = (s32[]{:T(128)}, f32[4,8,6]{2,1,0}, f32[8,5,6]{2,1,0:S(1)}, bf16[1,16]{1,0}) parameter(0)
  %n = s32[]{:T(128)} get-tuple-element(%s), index=0
  %x = f32[4,8,6]{2,1,0} get-tuple-element(%s), index=1
  %y = f32[8,5,6]{2,1,0:S(1)} get-tuple-element(%s), index=2
  %z = bf16[1,16]{1,0} get-tuple-element(%s), index=3
  %f = (bf16[1,16]{1,0}, bf16[8,16]{1,0}) fusion(%z), kind=kCustom, calls=%begun
  %g = (f32[4,5,6]{2,1,0}, bf16[8,16]{1,0}) fusion(%x, %y, %z), kind=kOutput, calls=%async_collective_fusion.2
  %one = s32[]{:T(128)} constant(1)
  %more = s32[]{:T(128)} add(%n, %one)
  ROOT %next = (s32[]{:T(128)}, f32[4,8,6]{2,1,0}, f32[8,5,6]{2,1,0}, bf16[1,16]{1,0}) tuple(%more, %x, %y, %z)
}

%condition (s: (s32[], f32[4,8,6], f32[8,5,6], bf16[1,16])) -> pred[] {
  %t = (s32[]{:T(128)}, f32[4,8,6]{2,1,0}, f32[8,5,6]{2,1,0}, bf16[1,16]{1,0}) parameter(0)
  %seven = s32[]{:T(128)} constant(7)
  %i = s32[]{:T(128)} get-tuple-element(%t), index=0
  ROOT %lt = pred[]{:T(512)} compare(%i, %seven), direction=LT
}

ENTRY %main (x: f32[4,8,6], y: f32[8,5,6], z: bf16[1,16]) -> f32[4,8,6] {
  %x.1 = f32[4,8,6]{2,1,0} parameter(0)
  %y.1 = f32[8,5,6]{2,1,0} parameter(1)
  %z.1 = bf16[1,16]{1,0} parameter(2)
  %zero = s32[]{:T(128)} constant(0)
  %state = (s32[]{:T(128)}, f32[4,8,6]{2,1,0}, f32[8,5,6]{2,1,0}, bf16[1,16]{1,0}) tuple(%zero, %x.1, %y.1, %z.1)
  %loop = (s32[]{:T(128)}, f32[4,8,6]{2,1,0}, f32[8,5,6]{2,1,0}) while(%state), condition=%condition, body=%body
  %token = token[] after-all()
  %sent = (f32[4,8,6]{2,1,0}, u32[], token[]) send(%x.1, %token), channel_id=3, is_host_transfer=true, MEGASCALE
  %span_attention.3 = f32[4,8,6]{2,1,0} custom-call(%x.1), custom_call_target="tpu_custom_call", api={"a":"("}
  ROOT %out = f32[4,8,6]{2,1,0} get-tuple-element(%loop), index=1
}
""".replace("MEGASCALE", '_xla_megascale_target="{1,2}x{0:3}",_xla_megascale_transfer_type="ALL_REDUCE"')


def test_what_a_tpus_compiler_writes_is_read():
    """Trips from the condition, a gather moved on, a sum over slices, products in padding, memory on the core."""
    counts = count_program(parse_hlo(TPU), {"data": 2, "fsdp": 4})
    gather, across = counts.collectives
    assert (across.kind, across.axes, across.group, across.times) == ("all-reduce", ("data",), 2, 1)
    assert across.bytes == 4 * 4 * 8 * 6  # twice the half
    assert (gather.kind, gather.axes, gather.group, gather.dtype) == ("all-gather", ("data", "fsdp"), 8, "bf16")
    assert (gather.overlaps, gather.times, gather.bytes) == (True, 7, 7 * 7 * 16 * 2)
    assert counts.kernels == {"span_attention": 1}
    met = sum(0 <= out + kernel - 5 < 6 for out in range(6) for kernel in range(6))
    product = 2 * 4 * 8 * 5 * met
    assert met == sum(range(1, 7))
    assert counts.flops == 7 * product
    (work,) = [w for w in counts.work if w.flops]
    assert work.bytes == 4 * math.prod((4, 8, 6)) + 4 * math.prod((4, 5, 6))  # y is on the core, the rest sent


def test_a_loop_that_only_the_run_ends_is_named_and_counted_once():
    def halve(x, w):
        return jax.lax.while_loop(lambda x: jnp.max(x) > 1, lambda x: jnp.tanh(x @ w), x)

    counts = count_program(compiled(halve, [(ROWS, WIDTH), (WIDTH, WIDTH)]), ONE)
    assert counts.flops == 2 * ROWS * WIDTH * WIDTH
    assert len(counts.open_loops) == 1


def test_a_text_that_is_no_program_is_refused():
    with pytest.raises(ValueError, match="no ENTRY"):
        parse_hlo("ModuleOp {}\n")


def test_a_fused_slice_reads_its_part():
    def some(x, place):
        return jnp.tanh(jax.lax.dynamic_slice_in_dim(x, place, 4))

    arguments = jax.ShapeDtypeStruct((1000, 64), np.float32), jax.ShapeDtypeStruct((), np.int32)
    program = parse_hlo(jax.jit(some).lower(*arguments).compile().as_text())
    assert count_program(program, ONE).bytes < 5 * 4 * 64 * 4
