"""Options that several commands have."""

from __future__ import annotations

import argparse

from transfusion_jax.config import Choices
from transfusion_jax.storage.paths import place

OVERRIDES = (
    "Overrides: --config.a.b=value sets a field of the config, such as --config.optimizer.learning_rate=1e-4."
)


def add_training(parser: argparse.ArgumentParser, dry_run: str) -> None:
    """`--config`, `--workdir`, `--dry-run`, `--json`, `--profile`, `--wandb` and `--allow-cpu`.

    Args:
        parser: takes the options.
        dry_run: what runs in place of the training with --dry-run, as `arguments.run` names it.
    """
    parser.epilog = OVERRIDES
    parser.add_argument(
        "--config", metavar="FILE[:arg]", help="a config file; without it, that of the run begun with"
    )
    parser.add_argument("--workdir", type=place, help="where the run is kept; the same one resumes it")
    parser.add_argument(
        "--dry-run",
        action="store_const",
        dest="run",
        const=dry_run,
        help="print the resolved config and its size, and stop",
    )
    parser.add_argument("--json", action="store_true", help="with --dry-run: print one JSON object")
    parser.add_argument(
        "--profile", metavar="A:B", help="trace steps A to B-1 for XProf, into the workdir's profile"
    )
    parser.add_argument("--wandb", metavar="PROJECT[/RUN]", help="log to Weights & Biases, too")
    parser.add_argument("--allow-cpu", action="store_true", help="compute on the CPU beside an unused accelerator")


def add_accept_changes(parser: argparse._ActionsContainer) -> None:
    """`--accept-changes`."""
    parser.add_argument("--accept-changes", metavar="FIELD,...", help="fields of the recipe that may change here")


def add_weights(parser: argparse.ArgumentParser) -> None:
    """`--workdir`, `--step` and `--weights`: which weights of a run to read."""
    parser.add_argument("--workdir", type=place, required=True, help="a run's directory")
    parser.add_argument("--step", default="latest", help="checkpoint: N, latest (default) or best")
    parser.add_argument(
        "--weights",
        choices=("ema", "raw"),
        help="which weights (default: ema where the run keeps an average)",
    )


def add_extend(parser: argparse.ArgumentParser) -> None:
    """`--extend`."""
    parser.add_argument(
        "--extend",
        action="append",
        default=[],
        metavar="FILE.py|MODULE",
        help="load this first: it adds choices of its own (docs/extending.md)",
    )


def table(choices: Choices) -> str:
    """A table of choices for the end of a help text, a line each."""
    width = max(map(len, choices))
    return "\n".join(f"  {name:<{width}}  {text}" for name, text in choices.help.items())


def add_json(parser: argparse.ArgumentParser) -> None:
    """`--json`."""
    parser.add_argument("--json", action="store_true", help="print one JSON object")
