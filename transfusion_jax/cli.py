"""The console script `transfusion`: one subcommand per file of `commands`."""

from __future__ import annotations

import argparse
import errno
import signal
import sys
from collections.abc import Sequence

from transfusion_jax import __version__
from transfusion_jax.commands import (
    autoencoder,
    convert,
    doctor,
    evaluate,
    judge,
    launch,
    plan,
    prepare,
    sample,
    scale,
    serve,
    train,
)
from transfusion_jax.config import ConfigError
from transfusion_jax.errors import StorageError, UserError
from transfusion_jax.parallel import processes

COMMANDS = (prepare, doctor, plan, train, launch, sample, serve, evaluate, judge, autoencoder, convert, scale)
OVERRIDE = "--config."
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)
CLOSED = (errno.EISDIR, errno.ENOTDIR, errno.EACCES, errno.EPERM)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command and returns its exit code; `errors` lists them."""
    parser = argparse.ArgumentParser(
        "transfusion", description="Transfusion pretraining in JAX.", allow_abbrev=False
    )
    parser.add_argument("--version", action="version", version=f"transfusion {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for command in COMMANDS:
        command.add_parser(commands)
    words = list(sys.argv[1:] if argv is None else argv)
    end = words.index("--") if "--" in words else len(words)
    words, launched = words[:end], words[end + 1 :]
    overrides = [word.removeprefix(OVERRIDE) for word in words if word.startswith(OVERRIDE)]
    try:
        arguments = parser.parse_args([word for word in words if not word.startswith(OVERRIDE)])
        if launched:  # a mistake in it is found now, not once many hosts are booked
            parser.parse_args([word for word in launched if not word.startswith(OVERRIDE)])
        if launched and arguments.run is not launch.run:
            raise ConfigError("-- and a command after it go with launch")
        arguments.command = launched
        if overrides and not arguments.takes_overrides:
            raise ConfigError(
                f"{OVERRIDE}… goes with commands that take --config: a trained run keeps its config, and what all "
                "runs of a ladder change stands in its `changes`"
            )
        code: int = arguments.run(arguments, overrides)
    except UserError as error:
        return _end(error.exit_code, error)
    except KeyboardInterrupt:  # where a command has nothing to save
        return _end(128 + signal.SIGINT, "interrupted")
    except OSError as error:
        if error.errno not in FULL + CLOSED:
            raise
        return _end(StorageError.exit_code, error)
    return code


def _end(code: int, error: Exception | str) -> int:
    print(f"transfusion: {error}", file=sys.stderr)
    if processes.count() > 1:  # the others must not wait for this one
        processes.leave(code, str(error))
    return code


if __name__ == "__main__":
    sys.exit(main())
