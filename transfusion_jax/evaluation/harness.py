"""Text tasks of EleutherAI's lm-evaluation-harness (the extra `harness`): our model as one of its models.

A context begins with BOS, as documents do, but for an imported model whose tokenizer puts none there. One that is
too long loses its beginning, BOS with it; before text is written, it keeps BOS.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lm_eval import simple_evaluate
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import normalize_gen_kwargs
from lm_eval.tasks import TaskManager
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from tqdm import tqdm

from transfusion_jax.config import nearest, require
from transfusion_jax.data.datasets import Codec
from transfusion_jax.data.documents import Document, Text
from transfusion_jax.generation.scoring import score_tokens
from transfusion_jax.generation.single import write_texts
from transfusion_jax.generation.token_sampling import Writing
from transfusion_jax.model.transfusion import Params
from transfusion_jax.parallel.processes import first
from transfusion_jax.tasks.families import ModelTask

LLAMA = "llama"  # the paper's suite, and which metric of each task counts
SUITE = {
    "hellaswag": "acc_norm",
    "piqa": "acc_norm",
    "social_iqa": "acc",  # SIQA; the harness normalises neither this nor the next
    "winogrande": "acc",
    "arc_easy": "acc_norm",
    "arc_challenge": "acc_norm",
    "boolq": "acc",
}
CHANCES = ("temperature", "top_k", "top_p", "min_p")
KNOWN = ("do_sample", "until", "max_gen_toks", *CHANCES)  # what a task may ask of writing


class HarnessModel(TemplateLM):
    """A trained model, its weights, and how it codes texts, for `lm_eval.simple_evaluate`."""

    def __init__(self, task: ModelTask, params: Params, codec: Codec):
        super().__init__()
        self._task, self._params, self._codec = task, params, codec

    @property
    def eot_token_id(self) -> int:
        """EOS."""
        return self._codec.special.eos

    @property
    def prefix_token_id(self) -> int:
        """BOS, which an empty context consists of."""
        return self._codec.special.bos

    @property
    def max_length(self) -> int:
        """The context's elements."""
        return self._task.config.data.context_length

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """A text's tokens, behind BOS where the model's texts begin so and it is wanted."""
        tokens: list[int] = self._codec.tokenizer.encode(string).tolist()
        bare = add_special_tokens is False or not self._codec.bos_first
        return tokens if bare else [self.prefix_token_id, *tokens]

    def loglikelihood_rolling(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[float]:
        """The log-likelihood of whole texts behind BOS, in windows of the context's length."""
        windows, owners = [], []
        for owner, (text,) in enumerate(request.args for request in requests):
            tokens = self.tok_encode(text, add_special_tokens=False)
            parts = get_rolling_token_windows(tokens, self.prefix_token_id, self.max_length, context_len=1)
            for part in parts:
                windows.append(("", *make_disjoint_window(part)))
                owners.append(owner)
        totals = [0.0] * len(requests)
        for owner, (chance, _) in zip(owners, self._loglikelihood_tokens(windows, disable_tqdm), strict=True):
            totals[owner] += chance
        return totals

    def generate_until(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[str]:
        """What the model writes behind each text, up to a stop string, EOS, or the task's limit."""
        alike: dict[Writing, list[int]] = {}
        for number, request in enumerate(requests):
            alike.setdefault(_writing(request.args[1]), []).append(number)
        written = [""] * len(requests)
        progress = tqdm(total=len(requests), disable=disable_tqdm or not first(), desc="writing")
        for writing, numbers in alike.items():
            documents = [self._document(requests[number].args[0], writing) for number in numbers]
            texts = write_texts(self._task, self._params, self._codec, documents, writing)
            for number, text in zip(numbers, texts, strict=True):
                written[number] = text
            progress.update(len(numbers))
        return written

    def _document(self, text: str, writing: Writing) -> Document:
        room = self.max_length - max(self._codec.bos_first + writing.max_tokens, 2)
        require(
            room > 0,
            f"a task asks for {writing.max_tokens} tokens, and the model's context is {self.max_length}",
        )
        tokens = self._codec.tokenizer.encode(text)[-room:]
        return Document((Text(tokens),) if len(tokens) else ())

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], disable_tqdm: bool = False, **_: Any
    ) -> list[tuple[float, bool]]:
        longest = self.max_length + 1  # the last token is predicted only
        contexts = [before[-max(1, longest - len(after)) :] for _, before, after in requests]
        found = score_tokens(self._task, self._params, self._codec, contexts, [after for *_, after in requests])
        results = [(0.0, False)] * len(requests)
        silent = disable_tqdm or not first()
        for number, score in tqdm(found, total=len(requests), disable=silent, desc="log-likelihoods"):
            results[number] = score.log_likelihood, score.greedy
        return results


def run_harness(
    model: HarnessModel,
    tasks: Sequence[str],
    num_fewshot: int | None = None,
    limit: float | None = None,
    include: Path | None = None,
) -> tuple[dict[str, float], dict[str, Any]]:
    """Every metric of the tasks, as `task/metric`, and `llama` where that suite is asked for; and the details.

    Args:
        model: the model.
        tasks: names of tasks and groups of the harness, or `llama`.
        num_fewshot: examples before each question; None leaves it to the tasks.
        limit: documents of each task, or below 1 their share; None takes all.
        include: a folder with more tasks, as YAML files.

    Raises:
        ConfigError: there is no such task, or one asks for what the model does not do.
    """
    manager = TaskManager(include_path=include)
    wanted = [name for task in tasks for name in (SUITE if task == LLAMA else (task,))]
    for name in wanted:
        near = nearest(name, _near(name, manager))
        require(name in manager.all_tasks, f"the harness has no task {name!r}; {near}")
    found = simple_evaluate(
        model,
        tasks=list(dict.fromkeys(wanted)),
        num_fewshot=num_fewshot,
        limit=limit if limit is None or limit < 1 else int(limit),
        task_manager=manager,
        log_samples=False,
        torch_random_seed=None,
    )
    metrics = {
        f"{task}/{key.removesuffix(',none')}": float(value)
        for task, values in found["results"].items()
        for key, value in values.items()
        if "," in key and "_stderr," not in key and not isinstance(value, str)
    }
    if LLAMA in tasks:
        metrics[LLAMA] = sum(metrics[f"{task}/{metric}"] for task, metric in SUITE.items()) / len(SUITE)
    details = {name: found[name] for name in ("results", "versions", "n-shot", "n-samples")}
    return metrics, details


def _near(name: str, manager: TaskManager) -> list[str]:
    """Tasks that begin alike, of thousands."""
    return [other for other in (*manager.all_tasks, LLAMA) if other[:2] == name[:2]] or [LLAMA]


def _writing(asked: Mapping[str, Any]) -> Writing:
    options: Mapping[str, Any] = normalize_gen_kwargs(dict(asked))
    for name in options:
        require(name in KNOWN, f"a task asks for {name!r} in writing, which the model does not do")
    how = {}
    if options["do_sample"]:  # without a temperature, at that of the model
        how = {"temperature": 1.0} | {name: options[name] for name in CHANCES if name in options}
    return Writing(max_tokens=options["max_gen_toks"], stop=tuple(filter(None, options["until"])), **how)
