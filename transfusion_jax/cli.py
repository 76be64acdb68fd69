"""The console script `transfusion`: one subcommand per file of `commands`.

What a command can be asked for is declared in `commands/flags`, so that help and mistakes are answered at once; its
own file, with all that it needs, is imported to run it.
"""

from __future__ import annotations

import argparse
import difflib
import errno
import io
import os
import select
import signal
import sys
from collections.abc import Iterator, Sequence
from importlib import import_module

from transfusion_jax import __version__
from transfusion_jax.commands.flags.parser import Parser
from transfusion_jax.config import ConfigError
from transfusion_jax.errors import StorageError, UserError, check_text, cut_lines, printable, require

COMMANDS = {  # by name: what each does; its module in `commands.flags` has the same name
    "prepare": "files, tables and data sets into documents to train on",
    "doctor": "look into prepared data, a run, or a row of a run",
    "plan": "memory, step time and cost of a run on a given topology, without the hardware",
    "train": "train or resume in a workdir",
    "launch": "run another command on many hosts",
    "sample": "draw, write, caption, edit or score",
    "serve": "a page and an API on a trained model",
    "evaluate": "run evaluation suites on a checkpoint",
    "judge": "a checkpoint before the judges of papers",
    "autoencoder": "train or export an image autoencoder",
    "convert": "weights in and out, looked at, compared",
    "scale": "scaling curves and what they say",
}
OVERRIDE = "--config."
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)
CLOSED = (errno.EISDIR, errno.ENOTDIR, errno.EACCES, errno.EPERM)
NO_NAME = (errno.ENAMETOOLONG, errno.ELOOP)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command and returns its exit code; `errors` lists them."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # data may hold what a terminal's encoding does not
    try:
        arguments, overrides = parse_command(list(sys.argv[1:] if argv is None else argv))
        module, _, function = arguments.run.partition(":")
        code: int = getattr(import_module(f"transfusion_jax.commands.{module}"), function)(arguments, overrides)
        if sys.stdout is not None:
            sys.stdout.flush()
    except UserError as error:
        return _end(error.exit_code, error)
    except KeyboardInterrupt:  # where a command has nothing to save
        return _end(128 + signal.SIGINT, "interrupted")
    except OSError as error:
        if isinstance(error, BrokenPipeError) and _nobody_reads():
            return _end(StorageError.exit_code, "nobody reads what is printed any more")
        if error.errno not in FULL + CLOSED + NO_NAME:
            raise
        return _end((ConfigError if error.errno in NO_NAME else StorageError).exit_code, error)
    except (RuntimeError, AssertionError):
        if not (missing := _missing_backend()):
            raise
        return _end(ConfigError.exit_code, missing)
    return code


def parse_command(words: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """What the command line asks for, and the fields of a config that it sets, as `a.b=value`.

    `arguments.run` names what runs it, "MODULE:FUNCTION" in `commands`, and `arguments.command` the words after --.

    Raises:
        ConfigError: an unknown option, a value that an option cannot have, or options that do not go together.
        SystemExit: help was asked for.
    """
    for word in words:
        check_text(word, "the argument")
        require(not (word.startswith("-") and word.endswith("=--")), f"{word}: -- is no value of an option")
    end = words.index("--") if "--" in words else len(words)
    words, launched = words[:end], words[end + 1 :]
    overrides = [word.removeprefix(OVERRIDE) for word in words if word.startswith(OVERRIDE)]
    parser = _parser({*words[:1], *launched[:1]})
    arguments = _parse(parser, words)
    if launched:  # a mistake in it is found now, not once many hosts are booked
        _parse(parser, launched)
    if launched and words[0] != "launch":
        raise ConfigError("-- and a command after it go with launch")
    arguments.command = launched
    if overrides and not arguments.takes_overrides:
        raise ConfigError(
            f"{OVERRIDE}… goes with commands that take --config: a trained run keeps its config, and what all "
            "runs of a ladder change stands in its `changes`"
        )
    return arguments, overrides


def _parse(parser: argparse.ArgumentParser, words: list[str]) -> argparse.Namespace:
    arguments, unknown = parser.parse_known_args([word for word in words if not word.startswith(OVERRIDE)])
    for word in unknown:
        option = word.partition("=")[0]
        near = difflib.get_close_matches(option, _options(parser), n=1)
        help_of = f"see transfusion {words[0]} --help"
        raise ConfigError(
            f"{words[0]} does not take {option}: " + (f"did you mean {near[0]}?" if near else help_of)
        )
    return arguments


def _options(parser: argparse.ArgumentParser) -> Iterator[str]:
    """The options of a parser and of all its parts."""
    for action in parser._actions:
        yield from action.option_strings
        if isinstance(action, argparse._SubParsersAction):
            for part in action.choices.values():
                yield from _options(part)


def _parser(called: set[str]) -> argparse.ArgumentParser:
    """All commands by name, and the options of those that are called."""
    parser = Parser("transfusion", description="Transfusion pretraining in JAX.", allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"transfusion {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for name, text in COMMANDS.items():
        command = commands.add_parser(name, help=text)
        if name in called:
            flags = import_module(f"transfusion_jax.commands.flags.{name}")
            command.description = flags.__doc__
            flags.declare(command)
    return parser


def _missing_backend() -> str:
    """Why JAX has no devices, where that is so; without JAX, nothing has asked for any."""
    if "jax" not in sys.modules:
        return ""
    from transfusion_jax.parallel.devices import missing_backend

    return missing_backend()


def _nobody_reads() -> bool:
    """Whether what is printed goes into a closed pipe, as before `head`; then nothing more is written to it."""
    if sys.stdout is None:
        return False
    printing, poll = sys.stdout.fileno(), select.poll()
    poll.register(printing, 0)
    if not poll.poll(0):  # errors are told unasked
        return False
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, printing)
    os.close(nowhere)
    return True


def _end(code: int, error: Exception | str) -> int:
    text = cut_lines(printable(str(error)))
    print(f"transfusion: {text}", file=sys.stderr)
    processes = sys.modules.get("transfusion_jax.parallel.processes")  # not imported: there is one process
    if processes and processes.process_count() > 1:  # the others must not wait for this one
        processes.leave(code, text)
    return code


if __name__ == "__main__":
    sys.exit(main())
