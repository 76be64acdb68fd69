import math
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from helpers import GROUPED, media_of, tiny_config
from transfusion_jax import config as configs
from transfusion_jax import flops
from transfusion_jax.kernels.spans import Spans
from transfusion_jax.model.transfusion import FORWARD_AND_BACKWARD, Model

PAPER = Path(__file__).parents[1] / "configs/paper.py"


@pytest.mark.parametrize(
    ("size", "millions", "coder_percent"),
    [
        ("0.16b", 162.4, 0.5),
        ("0.37b", 373.9, 0.4),
        ("0.76b", 777.9, 0.4),
        ("1.4b", 1364.3, 0.4),
        ("7b", 6738.4, 0.3),
    ],
)
def test_the_papers_sizes_have_the_papers_parameters(size, millions, coder_percent):
    counted = flops.count_parameters(paper(size).model)
    assert counted.paper / 1e6 == pytest.approx(millions, abs=0.05)
    assert round(100 * counted.patch_coder / counted.paper, 1) == coder_percent


def test_the_unet_has_the_papers_share_at_7b_and_one_size_everywhere():
    for size in (1, 2, 4, 8):
        config = configs.load(f"{PAPER}:7b", ["model.patch_coder=unet", f"model.patch_size={size}"]).model
        counted = flops.count_parameters(config)
        assert counted.patch_coder == pytest.approx(0.26e9, rel=0.03)
        if size == 2:
            assert round(100 * counted.patch_coder / counted.paper, 1) == 3.8  # table 7
    small = configs.load(f"{PAPER}:0.16b", ["model.patch_coder=unet"]).model
    assert flops.count_parameters(small).patch_coder == pytest.approx(0.25e9, rel=0.01)


def test_the_parts_of_a_small_model_by_hand():
    counted = flops.count_parameters(tiny_config().model)  # width 16, 2 layers, SwiGLU 24, patches of 2×2×2
    assert counted.trunk == 2 * (4 * 16 * 16 + 3 * 16 * 24 + 2 * 16) + 16
    assert counted.embedding == counted.text_head == 20 * 16
    assert counted.padding == 2 * (128 - 20) * 16
    assert counted.patch_coder == (256 + 1) * 16 + (16 + 1) * 16 + (8 + 1) * 16 + (16 + 1) * 8
    assert counted.paper == counted.trunk + 2 * 20 * 16
    assert counted.total == counted.trunk + 2 * 128 * 16 + counted.patch_coder


def test_the_parts_of_a_tied_model_with_few_heads_of_keys_by_hand():
    model = tiny_config(**GROUPED["qwen 3"]).model  # 6 heads of 6 channels, 3 of keys, one scale per norm
    counted = flops.count_parameters(model)
    assert counted.trunk == 2 * (2 * 16 * 36 + 2 * 16 * 18 + 3 * 16 * 24 + 2 * 16 + 2 * 6) + 16
    assert (counted.embedding, counted.text_head) == (20 * 16, 0)
    assert counted.padding == (128 - 20) * 16
    assert counted.paper == counted.trunk + 20 * 16
    assert counted.total == counted.trunk + 128 * 16 + counted.patch_coder
    biased = flops.count_parameters(tiny_config(**GROUPED["qwen 2"]).model)  # 4 heads of 4 channels, one of keys
    assert biased.trunk == 2 * (2 * 16 * 16 + 2 * 16 * 4 + 3 * 16 * 24 + 2 * 16 + 16 + 2 * 4) + 16


def test_the_large_run_takes_the_published_compute():
    config = paper("7b")
    elements = config.steps * config.elements_per_step
    assert elements == pytest.approx(0.5e12, rel=0.05)
    assert flops.six_nd(config.model, elements) == pytest.approx(2.1e22, rel=0.02)
    assert paper("7b,2t").steps * paper("7b,2t").elements_per_step == pytest.approx(2e12, rel=0.06)


@pytest.mark.parametrize(
    ("size", "ratio"), [("0.16b", 2.72), ("0.37b", 1.69), ("0.76b", 1.33), ("1.4b", 1.19), ("7b", 1.04)]
)
def test_the_unet_is_counted_exactly_and_6nd_leaves_it_out(size, ratio):
    """Rows of 4,096 elements, half of them in eight images, documents of some 700 keys."""
    unet, linear = (paper(f"{size}{coder}").model for coder in (",unet", ""))
    exact = [Model(model).flops(4096, 2032, 8, 2.9e6) for model in (unet, linear)]
    assert exact[0] / exact[1] == pytest.approx(ratio, abs=0.01)
    assert flops.six_nd(unet, 4096) == flops.six_nd(linear, 4096)


def test_a_step_is_6nd_where_the_head_runs_on_all_elements_and_nothing_attends():
    model = paper("7b").model
    counted = flops.count_parameters(model)
    scales = (2 * model.layers + 1) * model.width  # of the norms: no matrices
    matrices = counted.trunk - scales + model.width * model.padded_vocabulary
    assert Model(model).flops(1e6, 1e6, 0, 0) == pytest.approx(6 * matrices * 1e6, rel=1e-12)
    assert Model(model).flops(1e6, 1e6, 0, 0) == pytest.approx(flops.six_nd(model, 1e6), rel=0.03)


def test_a_step_counts_by_hand():
    model = tiny_config().model  # width 16, 2 layers, SwiGLU 24, 128 vocabulary rows
    projections = 4 * 16 * 16 + 3 * 16 * 24
    forward = 2 * 2 * projections * 30  # 30 elements
    forward += 2 * 2 * (2 * 16) * 100  # scores and weighted values over 100 pairs of query and key
    forward += 2 * 16 * 128 * 11  # 11 predicted tokens
    assert Model(model).flops(elements=30, text_losses=11, images=0, span_area=100) == 3 * forward


def test_a_step_with_few_heads_of_keys_counts_by_hand():
    model = tiny_config(**GROUPED["qwen 3"]).model
    projections = 2 * 16 * 36 + 2 * 16 * 18 + 3 * 16 * 24
    forward = 2 * 2 * projections * 30 + 2 * 2 * (2 * 36) * 100 + 2 * 16 * 128 * 11
    assert Model(model).flops(elements=30, text_losses=11, images=0, span_area=100) == 3 * forward


@pytest.mark.parametrize(
    "coder",
    [
        *GROUPED.values(),
        {},
        dict(model__patch_coder="none", model__patch_size=1),
        dict(model__patch_coder="unet", model__unet_channels=(4, 6), model__unet_blocks=1),
        dict(model__patch_coder="unet", model__unet_channels=(4, 6, 8), model__patch_size=4),
        dict(model__patch_coder="unet", model__unet_channels=(64,), model__patch_size=1),
    ],
    ids=str,
)
def test_the_forward_pass_multiplies_what_is_counted(coder):
    config = tiny_config(model__attention="reference", **coder)
    model, rows, length, images = Model(config.model), 2, 24, 3
    ints = jax.ShapeDtypeStruct((rows, length), jnp.int32)
    times = jax.ShapeDtypeStruct((rows, images), jnp.int32)
    latents = jax.ShapeDtypeStruct((rows, images, *config.model.latent_shape), jnp.float32)

    def forward(params, tokens, patch, positions, start, end, latents, times):
        media, bound = media_of(latents, config.model), model.bind(params)
        x, skips = bound.embed(tokens, patch, media, times)
        hidden, _ = bound.trunk(x, Spans(start, end), positions)
        return bound.text_logits(hidden), bound.denoise(hidden, media, times, skips)

    traced = jax.make_jaxpr(forward)(model.abstract_params(), *[ints] * 5, latents, times)
    elements = rows * length
    counted = Model(config.model).flops(elements, elements, rows * images, elements * length)  # dense attention
    assert products(traced.jaxpr) == counted / FORWARD_AND_BACKWARD


def paper(argument):
    return configs.load(f"{PAPER}:{argument}")


def products(jaxpr):
    """Operations of every matrix product and convolution in a program, loops unrolled."""
    total = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            shared = math.prod(equation.invars[0].aval.shape[i] for i in contracted)
            total += 2 * shared * equation.outvars[0].aval.size
        if equation.primitive.name == "conv_general_dilated":
            *window, into, _ = equation.invars[1].aval.shape
            total += 2 * math.prod(window) * into * equation.outvars[0].aval.size
        inner = sum(
            products(getattr(value, "jaxpr", value))
            for value in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda x: hasattr(x, "jaxpr"))
            if hasattr(getattr(value, "jaxpr", value), "eqns")
        )
        total += inner * equation.params.get("length", 1) if equation.primitive.name == "scan" else inner
    return total


def test_untied_weights_cost_an_element_nothing_more():
    shared, untied = (
        flops.count_parameters(tiny_config(model__modality_weights=w).model) for w in ("shared", "untied")
    )
    layers = shared.trunk - tiny_config().model.width  # all but the final norm
    assert (untied.trunk, untied.patch_trunk, untied.paper) == (shared.trunk, layers, shared.paper)
    assert untied.total == shared.total + layers
