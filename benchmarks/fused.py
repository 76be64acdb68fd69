"""A language model that has learnt to draw, beside a model of its sizes that has learnt it from nothing.

    transfusion evaluate --workdir runs/fused && transfusion evaluate --workdir runs/scratch
    python benchmarks/fused.py runs/fused runs/scratch --model MODEL

The runs are those of configs/from_llm.py (`shapes` and `scratch`), and MODEL is the folder or the GGUF file that
the first one began with. The suite `shapes` has graded the newest checkpoint of both. Intervals are Wilson's, 95 %.

The exit code is 1 where a text weight of the first run is not the model's to the bit, or where the first run draws
or names less than 70 %, or less than 90 % of what the second one does.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np

import harness
from proportions import percent, share
from transfusion_jax.conversion.foreign import open_model
from transfusion_jax.conversion.language_models import language_model_leaves
from transfusion_jax.conversion.trees import differences, open_tree
from transfusion_jax.evaluation.results import read_entries
from transfusion_jax.training.run_dir import Workdir

SCORES = {  # of the suite: what it says
    "generation_accuracy": "drawn, as the category asks",
    "generation_accuracy_whole": "drawn, every word of the caption",
    "caption_accuracy": "named",
}
JUDGED = ("generation_accuracy", "caption_accuracy")
LEAST, OF_SCRATCH = 0.70, 0.90


def main() -> None:
    """Compares and prints."""
    parser = harness.parser(__doc__, timed=False)
    parser.add_argument("fused", type=Path, help="the run that began with the language model")
    parser.add_argument("scratch", type=Path, help="the run that began with nothing")
    parser.add_argument("--model", type=Path, required=True, help="the language model")
    arguments = parser.parse_args()
    runs = {"from the language model": arguments.fused, "from nothing": arguments.scratch}
    scores = {name: shapes_of(path) for name, path in runs.items()}
    changed = changed_text(arguments.fused, arguments.model)
    fused, scratch = scores.values()
    good = not changed and all(
        fused["metrics"][name] >= max(LEAST, OF_SCRATCH * scratch["metrics"][name]) for name in JUDGED
    )
    result = {"scores": scores, "changed": changed, "machine": harness.machine()}
    harness.deliver(result, table(scores, changed), arguments.json)
    sys.exit(0 if good else 1)


def shapes_of(path: Path) -> dict[str, Any]:
    """The newest entry of the suite `shapes`."""
    entries = [entry for entry in read_entries(Workdir(path)) if entry["suite"] == "shapes"]
    if not entries:
        raise SystemExit(f"{path} was not graded: transfusion evaluate --workdir {path} --suite shapes")
    return max(entries, key=lambda entry: entry["step"])


def changed_text(run: Path, model: Path) -> list[str]:
    """Weights of the language model that are others in the run."""
    opened = open_model(model, lambda line: None)
    imported = opened.imported(Workdir(run).config()).leaves
    known = language_model_leaves() & imported.keys()
    trained = {name: leaf for name, leaf in open_tree(str(run)).items() if name in known}
    return [found.name for found in differences({name: imported[name] for name in known}, trained, 0.0)]


def table(scores: dict[str, dict[str, Any]], changed: list[str]) -> str:
    """The result in Markdown."""
    rows = [["", *scores], ["---"] * (1 + len(scores))]
    for name, says in SCORES.items():
        rows.append([says, *(percent(of_share(entry, name)) for entry in scores.values())])
    steps = " and ".join(f"{entry['step']:,}" for entry in scores.values())
    images = " and ".join(str(entry["settings"]["images"]) for entry in scores.values())
    text = ["", *(f"| {' | '.join(row)} |" for row in rows), ""]
    text.append(f"Steps: {steps}; scenes: {images}; 95 % intervals.")
    text.append(f"Text weights that changed: {', '.join(changed) or 'none'}.")
    return "\n".join(text)


def of_share(entry: dict[str, Any], name: str) -> list[float]:
    """A score with its interval; the categories have as many scenes each."""
    number = entry["settings"]["images"]
    return share(np.arange(number) < round(entry["metrics"][name] * number))


if __name__ == "__main__":
    main()
