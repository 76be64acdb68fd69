import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from helpers import GROUPED, tiny_config
from transfusion_jax import config as configs
from transfusion_jax.config import ConfigError, MeshConfig
from transfusion_jax.flops import count_parameters
from transfusion_jax.model.transfusion import Model
from transfusion_jax.planning import report
from transfusion_jax.planning import topology as topologies
from transfusion_jax.planning.estimate import Contents, estimate
from transfusion_jax.planning.expected_batch import expected
from transfusion_jax.planning.flops_breakdown import by_formula, kernel_flops
from transfusion_jax.planning.plan import TEMPORARY, make_plan, on_mesh
from transfusion_jax.planning.search import choose_mesh, meshes, search

FROM_LLM = Path(__file__).parents[2] / "configs/from_llm.py"
V5E = topologies.parse_topology("v5e:4x4")
CONTENTS = Contents(elements=40.0, text_losses=20.0, images=2.0, span_area=500.0, visited_area=900.0)
ONE = {"data": 1, "fsdp": 1, "context": 1, "tensor": 1}


def wide_config(**changes):
    """Large enough that what a mesh splits matters."""
    base = dict(model__width=2048, model__heads=16, model__mlp_width=8192, model__layers=8, batch_rows=64)
    return tiny_config(**(base | dict(data__context_length=1024, mesh=dict(data=-1)) | changes))


def test_rows_hold_what_the_mixture_has():
    config = tiny_config(data__context_length=128)
    contents = expected(config)
    assert 100 < contents.elements <= 128
    assert 0 < contents.text_losses < contents.elements
    assert contents.span_area <= contents.visited_area <= 128**2
    prepared = replace(config, data=replace(config.data, sources={}))
    assert expected(prepared).images > 0  # the synthetic mixture stands in


@pytest.mark.parametrize(("remat", "again"), [("none", 0), ("dots", 0), ("full", 1)])
def test_the_formula_by_hand(remat, again):
    config = tiny_config(model__remat=remat)
    model, rows, length = config.model, config.batch_rows, config.data.context_length
    found = by_formula(config, CONTENTS, tpu=True)
    assert found.model == Model(model).flops(40 * rows, 20 * rows, 2 * rows, 500 * rows)
    head = 2 * 16 * 128 * length * rows  # the text head once more
    attention = 2 * model.layers * 16 * 500 * rows  # one product: the backward kernel has five in place of four
    layers = model.layers * 2 * (4 * 16 * 16 + 2 * 16 * 24) * length * rows  # all but the last product
    assert found.recomputed == head + attention + again * (layers + 2 * attention)
    assert found.total == found.model + found.padding + found.recomputed
    full = by_formula(config, Contents(length, length, config.data.max_images, 500, 900), tpu=True)
    assert full.padding == 0


def test_frozen_weights_have_no_gradients_nor_moments():
    learnt, frozen = (wide_config(**FROZEN | dict(optimizer__frozen=what)) for what in ("none", "text"))
    model, rows = learnt.model, learnt.batch_rows
    text = (40 - 2 * model.patches) * model.layers * (4 * 2048**2 + 3 * 2048 * 8192) + 20 * 2048 * 128
    one, other = (by_formula(config, CONTENTS, tpu=True).model for config in (learnt, frozen))
    assert one - other == pytest.approx(2 * rows * text)
    mesh = dict(data=1, fsdp=16)
    plans = [
        make_plan(replace(c, mesh=replace(c.mesh, **mesh)), V5E, CONTENTS, analytic=True) for c in (learnt, frozen)
    ]
    moments = [plan.memory["optimizer moments"] for plan in plans]
    own = count_parameters(model).patch_trunk + count_parameters(model).patch_coder
    assert moments[1] < 0.51 * moments[0]
    assert moments[1] == pytest.approx(8 * own / 16, rel=0.01)
    assert plans[1].memory[TEMPORARY] < plans[0].memory[TEMPORARY]


def test_a_kernels_operations_are_its_products_over_whole_blocks():
    config = tiny_config(accumulation=2)
    one = 2 * 16 * 900 * config.batch_rows / 2 / 8
    assert kernel_flops("span_attention_forward", config, CONTENTS, 8) == 2 * one
    assert kernel_flops("span_attention_backward", config, CONTENTS, 8) == 5 * one
    assert kernel_flops("another", config, CONTENTS, 8) == 0


FROZEN = dict(model__modality_weights="untied", optimizer__frozen="text")


UNEVEN = dict(model__heads=12, model__kv_heads=3, model__head_dim=128)


@pytest.mark.parametrize(
    "switches",
    [{}, dict(model__kv_heads=4), UNEVEN, dict(model__modality_weights="untied"), FROZEN],
    ids=str,
)
def test_the_estimates_operations_are_the_formulas(switches):
    """But for the patch coder, and for attention in whole blocks."""
    contents = replace(CONTENTS, visited_area=200_000.0, span_area=200_000.0, elements=1024.0, text_losses=1024.0)
    config = wide_config(model__remat="full", **switches)
    for mesh in (ONE, ONE | {"fsdp": 4, "tensor": 2}, ONE | {"data": 2, "context": 2}):
        chips = mesh["data"] * mesh["fsdp"] * mesh["context"] * mesh["tensor"]
        step = estimate(config, contents, mesh, tpu=True)
        counted = chips * sum(w.flops * w.times for w in step.work)
        placed = replace(config, mesh=MeshConfig(**mesh))
        assert counted == pytest.approx(by_formula(placed, contents, tpu=True).total, rel=0.01)


def test_fewer_heads_of_keys_and_tied_embeddings_take_less():
    whole = dict(mesh=dict(data=1, fsdp=16), model__vocabulary=32_000)
    few = dict(model__kv_heads=4), dict(model__tied_embeddings=True), dict(model__kv_heads=4, model__head_dim=64)
    base, *others = (make_plan(wide_config(**whole, **c), V5E, CONTENTS, analytic=True) for c in ({}, *few))
    layers = 8 * np.array([2 * 2048 * 1536, 0, 2 * 2048 * 1792 + 2 * 2048 * 1024]) * 4  # of queries 2,048 or 1,024
    tables = 32_128 * 2048 * 4 * np.array([0, 1, 0])
    for plan, less in zip(others, (layers + tables) / 16, strict=True):
        assert base.memory["parameters"] - plan.memory["parameters"] == less
        assert plan.memory[TEMPORARY] < base.memory[TEMPORARY]
        assert plan.formula.total <= base.formula.total
        assert sum(c.bytes for c in plan.collectives) < sum(c.bytes for c in base.collectives)


@pytest.mark.parametrize(
    ("heads", "few", "said"),
    [
        (16, 8, "8 does not divide by mesh.tensor 16: every device of tensor holds all keys and values\n"),
        (48, 6, "holds all keys and values, and computes attention of all 48 heads\n"),
        (16, 16, ""),
    ],
)
def test_a_plan_says_where_every_device_holds_all_keys(heads, few, said):
    config = wide_config(mesh=dict(data=1, tensor=16), model__heads=heads, model__kv_heads=few, model__head_dim=64)
    plan = make_plan(config, V5E, CONTENTS, analytic=True)
    text = report.plan_table(plan)
    assert said in text
    assert ("model.kv_heads" in text) == bool(said)
    with pytest.raises(ConfigError, match=r"model.kv_heads 1 of 8 channels cannot be split over 16 devices"):
        on_mesh(wide_config(mesh=dict(data=1, tensor=16), model__kv_heads=1, model__head_dim=8), V5E)


@pytest.mark.parametrize(("shape", "parameters"), [("llama-3-8b", 8_030_261_248), ("qwen3-4b", 4_022_468_096)])
@pytest.mark.parametrize("machine", ["v5p:4x4x4", "h100:8x4"])
def test_trunks_of_language_models_fit_the_machines_that_they_are_planned_for(shape, parameters, machine):
    config, topology = configs.load(f"{FROM_LLM}:{shape}"), topologies.parse_topology(machine)
    assert count_parameters(config.model).paper == parameters  # as their authors publish them
    contents = Contents(4082, 2202, 7.3, 3e6, 3.3e6)
    plan = make_plan(choose_mesh(config, topology, contents), topology, contents, analytic=True)
    assert plan.fits
    state = parameters + count_parameters(config.model).padding + count_parameters(config.model).patch_coder
    held = plan.memory["parameters"] * plan.mesh["fsdp"] * plan.mesh["context"] * plan.mesh["tensor"]
    assert held == pytest.approx(4 * state, rel=5e-3)  # but for norms, which are whole on every device


def test_a_kernel_computes_heads_that_are_not_split_on_every_device():
    config = tiny_config(**GROUPED["qwen 3"], mesh=dict(data=1, tensor=2))
    one = 2 * 36 * 900 * config.batch_rows / 2
    assert kernel_flops("span_attention_forward", config, CONTENTS, 2) == 2 * 2 * one


def test_more_of_an_axis_means_less_memory_and_its_own_exchanges():
    config = wide_config()
    plain = estimate(config, CONTENTS, ONE, tpu=True)
    assert not plain.collectives
    for axis in ("data", "fsdp", "context", "tensor"):
        split = estimate(config, CONTENTS, ONE | {axis: 4}, tpu=True)
        assert split.temporary < plain.temporary
        assert {c.axes for c in split.collectives} == {(axis,)}
    weights = 2 * 8 * (4 * 2048**2 + 3 * 2048 * 8192) + 2 * 2 * 2048 * 128  # bytes in bfloat16
    for axis in ("fsdp", "context"):
        gathered = estimate(config, CONTENTS, ONE | {axis: 4}, tpu=True).collectives[0]
        assert gathered.bytes == pytest.approx(2 * weights * 3 / 4)  # forward and backward
    narrow = estimate(config, CONTENTS, ONE | {"fsdp": 256}, tpu=True).collectives[0]
    assert (narrow.kind, narrow.overlaps) == ("all-reduce", False)  # of 8 rows, which fill no tile
    two = estimate(replace(config, accumulation=2), CONTENTS, ONE | {"fsdp": 4}, tpu=True)
    whole = estimate(config, CONTENTS, ONE | {"fsdp": 4}, tpu=True)
    assert two.temporary < whole.temporary
    assert sum(c.bytes for c in two.collectives) == pytest.approx(2 * sum(c.bytes for c in whole.collectives))


def test_a_mesh_is_spelled_out_or_refused():
    config, mesh = on_mesh(wide_config(mesh=dict(data=-1, fsdp=4)), V5E)
    assert mesh == {"data": 4, "fsdp": 4, "context": 1, "tensor": 1}
    assert config.mesh.data == 4
    with pytest.raises(ConfigError, match=r"does not cover the 16 chips of v5e:4x4"):
        on_mesh(wide_config(mesh=dict(data=1, fsdp=4)), V5E)
    with pytest.raises(ConfigError, match="a multiple of the 2 slices"):
        on_mesh(wide_config(mesh=dict(data=1, fsdp=32)), topologies.parse_topology("2xv5e:4x4"))
    with pytest.raises(ConfigError, match="cannot be split over data × fsdp"):
        on_mesh(wide_config(batch_rows=8), V5E)


def test_a_plan_says_all_of_it_in_json_and_in_lines():
    plan = make_plan(wide_config(mesh=dict(data=1, fsdp=16)), V5E, CONTENTS, analytic=True)
    told = json.loads(json.dumps(plan.to_dict()))
    assert told["fits"]
    assert told["bytes_per_chip"]["total"] == sum(plan.memory.values())
    assert told["topology"]["chips"] == 16
    assert told["run"]["chip_hours"] == pytest.approx(told["run"]["days"] * 24 * 16)
    assert told["checkpoint"]["write_seconds"] == pytest.approx(
        told["checkpoint"]["bytes"] / 4 / 0.5e9
    )  # four hosts
    assert 0 < told["mfu"] < 1
    text = report.plan_table(plan)
    for words in ("memory of a chip", "fsdp: all-gather", "MFU, at most", "--config.mesh.fsdp=16", "formulas"):
        assert words in text


def test_a_plan_counts_what_an_evaluation_takes():
    """It computes as many rows at a time as training, and keeps nothing for a backward pass."""
    config = wide_config(mesh=dict(data=1, fsdp=16), batch_rows=64)
    whole, parts = (make_plan(replace(config, accumulation=n), V5E, CONTENTS, analytic=True) for n in (1, 4))
    assert 0 < parts.evaluation < whole.evaluation < whole.memory[TEMPORARY]
    assert whole.to_dict()["evaluation_bytes_per_chip"] == whole.evaluation
    assert "  in an evaluation" in report.plan_table(whole)
    never = make_plan(replace(config, loop=replace(config.loop, evaluate_every=0)), V5E, CONTENTS, analytic=True)
    assert never.evaluation == 0
    assert "in an evaluation" not in report.plan_table(never)


def test_an_evaluation_that_takes_more_than_a_step_decides(monkeypatch):
    """No formula makes it so: what a compiler says may."""
    real = estimate(wide_config(), CONTENTS, ONE, tpu=True)
    monkeypatch.setattr("transfusion_jax.planning.plan.estimate", lambda *_: replace(real, evaluation=2**40))
    plan = make_plan(wide_config(mesh=dict(data=16)), V5E, CONTENTS, analytic=True)
    assert plan.memory[TEMPORARY] == 2**40
    assert not plan.fits


def test_what_does_not_fit_is_said_with_the_numbers():
    plan = make_plan(wide_config(model__layers=200, mesh=dict(data=16)), V5E, CONTENTS, analytic=True)
    assert not plan.fits
    assert "GiB are needed, and a chip has 15.75" in plan.too_large
    assert "DOES NOT FIT" in report.plan_table(plan)


def test_a_gpu_is_planned_by_formulas():
    plan = make_plan(wide_config(mesh=dict(data=1, fsdp=16)), topologies.parse_topology("h100:8x2"), CONTENTS)
    assert plan.method == "formulas"
    assert plan.terms.network > 0  # 16 GPUs, 8 of each node
    assert plan.terms.overlapped == 0


def test_the_search_ranks_what_fits_and_says_why_the_rest_does_not():
    config = wide_config(model__layers=100, data__max_images=1)
    found = search(config, V5E, CONTENTS, 2, analytic=True, host_rate=1e9)
    assert [c.seconds for c in found.ranked] == sorted(c.seconds for c in found.ranked)
    assert len(found.plans) == 2
    assert found.plans[0].fits
    assert all("needs about" in c.why_not and c.bytes > 0.9 * V5E.chip.memory for c in found.rejected)
    assert found.rejected
    assert found.uneven == {} or all("cannot be split" in why for why in found.uneven)
    text = report.ranking(found)
    assert found.ranked[0].label in text
    assert found.rejected[0].why_not in text
    assert json.dumps(found.to_dict())
    best = found.ranked[0]
    assert f"--config.mesh.fsdp={best.mesh['fsdp']}" in text


def test_meshes_keep_to_slices_and_nodes():
    two = list(meshes(topologies.parse_topology("2xv5e:2x2")))
    assert all(mesh["data"] % 2 == 0 for mesh in two)
    assert {"data": 2, "fsdp": 4, "context": 1, "tensor": 1} in two
    assert all(mesh["tensor"] <= 4 for mesh in meshes(topologies.parse_topology("h100:4x2")))


def test_the_mesh_is_chosen_where_the_config_leaves_it_open():
    config = choose_mesh(wide_config(model__layers=40, model__remat="full"), V5E, CONTENTS)
    assert config.mesh.fsdp > 1  # replicas would not fit
    with pytest.raises(ConfigError, match=r"fits no mesh of v5e:4x4.*--search"):
        choose_mesh(wide_config(model__layers=4000), V5E, CONTENTS)


def test_a_unets_operations_and_bytes_are_in_the_plan():
    unet = dict(model__patch_coder="unet", model__unet_channels=(256, 512), model__remat="full")
    with_unet, without = wide_config(**unet), wide_config(model__remat="full")
    for mesh in (ONE, ONE | {"fsdp": 4, "tensor": 2}, ONE | {"data": 2, "context": 2}):
        chips = mesh["data"] * mesh["fsdp"] * mesh["context"] * mesh["tensor"]
        more, less = (estimate(config, CONTENTS, mesh, tpu=True) for config in (with_unet, without))
        added = chips * sum(w.flops * w.times for w in more.work) - chips * sum(
            w.flops * w.times for w in less.work
        )
        images = with_unet.batch_rows * with_unet.data.max_images
        assert added == pytest.approx(4 * Model(with_unet.model).coder_flops() * images)  # forward twice, backward
        assert more.temporary > less.temporary
        assert chips == 1 or more.collectives[0].bytes > less.collectives[0].bytes
    formula, linear = (by_formula(config, CONTENTS, tpu=True) for config in (with_unet, without))
    images = with_unet.batch_rows * with_unet.data.max_images
    assert formula.total - linear.total == pytest.approx(
        (4 * Model(with_unet.model).coder_flops() - 3 * Model(without.model).coder_flops()) * images
    )
    unused = replace(CONTENTS, images=0.0)
    assert by_formula(with_unet, unused, tpu=True).total == pytest.approx(formula.total)  # empty slots compute


def test_a_unet_of_items_of_any_shape_computes_the_room_of_a_row_whatever_the_longest_side():
    unet = dict(model__patch_coder="unet", model__unet_channels=(256, 512), model__remat="full")
    held = replace(CONTENTS, patches=7.0, pairs=25.0)
    square, long, longer = (wide_config(**unet, model__max_side=side, data__max_patches=12) for side in (4, 8, 32))
    coder = square.batch_rows * Model(square.model).coder_flops(square.data.max_images, 12, 25.0)
    for mesh in (ONE, ONE | {"fsdp": 4}):
        work = estimate(long, held, mesh, tpu=True).work
        found = sum(w.flops * w.times for w in work[-3:])
        assert found == pytest.approx(4 * coder / mesh["fsdp"])  # forward twice, backward
        assert work == estimate(longer, held, mesh, tpu=True).work
    totals = [by_formula(config, held, tpu=True) for config in (square, long, longer)]
    assert totals[0] == totals[1] == totals[2]
    dots = by_formula(replace(long, model=replace(long.model, remat="dots")), held, tpu=True)
    none = by_formula(replace(long, model=replace(long.model, remat="none")), held, tpu=True)
    assert dots.recomputed == none.recomputed  # packed convolutions are products, and kept


def test_the_search_leaves_out_meshes_that_cannot_split_a_unet():
    unet = dict(model__patch_coder="unet", model__unet_channels=(4, 8), model__unet_blocks=1)
    found = search(wide_config(**unet), V5E, CONTENTS, best=0, analytic=True, host_rate=1e9)
    assert any("channels of the U-Net" in why for why in found.uneven)
    assert all(c.mesh["fsdp"] * c.mesh["context"] <= 4 for c in found.ranked)
