"""Every execution field with every family: it says how a run is computed, and changes none of its results."""

import dataclasses
import functools
import math
import re

import jax
import numpy as np
import pytest

from helpers import GROUPED, SEVERAL, corpus_of, special, tiny_batch, tiny_config, token_config
from transfusion_jax import config as configs
from transfusion_jax.config import Config, ConfigError
from transfusion_jax.data.document_rows import make_rows
from transfusion_jax.data.image_stream import ImageBatch, ImageRows, load_images
from transfusion_jax.data.stream import batches
from transfusion_jax.parallel.mesh import AXES, check_batch, make_mesh
from transfusion_jax.parallel.sharding import batch_sharding, state_shardings
from transfusion_jax.tasks.autoencoder import AutoencoderTask
from transfusion_jax.tasks.base import make_task
from transfusion_jax.training.step.state import new_state
from transfusion_jax.training.step.step import train_step

KEY = jax.random.key(3)
TEXTS = dict(data__sources={"texts": {"path": "synthetic:text"}})
LLAMA = dict(model__query_key_norm=False, model__norm="pre", z_loss=0.0)
UNET = dict(model__patch_coder="unet", model__unet_channels=(8, 16), model__unet_blocks=1)
ARCHITECTURE = dict(
    kind="kl", image_channels=1, channels=4, multipliers=(1,), blocks=1, groups=2, latent_channels=2
) | dict(middle_attention=False)


def autoencoder(**architecture):
    """Of 8×8 grey images."""
    values = dict(
        name="tiny",
        seed=0,
        steps=8,
        batch_rows=4,
        image_size=8,
        architecture=ARCHITECTURE | architecture,
        data=dict(sources=dict(digits="none")),
        losses=dict(lpips=0.0, gan=0.0, identity=0.0),
        optimizer=dict(ema_decay=0.9),
        mesh=dict(data=1),
    )
    return configs.parse_run(values)


FAMILIES = {
    "linear": tiny_config(model__layers=1),
    "unet": tiny_config(model__layers=1, **UNET),
    "several shapes": tiny_config(model__layers=1, model__rope_sections=(2, 1, 1), **UNET, **SEVERAL),
    **{name: tiny_config(model__layers=1, **changes) for name, changes in GROUPED.items()},
    "llama 3, untied": tiny_config(model__layers=1, model__modality_weights="untied", **GROUPED["llama 3"]),
    "chameleon": token_config(model__layers=1),
    "chameleon, several shapes": token_config(model__layers=1, **SEVERAL),
    "chameleon-text": token_config("none", model__layers=1, **TEXTS),
    "llama": token_config("none", model__layers=1, **TEXTS, **LLAMA),
    "kl autoencoder": autoencoder(),
    "vq autoencoder": autoencoder(kind="vq", codebook=8),
}
COMPUTED = {  # fields that change the program of a step's gradients, and values that are not the default
    "accumulation": (2, 4),
    "model.attention": ("reference", "blocked"),
    "model.remat": ("full", "dots"),
    "model.compute_dtype": ("bfloat16",),
    **{f"mesh.{axis}": (2,) for axis in AXES},
}
STEPPED = {"guard.max_in_a_row": 2}  # fields that change the program of a step behind the gradients
READING = {"data.workers": 2}  # fields of what reads the rows
STILL = {  # fields that change no program: of what stands around it
    "name": "other",
    "data.sources.*": "elsewhere",
    "data.sources.*.path": "elsewhere",
    "data.sources.*.held_out": "elsewhere",
    "losses.lpips_weights": ("elsewhere",),
    "losses.identity_weights": ("elsewhere",),
    "held_out_images": 3,
    "extensions": {"json": ""},
    "sampling.steps": 7,
    "sampling.sampler": "ddim",
    "sampling.spacing": "trailing",
    "sampling.guidance": 2.0,
    "sampling.guidance_interval": (0.0, 0.5),
    "sampling.guidance_rescale": 0.5,
    "sampling.image_guidance": 2.0,
    "sampling.temperature": 0.5,
    "evaluation.suites": ("text",),
    "evaluation.during_training": ("text",),
    "evaluation.rows": 3,
    "evaluation.images": 3,
    "evaluation.scenes": "corners",
    "evaluation.proportions": ("2x1",),
    "loop.log_every": 3,
    "loop.save_every": 2,
    "loop.keep": 1,
    "loop.keep_every": 2000,
    "loop.evaluate_every": 3,
    "loop.sample_every": 2,
    "loop.stop_at": 2,
    "loop.hang_after": 5,
}
OF_LATENTS = {f"sampling.{name}" for name in configs.OF_LATENTS}
ONE_SIZE = {"evaluation.proportions"}  # not of images of one size
REFUSED = {  # fields that a family has no use for: setting one is an error, not ignored
    "linear": {"sampling.temperature"} | ONE_SIZE,
    "unet": {"sampling.temperature"} | ONE_SIZE,
    "several shapes": {"sampling.temperature"},
    **dict.fromkeys((*GROUPED, "llama 3, untied"), {"sampling.temperature"} | ONE_SIZE),
    "chameleon": OF_LATENTS | ONE_SIZE,
    "chameleon, several shapes": OF_LATENTS,
    "chameleon-text": OF_LATENTS | {"loop.sample_every"} | ONE_SIZE,
    "llama": OF_LATENTS | {"loop.sample_every"} | ONE_SIZE,
    "kl autoencoder": {"mesh.context", "mesh.tensor"},
    "vq autoencoder": {"mesh.context", "mesh.tensor"},
}
QUICK = {"chameleon", "kl autoencoder"}  # tests/training/test_losses.py has the linear one


def fields_of(config):
    """The execution fields, sources under the name `*`."""

    def leaves(values, prefix=""):
        for name, value in values.items():
            if isinstance(value, dict) and value:
                yield from leaves(value, f"{prefix}{name}.")
            else:
                yield prefix + name

    every, identity = set(leaves(configs.to_dict(config))), set(configs.identity(config))
    return {re.sub(r"^data\.sources\.\w+", "data.sources.*", name) for name in every - identity - {"data.phases"}}


def cases():
    """Every field of the computation with every family; all values with the first. Most take seconds to compile."""
    found = []
    for family, config in FAMILIES.items():
        for field in sorted(fields_of(config) & COMPUTED.keys()):
            values = COMPUTED[field] if family == "linear" else COMPUTED[field][:1]
            for value in values:
                slow = [] if (field, value) == ("accumulation", 2) and family in QUICK else [pytest.mark.slow]
                found.append(pytest.param(family, field, value, id=f"{family}-{field}={value}", marks=slow))
    return found


def test_every_execution_field_has_its_case():
    found = set().union(*map(fields_of, FAMILIES.values()))
    assert found == COMPUTED.keys() | STEPPED.keys() | READING.keys() | STILL.keys()


@pytest.mark.parametrize(("family", "field", "value"), cases())
def test_a_field_of_the_computation_changes_neither_gradients_nor_metrics(family, field, value):
    config = changed(FAMILIES[family], {field: value})
    if field in REFUSED[family]:
        with pytest.raises(ConfigError, match=re.escape(field)):
            check_batch(mesh_of(config), config)
        return
    compare(gradients(config, family), plain(family), rough=value == "bfloat16")


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_all_of_them_at_once_change_nothing(family):
    allowed = (
        (fields_of(FAMILIES[family]) & COMPUTED.keys()) - REFUSED[family] - {"model.compute_dtype", "mesh.data"}
    )
    config = changed(FAMILIES[family], {field: COMPUTED[field][0] for field in allowed})
    compare(gradients(config, family), plain(family))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_field_of_anything_else_leaves_the_step_as_it_is(family):
    """Or is refused where the family has no use for it."""
    config = FAMILIES[family]
    mine = {name: value for name, value in STILL.items() if name in fields_of(config)}
    for name in mine.keys() & REFUSED[family]:
        with pytest.raises(ConfigError):
            changed(config, {name: mine[name]})
    other = changed(config, {name: value for name, value in mine.items() if name not in REFUSED[family]})
    assert all(configs.to_dict(other)[name] != configs.to_dict(config)[name] for name in ("name", "loop"))
    assert traced(other, family) == traced(config, family)


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_neither_an_average_nor_the_guards_patience_changes_what_is_learnt(family):
    averaged = FAMILIES[family]
    other = changed(averaged, {"optimizer.ema_decay": 0.0} | STEPPED)
    with_ema, without = (stepped(config, family) for config in (averaged, other))
    assert without.ema is None
    jax.tree.map(np.testing.assert_array_equal, with_ema.params, without.params)
    jax.tree.map(  # early steps weigh more: of the second one, 2/11 of the average is kept
        lambda ema, old, new: np.testing.assert_allclose(ema, old + 9 / 11 * (new - old), rtol=1e-4, atol=1e-7),
        with_ema.ema,
        params_of(family),
        with_ema.params,
    )


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_loader_processes_read_the_rows_of_none(family, digits_folder):
    config = FAMILIES[family]
    if isinstance(config, Config):
        rows = make_rows(corpus_of(config), config, special())
    else:
        config = changed(config, {"data.sources.*": str(digits_folder)})
        rows = ImageRows(load_images(config).train, config.seed)
    read = []
    for workers in (0, READING["data.workers"]):
        with batches(rows, 3, 4, slice(0, 4), workers) as found:
            read.append([next(found) for _ in range(3)])
    jax.tree.map(np.testing.assert_array_equal, *read)


def changed(config, fields):
    """The config with fields changed, by dotted names; `*` is every source."""
    values = configs.to_dict(config)
    for name, value in fields.items():
        *sections, last = name.split(".")
        at = [values]
        for section in sections:
            at = [
                inner for one in at for inner in (one.values() if section == "*" else [one.setdefault(section, {})])
            ]
        for one in at:
            one.update(dict.fromkeys(one, value) if last == "*" else {last: value})
    return configs.parse_run(values)


def task_of(config):
    return make_task(config) if isinstance(config, Config) else AutoencoderTask(config)


def mesh_of(config):
    return make_mesh(config.mesh, jax.devices()[: math.prod(dataclasses.astuple(config.mesh))])


@functools.cache
def params_of(family):
    config = FAMILIES[family]
    return jax.tree.map(np.asarray, jax.jit(task_of(config).init)(jax.random.key(config.seed)))


@functools.cache
def batch_of(family):
    config = FAMILIES[family]
    if isinstance(config, Config):
        return tiny_batch(config)
    image = np.random.default_rng(0).uniform(-1, 1, (4, 8, 8, 1)).astype(np.float32)
    return ImageBatch(image, np.arange(4, dtype=np.int32))


def gradients(config, family):
    """Gradients and metrics of a batch, as a step on the config's mesh computes them."""
    mesh, task, params = mesh_of(config), task_of(config), params_of(family)
    check_batch(mesh, config)
    with jax.set_mesh(mesh):
        placed = jax.device_put(params, state_shardings(params, mesh, task.axes()))
        batch = jax.device_put(batch_of(family), batch_sharding(mesh))
        return jax.device_get(jax.jit(lambda p, b: task.gradients(p, b, KEY, 0))(placed, batch))


@functools.cache
def plain(family):
    return gradients(FAMILIES[family], family)


def stepped(config, family):
    """The state after a step."""
    task = task_of(config)
    state = dataclasses.replace(new_state(task, config), step=jax.numpy.int32(1))
    return jax.jit(lambda s, b: train_step(task, config, s, b)[0])(state, batch_of(family))


def traced(config, family):
    """The program of a step, before it is compiled."""
    task = task_of(config)
    state = jax.eval_shape(lambda: new_state(task, config))
    return str(jax.make_jaxpr(lambda s, b: train_step(task, config, s, b))(state, batch_of(family)))


def compare(found, expected, rough=False):
    if not rough:
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5), found, expected)
        return
    (gradient, metrics), (precise, same) = found, expected
    np.testing.assert_allclose(metrics.loss, same.loss, rtol=0.02)
    one, other = (np.concatenate([leaf.ravel() for leaf in jax.tree.leaves(tree)]) for tree in (gradient, precise))
    assert one @ other > 0.98 * np.linalg.norm(one) * np.linalg.norm(other)
