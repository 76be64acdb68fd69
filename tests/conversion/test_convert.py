import json
import re

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from helpers import tiny_config, tiny_run
from transfusion_jax.cli import main
from transfusion_jax.config import ConfigError
from transfusion_jax.conversion import shards
from transfusion_jax.conversion.architectures import text_architecture
from transfusion_jax.data import tokenizer as tokenizers
from transfusion_jax.data.tokenizer import Numbers
from transfusion_jax.storage.atomic import read_json, write_json

RMS = dict(model__query_key_norm=True, model__query_key_norm_kind="rms")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of two steps."""
    path = tmp_path_factory.mktemp("run") / "w"
    tiny_run(path, tiny_config(steps=2, loop__evaluate_every=0))
    # the letters of the tests' tokenizer are no file: a reader of the run finds numbers
    manifest = read_json(path / "manifest.json", "")
    manifest["codec"] |= {"tokenizer": "numbers-20", "tokenizer_hash": tokenizers.hash_of(Numbers(20))}
    write_json(path / "manifest.json", manifest)
    return path


@pytest.fixture(scope="module")
def written(trained, tmp_path_factory):
    """The same run as safetensors in several files."""
    path = tmp_path_factory.mktemp("safe") / "s"
    command = ["convert", "to-safetensors", "--workdir", str(trained), "--weights", "raw", "--output", str(path)]
    assert main([*command, "--max-shard-size", "4KB"]) == 0
    return path


def test_all_parameters_go_out_and_come_back_to_the_bit(trained, written, tmp_path, capsys):
    assert len(list(written.glob("*.safetensors"))) > 2
    assert main(["convert", "from-safetensors", str(written), "--output", str(tmp_path / "again")]) == 0
    capsys.readouterr()
    for first, second in ((trained, written), (trained, tmp_path / "again")):
        assert main(["convert", "diff", str(first), str(second)]) == 0
        assert "0 of" in capsys.readouterr().out
    before, after = (json.loads((run / "manifest.json").read_text()) for run in (trained, tmp_path / "again"))
    assert before["codec"]["latents"] == after["codec"]["latents"]
    assert (
        main(["convert", "to-safetensors", "--workdir", str(tmp_path / "again"), "--output", str(tmp_path / "b")])
        == 0
    )


def test_inspect_says_what_there_is(trained, written, capsys):
    for path in (trained, written):
        assert main(["convert", "inspect", str(path), "--json"]) == 0
        found = json.loads(capsys.readouterr().out)
        leaves = {leaf["name"]: leaf for leaf in found["leaves"]}
        assert leaves["trunk/layers/mlp/gate"]["shape"] == [2, 16, 24]
        assert found["parameters"] == sum(leaf["values"] for leaf in found["leaves"])
        assert all(leaf["finite"] for leaf in found["leaves"])
    assert main(["convert", "inspect", str(written)]) == 0
    assert "2×16×24" in capsys.readouterr().out


def test_diff_finds_what_differs(written, tmp_path, capsys):
    changed = {k: v for file in written.glob("*.safetensors") for k, v in load_file(file).items()}
    changed["text_head"] = changed["text_head"] * 1.01
    changed["embedding"] = changed["embedding"][:-1]
    del changed["trunk/final_norm/scale"]
    save_file(changed, tmp_path / "changed.safetensors")
    spec = str(tmp_path / "changed.safetensors")
    assert main(["convert", "diff", str(written), spec, "--json"]) == 1
    found = {d["name"]: d for d in json.loads(capsys.readouterr().out)["differences"]}
    assert found.keys() == {"text_head", "embedding", "trunk/final_norm/scale"}
    assert found["text_head"]["relative"] == pytest.approx(0.01, rel=1e-3)
    assert "only in the first" in found["trunk/final_norm/scale"]["what"]
    assert main(["convert", "diff", str(written), spec, "--tolerance", "0.02"]) == 1
    assert "text_head" not in capsys.readouterr().out


def test_a_weight_that_is_not_finite_is_shown(tmp_path, capsys):
    save_file({"a": np.array([1, np.nan], np.float32)}, tmp_path / "nan.safetensors")
    assert main(["convert", "inspect", str(tmp_path / "nan.safetensors")]) == 0
    assert "NOT FINITE" in capsys.readouterr().out
    spec = str(tmp_path / "nan.safetensors")
    assert main(["convert", "diff", spec, spec]) == 1


def test_bfloat16_is_written_and_read(trained, tmp_path):
    command = ["convert", "to-safetensors", "--workdir", str(trained), "--weights", "raw", "--dtype", "bfloat16"]
    assert main([*command, "--output", str(tmp_path / "s")]) == 0
    assert main(["convert", "diff", str(trained), str(tmp_path / "s"), "--tolerance", "0.01"]) == 0
    assert main(["convert", "diff", str(trained), str(tmp_path / "s")]) == 1


def test_damage_is_named(written, tmp_path):
    import shutil

    folder = tmp_path / "damaged"
    shutil.copytree(written, folder)
    first = sorted(folder.glob("*.safetensors"))[0]
    whole = first.read_bytes()
    first.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ConfigError, match="is damaged"):
        shards.Shards.of(folder)
    first.unlink()
    with pytest.raises(ConfigError, match="is missing"):
        shards.Shards.of(folder)
    first.write_bytes(whole)
    index = folder / shards.INDEX
    values = json.loads(index.read_text())
    values["weight_map"]["another"] = first.name
    index.write_text(json.dumps(values))
    with pytest.raises(ConfigError, match="names tensors that no file holds: another"):
        shards.Shards.of(folder)


def test_what_makes_no_sense_is_refused(trained, written, tmp_path, capsys):
    def refused(*words):
        assert main(["convert", *words]) != 0
        return capsys.readouterr().err

    assert "not empty" in refused("to-safetensors", "--workdir", str(trained), "--output", str(written))
    assert "5GB or 200MB" in refused(
        "to-safetensors", "--workdir", str(trained), "--output", str(tmp_path / "x"), "--max-shard-size", "big"
    )
    assert "already holds a run" in refused("from-safetensors", str(written), "--output", str(trained))
    assert "no config.json" in refused("from-hf", str(tmp_path), "--output", str(tmp_path / "y"))
    (tmp_path / "config.json").write_text("{")
    assert "is no JSON" in refused("from-hf", str(tmp_path), "--output", str(tmp_path / "y"))
    (tmp_path / "config.json").write_text("{}")
    assert "lacks hidden_size" in refused("from-hf", str(tmp_path), "--output", str(tmp_path / "y"))
    assert "was not written by" in refused("from-safetensors", str(tmp_path), "--output", str(tmp_path / "y"))


def test_a_card_says_how_the_folder_is_used(written, tmp_path, monkeypatch):
    card = (written / "README.md").read_text()
    begin, *others = re.search(r"```sh\n(.*?)```", card, re.DOTALL).group(1).splitlines()
    monkeypatch.chdir(written)
    command = begin.split()
    assert main([*command[1:-1], str(tmp_path / command[-1])]) == 0
    assert (tmp_path / "run/config.json").exists()
    for line in others:
        assert line.startswith("transfusion ")
        with pytest.raises(SystemExit, match="0"):
            main([*line.split()[1:], "--help"])


@pytest.mark.parametrize(
    "changes",
    [dict(model__norm="post"), dict(model__query_key_norm=True), dict(model__attention_bias=True) | RMS],
    ids=str,
)
def test_what_is_no_language_model_is_refused(changes):
    with pytest.raises(ConfigError, match="no language model has"):
        text_architecture(tiny_config(**changes).model)


@pytest.mark.parametrize(
    ("changes", "kind"),
    [
        ({}, "llama"),
        (dict(model__modality_weights="untied"), "llama"),  # texts do not go through the weights of patches
        (dict(model__kv_heads=1, model__tied_embeddings=True), "llama"),
        (dict(model__attention_bias=True), "qwen2"),
        (dict(model__head_dim=4) | RMS, "qwen3"),
    ],
    ids=str,
)
def test_the_kind_of_a_text_path_follows_from_its_fields(changes, kind):
    assert text_architecture(tiny_config(**changes).model).model_type == kind


@pytest.mark.parametrize("entries", [{"a": 0, "b": 1}, {"a": 0, "b": 5}])
def test_a_tokenizer_goes_out_with_its_marks(entries, tmp_path):
    from tokenizers import Tokenizer, models

    from transfusion_jax.autoencoder.kinds.identity import Identity
    from transfusion_jax.conversion.hugging_face import write_tokenizer
    from transfusion_jax.data.datasets import Codec
    from transfusion_jax.data.marks import Marks
    from transfusion_jax.data.tokenizer import SpecialTokens
    from transfusion_jax.data.tokenizer_files import HuggingFace

    content = Tokenizer(models.WordLevel(entries, unk_token="a")).to_str().encode()
    ours = HuggingFace(content, marks=Marks(None, 0, (), 8))
    write_tokenizer(Codec(ours, SpecialTokens.of(ours), Identity(), None), 64, tmp_path)
    about = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert (about["eos_token"], about["model_max_length"], about["add_bos_token"]) == ("a", 64, True)
    found = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert {name: found.token_to_id(name) for name in entries} == entries
    if "bos_token" in about:
        assert found.encode("b").ids == [8, 1]
        assert [found.token_to_id(about[f"{name}_token"]) for name in ("bos", "pad")] == [8, 12]
    assert ("bos_token" in about) == (entries["b"] == 1)
