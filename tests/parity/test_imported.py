"""An imported Llama begins and ends texts as under transformers, whatever its files call its marks."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from lm_eval.models.huggingface import HFLM
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from transfusion_jax.cli import main
from transfusion_jax.evaluation.harness import HarnessModel
from transfusion_jax.generation.prompt import prompt_of
from transfusion_jax.generation.single import write_texts
from transfusion_jax.generation.token_sampling import Writing
from transfusion_jax.tasks.base import make_task
from transfusion_jax.training.checkpoint.reader import to_devices
from transfusion_jax.training.facts import codec_of
from transfusion_jax.training.run_dir import Workdir
from transfusion_jax.training.start_run import find_checkpoint

pytestmark = pytest.mark.parity

SMALL = ["--config.model.latent_shape=(4,4,2)", "--config.data.encoding=pixels", "--config.model.remat=none"]
SMALL += ["--config.batch_rows=8", "--config.data.max_images=2", "--config.model.compute_dtype=float32"]
WORDS = ["the", "a", "cat", "dog", "bird", "sat", "ran", "flew", "on", "under", "mat", "tree"]
DEEP = ("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>")
LONGEST, WRITTEN = 64, 12


def bytes_of(marks):
    """Byte-level BPE, as GPT-2's and Llama 3's."""
    entries = [*marks, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(entries)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def pieces(marks):
    """SentencePiece's way with bytes for what is unknown, as Llama 2's."""
    entries = [*marks, "<unk>", *(f"<0x{n:02X}>" for n in range(256)), "▁", *"abcdefghijklmnopqrstuvwxyz", "▁t"]
    vocabulary = {c: i for i, c in enumerate(entries)}
    tokenizer = Tokenizer(
        models.BPE(vocab=vocabulary, merges=[("▁", "t")], unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1)]
    tokenizer.decoder = decoders.Sequence(parts)
    return tokenizer


def words(marks):
    """A table of words."""
    entries = {word: i for i, word in enumerate([*marks, "<unk>", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocab=entries, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return tokenizer


def case(kind, marks, tokenizer, config, first=None, more=0, written=None):
    """A tokenizer with its marks and its own words for them, a config.json, and what stands before each text.

    `more` is the number of entries without a token; `written` says which of the tokens that the model would write
    are to end it, too.
    """
    return SimpleNamespace(**locals())


CASES = {
    "DeepSeek's names": case(bytes_of, DEEP, dict(bos=0, eos=1), dict(bos=0, eos=1)),
    "DeepSeek's names in front": case(bytes_of, DEEP, dict(bos=0, eos=1), dict(bos=0, eos=1), first=0),
    "one for both": case(bytes_of, ["<|endoftext|>"], dict(bos=0, eos=0), dict(bos=0, eos=0)),
    "a chat's": case(
        bytes_of, ["<|endoftext|>", "<|im_start|>", "<|im_end|>"], dict(bos=1, eos=2), dict(bos=1, eos=2)
    ),
    "no BOS": case(bytes_of, ["</s>"], dict(eos=0), dict(bos=None, eos=0)),
    "many ends": case(pieces, ["<s>", "</s>"], dict(bos=0, eos=1), dict(bos=0, eos=1), first=0, written=[1, 2]),
    "an end that is written": case(pieces, ["<s>", "</s>"], dict(bos=0, eos=1), dict(bos=0, eos=1), written=[1]),
    "usual names with other meanings": case(
        words, ["</s>", "<s>", "[BEGIN]", "[END]"], dict(bos=2, eos=3), dict(bos=2, eos=3), first=2
    ),
    "the tokenizer says nothing": case(pieces, DEEP, {}, dict(bos=0, eos=1), first=0),
    "fewer tokens than entries": case(words, ["<s>", "</s>"], dict(bos=0, eos=1), dict(bos=0, eos=1), more=40),
    "an end without a token": case(words, ["<s>", "</s>"], dict(bos=0, eos=1), dict(bos=0, eos=30), more=40),
}


def save(folder, of):
    """The model and its tokenizer as transformers saves them, and the tokens that end what it writes."""
    tokenizer = of.kind(of.marks)
    tokenizer.add_special_tokens([*of.marks])
    if of.first is not None:
        mark = of.marks[of.first]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=[mark, "$A"], special_tokens=[(mark, of.first)]
        )
    named = {f"{name}_token": of.marks[number] for name, number in of.tokenizer.items()}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **named).save_pretrained(folder)
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            intermediate_size=48,
            vocab_size=tokenizer.get_vocab_size() + of.more,
            max_position_embeddings=LONGEST,
            bos_token_id=of.config["bos"],
            eos_token_id=of.config["eos"],
        )
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.uniform_(0.5, 1.5) if parameter.ndim == 1 else parameter.normal_(std=0.6)
    ends = of.config["eos"]
    if of.written:
        ids = torch.tensor([AutoTokenizer.from_pretrained(folder)("the cat").input_ids])
        would = model.generate(ids, max_new_tokens=WRITTEN, eos_token_id=None, do_sample=False)[0, ids.shape[1] :]
        one_by_one = list(dict.fromkeys(would.tolist()))
        ends = [of.config["eos"], *(one_by_one[n] for n in of.written)]
        model.generation_config.eos_token_id = ends
    model.save_pretrained(folder)
    return ends if isinstance(ends, list) else [ends]


def imported(folder, run):
    """The run of a folder, as the harness and `sample` see it."""
    assert main(["convert", "from-hf", str(folder), "--output", str(run), *SMALL]) == 0
    workdir = Workdir(run)
    task = make_task(workdir.config())
    checkpoints, step = find_checkpoint(str(run))
    params = checkpoints.weights(step, "raw", to_devices(task.model.abstract_params()))
    return task, params, codec_of(workdir)


PAIRS = [("the cat", " sat on"), ("a dog ran", " under the tree"), ("", "the bird")]


@pytest.mark.parametrize("name", CASES)
def test_texts_begin_and_end_as_under_transformers(name, tmp_path, capsys):
    of, folder = CASES[name], tmp_path / "llama"
    ends = save(folder, of)
    task, params, codec = imported(folder, tmp_path / "run")
    assert codec.special.eos == of.config["eos"]
    assert codec.special.bos == (of.config["eos"] if of.config["bos"] is None else of.config["bos"])
    assert codec.ends == (ends[0], *sorted(ends[1:]))

    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    prefix = None if of.tokenizer else of.config["bos"]  # the backend looks for it in the tokenizer alone
    theirs = HFLM(pretrained=model, tokenizer=tokenizer, device="cpu", max_length=LONGEST, prefix_token_id=prefix)
    asked = [SimpleNamespace(args=pair) for pair in PAIRS]
    expected, found = (
        one.loglikelihood(asked, disable_tqdm=True) for one in (theirs, HarnessModel(task, params, codec))
    )
    np.testing.assert_allclose([x for x, _ in found], [x for x, _ in expected], atol=1e-3)
    assert [greedy for _, greedy in found] == [greedy for _, greedy in expected]

    prompts = ["the cat", "a dog", "bird"]
    ours = write_texts(
        task, params, codec, [prompt_of(text, codec) for text in prompts], Writing(max_tokens=WRITTEN)
    )
    for prompt, text in zip(prompts, ours, strict=True):
        ids = torch.tensor([tokenizer(prompt).input_ids])
        written = model.generate(ids, max_new_tokens=WRITTEN, do_sample=False)[0, ids.shape[1] :].tolist()
        written = written[:-1] if written[-1] in ends else written
        assert text == codec.tokenizer.decode(np.array(written)), prompt
    if of.written:
        ids = torch.tensor([tokenizer("the cat").input_ids])
        assert model.generate(ids, max_new_tokens=WRITTEN, do_sample=False).shape[1] < ids.shape[1] + WRITTEN


@pytest.mark.parametrize("name", CASES)
def test_transformers_reads_the_same_facts_of_what_goes_out(name, tmp_path):
    of, out = CASES[name], tmp_path / "out"
    save(tmp_path / "llama", of)
    *_, codec = imported(tmp_path / "llama", tmp_path / "run")
    assert main(["convert", "to-hf", "--workdir", str(tmp_path / "run"), "--output", str(out)]) == 0
    before, after = (AutoModelForCausalLM.from_pretrained(folder) for folder in (tmp_path / "llama", out))
    assert after.config.max_position_embeddings == before.config.max_position_embeddings == LONGEST
    assert (after.config.bos_token_id, after.generation_config.bos_token_id) == (codec.special.bos,) * 2
    ends = after.generation_config.eos_token_id
    assert tuple(ends if isinstance(ends, list) else [ends]) == codec.ends
    first, again = (AutoTokenizer.from_pretrained(folder) for folder in (tmp_path / "llama", out))
    assert (again.bos_token_id, again.eos_token_id) == (codec.special.bos, codec.special.eos)
    for text in ("the cat sat", "a bird"):
        assert again(text).input_ids == first(text).input_ids
        ids = torch.tensor([first(text).input_ids])
        with torch.no_grad():
            logits = [model(input_ids=ids).logits[..., : before.config.vocab_size] for model in (before, after)]
        np.testing.assert_allclose(*logits, atol=1e-4)
    *_, third = imported(out, tmp_path / "third")
    assert (third.special.bos, third.ends, third.bos_first) == (codec.special.bos, codec.ends, codec.bos_first)


def test_a_longer_context_than_the_sources_is_said(tmp_path, capsys):
    save(tmp_path / "llama", CASES["one for both"])
    folder, run = str(tmp_path / "llama"), tmp_path / "run"
    assert main(["convert", "from-hf", folder, "--output", str(run), *SMALL]) == 0
    assert Workdir(run).config().data.context_length == LONGEST
    assert "at most" not in capsys.readouterr().out
    longer = [*SMALL, f"--config.data.context_length={2 * LONGEST}"]
    assert main(["convert", "from-hf", folder, "--output", str(tmp_path / "longer"), *longer]) == 0
    said = f"trained on at most {LONGEST} elements, and data.context_length is {2 * LONGEST}"
    assert said in capsys.readouterr().out
    assert main(["sample", "--workdir", str(tmp_path / "longer"), "--prompt", "a", "--score", "b"]) == 0
    out, err = capsys.readouterr()
    assert said in out + err
    train = ["train", "--workdir", str(tmp_path / "w"), "--init-from", str(run), "--config.data.sources=synthetic"]
    train += ["--config.steps=1", "--config.loop.evaluate_every=0", "--config.data.max_images=8"]
    assert main([*train, f"--config.data.context_length={2 * LONGEST}"]) == 0
    out = capsys.readouterr().out
    assert said in out
    assert "prepare data with the tokenizer that it keeps" in out
    assert main(["convert", "to-hf", "--workdir", str(tmp_path / "w"), "--output", str(tmp_path / "out")]) == 0
    assert json.loads((tmp_path / "out/config.json").read_text())["max_position_embeddings"] == 2 * LONGEST
