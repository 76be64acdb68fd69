"""`transfusion judge`: a checkpoint before the judges of papers; each needs packages or files of its own."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from transfusion_jax.commands.flags.parser import between
from transfusion_jax.commands.flags.shared import add_weights
from transfusion_jax.evaluation.protocols import PROTOCOLS

IMAGES = 30_000  # that are judged, where there are so many
IMAGES_OF_PROMPT = 4  # of GenEval's, as in the paper (arXiv 2310.11513)


def declare(parser: argparse.ArgumentParser) -> None:
    """Declares the judges and their options."""
    parts = parser.add_subparsers(metavar="JUDGE", required=True)
    for name, (declare_judge, text) in JUDGES.items():
        part = parts.add_parser(name, help=text, description=text)
        add_weights(part)
        declare_judge(part)
        part.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
        part.set_defaults(run="judge:run", judge=name, takes_overrides=False)


def _harness(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "tasks",
        nargs="*",
        default=["llama"],
        metavar="TASK",
        help="tasks or groups of lm-evaluation-harness; llama (default) is the paper's suite of seven",
    )
    parser.add_argument(
        "--num-fewshot", type=between(0), metavar="N", help="examples before a question (default: the task's)"
    )
    parser.add_argument("--limit", type=float, metavar="N", help="documents of each task; below 1, their share")
    parser.add_argument("--include", type=Path, metavar="FOLDER", help="a folder with tasks of your own, as YAML")


def _images(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--inception", type=Path, metavar="FILE", help="FID by these weights of Inception v3")
    parser.add_argument(
        "--statistics", type=Path, metavar="FILE", help="for FID: an .npz with mu and sigma, not held-out images'"
    )
    parser.add_argument(
        "--clip", type=Path, metavar="FOLDER", help="CLIP score by this CLIP, saved by transformers"
    )
    _pictures(parser)
    parser.add_argument("-n", type=between(2), metavar="N", help=f"images at most (default: {IMAGES})")
    parser.add_argument(
        "--protocol", choices=sorted(PROTOCOLS), help="as a section of the paper does: its guidance and images"
    )


def _pictures(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--pictures",
        metavar="FOLDER",
        help="prepared captioned images, all of its part for training (default: what the run's sources hold out)",
    )


def _cider(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--prompt", type=str, default="", metavar="TEXT", help="between an image and its caption (default: nothing)"
    )
    _pictures(parser)
    parser.add_argument("-n", type=between(1), metavar="N", help="images at most (default: all that are held out)")


def _geneval(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("prompts", type=Path, metavar="FILE", help="GenEval's evaluation_metadata.jsonl")
    parser.add_argument(
        "--output", type=Path, required=True, metavar="FOLDER", help="an empty folder, for its scorer"
    )
    parser.add_argument(
        "-n",
        type=between(1),
        default=IMAGES_OF_PROMPT,
        metavar="N",
        help="images of each prompt (default: %(default)s, as in GenEval's paper)",
    )
    parser.add_argument(
        "--size",
        metavar="WIDTHxHEIGHT",
        help="of the images, in pixels (default: the model's largest square, or its one size)",
    )


JUDGES: dict[str, tuple[Callable, str]] = {
    "harness": (_harness, "text tasks of lm-evaluation-harness"),
    "images": (_images, "FID and CLIP score of images for held-out captions"),
    "cider": (_cider, "CIDEr of captions for held-out images"),
    "geneval": (_geneval, "images for GenEval's prompts, in its scorer's layout"),
}
