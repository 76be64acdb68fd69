"""Language models in GGUF files, which the package gguf writes, beside the same ones in safetensors."""

import json

import gguf
import numpy as np
import pytest
from safetensors.numpy import save_file
from tokenizers import Tokenizer, models, pre_tokenizers

from transfusion_jax.cli import main
from transfusion_jax.config import ConfigError
from transfusion_jax.conversion.gguf_files import ENDS, LAYER, SIZES, GGUFFile, write_metadata
from transfusion_jax.conversion.hugging_face import read_chat_template
from transfusion_jax.conversion.language_models import EMBEDDING, HEAD, tensor_shapes
from transfusion_jax.training.run_dir import Workdir

TOKENS = ["<end>", "<start>", *(chr(n) for n in range(33, 127)), "th", "the"]
SMALL = ["--config.model.latent_shape=(4,4,2)", "--config.data.encoding=pixels", "--config.model.remat=none"]
SMALL += ["--config.data.context_length=64", "--config.batch_rows=8", "--config.data.max_images=2"]
BASE = dict(
    hidden_size=64,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    intermediate_size=96,
    vocab_size=len(TOKENS),
    max_position_embeddings=256,
    rms_norm_eps=1e-5,
    rope_theta=5000.0,
    bos_token_id=1,
    eos_token_id=0,
)
KINDS = {
    "llama": dict(model_type="llama", tie_word_embeddings=True),
    "linear": dict(model_type="llama", rope_scaling={"rope_type": "linear", "factor": 2.0}),
    "qwen2": dict(model_type="qwen2"),
    "qwen3": dict(model_type="qwen3", head_dim=32, tie_word_embeddings=True),
}


def random_tensors(config):
    random = np.random.default_rng(0)
    return {name: random.normal(size=shape).astype(np.float32) for name, shape in tensor_shapes(config).items()}


def write_gguf(
    path,
    config,
    tensors,
    quantised=None,
    tokens=TOKENS,
    pre="gpt-2",
    add_bos=False,
    merges=("t h", "th e"),
    **metadata,
):
    kind = config["model_type"]
    writer = gguf.GGUFWriter(path, kind)
    for ours, theirs in SIZES.items():
        if ours in config:
            add = writer.add_float32 if isinstance(config[ours], float) else writer.add_uint32
            add(f"{kind}.{theirs}", config[ours])
    if "rope_scaling" in config:
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(config["rope_scaling"]["factor"])
    writer.add_tokenizer_model("gpt2")
    if pre is not None:
        writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types([3, 3, *[1] * (len(tokens) - 2)])
    if merges:
        writer.add_token_merges(merges)
    writer.add_bos_token_id(config["bos_token_id"])
    writer.add_eos_token_id(config["eos_token_id"])
    if add_bos is not None:
        writer.add_add_bos_token(add_bos)
    writer.add_chat_template("{{ messages }}")
    for name, value in metadata.items():
        (writer.add_string if isinstance(value, str) else writer.add_uint16)(name, value)
    for name, value in tensors.items():
        if name.endswith(("q_proj.weight", "k_proj.weight")) and kind == "llama":
            heads = config["num_attention_heads" if "q_proj" in name else "num_key_value_heads"]
            turned = value.reshape(heads, 2, len(value) // heads // 2, -1).swapaxes(
                1, 2
            )  # as llama.cpp's converter
            value = np.ascontiguousarray(turned.reshape(value.shape))
        if quantised is not None and value.ndim == 2:
            writer.add_tensor(name_there(name), gguf.quants.quantize(value, quantised), raw_dtype=quantised)
        else:
            writer.add_tensor(name_there(name), value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def name_there(name):
    if name in ENDS.values():
        return next(theirs for theirs, ours in ENDS.items() if ours == name)
    _, _, layer, rest = name.split(".", 3)
    part, _, end = rest.rpartition(".")
    return f"blk.{layer}.{next(theirs for theirs, ours in LAYER.items() if ours == part)}.{end}"


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_is_the_same_from_gguf_and_from_safetensors(kind, tmp_path, capsys):
    config = BASE | KINDS[kind]
    tensors = random_tensors(config)
    write_gguf(tmp_path / "model.gguf", config, tensors)
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "model.safetensors")
    for source, run in (("model.gguf", "one"), ("folder", "other")):
        assert main(["convert", "from-hf", str(tmp_path / source), "--output", str(tmp_path / run), *SMALL]) == 0
    out = capsys.readouterr().out
    assert "a document begins with 1 (<start>) and ends at 0 (<end>)" in out
    one, other = (Workdir(tmp_path / run) for run in ("one", "other"))
    assert one.config().model == other.config().model
    assert one.imported() == {"longest_context": 256, "chat_template": "{{ messages }}"}
    assert main(["convert", "diff", str(tmp_path / "one"), str(tmp_path / "other")]) == 0
    safe, again = tmp_path / "safe", tmp_path / "again"
    assert main(["convert", "to-safetensors", "--workdir", str(tmp_path / "one"), "--output", str(safe)]) == 0
    assert main(["convert", "from-safetensors", str(safe), "--output", str(again)]) == 0
    assert Workdir(again).imported() == one.imported()
    assert Workdir(again).manifest()["codec"] == one.manifest()["codec"]
    assert main(["convert", "to-hf", "--workdir", str(again), "--output", str(tmp_path / "hf")]) == 0
    assert read_chat_template(tmp_path / "hf") == "{{ messages }}"


def test_quantised_tensors_are_read_in_parts(tmp_path):
    config = BASE | KINDS["llama"]
    tensors = random_tensors(config)
    write_gguf(tmp_path / "model.gguf", config, tensors, gguf.GGMLQuantizationType.Q8_0)
    file = GGUFFile.open(tmp_path / "model.gguf")
    assert HEAD not in file.files
    for name in (EMBEDDING, "model.layers.1.self_attn.q_proj.weight", "model.layers.0.mlp.down_proj.weight"):
        whole = file.read(name, ())
        assert whole.dtype == np.float32
        np.testing.assert_allclose(whole, tensors[name], atol=0.03)
        np.testing.assert_array_equal(file.read(name, (slice(3, 30), slice(5, 40))), whole[3:30, 5:40])


def test_its_tokenizer_is_the_one_that_was_written(tmp_path):
    config = BASE | KINDS["llama"]
    write_gguf(tmp_path / "model.gguf", config, random_tensors(config))
    write_metadata(GGUFFile.open(tmp_path / "model.gguf"), tmp_path)
    found = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    expected = Tokenizer(models.BPE({token: n for n, token in enumerate(TOKENS)}, [("t", "h"), ("th", "e")]))
    expected.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    for text in ("the", "then(the)", "th-e"):
        assert found.encode(text).ids == expected.encode(text).ids
    assert found.encode("<start>the<end>").ids == [1, TOKENS.index("the"), 0]


@pytest.mark.parametrize(("add_bos", "first"), [(None, True), (False, False)])
def test_pieces_that_are_entries_of_llama_3_are_not_merged(add_bos, first, tmp_path):
    tokens = [*TOKENS, "cat"]  # which no merge makes
    config = BASE | KINDS["llama"] | {"vocab_size": len(tokens)}
    write_gguf(tmp_path / "model.gguf", config, random_tensors(config), None, tokens, "llama-bpe", add_bos)
    write_metadata(GGUFFile.open(tmp_path / "model.gguf"), tmp_path)
    found = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert found.encode("cat").ids == [tokens.index("cat")]
    assert len(found.encode("cats").ids) == 4
    assert json.loads((tmp_path / "tokenizer_config.json").read_text())["add_bos_token"] == first


def harmed(path, config, tensors):
    write_gguf(path, config, tensors)
    path.write_bytes(path.read_bytes()[:500])


def of_other_letters(path, config, tensors):
    write_gguf(path, config, tensors)
    path.write_bytes(path.read_bytes().replace(b"{{ messages }}", b"{{ \xff\xffssages }}"))


@pytest.mark.parametrize("name", ["rope.scaling.factor", "rope.scale_linear"])
def test_a_factor_without_a_type_is_linear_as_in_llama_cpp(name, tmp_path):
    config = BASE | KINDS["llama"]
    write_gguf(tmp_path / "model.gguf", config, random_tensors(config), **{f"llama.{name}": 4})
    write_metadata(GGUFFile.open(tmp_path / "model.gguf"), tmp_path)
    found = json.loads((tmp_path / "config.json").read_text())
    assert found["rope_scaling"] == {"rope_type": "linear", "factor": 4}


def test_of_several_chat_templates_the_default_one_counts(tmp_path):
    several = [{"name": "tool_use", "template": "{{ tools }}"}, {"name": "default", "template": "{{ messages }}"}]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": several}))
    assert read_chat_template(tmp_path) == "{{ messages }}"
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": several[:1]}))
    assert read_chat_template(tmp_path) is None
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": ["{{ messages }}"]}))
    assert read_chat_template(tmp_path) is None
    (tmp_path / "chat_template.jinja").write_bytes(b"{{ \xff }}")
    with pytest.raises(ConfigError, match="is no UTF-8 text"):
        read_chat_template(tmp_path)


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda p, c, t: write_gguf(p, c | {"model_type": "gemma"}, t), "general.architecture is 'gemma'"),
        (lambda p, c, t: write_gguf(p, c, t | {"model.layers.0.mlp.router.weight": t[EMBEDDING]}), "no part for"),
        (
            lambda p, c, t: write_gguf(p, c, {n: v for n, v in t.items() if "mlp.up" not in n}),
            "lacks model.layers.0",
        ),
        (lambda p, c, t: p.write_bytes(b"something else"), "is no GGUF file"),
        (harmed, "is no GGUF file"),
        (lambda p, c, t: write_gguf(p, c, t, pre=None), "cuts texts as None"),
        (lambda p, c, t: write_gguf(p, c, t, **{"split.count": 3}), "is one of 3 files"),
        (
            lambda p, c, t: write_gguf(p, c, t | {EMBEDDING: t[EMBEDDING].astype(np.float64)}),
            "of the type F64, which",
        ),
        (lambda p, c, t: None, "is missing"),
        (lambda p, c, t: write_gguf(p, c, t, merges=()), "has no tokenizer.ggml.merges"),
        (lambda p, c, t: write_gguf(p, c, t, merges=("th",)), "has 'th', which makes no token"),
        (lambda p, c, t: write_gguf(p, c, t, merges=("x y",)), "has 'x y', which makes no token"),
        (lambda p, c, t: write_gguf(p, c, t, tokens=[*TOKENS[:-1], "th"]), "holds a token twice"),
        (
            lambda p, c, t: write_gguf(p, c | {"bos_token_id": 999}, t),
            "model.gguf/config.json: bos_token_id is 999",
        ),
        (
            lambda p, c, t: write_gguf(p, c, t, **{"llama.rope.dimension_count": 8}),
            "rope.dimension_count is 8, of 16",
        ),
        (of_other_letters, "tokenizer.chat_template is no UTF-8 text"),
    ],
    ids=[
        *("kind", "more", "fewer", "other", "cut", "pre", "split", "type", "none"),
        *("merges", "one", "unknown", "twice", "bos", "turned", "letters"),
    ],
)
def test_what_is_not_read_is_refused_by_name(write, message, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(LAYER, "ffn_router", "mlp.router")  # for the test's own writer
    config = BASE | KINDS["llama"]
    write(tmp_path / "model.gguf", config, random_tensors(config))
    monkeypatch.undo()
    command = ["convert", "from-hf", str(tmp_path / "model.gguf"), "--output", str(tmp_path / "run"), *SMALL]
    assert main(command) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
