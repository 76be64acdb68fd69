"""Text tasks of lm-evaluation-harness: a Llama here and under the harness's own Hugging Face backend."""

import json
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from transfusion_jax.cli import main
from transfusion_jax.config import ConfigError

pytestmark = pytest.mark.parity

CONTEXT = 128
SMALL = ["--config.model.latent_shape=(4,4,2)", "--config.data.encoding=pixels", "--config.model.remat=none"]
SMALL += [f"--config.data.context_length={CONTEXT}", "--config.batch_rows=8", "--config.data.max_images=2"]
SMALL += ["--config.model.compute_dtype=float32"]
WORDS = (
    "the",
    "a",
    "cat",
    "dog",
    "bird",
    "sat",
    "ran",
    "flew",
    "on",
    "under",
    "mat",
    "tree",
    "big",
    "small",
    "red",
)
CHOICES = """
task: toy_choice
dataset_path: json
dataset_kwargs: {{data_files: {{train: {folder}/train.jsonl, test: {folder}/test.jsonl}}}}
output_type: multiple_choice
training_split: train
test_split: test
fewshot_split: train
doc_to_text: "Question: {{{{question}}}}\\nAnswer:"
doc_to_target: label
doc_to_choice: "{{{{choices}}}}"
metric_list:
  - {{metric: acc, aggregation: mean, higher_is_better: true}}
  - {{metric: acc_norm, aggregation: mean, higher_is_better: true}}
"""
WRITING = """
task: toy_writing
dataset_path: json
dataset_kwargs: {{data_files: {{train: {folder}/train.jsonl, test: {folder}/test.jsonl}}}}
output_type: generate_until
training_split: train
test_split: test
fewshot_split: train
doc_to_text: "Question: {{{{question}}}}\\nAnswer:"
doc_to_target: " {{{{written}}}}"
generation_kwargs: {{until: ["e"], max_gen_toks: 12, do_sample: false}}
metric_list:
  - {{metric: exact_match, aggregation: mean, higher_is_better: true}}
"""


def byte_tokenizer():
    """Bytes and two marks; `<s>` stands before every text, as Llama's does."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(["<s>", "</s>", *alphabet])}, merges=[]))
    tokenizer.add_special_tokens(["<s>", "</s>"])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")


def documents(number, seed):
    random = np.random.default_rng(seed)

    def words(low, high):
        return " ".join(random.choice(WORDS, random.integers(low, high)))

    for _ in range(number):
        choices = [words(1, 4) for _ in range(3)]
        yield dict(question=words(2, 9), choices=choices, label=int(random.integers(3)), written=choices[0])


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    """A random Llama with a tokenizer, the run converted from it, and two tasks."""
    folder = tmp_path_factory.mktemp("harness")
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=48,
        vocab_size=258,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=False,
        bos_token_id=0,
        eos_token_id=1,
    )
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.uniform_(0.5, 1.5) if parameter.ndim == 1 else parameter.normal_(std=0.3)
    model.save_pretrained(folder / "llama")
    byte_tokenizer().save_pretrained(folder / "llama")
    run = folder / "run"
    assert main(["convert", "from-hf", str(folder / "llama"), "--output", str(run), *SMALL]) == 0
    tasks = folder / "tasks"
    tasks.mkdir()
    for name, count, seed in (("train", 5, 1), ("test", 20, 0)):
        lines = (json.dumps(document) for document in documents(count, seed))
        (tasks / f"{name}.jsonl").write_text("\n".join(lines))
    for name, text in (("choice", CHOICES), ("writing", WRITING)):
        (tasks / f"{name}.yaml").write_text(text.format(folder=tasks))
    return SimpleNamespace(folder=folder / "llama", run=run, tasks=tasks)


@pytest.fixture(scope="module")
def theirs(llama):
    """The harness's own backend."""
    from lm_eval.models.huggingface import HFLM

    return HFLM(pretrained=str(llama.folder), dtype="float32", device="cpu", batch_size=4)


@pytest.fixture(scope="module")
def ours(llama):
    from transfusion_jax.evaluation.harness import HarnessModel
    from transfusion_jax.tasks.base import make_task
    from transfusion_jax.training.checkpoint.reader import to_devices
    from transfusion_jax.training.facts import codec_of
    from transfusion_jax.training.run_dir import Workdir
    from transfusion_jax.training.start_run import find_checkpoint

    workdir = Workdir(llama.run)
    task = make_task(workdir.config())
    checkpoints, step = find_checkpoint(str(llama.run))
    params = checkpoints.weights(step, "raw", to_devices(task.model.abstract_params()))
    return HarnessModel(task, params, codec_of(workdir))


def requests(*arguments):
    return [SimpleNamespace(args=each) for each in arguments]


PAIRS = [
    ("", "the cat"),
    ("the cat", " sat"),
    ("the cat ", "sat on"),  # the space moves to the continuation
    ("naïve", " café €"),
    ("a dog " * 30, "ran over the house"),  # longer than the context: its beginning is cut off
    ("the bird", " flew " * 20),
]


def test_log_likelihoods_are_the_backends(ours, theirs):
    expected, found = (model.loglikelihood(requests(*PAIRS), disable_tqdm=True) for model in (theirs, ours))
    np.testing.assert_allclose([x for x, _ in found], [x for x, _ in expected], atol=1e-3)
    assert [greedy for _, greedy in found] == [greedy for _, greedy in expected]
    assert len({round(x) for x, _ in found}) == len(PAIRS)  # there is something to compare


def test_whole_texts_are_scored_in_the_backends_windows(ours, llama):
    from lm_eval.models.huggingface import HFLM

    # with BOS before the text, the backend would predict that BOS, too
    plain = HFLM(pretrained=str(llama.folder), dtype="float32", device="cpu", batch_size=4, add_bos_token=False)
    texts = requests(("the cat sat on the mat",), ("a small bird flew " * 20,), ("",))
    expected, found = (model.loglikelihood_rolling(texts, disable_tqdm=True) for model in (plain, ours))
    np.testing.assert_allclose(found, expected, atol=1e-3, rtol=1e-5)


def test_what_is_written_is_the_backends(ours, theirs):
    stop = {"until": ["e"], "max_gen_toks": 20, "do_sample": False}
    asked = [(f"{word} cat", stop | {"max_gen_toks": 5 + n % 2}) for n, word in enumerate(WORDS)]
    expected, found = (model.generate_until(requests(*asked), disable_tqdm=True) for model in (theirs, ours))
    assert found == expected
    assert len(set(found)) > 10


def test_a_task_may_draw_its_words(ours):
    asked = [("the cat", {"until": [], "max_gen_toks": 8, "do_sample": sample}) for sample in (False, True, True)]
    greedy, *drawn = ours.generate_until(requests(*asked), disable_tqdm=True)
    assert len({greedy, *drawn}) == 3
    asked = [(text, options | {"temperature": 1.0, "top_k": 1}) for text, options in asked]
    assert ours.generate_until(requests(*asked), disable_tqdm=True) == [greedy] * 3


def test_what_the_model_does_not_do_in_writing_is_refused(ours):
    with pytest.raises(ConfigError, match="num_beams"):
        ours.generate_until(requests(("a", {"until": [], "num_beams": 4})))
    with pytest.raises(ConfigError, match="asks for 200 tokens"):
        ours.generate_until(requests(("a", {"until": [], "max_gen_toks": 200})))


def test_scores_by_the_command_are_the_backends(llama, theirs, capsys, monkeypatch):
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    from transfusion_jax.evaluation import harness

    own = partial(TaskManager, include_defaults=False)  # reading the thousands of others takes a while
    monkeypatch.setattr(harness, "TaskManager", own)
    shots = 2
    command = ["judge", "harness", "toy_choice", "toy_writing", "--workdir", str(llama.run), "--limit", "12"]
    command += ["--num-fewshot", str(shots), "--include", str(llama.tasks), "--json"]
    capsys.readouterr()
    assert main(command) == 0
    report = json.loads(capsys.readouterr().out)
    expected = simple_evaluate(
        theirs,
        tasks=["toy_choice", "toy_writing"],
        num_fewshot=shots,
        limit=12,
        task_manager=own(include_path=str(llama.tasks)),
    )["results"]
    metrics = report["metrics"]
    assert set(metrics) == {"toy_choice/acc", "toy_choice/acc_norm", "toy_writing/exact_match"}
    for name, value in metrics.items():
        task, metric = name.split("/")
        assert value == expected[task][f"{metric},none"], name
    assert 0 < metrics["toy_choice/acc"] < 1
    assert report["harness"]["n-shot"] == {"toy_choice": shots, "toy_writing": shots}
    assert report["harness"]["n-samples"]["toy_choice"]["effective"] == 12
    assert json.loads((llama.run / "judge-harness.json").read_text()) == report


@pytest.fixture
def stubbed(monkeypatch):
    """Our side of the harness, with the paper's tasks and their scores made up."""
    from transfusion_jax.evaluation import harness

    def evaluate(model, tasks, **_):
        counted = dict(zip(harness.SUITE, (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7), strict=True))
        results = {task: {"acc,none": 0.0, "acc_stderr,none": 0.0, "alias": task} for task in tasks}
        for task in results:
            results[task][f"{harness.SUITE[task]},none"] = counted[task]
        return {"results": results, "versions": {}, "n-shot": {}, "n-samples": {}}

    monkeypatch.setattr(harness, "simple_evaluate", evaluate)
    monkeypatch.setattr(harness, "TaskManager", lambda include_path: SimpleNamespace(all_tasks=[*harness.SUITE]))
    return harness


def test_the_suite_averages_what_counts_of_each_task(stubbed):
    metrics, _ = stubbed.run_harness(None, ["llama"])
    assert metrics["llama"] == pytest.approx(0.4)
    assert (metrics["hellaswag/acc"], metrics["hellaswag/acc_norm"], metrics["boolq/acc"]) == (0.0, 0.1, 0.7)
    assert len(metrics) == 7 + 4 + 1  # no errors of estimation, no names


def test_an_unknown_task_is_named(stubbed):
    with pytest.raises(ConfigError, match="did you mean 'hellaswag'"):
        stubbed.run_harness(None, ["helaswag"])
