"""Language models as transformers writes them, in and out, by the command."""

import json
import re
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from transfusion_jax.cli import main
from transfusion_jax.kernels.spans import Spans
from transfusion_jax.model.transfusion import Model
from transfusion_jax.training.checkpoint.reader import to_devices
from transfusion_jax.training.run_dir import Workdir
from transfusion_jax.training.start_run import find_checkpoint

pytestmark = pytest.mark.parity

VOCABULARY = 123
KINDS = {
    "plain": {},
    "grouped": {"num_key_value_heads": 2, "head_dim": 12},
    "tied": {"tie_word_embeddings": True},
    "bfloat16": {"dtype": "bfloat16"},
    "linear": {"rope_parameters": {"rope_type": "linear", "rope_theta": 5000.0, "factor": 2.0}},
    "llama-3": {
        "num_key_value_heads": 1,
        "rope_parameters": {
            "rope_type": "llama3",
            "rope_theta": 500_000.0,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 16,
        },
    },
    "qwen2.5": {"model_type": "qwen2", "num_key_value_heads": 2, "tie_word_embeddings": True},
    "qwen3": {"model_type": "qwen3", "num_key_value_heads": 2, "head_dim": 16},
}


def random_llama(**options):
    config = AutoConfig.for_model(
        **dict(
            model_type="llama",
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=4,
            intermediate_size=48,
            vocab_size=VOCABULARY,
            max_position_embeddings=128,
            rms_norm_eps=3e-6,
            rope_parameters={"rope_type": "default", "rope_theta": 5000.0},
            tie_word_embeddings=False,
            attn_implementation="eager",
        )
        | options
    )
    torch.manual_seed(0)
    llama = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for name, parameter in llama.named_parameters():
            norm = parameter.ndim == 1 and "bias" not in name
            parameter.uniform_(0.5, 1.5) if norm else parameter.normal_(std=0.1)
    return llama.to(options.get("dtype") and torch.bfloat16)


def logits_of(llama, tokens):
    with torch.no_grad():
        return llama(input_ids=torch.tensor(tokens)).logits.numpy()


def our_logits(run, tokens):
    config = Workdir(run).config()
    model = Model(config.model)
    checkpoints, step = find_checkpoint(str(run))
    params = checkpoints.weights(step, "raw", to_devices(model.abstract_params()))
    rows, length = tokens.shape
    index = jnp.broadcast_to(jnp.arange(length), (rows, length))
    model = model.bind(params)
    x, _ = model.embed(tokens)
    hidden, _ = model.trunk(x, Spans(jnp.zeros_like(index), index + 1), index)
    return np.asarray(model.text_logits(hidden))


FROM_LLM = Path(__file__).parents[2] / "configs/from_llm.py"
TOKENS = np.random.default_rng(0).integers(0, VOCABULARY, (2, 12))
SMALL = ["--config.model.latent_shape=(4,4,2)", "--config.data.encoding=pixels", "--config.model.remat=none"]
SMALL += ["--config.data.context_length=64", "--config.batch_rows=8", "--config.data.max_images=2"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_llama_comes_in_and_goes_out(kind, tmp_path, capsys, monkeypatch):
    llama = random_llama(**KINDS[kind])
    llama.save_pretrained(tmp_path / "llama", max_shard_size="20KB")
    assert (tmp_path / "llama/model.safetensors.index.json").exists()
    run, out = tmp_path / "run", tmp_path / "out"
    assert main(["convert", "from-hf", str(tmp_path / "llama"), "--output", str(run), *SMALL]) == 0
    folder = (
        tmp_path / "llama"
    )  # loaded again: .to(bfloat16) also rounded the rotary frequencies, which no file holds
    read = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    expected = logits_of(read, TOKENS)
    ours = our_logits(run, TOKENS)
    np.testing.assert_allclose(ours[..., :VOCABULARY], expected, atol=1e-4)

    to_llama = ["convert", "to-hf", "--workdir", str(run), "--output", str(out), "--max-shard-size", "20KB"]
    assert main(to_llama) == 0
    again = AutoModelForCausalLM.from_pretrained(out, attn_implementation="eager")
    np.testing.assert_allclose(logits_of(again, TOKENS), ours[..., : VOCABULARY + 5], atol=1e-4)
    card = (out / "README.md").read_text()
    assert "patch coder" in card
    monkeypatch.chdir(out)
    shown: dict = {}
    exec(re.search(r"```python\n(.*?)```", card, re.DOTALL).group(1), shown)
    np.testing.assert_allclose(logits_of(shown["model"].float(), TOKENS), logits_of(again, TOKENS), atol=1e-4)

    assert main(["convert", "from-hf", str(out), "--output", str(tmp_path / "third"), *SMALL]) == 0
    capsys.readouterr()
    assert (
        main(["convert", "diff", str(run), str(tmp_path / "third"), "--json"]) == 1
    )  # five entries are its own now
    names = {d["name"] for d in json.loads(capsys.readouterr().out)["differences"]}
    assert names <= {"embedding", "text_head"}


@pytest.mark.parametrize("kind", ["plain", "tied", "llama-3", "qwen2.5", "qwen3"])
def test_one_command_begins_from_a_language_model_that_stays_as_it_is(kind, tmp_path):
    folder, workdir = tmp_path / "model", tmp_path / "w"
    random_llama(**KINDS[kind]).save_pretrained(folder)
    assert main(["convert", "from-hf", str(folder), "--output", str(tmp_path / "run"), *SMALL]) == 0
    train = ["train", "--config", f"{FROM_LLM}:{folder}", "--workdir", str(workdir), "--init-from", str(folder)]
    train += ["--init-map", "trunk/layers/patches/*=text", "--config.data.sources=synthetic", *SMALL]
    assert main([*train, "--config.steps=2", "--config.loop.evaluate_every=0"]) == 0

    checkpoints, steps = find_checkpoint(str(workdir))
    first, last = (checkpoints.manifest(step) for step in (0, steps))
    imported, step = find_checkpoint(str(tmp_path / "run"))
    for name, value in imported.manifest(step)["checksums"].items():
        if name.startswith("params/"):
            assert first["checksums"][name] == value, name
            assert (last["checksums"][name] == value) == (not name.startswith("params/patch_coder")), name
    own = {name for name in first["checksums"] if name.startswith("params/trunk/layers/patches/")}
    assert own
    for name in own:  # text's at first; then they learn
        assert first["checksums"][name] == first["checksums"][name.replace("/patches/", "/")], name
        assert first["checksums"][name] != last["checksums"][name], name
    moments = {name for name in last["leaves"] if "/mu/" in name or "/nu/" in name}
    assert moments
    assert all("/patches/" in name or "/patch_coder/" in name for name in moments)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"attention_bias": True}, "attention_bias"),
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 8.0}}, "rotary embeddings are scaled"),
        ({"rope_parameters": {"rope_type": "llama3", "factor": 8.0}}, "rope_parameters lacks low_freq_factor"),
        ({"head_dim": 16}, "asks for"),
        ({"model_type": "qwen2", "use_sliding_window": True}, "use_sliding_window"),
        ({"model_type": "mistral"}, "it takes llama, qwen2, qwen3"),
        ({"sliding_window": 4}, "sliding_window"),
    ],
)
def test_what_cannot_be_represented_is_refused(changes, message, tmp_path, capsys):
    random_llama().save_pretrained(tmp_path / "llama")
    path = tmp_path / "llama/config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    assert main(["convert", "from-hf", str(tmp_path / "llama"), "--output", str(tmp_path / "run")]) != 0
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


FIELDS = {  # of a config.json, and another value
    "hidden_act": ["gelu", "silu"],
    "attention_bias": [True],
    "mlp_bias": [True],
    "rms_norm_eps": [1e-2, 0, "small"],
    "rope_theta": [100.0, -1],
    "rope_scaling": [
        {"rope_type": "linear", "factor": 2.0},
        {"type": "dynamic", "factor": 2.0},
        {"rope_type": "default"},
        "linear",
    ],
    "rope_parameters": [
        {"rope_type": "default", "rope_theta": 100.0},
        {"rope_type": "default", "rope_theta": "large"},
        {"rope_type": "yarn", "rope_theta": 100.0, "factor": 4.0, "original_max_position_embeddings": 32},
        {"rope_type": "default", "rope_theta": 100.0, "partial_rotary_factor": 0.5},
        None,
    ],
    "num_key_value_heads": [3, 0, 2],
    "num_attention_heads": [2, 3, "4"],
    "head_dim": [16, 4, 8],
    "hidden_size": [16, -32, 32.0],
    "intermediate_size": [24],
    "num_hidden_layers": [1, 3, True],
    "vocab_size": [64, 200],
    "tie_word_embeddings": [True],
    "max_position_embeddings": [16, "long"],
    "initializer_range": [0.5],
    "attention_dropout": [0.5],
    "pretraining_tp": [2],
    "use_cache": [False],
    "dtype": ["bfloat16"],
    "torch_dtype": ["float16"],
    "bos_token_id": [5, None, 123, -1, "<s>"],
    "eos_token_id": [[5, 6], None, [5, 123], 1.5],
    "pad_token_id": [7],
    "sliding_window": [4],
    "layer_types": [["sliding_attention", "full_attention"]],
    "partial_rotary_factor": [0.5],
    "rope_interleaved": [True, False],
    "attn_logit_softcapping": [2.0],
    "final_logit_softcapping": [2.0],
    "embedding_multiplier": [2.0],
    "logits_scaling": [2.0],
    "num_local_experts": [4],
    "quantization_config": [{"quant_method": "gptq", "bits": 4}],
    "auto_map": [{"AutoModelForCausalLM": "modeling.Other"}],
    "model_type": ["mistral", "granite", None],
    "a_field_of_tomorrow": [1],
}


@pytest.mark.parametrize(("field", "value"), [(field, value) for field in FIELDS for value in FIELDS[field]])
def test_every_field_of_a_config_is_honoured_or_refused_by_name(field, value, tmp_path, capsys):
    random_llama().save_pretrained(tmp_path / "llama")
    path, run = tmp_path / "llama/config.json", tmp_path / "run"
    path.write_text(json.dumps(json.loads(path.read_text()) | {field: value}))
    code = main(["convert", "from-hf", str(path.parent), "--output", str(run), *SMALL])
    out, err = capsys.readouterr()
    if code:
        assert code == 2
        assert re.search(rf"{field}|config\.json asks for|(has|lacks) model\.layers", err), err
        assert not run.exists()
        return
    assert (field in out) == (field not in llama_fields()), out
    read = LlamaForCausalLM.from_pretrained(path.parent, dtype=torch.float32, attn_implementation="eager")
    expected = logits_of(read, TOKENS)
    np.testing.assert_allclose(our_logits(run, TOKENS)[..., :VOCABULARY], expected, atol=1e-4)


def llama_fields():
    """Those that a Llama of transformers has, or had by another name."""
    return {*LlamaConfig().to_dict(), "rope_theta", "rope_scaling", "torch_dtype", "model_type", "rope_interleaved"}


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda t: t.pop("model.norm.weight"), "lacks model.norm.weight"),
        (
            lambda t: t.update({"model.layers.2.mlp.up_proj.weight": np.zeros((48, 32), np.float32)}),
            "has model.layers.2",
        ),
        (lambda t: t.update({"model.norm.weight": np.zeros(31, np.float32)}), r"asks for \(32,\)"),
        (lambda t: t.update({"model.norm.weight": np.full(32, np.nan, np.float32)}), "not finite"),
    ],
    ids=["missing", "more", "shape", "nan"],
)
def test_tensors_that_are_not_the_configs_are_refused(harm, message, tmp_path, capsys):
    random_llama().save_pretrained(tmp_path / "llama")
    path = tmp_path / "llama/model.safetensors"
    tensors = load_file(path)
    harm(tensors)
    save_file(tensors, path)
    assert main(["convert", "from-hf", str(tmp_path / "llama"), "--output", str(tmp_path / "run"), *SMALL]) != 0
    assert re.search(message, capsys.readouterr().err)
    assert not (tmp_path / "run/config.json").exists()
