import copy
import json
import os
from pathlib import Path

import pytest

from helpers import tiny_config
from transfusion_jax import cli
from transfusion_jax import config as configs
from transfusion_jax.config import ConfigError

CONFIGS = Path(__file__).parents[1] / "configs"
GOLDEN = Path(__file__).parent / "golden"
FAMILIES = ("0.76b,llama", "0.76b,chameleon-text", "0.76b,chameleon", "7b,chameleon,match=images")
EVERY = (
    "digits",
    "debug",
    "photos",
    *(f"paper:{size}" for size in ("0.16b", "0.37b", "0.76b", "1.4b", "7b", "7b,2t", "7b,native", *FAMILIES)),
    *("digits:unet", "digits:chameleon", "shapes", "shapes:latents", "shapes:editing", "stamps", "stamps:native"),
    "shapes:native",
    "shapes:native,2x1",
)
DEBUG = f"{CONFIGS}/debug.py"

# How a run is executed; every other field is what is trained.
EXECUTION = {
    "name",
    "model.attention",
    "model.remat",
    "model.compute_dtype",
    "data.sources.pairs.path",
    "data.sources.texts.path",
    "data.sources.pairs.held_out",
    "data.sources.texts.held_out",
    "data.workers",
    "sampling.guidance_interval",
    "sampling.guidance_rescale",
    "sampling.image_guidance",
    "sampling.sampler",
    "sampling.spacing",
    "sampling.steps",
    "sampling.guidance",
    "sampling.temperature",
    "evaluation.suites",
    "evaluation.during_training",
    "evaluation.rows",
    "evaluation.images",
    "evaluation.scenes",
    "evaluation.proportions",
    "accumulation",
    "extensions.json",
    "guard.max_in_a_row",
    "mesh.context",
    "mesh.data",
    "mesh.fsdp",
    "mesh.tensor",
    "loop.log_every",
    "loop.save_every",
    "loop.keep",
    "loop.keep_every",
    "loop.evaluate_every",
    "loop.sample_every",
    "loop.stop_at",
    "loop.hang_after",
}


@pytest.mark.parametrize("name", EVERY)
def test_the_configs_are_what_they_were(name):
    path = GOLDEN / (name.replace(":", "-").replace(",", "-") + ".json")
    actual = json.dumps(configs.to_dict(load(name)), indent=2) + "\n"
    if os.environ.get("UPDATE_GOLDEN"):
        path.write_text(actual)
    expected = path.read_text() if path.is_file() else ""
    assert actual.splitlines() == expected.splitlines(), (
        f"config {name} is not what {path.name} says; if this is meant, run UPDATE_GOLDEN=1 pytest {__file__}"
    )


def test_a_run_keeps_every_field_but_those_of_one_command():
    config = configs.load(DEBUG, ["loop.stop_at=3", "loop.keep=7", "mesh.data=1"])
    assert configs.kept(config) == configs.load(DEBUG, ["loop.keep=7", "mesh.data=1"])


@pytest.mark.parametrize("name", EVERY)
def test_a_config_survives_its_own_json(name):
    config = load(name)
    assert configs.parse(json.loads(json.dumps(configs.to_dict(config)))) == config


@pytest.mark.parametrize("name", ["digits", "digits:chameleon"])
def test_runs_from_when_the_default_was_250_steps_are_read(name):
    values = configs.to_dict(load(name))
    values["sampling"]["steps"] = 250
    assert configs.parse(values).sampling.steps == 250


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optimiser.learning_rate=1", "unknown config key optimiser: did you mean 'optimizer'?"),
        ("optimizer.learnin_rate=1", "unknown config key optimizer.learnin_rate: did you mean 'learning_rate'?"),
        ("data.sources.pairs.wieght=1", "key data.sources.pairs.wieght: did you mean 'weight'?"),
        ("mesh.zzz=1", "unknown config key mesh.zzz: valid: context, data, fsdp, tensor"),
        ("model.attention='flush'", "model.attention is 'flush'; valid: auto, blocked, gpu, reference, tpu"),
        ("model.remat=ful", "model.remat is 'ful'; did you mean 'full'?"),
        ("evaluation.suites=['losses']", "evaluation.suites is 'losses'; did you mean 'loss'?"),
    ],
)
def test_a_wrong_name_is_answered_with_the_nearest(override, message):
    with pytest.raises(ConfigError) as caught:
        configs.load(DEBUG, [override])
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("seed=True", "seed must be of type int, not True"),
        ("steps=2.5", "steps must be of type int, not 2.5"),
        ("steps=many", "steps must be of type int, not 'many'"),
        ("optimizer.learning_rate='1e-4'", "optimizer.learning_rate must be of type float, not '1e-4'"),
        ("optimizer.learning_rate=False", "optimizer.learning_rate must be of type float, not False"),
        ("optimizer.learning_rate=None", "optimizer.learning_rate must be of type float, not None"),
        ("model.patch_coder=1", "model.patch_coder must be of type str, not 1"),
        ("model.latent_shape=8", "model.latent_shape must be a list, not 8"),
        ("model.latent_shape=(8,8)", "model.latent_shape must have 3 entries, not 2"),
        ("model.latent_shape=(8,8,'1')", "model.latent_shape must be of type int, not '1'"),
        ("evaluation.suites=loss", "evaluation.suites must be a list, not 'loss'"),
        ("model=3", "model must hold named fields, not 3"),
        ("data.sources=3", "data.sources must hold named entries, not 3"),
        ("data.sources.pairs=3", "data.sources.pairs must hold named fields, not 3"),
        ("data.sources.pairs.path=3", "data.sources.pairs.path must be of type str, not 3"),
    ],
)
def test_a_value_of_the_wrong_type_is_named(override, message):
    with pytest.raises(ConfigError) as caught:
        configs.load(DEBUG, [override])
    assert message in str(caught.value)


LINEAR, LLAMA3 = (dict(model__rope_scaling=name, model__rope_factor=8.0) for name in ("linear", "llama3"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(model__width=0), "width must be positive"),
        (dict(model__layers=-1), "layers must be positive"),
        (dict(model__heads=0), "heads must be positive"),
        (dict(model__mlp_width=0), "mlp_width must be positive"),
        (dict(model__vocabulary=0), "vocabulary must be positive"),
        (dict(model__patch_size=0), "patch_size must be positive"),
        (dict(model__init_std=0), "init_std must be positive"),
        (dict(model__heads=3), "model.width 16 must be a multiple of heads 3, or set model.head_dim"),
        (dict(model__heads=16), "model.width / heads is 1: rotary embeddings need it even"),
        (dict(model__kv_heads=-1), "model.kv_heads must not be negative, not -1"),
        (dict(model__head_dim=-2), "model.head_dim must not be negative, not -2"),
        (dict(model__head_dim=7), "model.head_dim is 7: rotary embeddings need it even"),
        (dict(model__heads=4, model__kv_heads=3), "model.kv_heads 3 must divide model.heads 4"),
        (dict(model__kv_heads=4), "model.kv_heads 4 must divide model.heads 2"),
        (dict(model__query_key_norm_kind="rms"), "'rms' goes with model.query_key_norm=True"),
        (
            dict(model__query_key_norm=True, model__query_key_norm_kind="rmsnorm"),
            "query_key_norm_kind is 'rmsnorm'",
        ),
        (dict(model__head_dim=6, model__rope_sections=(2, 1, 1)), "half of a head's channels, 3, not [2, 1, 1]"),
        (dict(model__rope_scaling="yarn"), "model.rope_scaling is 'yarn'; valid: linear, llama3, none"),
        (dict(model__rope_factor=2.0), "model.rope_factor is 2.0; model.rope_scaling none has no use for it"),
        (dict(LINEAR, model__rope_factor=0), "model.rope_factor must be positive, not 0"),
        (
            dict(LINEAR, model__rope_original_context=64),
            "model.rope_scaling linear has no use for it: leave it out",
        ),
        (dict(LINEAR, model__rope_frequency_factors=(1.0, 8.0)), "model.rope_frequency_factors is (1.0, 8.0)"),
        (dict(LLAMA3, model__rope_frequency_factors=(4.0, 4.0)), "two rising positive numbers, not [4.0, 4.0]"),
        (dict(LLAMA3, model__rope_frequency_factors=(0.0, 4.0)), "two rising positive numbers, not [0.0, 4.0]"),
        (dict(LLAMA3, model__rope_original_context=0), "model.rope_original_context must be positive, not 0"),
        (dict(model__patch_size=3), "model.patch_size 3 must divide the latent's 4×4"),
        (dict(model__latent_shape=(4, 6, 1), model__patch_size=4), "patch_size 4 must divide the latent's 4×6"),
        (dict(model__images="none", model__max_side=8), "model.max_side is 8; a model of model.images 'none'"),
        (dict(model__latent_shape=(0, 4, 2)), "latent_shape"),
        (dict(model__latent_shape=(4, 4, 0)), "latent_shape"),
        (dict(model__latent_shape=(-4, 4, 2)), "latent_shape"),
        (dict(model__patch_coder="conv"), "model.patch_coder"),
        (dict(model__compute_dtype="float16"), "model.compute_dtype"),
        (dict(data__sources__pairs__weight=-1), "weight must not be negative"),
        (
            dict(data__sources__pairs__weight=0, data__sources__texts__weight=0),
            "no source has a weight above 0 from row 0 on",
        ),
        (dict(data__phases={"0": {"pairs": 1}}), "a phase is named by its first row"),
        (dict(data__phases={"late": {"pairs": 1}}), "a phase is named by its first row"),
        (dict(data__phases={"100": {"pair": 1}}), "a source of data.phases.100 is 'pair'; did you mean 'pairs'?"),
        (dict(data__phases={"100": {"pairs": -1}}), "data.phases.100.pairs must not be negative"),
        (dict(data__phases={"100": {"pairs": 0}}), "no source has a weight above 0 from row 100 on"),
        (dict(data__context_length=0), "context_length must be positive"),
        (dict(data__max_images=0), "max_images must be positive"),
        (dict(data__image_first=1.01), "data.image_first must lie between 0 and 1, not 1.01"),
        (dict(data__caption_dropout=-0.1), "data.caption_dropout must lie between 0 and 1, not -0.1"),
        (dict(data__sources__new=dict(weight=1)), "data.sources.*.path is missing"),
        (dict(data__sources__pairs__held_out="data/test"), "goes with prepared data, not with synthetic"),
        (dict(data__max_text=49), "data.max_text must lie between 0 and context_length"),
        (dict(data__max_text=-1), "data.max_text must lie between 0 and context_length"),
        (dict(data__workers=-1), "data.workers must not be negative"),
        (dict(data__autoencoder="vq"), "data.autoencoder"),
        (dict(diffusion__timesteps=0), "timesteps must be positive"),
        (
            dict(diffusion__image_first_limit=0),
            "diffusion.image_first_limit must lie between 1 and timesteps (1000)",
        ),
        (dict(diffusion__image_first_limit=1001), "diffusion.image_first_limit must lie between"),
        (dict(optimizer__learning_rate=0), "learning_rate must be positive"),
        (dict(optimizer__learning_rate=float("nan")), "learning_rate"),
        (dict(optimizer__learning_rate=float("inf")), "learning_rate"),
        (dict(optimizer__epsilon=0), "epsilon must be positive"),
        (dict(optimizer__warmup_steps=-1), "optimizer.warmup_steps must not be negative"),
        (dict(optimizer__final_learning_rate=1), "optimizer.final_learning_rate must lie between 0 and"),
        (dict(optimizer__beta1=1), "optimizer.beta1 must lie in [0, 1)"),
        (dict(optimizer__beta2=-0.1), "optimizer.beta2 must lie in [0, 1)"),
        (dict(optimizer__ema_decay=1), "optimizer.ema_decay must lie in [0, 1)"),
        (dict(optimizer__weight_decay=-1), "optimizer.weight_decay must not be negative"),
        (dict(optimizer__gradient_clip=-1), "optimizer.gradient_clip must not be negative"),
        (dict(sampling__steps=0), "steps must be positive"),
        (dict(sampling__steps=1001), "steps"),  # no sampler can visit more timesteps than there are
        (dict(sampling__guidance=-1), "sampling.guidance must not be negative"),
        (dict(evaluation__rows=0), "rows must be positive"),
        (dict(evaluation__images=0), "images must be positive"),
        (dict(evaluation__during_training=["digit"]), "evaluation.during_training is 'digit'"),
        (dict(mesh__data=0), "mesh axes must be positive, or -1"),
        (dict(mesh__fsdp=-2), "mesh axes must be positive, or -1"),
        (dict(mesh__data=-1, mesh__fsdp=-1), "only one mesh axis can be -1"),
        (dict(loop__log_every=0), "log_every must be positive"),
        (dict(loop__save_every=0), "save_every must be positive"),
        (dict(loop__keep=0), "keep must be positive"),
        (dict(loop__evaluate_every=-1), "loop.evaluate_every must not be negative"),
        (dict(loop__sample_every=-1), "loop.sample_every must not be negative"),
        (dict(loop__keep_every=-1), "loop.keep_every must not be negative"),
        (dict(loop__keep_every=1500), "loop.keep_every 1500 must be a multiple of save_every 1000"),
        (dict(guard__max_in_a_row=0), "guard.max_in_a_row must be positive"),
        (dict(guard__spikes="skp"), "guard.spikes is 'skp'; did you mean 'skip'?"),
        (dict(guard__spike_sigmas=0), "guard.spike_sigmas must be positive"),
        (dict(guard__spike_window=1), "guard.spike_window must be at least 2"),
        (dict(steps=0), "steps must be positive"),
        (dict(batch_rows=0), "batch_rows must be positive"),
        (dict(accumulation=0), "accumulation must be positive"),
        (dict(accumulation=3), "accumulation 3 must divide batch_rows 4"),
        (dict(seed=-1), "seed must not be negative"),
        (dict(image_loss_weight=-1), "image_loss_weight must not be negative"),
        (dict(data__context_length=6), "an image takes 7 elements with its marks, and data.context_length is 6"),
    ],
)
def test_an_impossible_value_is_an_error(changes, message):
    with pytest.raises(ConfigError) as caught:
        tiny_config(**changes)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("changes"),
    [
        dict(data__context_length=7),
        dict(data__max_text=48),
        dict(diffusion__timesteps=1, diffusion__image_first_limit=1, sampling__steps=1),
        dict(optimizer__final_learning_rate=1e-2, optimizer__warmup_steps=0, optimizer__gradient_clip=0),
        dict(mesh__data=1, mesh__fsdp=-1),
        dict(accumulation=4, image_loss_weight=0, data__sources={}),
        dict(data__image_first=1, data__caption_dropout=1),
        dict(model__heads=3, model__kv_heads=1, model__head_dim=2),
        dict(LLAMA3, model__rope_factor=1.0),
        dict(data__sources__pairs__weight=0, data__phases={"12": {"pairs": 1, "texts": 0}}),
    ],
)
def test_a_value_at_the_edge_is_allowed(changes):
    assert configs.parse(configs.to_dict(tiny_config(**changes))) == tiny_config(**changes)


def test_overrides_become_the_fields_types():
    config = configs.load(
        DEBUG,
        [
            "steps=1e3",
            "image_loss_weight=2",
            "optimizer.learning_rate=1e-4",
            "model.latent_shape=[8, 16, 1]",
            "evaluation.suites=('loss', 'digits')",
            "evaluation.during_training=[]",
            "model.remat=full",
            "model.attention='blocked'",
            "name=other=name",
        ],
    )
    assert config.steps == 1000
    assert type(config.steps) is int
    assert config.image_loss_weight == 2.0
    assert type(config.image_loss_weight) is float
    assert config.optimizer.learning_rate == 1e-4
    assert config.model.latent_shape == (8, 16, 1)
    assert config.evaluation.suites == ("loss", "digits")
    assert config.evaluation.during_training == ()
    assert (config.model.remat, config.model.attention, config.name) == ("full", "blocked", "other=name")


def test_phases_are_in_order_and_new_sources_come_last():
    changes = dict(data__sources__early=dict(path="a", weight=0), data__sources__unread=dict(path="b", weight=0))
    config = tiny_config(**changes, data__phases={"1000": {"early": 2, "texts": 0}, "200": {"pairs": 3}})
    assert [(phase.start, phase.weights) for phase in config.data.mixtures] == [
        (0, {"pairs": 2.0, "texts": 1.0}),
        (200, {"pairs": 3.0}),
        (1000, {"early": 2.0}),
    ]
    assert config.data.source_names == ("pairs", "texts", "early", "unread")
    assert configs.identity_changes(tiny_config(**changes), config).keys() == {
        "data.phases.200",
        "data.phases.1000",
    }


def test_later_overrides_win_and_siblings_stay():
    config = configs.load(DEBUG, ["mesh.fsdp=2", "optimizer.beta1=0.5", "mesh.fsdp=4"])
    assert (config.mesh.fsdp, config.mesh.data, config.mesh.tensor) == (4, -1, 1)
    assert (config.optimizer.beta1, config.optimizer.warmup_steps) == (0.5, 5)


def test_an_override_can_add_a_source():
    config = configs.load(DEBUG, ["data.sources.more.path=data/more", "data.sources.more.weight=3"])
    assert config.data.sources["more"] == configs.SourceConfig("data/more", 3.0)
    assert {"pairs", "text", "more"} == set(config.data.sources)
    again = configs.override(config, ["data.sources.more.weight=4", "seed=9"])
    assert (again.data.sources["more"].weight, again.seed) == (4.0, 9)
    assert config.data.sources["more"].weight == 3.0


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("steps", "--config.steps needs a value: --config.steps=VALUE"),
        ("", "needs a value"),
        ("=3", "unknown config key"),
        ("steps.many=3", "'steps' holds no further fields"),
        ("model.width.x.y=3", "'width' holds no further fields"),
        (".=3", "unknown config key"),
    ],
)
def test_a_malformed_override_is_named(override, message):
    with pytest.raises(ConfigError) as caught:
        configs.load(DEBUG, [override])
    assert message in str(caught.value)


def test_every_field_is_identity_or_execution_as_designed():
    config = tiny_config(extensions={"json": ""})
    leaves = dict(flatten(configs.to_dict(config)))
    identity = configs.identity(config)
    assert set(identity) == set(leaves) - EXECUTION
    assert set(leaves) >= EXECUTION
    assert {name: leaves[name] for name in identity} == identity


def test_identity_changes_lists_each_identity_field_and_no_other():
    config = tiny_config()
    for name, value in flatten(configs.to_dict(config)):
        changed = changed_at(config, name)
        expected = {} if name in EXECUTION else {name: f"{value} -> changed"}
        assert configs.identity_changes(config, changed) == expected
        assert (configs.identity_hash(config) == configs.identity_hash(changed)) == (not expected)


def test_identity_changes_lists_sources_that_came_and_went():
    old = tiny_config(data__sources=dict(a=dict(path="a"), b=dict(path="b", weight=2)))
    new = tiny_config(data__sources=dict(a=dict(path="moved"), c=dict(path="c", weight=3)))
    assert configs.identity_changes(old, new) == {
        "data.sources.b.weight": "2.0 -> absent",
        "data.sources.c.weight": "absent -> 3.0",
    }


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (None, "no config file"),
        ("x = 1", "defines no get_config(arg)"),
        ("def get_config(arg):\n    return dict(name='plain')", "must return an ml_collections.ConfigDict"),
        (
            "from ml_collections import ConfigDict\ndef get_config(arg):\n    return ConfigDict(dict(name=arg))",
            "config key seed is missing",
        ),
    ],
)
def test_a_file_that_holds_no_config_is_named(code, message, tmp_path):
    path = tmp_path / "mine.py"
    if code is not None:
        path.write_text(code)
    with pytest.raises(ConfigError) as caught:
        configs.load(f"{path}:x")
    assert message in str(caught.value)


@pytest.mark.parametrize("spec", ["paper:9b", "paper:7b,3t", "paper:,", "digits:large", "debug:x"])
def test_a_bad_argument_of_a_config_file_is_one_sentence_and_code_2(spec, capsys):
    name, _, argument = spec.partition(":")
    assert cli.main(["train", "--dry-run", "--config", f"{CONFIGS}/{name}.py:{argument}"]) == 2
    message = capsys.readouterr().err
    assert message.startswith("transfusion: ")
    assert message.count("\n") == 1


def test_a_bad_override_on_the_command_line_is_one_sentence_and_code_2(capsys):
    assert cli.main(["train", "--dry-run", "--config", DEBUG, "--config.model.widht=8"]) == 2
    expected = "transfusion: unknown config key model.widht: did you mean 'width'?\n"
    assert capsys.readouterr().err == expected


def load(name):
    file, _, argument = name.partition(":")
    return configs.load(f"{CONFIGS}/{file}.py:{argument}")


def flatten(values, prefix=""):
    for key, value in values.items():
        if isinstance(value, dict):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def changed_at(config, name):
    """The config with one field set to "changed", past all checks."""
    result = copy.deepcopy(config)
    *parents, leaf = name.split(".")
    owner = result
    for parent in parents:
        owner = owner[parent] if isinstance(owner, dict) else getattr(owner, parent)
    object.__setattr__(owner, leaf, "changed")
    return result


def test_a_run_keeps_no_field_that_came_later_with_its_default():
    kept = configs.kept_values(tiny_config())
    assert "extensions" not in kept
    assert not {"name", "schedule"} & kept["optimizer"].keys()
    assert "spacing" not in kept["sampling"]
    assert kept["diffusion"].keys() == {"timesteps", "objective", "schedule", "image_first_limit"}
    assert configs.parse(kept) == tiny_config()
    other = tiny_config(optimizer__schedule="constant")
    assert configs.kept_values(other)["optimizer"]["schedule"] == "constant"
    assert configs.parse(configs.kept_values(other)) == other
